"""The task data_mixture: find the share of each domain, per model, token budget and objective."""

import dataclasses
import itertools

import numpy as np

from autollm_jax.ground_truth.language_model import (
    LanguageModelRun,
    LanguageModelSetup,
    language_model_plan,
)
from autollm_jax.ground_truth.plan import Cell, Plan, seeds_of
from autollm_jax.gym.spaces import Dimension, Space

TASK = "data_mixture"
DEFAULT_ORIGIN = "the domains' natural shares of the corpus, what no weighting would give"


def mixtures(natural: dict[str, float], count: int, seed: int) -> list[dict[str, float]]:
    """Draw mixtures in whole percents: the natural mixture, the uniform mixture, then random ones.

    A random mixture follows a Dirichlet distribution. Its mean is a random point between the
    natural and the uniform mixture. Its concentration is log-uniform between 1 and 30: from mostly
    one domain to close to the mean. RegMix (arXiv 2407.01492, section 3.1) draws alike, with other
    constants.

    Args:
      natural: natural share of each domain.
      count: number of mixtures.
      seed: seed of the draws. Under one seed, a longer list begins with the shorter list.
    """
    rng = np.random.default_rng(seed)
    domains = list(natural)
    uniform = np.full(len(domains), 1 / len(domains))
    shares = np.array(list(natural.values()))
    drawn = [shares, uniform]
    while len(drawn) < count:
        centre = uniform + rng.uniform() * (shares - uniform)
        concentration = 30.0 ** rng.uniform() * len(domains)
        drawn.append(rng.dirichlet(concentration * centre))
    return [dict(zip(domains, _whole_percents(weights), strict=True)) for weights in drawn[:count]]


def _whole_percents(weights: np.ndarray) -> list[float]:
    """Round shares to whole percents with the sum 100, by the largest remainders."""
    percents = np.floor(100 * weights)
    order = np.argsort(percents - 100 * weights, kind="stable")
    percents[order[: 100 - int(percents.sum())]] += 1
    return (percents / 100).tolist()


def plan(
    source: str,
    setup: LanguageModelSetup,
    levels: dict,
    natural: dict[str, float],
    head_dim: int,
    batch_size: int,
) -> Plan:
    """Make the plan: every mixture of a level is trained with every width and token budget.

    An experiment is a model, a token budget and an objective (the mean loss over all domains, or
    the loss on one domain). Experiments that differ only in the objective share their runs.

    Args:
      source: the table's source.
      setup: the fields that all runs share.
      levels: the grid of each level: models (WIDTHxLAYERS each), tokens, mixtures (number of
        mixtures), own (number of mixtures that no other level has), rate_times_width (peak learning
        rate x width), seeds, repeated_every (one mixture in so many has all seeds, the others have
        the first).
      natural: natural share of each domain in the corpus.
      head_dim: width of an attention head. The MLP is 8/3 times as wide as the model.
      batch_size: sequences per step.
    """
    space = Space((Dimension("mixture", "simplex", tuple(natural)),))
    objectives = {"mean": "loss", **{domain: f"loss.{domain}" for domain in natural}}
    experiments, cells = {}, []
    for number, (level, grid) in enumerate(levels.items()):
        shared = mixtures(natural, grid["mixtures"] - grid["own"], seed=0)
        own = mixtures(natural, grid["own"] + 2, seed=1 + number)[2:]
        for model, tokens in itertools.product(grid["models"], grid["tokens"]):
            runs = _runs(grid, shared + own, model, tokens, head_dim, batch_size)
            first = runs[0][1]
            stem = f"w{first.width}_l{first.layers}_d{tokens // 1024}k"
            for objective, metric in objectives.items():
                name = f"{stem}_{objective}"
                cells += [Cell(name, {"mixture": mixture}, run) for mixture, run in runs]
                experiments[name] = {
                    **_described(setup, level, first, objective),
                    "space": space.to_json(),
                    "objective": {"metric": metric, "goal": "minimize"},
                    "default": {"mixture": shared[0]},
                    "default_origin": DEFAULT_ORIGIN,
                }
    units = {
        "config.mixture": "share of the sequences drawn from each domain",
        **{
            f"loss.{domain}": f"validation cross-entropy on {domain}, nats per token"
            for domain in natural
        },
    }
    return language_model_plan(source, TASK, setup, experiments, cells, units=units)


def _runs(
    grid: dict, mixed: list[dict], model: str, tokens: int, head_dim: int, batch_size: int
) -> list[tuple[dict, LanguageModelRun]]:
    """Return (mixture, run) for each mixture and seed, given a model and a token budget."""
    width, layers = map(int, model.split("x"))
    heads = max(1, width // head_dim)
    base = LanguageModelRun(
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        mlp_width=8 * round(width / 3),
        tokens=tokens,
        batch_size=batch_size,
        learning_rate=grid["rate_times_width"] / width,
        seed=0,
    )
    return [
        (mixture, dataclasses.replace(base, seed=seed, mixture=tuple(mixture.items())))
        for number, mixture in enumerate(mixed)
        for seed in seeds_of(number, grid)
    ]


def _described(
    setup: LanguageModelSetup, level: str, run: LanguageModelRun, objective: str
) -> dict:
    """Return the table's context and fidelity of an experiment."""
    parameters = setup.non_embedding_parameters(run)
    return {
        "context": {
            "model": "dense",
            "corpus": setup.corpus,
            "objective": objective,
            "non_embedding_parameters": parameters,
            "tokens": run.tokens,
            "width": run.width,
            "layers": run.layers,
        },
        "fidelity": {
            "level": level,
            "parameters": parameters,
            "tokens": run.tokens,
            "flops": setup.flops(run),
        },
    }
