"""The Optuna sampler: Optuna's own tests of samplers, and what evidence brings."""

import itertools
import math

import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.trial import TrialState

from autollm_jax.advise import optuna_sampler
from autollm_jax.advise.decider import Panels
from autollm_jax.advise.optuna_sampler import AutoLLMSampler

from .conftest import TARGET, loss

optuna.logging.set_verbosity(optuna.logging.WARNING)


def sampler_of(**more):
    return AutoLLMSampler(decider=Panels(), **more)


class TestOfOptunaWithoutEvidence(
    BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
):
    @pytest.fixture
    def sampler(self):
        return sampler_of


class TestOfOptunaWithEvidence(
    BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
):
    @pytest.fixture
    def sampler(self):
        grid = itertools.product((0.001, 0.01, 0.1, 1.0), (1, 3, 9), (1e6, 4e6))
        rows = [
            {"x": x, "y": y, "parameters": n, "loss": (x - 0.1) ** 2 + 0.1 * y + n**-0.1}
            for x, y, n in grid
        ]
        return lambda: sampler_of(evidence=rows, target={"parameters": 1e7})


def objective(trial):
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    batch = trial.suggest_categorical("batch_size", [32, 64, 128])
    return loss(rate, batch, 1.6e7)


def best_of(sampler, trials, objective=objective, **more):
    study = optuna.create_study(sampler=sampler, **more)
    study.optimize(objective, n_trials=trials)
    return study


def test_evidence_makes_the_first_trials_good(rows):
    with_it = best_of(sampler_of(evidence=rows, target=TARGET, seed=0), 3)
    without = [best_of(optuna.samplers.TPESampler(seed=s), 3) for s in range(9)]
    assert with_it.trials[0].value < sorted(study.trials[0].value for study in without)[3]
    assert with_it.best_value < sorted(study.best_value for study in without)[4]
    assert len({tuple(t.params.items()) for t in with_it.trials}) == 3


def test_evidence_may_be_a_study_a_frame_or_a_file(rows, tmp_path):
    study = optuna.create_study()
    for row in rows:
        names = ("learning_rate", "batch_size")
        study.add_trial(
            optuna.create_trial(
                params={name: row[name] for name in names},
                distributions={
                    "learning_rate": optuna.distributions.FloatDistribution(1e-5, 1, log=True),
                    "batch_size": optuna.distributions.IntDistribution(1, 512),
                },
                user_attrs={"parameters": row["parameters"], "tokens": row["tokens"]},
                value=row["loss"],
            )
        )
    first = best_of(sampler_of(evidence=study, target=TARGET), 1).trials[0].params
    plain = best_of(sampler_of(evidence=rows, target=TARGET), 1).trials[0].params
    assert first["learning_rate"] == pytest.approx(plain["learning_rate"], rel=0.5)


def test_diverged_failed_and_infeasible_trials_are_learned_from(rows):
    def fragile(trial):
        value = objective(trial)
        if trial.number == 0:
            raise RuntimeError("out of memory")
        return math.nan if trial.number == 1 else value

    sampler = sampler_of(
        evidence=rows, target=TARGET,
        constraints_func=lambda trial: (1.0 if trial.number == 2 else -1.0,),
    )  # fmt: skip
    study = optuna.create_study(sampler=sampler)
    study.optimize(fragile, n_trials=5, catch=(RuntimeError,))
    states = [trial.state for trial in study.trials]
    assert states[:2] == [TrialState.FAIL, TrialState.FAIL]
    assert optuna_sampler._outcome(study.trials[2])[1] == "infeasible"
    params = [tuple(trial.params.items()) for trial in study.trials]
    assert len(set(params)) == len(params)


def test_running_trials_count_in_parallel(rows):
    study = optuna.create_study(sampler=sampler_of(evidence=rows, target=TARGET))
    first = study.ask()
    objective(first)
    study.tell(first, 2.5)
    asked = [study.ask() for _ in range(3)]
    for trial in asked:
        objective(trial)
    assert len({tuple(trial.params.items()) for trial in asked}) == 3


def test_a_study_of_a_storage_is_taken_up_again(rows, tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    for _ in range(2):
        study = optuna.create_study(
            storage=storage, study_name="mine", load_if_exists=True,
            sampler=sampler_of(evidence=rows, target=TARGET),
        )  # fmt: skip
        study.optimize(objective, n_trials=2)
    assert len({tuple(trial.params.items()) for trial in study.trials}) == 4


def test_a_conditional_parameter_is_drawn_and_the_shared_ones_are_chosen(rows):
    def conditional(trial):
        value = objective(trial)
        return value + (trial.suggest_float("extra", 0, 1) if trial.number % 2 else 0)

    study = best_of(sampler_of(evidence=rows, target=TARGET), 4, conditional)
    assert study.trials[3].params.keys() == {"learning_rate", "batch_size", "extra"}
    assert study.best_value < 2.8


def test_a_maximised_study_is_the_mirror_image(rows):
    mirrored = [
        {**{k: v for k, v in row.items() if k != "loss"}, "score": -row["loss"]} for row in rows
    ]
    low = best_of(sampler_of(evidence=rows, target=TARGET), 2)
    high = best_of(sampler_of(evidence=mirrored, target=TARGET), 2, lambda t: -objective(t),
                   direction="maximize")  # fmt: skip
    assert [t.params for t in low.trials] == [t.params for t in high.trials]
