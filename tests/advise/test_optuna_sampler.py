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
from autollm_jax.errors import UserError

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


def mixed(web, code, books):
    """The best mixture is half web, a third code, a sixth books."""
    return 2 + (web - 1 / 2) ** 2 + (code - 1 / 3) ** 2 + (books - 1 / 6) ** 2


MIXED = [
    {"mix.web": w / 6, "mix.code": c / 6, "mix.books": (6 - w - c) / 6, "tokens": n,
     "loss": mixed(w / 6, c / 6, (6 - w - c) / 6) + n**-0.1}
    for n in (1e6, 4e6) for w in range(7) for c in range(7 - w)
]  # fmt: skip


def mixing(trial):
    names = ("mix.web", "mix.code", "mix.books")
    weights = [trial.suggest_float(name, 0.0, 1.0) for name in names]
    return mixed(*(weight / sum(weights) for weight in weights))


def test_components_of_a_mixture_are_chosen_as_one(rows):
    study = best_of(sampler_of(evidence=MIXED, target="tokens=16e6"), 3, mixing)
    for trial in study.trials:
        assert sum(trial.params.values()) == pytest.approx(1.0)
    assert study.trials[0].value == pytest.approx(2.0, abs=0.02)
    assert study.trials[1].value == pytest.approx(2.0, abs=0.1)


def test_a_mixture_may_be_of_percentages():
    def percent(trial):
        weights = [trial.suggest_float(f"mix.{part}", 0, 100) for part in ("web", "code", "books")]
        assert sum(weights) == pytest.approx(100, abs=1e-6)
        return mixed(*(weight / sum(weights) for weight in weights))

    study = best_of(sampler_of(evidence=MIXED, target="tokens=16e6"), 2, percent)
    assert study.best_value == pytest.approx(2.0, abs=0.02)


def test_a_law_moves_the_optimum_whatever_the_order_and_scale_of_parameters(rows):
    def numbers(trial):
        batch = trial.suggest_float("batch_size", 32, 128)  # the evidence's is on a log scale
        return loss(trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True), batch, 1.6e7)

    def categories(trial):
        batch = trial.suggest_categorical("batch_size", [128, 32, 64])
        return loss(trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True), batch, 1.6e7)

    for study in (numbers, categories):
        sampler = sampler_of(evidence=rows, target=TARGET)
        best_of(sampler, 2, study)
        [panel] = sampler._panels.values()
        assert panel.setting.space.names == sampler._advisor.question.setting.space.names
        assert panel.law is not None


def test_the_first_trial_is_moved_into_a_study_of_other_numbers(rows):
    def wider(trial):
        rate = trial.suggest_float("learning_rate", 5e-3, 1e-1, log=True)
        batch = trial.suggest_int("batch_size", 256, 1024, step=128)
        return loss(rate, batch, 1.6e7)

    first = best_of(sampler_of(evidence=rows, target=TARGET), 1, wider).trials[0].params
    assert first["learning_rate"] == pytest.approx(5e-3)  # the evidence proposes a smaller one
    assert first["batch_size"] == 512  # half of the way, as 64 is from 32 to 128


def test_a_space_known_beforehand_is_chosen_in(rows):
    space = {
        "learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "batch_size": optuna.distributions.CategoricalDistribution([32, 64, 128]),
    }
    sampler = sampler_of(evidence=rows, target=TARGET, space=space)
    study = best_of(sampler, 1)
    assert len(sampler._panels) == 1 and not sampler._proposals
    assert study.best_value == pytest.approx(loss(1e-3 * 16**-0.2, 64, 1.6e7), abs=0.1)


def test_trials_asked_for_before_any_is_suggested_differ(rows):
    study = optuna.create_study(sampler=sampler_of(evidence=rows, target=TARGET))
    asked = [study.ask() for _ in range(3)]
    for trial in asked:
        objective(trial)
    assert len({tuple(trial.params.items()) for trial in asked}) == 3


def test_a_study_keeps_the_limit_of_its_target():
    def size(params):
        return 12 * params["width"] ** 2 * params["layers"]

    def larger(trial):
        return -(trial.suggest_int("width", 64, 512, step=64) * trial.suggest_int("layers", 1, 12))

    rows = [
        {"width": w, "layers": n, "parameters": 12 * w**2 * n, "tokens": 1e8, "loss": -w * n}
        for w in (64, 128, 256) for n in (1, 2, 4, 8)
    ]  # fmt: skip
    target = "tokens=1e9,parameters<=6e6"
    for limited in (True, False):
        sampler = sampler_of(evidence=rows, target=target, size=size if limited else None)
        study = best_of(sampler, 4, larger)
        assert (max(size(t.params) for t in study.trials[1:]) <= 6e6) is limited
    with pytest.raises(UserError, match="size: the least of"):
        best_of(sampler_of(evidence=rows, target=target, size=lambda params: 1e9), 2, larger)


def test_trials_that_share_no_parameter_are_drawn(rows):
    def apart(trial):
        return trial.suggest_float("learning_rate", 1e-4, 10.0 ** -(2 + trial.number % 3), log=True)

    study = best_of(sampler_of(evidence=rows, target=TARGET, seed=0), 4, apart)
    assert len({trial.params["learning_rate"] for trial in study.trials}) == 4


def test_a_study_has_the_context_of_its_target(rows):
    told = [{**row, "corpus": "web", "loss": -row["loss"]} for row in rows]
    told += [{**row, "corpus": "code"} for row in rows]
    sampler = sampler_of(evidence=told, target=TARGET | {"corpus": "code"}, objective="loss")
    best_of(sampler, 2)
    [panel] = sampler._panels.values()
    assert panel.setting.facts == panel.nearest[0].facts == {"corpus": "code"}
