"""The task architecture: find the best model under a parameter limit, for each token budget."""

import itertools

from autollm_jax.ground_truth.language_model import (
    LanguageModelRun,
    LanguageModelSetup,
    language_model_plan,
)
from autollm_jax.ground_truth.plan import Cell, Plan, seeds_of
from autollm_jax.gym.spaces import Dimension, Space

TASK = "architecture"
NAMES = ("width", "layers", "heads", "kv_heads", "mlp_ratio")
DEFAULT_ORIGIN = (
    "the proportions of GPT-2 (MLP ratio 4, multi-head attention), the middle depth, as wide as "
    "the limit allows"
)


UNITS = {
    "config.width": "of the residual stream",
    "config.layers": "transformer blocks",
    "config.heads": "query heads; their width is the model's over their number",
    "config.kv_heads": "key-value heads",
    "config.mlp_ratio": "width of the (gated) MLP over the model's",
    "parameters": "all parameters, the tied embedding counted once",
}


def plan(
    source: str, setup: LanguageModelSetup, levels: dict, batch_size: int, rate_times_width: float
) -> Plan:
    """Make the plan: the architectures of a level are trained on every token budget of the level.

    An experiment is a token budget with a parameter limit. The experiments of one budget share
    their runs.

    Args:
      source: the table's source.
      setup: the fields that all runs share.
      levels: the grid of each level: width, layers, heads, kv_heads, mlp_ratio (choices), tokens,
        limits (of all parameters, embedding included), seeds, repeated_every (one architecture in
        so many has all seeds, the others have the first).
      batch_size: sequences per step.
      rate_times_width: product of peak learning rate and width. The rate falls with the width, as
        muP scales the rate of Adam (arXiv 2203.03466), so that one value suits every width.

    Raises:
      ValueError: an experiment has no default configuration under its limit.
    """
    experiments, cells = {}, []
    for level, grid in levels.items():
        choices = {name: tuple(grid[name]) for name in NAMES}
        space = Space(tuple(Dimension(name, "ordinal", choices[name]) for name in NAMES))
        for tokens, limit in itertools.product(grid["tokens"], grid["limits"]):
            name = f"d{tokens // 1024}k_p{limit // 1000}k"
            default = None
            for number, values in enumerate(itertools.product(*choices.values())):
                config = dict(zip(NAMES, values, strict=True))
                rate = rate_times_width / config["width"]
                runs = [
                    _run(config, tokens, batch_size, rate, seed) for seed in seeds_of(number, grid)
                ]
                size = setup.parameters(runs[0])
                cells += [Cell(name, config, r, {"parameters": size}, size > limit) for r in runs]
                # Widths ascend, so the last match is the widest under the limit.
                if size <= limit and _is_conventional(config, choices):
                    default = config
            if default is None:
                raise ValueError(f"experiment {name}: no default under the limit of {limit}")
            context = {
                "model": "dense",
                "corpus": setup.corpus,
                "parameter_limit": limit,
                "tokens": tokens,
                "sequence_length": setup.sequence_length,
                "vocabulary": setup.vocab_size,
                "batch_size": batch_size,
                "learning_rate": f"{rate_times_width:g} / width",
            }
            experiments[name] = _experiment(level, tokens, limit, context, space, default)
    return language_model_plan(source, TASK, setup, experiments, cells, units=UNITS)


def _run(
    config: dict, tokens: int, batch_size: int, learning_rate: float, seed: int
) -> LanguageModelRun:
    """Return the run that trains an architecture."""
    return LanguageModelRun(
        width=config["width"],
        layers=config["layers"],
        heads=config["heads"],
        kv_heads=config["kv_heads"],
        mlp_width=config["width"] * config["mlp_ratio"],
        tokens=tokens,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )


def _experiment(
    level: str, tokens: int, limit: int, context: dict, space: Space, default: dict
) -> dict:
    """Return the table's description of an experiment."""
    return {
        "context": context,
        "fidelity": {
            "level": level,
            "parameters": limit,
            "tokens": tokens,
            "flops": 6.0 * limit * tokens,
        },
        "space": space.to_json(),
        "limit": {"quantity": "parameters", "at_most": limit},
        "objective": {"metric": "loss", "goal": "minimize"},
        "default": default,
        "default_origin": DEFAULT_ORIGIN,
    }


def _is_conventional(config, choices) -> bool:
    """Whether every choice but the width is the conventional one (see DEFAULT_ORIGIN)."""
    middle = choices["layers"][(len(choices["layers"]) - 1) // 2]
    return (
        config["mlp_ratio"] == choices["mlp_ratio"][-1]
        and config["kv_heads"] == choices["kv_heads"][-1]
        and config["heads"] == choices["heads"][0]
        and config["layers"] == middle
    )
