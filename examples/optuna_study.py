"""Let an Optuna study know cheap runs: python examples/optuna_study.py"""

import math

import optuna

from autollm_jax.advise.optuna_sampler import AutoLLMSampler

optuna.logging.set_verbosity(optuna.logging.WARNING)


def objective(trial: optuna.Trial) -> float:
    """Stand in for an expensive run; yours trains a model."""
    rate = trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
    batch = trial.suggest_int("batch_size", 64, 1024, log=True)
    return 2.7 + 0.11 * math.log(rate / 5e-4) ** 2 + 0.012 * math.log2(batch / 400) ** 2


sampler = AutoLLMSampler(
    evidence="examples/runs.csv", target="parameters=1.4e9,tokens=28e9", objective="val_loss"
)
for name, chosen in {"cheap runs": sampler, "TPE": optuna.samplers.TPESampler(seed=0)}.items():
    study = optuna.create_study(sampler=chosen)
    study.optimize(objective, n_trials=5)
    losses = [f"{trial.value:.3f}" for trial in study.trials]
    print(f"{name:10} {' '.join(losses)}  best {study.best_params}")
