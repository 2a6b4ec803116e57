"""Let Ray Tune's workers ask, on one machine or a cluster: python examples/ray_tune.py

It needs Ray beside this package: pip install -r requirements-ray.txt
"""

import math

from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from autollm_jax.advise.optuna_sampler import AutoLLMSampler


def train(config: dict) -> dict:
    """Stand in for an expensive run; yours trains a model."""
    away = math.log(config["learning_rate"] / 5e-4) ** 2
    return {"val_loss": 2.7 + 0.11 * away + 0.012 * math.log2(config["batch_size"] / 400) ** 2}


sampler = AutoLLMSampler(
    evidence="examples/runs.csv", target="parameters=1.4e9,tokens=28e9", objective="val_loss"
)
search = OptunaSearch(sampler=sampler, metric="val_loss", mode="min")
space = {
    "learning_rate": tune.loguniform(1e-5, 1e-2),
    "batch_size": tune.lograndint(64, 1025),
}
# Two runs at a time: the sampler counts those that are not finished.
settings = tune.TuneConfig(num_samples=6, search_alg=ConcurrencyLimiter(search, max_concurrent=2))
results = tune.Tuner(train, param_space=space, tune_config=settings).fit()
best = results.get_best_result("val_loss", "min")
print(f"best {best.metrics['val_loss']:.3f} {best.config}")
