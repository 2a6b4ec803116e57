"""The baselines that an agent is compared with, by name.

method = BASELINES["gaussian_process"](Problem(setting, evidence, budget), seed)
trial = episode.exec_config(method.ask())
method.tell(trial)
"""

from collections.abc import Callable

from autollm_jax.baselines.base import MetaLearned, Method, Problem
from autollm_jax.baselines.cma_es import CmaEs
from autollm_jax.baselines.default import DefaultFirst
from autollm_jax.baselines.greedy import GreedyFSBO, greedy
from autollm_jax.baselines.neural_acquisition import NeuralAcquisition
from autollm_jax.baselines.optuna_tpe import OptunaTPE
from autollm_jax.baselines.random import RandomSearch
from autollm_jax.baselines.successive_halving import SuccessiveHalving

BASELINES: dict[str, Callable[[Problem, int], Method]] = {
    "random": RandomSearch,
    "default": DefaultFirst,
    "nearest_experiment": greedy("nearest_experiment"),
    "scaling_law": greedy("scaling_law"),
    "boosted_trees": greedy("boosted_trees"),
    "optuna_tpe": OptunaTPE,
    "cma_es": CmaEs,
    "successive_halving": SuccessiveHalving,
    "gaussian_process": greedy("gaussian_process"),
    "own": greedy("own"),
    "drift": greedy("drift"),
    "panel": greedy("panel"),
}

# Baselines that learn from the training experiments before they play (see learned.py).
META_LEARNED: dict[str, type[MetaLearned]] = {
    "fsbo": GreedyFSBO,
    "neural_acquisition": NeuralAcquisition,
}

__all__ = ["BASELINES", "META_LEARNED", "MetaLearned", "Method", "Problem"]
