"""The task pretraining: find learning rate and batch size, per model size and token count."""

import itertools
from collections.abc import Sequence

import numpy as np

from autollm_jax.ground_truth.language_model import (
    LanguageModelRun,
    LanguageModelSetup,
    language_model_plan,
)
from autollm_jax.ground_truth.plan import Cell, Plan
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
      levels: the grid of each level: widths, layers, tokens, learning_rates, batch_sizes,
        second_seed_every (every n-th learning rate is also trained with a second seed).
      head_dim: width of an attention head. The MLP is 8/3 times as wide as the model, in steps
        of 8.
    """
    experiments, cells = {}, []
    for level, grid in levels.items():
        for width, tokens in itertools.product(grid["widths"], grid["tokens"]):
            name = f"w{width}_l{grid['layers']}_d{tokens // 1024}k"
            heads = max(1, width // head_dim)
            for (i, rate), (j, batch_size) in itertools.product(
                enumerate(grid["learning_rates"]), enumerate(grid["batch_sizes"])
            ):
                # Every n-th rate has a second seed; each batch size shifts the choice by two rates.
                repeated = (i + 2 * j) % grid["second_seed_every"] == 0
                for seed in (0, 1) if repeated else (0,):
                    run = LanguageModelRun(
                        width, grid["layers"], heads, heads, 8 * round(width / 3), tokens,
                        batch_size, rate, seed,
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
