"""The task architecture: the best model under a parameter limit, for a token budget each."""

import itertools

from autollm_jax.ground_truth.language_model import (
    LanguageModelRun,
    LanguageModelSetup,
    language_model_plan,
)
from autollm_jax.ground_truth.plan import Cell, Plan
from autollm_jax.gym.spaces import Dimension, Space

TASK = "architecture"
NAMES = ("width", "layers", "heads", "kv_heads", "mlp_ratio")
DEFAULT_ORIGIN = (
    "the proportions of GPT-2 (MLP ratio 4, multi-head attention), the middle depth, as wide as "
    "the limit allows"
)


def plan(
    source: str, setup: LanguageModelSetup, levels: dict, batch_size: int, rate_times_width: float
) -> Plan:
    """Make the plan: all architectures of a level are trained on each of its token budgets.

    An experiment is a token budget with a parameter limit; experiments of one budget share their
    runs.

    Args:
      source: the table's.
      setup: what all runs have in common.
      levels: by level: width, layers, heads, kv_heads, mlp_ratio (choices), tokens, limits (all
        parameters, embedding included), seeds.
      batch_size: sequences.
      rate_times_width: the peak learning rate is this over the width, as muP scales Adam's
        (arXiv 2203.03466), so that no width is favoured by the rate.
    """
    experiments, cells = {}, []
    for level, grid in levels.items():
        choices = {name: tuple(grid[name]) for name in NAMES}
        space = Space(tuple(Dimension(name, "ordinal", choices[name]) for name in NAMES))
        configs = [
            dict(zip(NAMES, values, strict=True)) for values in itertools.product(*choices.values())
        ]
        for tokens, limit in itertools.product(grid["tokens"], grid["limits"]):
            name = f"d{tokens // 1024}k_p{limit // 1000}k"
            best_default = None
            for config in configs:
                for seed in grid["seeds"]:
                    run = LanguageModelRun(
                        config["width"],
                        config["layers"],
                        config["heads"],
                        config["kv_heads"],
                        config["width"] * config["mlp_ratio"],
                        tokens,
                        batch_size,
                        rate_times_width / config["width"],
                        seed,
                    )
                    parameters = setup.parameters(run)
                    cells.append(
                        Cell(name, config, run, {"parameters": parameters}, parameters > limit)
                    )
                if parameters <= limit and _is_conventional(config, choices):
                    best_default = config
            if best_default is None:
                raise ValueError(f"experiment {name}: no default under the limit of {limit}")
            experiments[name] = {
                "context": {
                    "model": "dense",
                    "corpus": setup.corpus,
                    "parameter_limit": limit,
                    "tokens": tokens,
                    "sequence_length": setup.sequence_length,
                    "vocabulary": setup.vocab_size,
                    "batch_size": batch_size,
                    "learning_rate": f"{rate_times_width:g} / width",
                },
                "fidelity": {
                    "level": level,
                    "parameters": limit,
                    "tokens": tokens,
                    "flops": 6.0 * limit * tokens,
                },
                "space": space.to_json(),
                "limit": {"quantity": "parameters", "at_most": limit},
                "objective": {"metric": "loss", "goal": "minimize"},
                "default": best_default,
                "default_origin": DEFAULT_ORIGIN,
            }
    return language_model_plan(
        source,
        TASK,
        setup,
        experiments,
        cells,
        units={
            "config.width": "of the residual stream",
            "config.layers": "transformer blocks",
            "config.heads": "query heads; their width is the model's over their number",
            "config.kv_heads": "key-value heads",
            "config.mlp_ratio": "width of the (gated) MLP over the model's",
            "parameters": "all parameters, the tied embedding counted once",
        },
    )


def _is_conventional(config, choices) -> bool:
    """Whether only the width is open: ascending widths then find the widest under the limit."""
    middle = choices["layers"][(len(choices["layers"]) - 1) // 2]
    return (
        config["mlp_ratio"] == choices["mlp_ratio"][-1]
        and config["kv_heads"] == choices["kv_heads"][-1]
        and config["heads"] == choices["heads"][0]
        and config["layers"] == middle
    )
