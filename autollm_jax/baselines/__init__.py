"""One file per method, one shared interface."""

from autollm_jax.baselines.base import MetaLearned, Method, Problem
from autollm_jax.baselines.cma_es import CmaEs
from autollm_jax.baselines.default import DefaultFirst
from autollm_jax.baselines.neural_acquisition import NeuralAcquisition
from autollm_jax.baselines.optuna_tpe import OptunaTPE
from autollm_jax.baselines.random import RandomSearch
from autollm_jax.baselines.successive_halving import SuccessiveHalving
from autollm_jax.forecasts.boosted_trees import BoostedTrees
from autollm_jax.forecasts.fsbo import FSBO
from autollm_jax.forecasts.gaussian_process import GaussianProcess
from autollm_jax.forecasts.nearest import NearestExperiment
from autollm_jax.forecasts.scaling_law import ScalingLaw

BASELINES: dict[str, type] = {
    "random": RandomSearch,
    "default": DefaultFirst,
    "nearest_experiment": NearestExperiment,
    "scaling_law": ScalingLaw,
    "boosted_trees": BoostedTrees,
    "optuna_tpe": OptunaTPE,
    "cma_es": CmaEs,
    "successive_halving": SuccessiveHalving,
    "gaussian_process": GaussianProcess,
}

# Those that learn from the training experiments first (see learned.py).
META_LEARNED: dict[str, type[MetaLearned]] = {
    "fsbo": FSBO,
    "neural_acquisition": NeuralAcquisition,
}

__all__ = ["BASELINES", "META_LEARNED", "MetaLearned", "Method", "Problem"]
