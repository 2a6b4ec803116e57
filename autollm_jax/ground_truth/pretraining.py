"""The task pretraining: find learning rate and batch size, per model size and token count."""

import itertools
from collections.abc import Sequence

import numpy as np

from autollm_jax.ground_truth.language_model import (
    LanguageModelRun,
    LanguageModelSetup,
    language_model_plan,
)
from autollm_jax.ground_truth.plan import Cell, Plan, seeds_of
from autollm_jax.gym.spaces import Dimension, Space

TASK = "pretraining"
DEFAULT_ORIGIN = (
    "nanoGPT's setting for small models (learning rate 1e-3, 16,384 tokens a batch), at the "
    "nearest choices of the grid"
)
DEFAULT_LEARNING_RATE, DEFAULT_BATCH_TOKENS = 1e-3, 16_384


def plan(source: str, setup: LanguageModelSetup, levels: dict, head_dim: int) -> Plan:
    """Make the plan: a grid for each width and token count of each level.

    Args:
      source: the table's source.
      setup: the settings that all runs share.
      levels: the grid of each level: models (WIDTHxLAYERS each), tokens, learning_rates,
        batch_sizes, seeds, repeated_every (one configuration in so many has all seeds, the others
        have the first).
      head_dim: width of an attention head. The MLP is 8/3 times as wide as the model, in steps
        of 8.
    """
    experiments, cells = {}, []
    for level, grid in levels.items():
        rates, sizes = tuple(grid["learning_rates"]), tuple(grid["batch_sizes"])
        for model, tokens in itertools.product(grid["models"], grid["tokens"]):
            width, layers = map(int, model.split("x"))
            name = f"w{width}_l{layers}_d{tokens // 1024}k"
            heads = max(1, width // head_dim)
            for (i, rate), (j, batch_size) in itertools.product(enumerate(rates), enumerate(sizes)):
                # Each batch size shifts the choice of the repeated rates by two.
                for seed in seeds_of(i + 2 * j, grid):
                    run = LanguageModelRun(
                        width, layers, heads, heads, 8 * round(width / 3), tokens, batch_size,
                        rate, seed,
                    )  # fmt: skip
                    config = {"learning_rate": rate, "batch_size": batch_size}
                    cells.append(Cell(name, config, run))
            experiments[name] = _describe(setup, level, run, grid)
    return language_model_plan(
        source,
        TASK,
        setup,
        experiments,
        cells,
        units={
            "config.learning_rate": "peak learning rate of AdamW",
            "config.batch_size": f"sequences of {setup.sequence_length} tokens",
        },
    )


def _describe(setup: LanguageModelSetup, level: str, run: LanguageModelRun, grid) -> dict:
    """Describe one experiment for the table's JSON, given any of its runs."""
    rates, sizes = tuple(grid["learning_rates"]), tuple(grid["batch_sizes"])
    space = Space(
        (
            Dimension("learning_rate", "log-ordinal", rates),
            Dimension("batch_size", "log-ordinal", sizes),
        )
    )
    parameters = setup.non_embedding_parameters(run)
    return {
        "context": {
            "model": "dense",
            "corpus": setup.corpus,
            "non_embedding_parameters": parameters,
            "tokens": run.tokens,
            "sequence_length": setup.sequence_length,
            "vocabulary": setup.vocab_size,
            "width": run.width,
            "layers": run.layers,
        },
        "fidelity": {
            "level": level,
            "parameters": parameters,
            "tokens": run.tokens,
            "flops": setup.flops(run),
        },
        "space": space.to_json(),
        "objective": {"metric": "loss", "goal": "minimize"},
        "default": {
            "learning_rate": nearest(rates, DEFAULT_LEARNING_RATE),
            "batch_size": nearest(sizes, DEFAULT_BATCH_TOKENS / setup.sequence_length),
        },
        "default_origin": DEFAULT_ORIGIN,
    }


def nearest(choices: Sequence[float], value: float):
    """Return the choice nearest to a value by their ratio."""
    return choices[int(np.abs(np.log(np.array(choices) / value)).argmin())]
