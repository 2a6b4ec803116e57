"""Held-out experiments as Optuna studies, of every sampler."""

import importlib.util
import json
import math

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autollm_jax.advise import samplers, studies
from autollm_jax.advise.decider import Panels
from autollm_jax.advise.study_parameters import Parameters
from autollm_jax.evaluation.statistics import Unit
from autollm_jax.forecasts.coordinates import project
from autollm_jax.gym.environment import Episode
from tests import scripts
from tests.launch.test_difficulty import table

optuna.logging.set_verbosity(optuna.logging.WARNING)

TORCH = importlib.util.find_spec("torch") is not None
METHODS = [
    pytest.param(name, marks=() if TORCH or "gp_" not in name else pytest.mark.skip("needs torch"))
    for name in samplers.METHODS
]


@pytest.fixture(scope="module", params=["family", "architectures", "mixtures", "tunings"])
def game(request):
    """Two numbers with diverged rows; a category and a limit; a mixture; five dimensions."""
    *cheap, target = request.getfixturevalue(request.param)
    return target, tuple(cheap)


def asked(game, seed=0, budget=3):
    target, cheap = game
    return samplers.Asked(target.setting, cheap, seed, budget, Panels())


@pytest.mark.parametrize("method", METHODS)
def test_every_sampler_plays_every_space(game, method):
    played = studies.play(method, *game, seed=0, budget=3, decider=Panels())
    assert len(played.regrets) == 3 and played.seconds > 0
    assert all(0 <= regret <= 1 for regret in played.regrets)
    assert sorted(played.regrets, reverse=True) == [*played.regrets]
    again = studies.play(method, *game, seed=0, budget=3, decider=Panels())
    assert again.regrets == played.regrets


@pytest.mark.parametrize("name", ["family", "mixtures", "tunings"])
def test_our_sampler_is_given_the_evidence(request, name):
    *cheap, target = request.getfixturevalue(name)
    played = studies.play("autollm", target, tuple(cheap), 0, budget=3, decider=Panels())
    drawn = [studies.play("random", target, tuple(cheap), seed, 3).regrets for seed in range(9)]
    for trial in (0, 2):
        assert played.regrets[trial] < np.median([regrets[trial] for regrets in drawn])


def test_parameters_stand_for_configurations(game):
    target, cheap = game
    parameters = Parameters(target.space)
    for config, point_D in zip(
        target.configurations,
        project(target.configurations, target.space, target.space),
        strict=True,
    ):
        params = parameters.of_point(point_D)
        assert params.keys() == parameters.distributions.keys()
        assert all(parameters.distributions[name]._contains(
            parameters.distributions[name].to_internal_repr(value)
        ) for name, value in params.items())  # fmt: skip
        assert target.setting.match(parameters.configuration(params)) == target.setting.match(
            config
        )


def test_our_sampler_knows_the_parameters_by_the_names_of_the_columns(game):
    prepared = samplers.METHODS["autollm"](asked(game))
    advisor, sampler = prepared.study.sampler._advisor, prepared.study.sampler
    names = {*advisor.question.setting.space.names} - {*sampler._mixtures}
    for parts in sampler._mixtures.values():
        names |= {*parts}
    assert names == {*asked(game).parameters.distributions}


@pytest.mark.parametrize("method", [m for m in METHODS if "_added" in m.values[0]])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_added_trials_are_seen(family, method):
    """Another first trial follows where what was good is bad."""
    *cheap, target = family

    class Mirrored(samplers.Asked):
        def added(self, rows):
            trials = super().added(rows)
            for trial in trials:
                trial.value = 1 - trial.value
            return trials

    firsts, parameters = [], Parameters(target.space)
    for kind in (samplers.Asked, Mirrored):
        question = kind(target.setting, tuple(cheap), 0)
        study = samplers.METHODS[method](question).study
        study.optimize(lambda trial: len(parameters.suggest(trial)), n_trials=1)
        firsts.append(study.trials[-1].params)
    assert firsts[0] != firsts[1]


def test_added_trials_are_regrets_of_their_experiments_the_nearest_one_last(family):
    *cheap, target = family
    trials = asked((target, tuple(cheap))).added(60)
    assert len(trials) <= 60 and all(0 <= trial.value <= 1 for trial in trials)
    nearest = cheap[-1]  # of half the parameters and a third of the tokens
    best = nearest.configurations[nearest.outcomes.best_row]
    assert trials[-1].value == 0
    assert trials[-1].params == pytest.approx({n: float(v) for n, v in best.items()})


def test_the_target_is_brought_to_the_scale_of_added_trials(family):
    *cheap, target = family
    prepared = samplers.METHODS["tpe_added"](asked((target, tuple(cheap))))
    losses = np.array([target.outcomes.optimum, target.outcomes.median])
    best, middle = prepared.scale.scores(losses)
    assert best == pytest.approx(0, abs=0.3) and middle == pytest.approx(1, abs=0.3)


def test_cma_es_gets_the_numbers_alone_as_source_trials(architectures):
    *cheap, target = architectures
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study = samplers.METHODS["cma_es_added"](asked((target, tuple(cheap)))).study
    assert {*study.trials[0].params} == {"width", "layers", "mlp_ratio"}
    assert len(study.sampler._source_trials) == len(study.trials)
    study.optimize(lambda trial: Parameters(target.space).suggest(trial)["width"], 1)
    assert "cma:generation" in study.trials[-1].system_attrs  # the first trial is no random one


def test_the_best_of_the_nearest_experiments_is_enqueued(family):
    *cheap, target = family
    study = samplers.METHODS["tpe_enqueued"](asked((target, tuple(cheap)))).study
    parameters = Parameters(target.space)
    study.optimize(lambda trial: parameters.suggest(trial)["batch_size"], n_trials=3)
    for trial, experiment in zip(study.trials, (cheap[-1], cheap[-2]), strict=False):
        best = experiment.configurations[experiment.outcomes.best_row]
        assert trial.params == pytest.approx({n: float(v) for n, v in best.items()})


def test_a_run_that_diverged_is_a_failed_trial(family, monkeypatch):
    *cheap, target = family
    made = []

    def highest(asked):
        prepared = samplers.METHODS["random"](asked)
        low, high = target.space["learning_rate"].extent
        for rate in (high, low):
            prepared.study.enqueue_trial({"learning_rate": rate, "batch_size": 64.0})
        made.append(prepared.study)
        return prepared

    monkeypatch.setitem(samplers.METHODS, "highest", highest)
    played = studies.play("highest", target, tuple(cheap), seed=0, budget=2)
    assert [trial.state for trial in made[0].trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert played.regrets[0] == 1


def test_under_a_limit_the_nearest_configuration_within_it_answers(architectures):
    *cheap, target = architectures
    episode = Episode(target, tuple(cheap), 1)
    over = int(np.flatnonzero(~target.feasible_R)[-1])
    answer = studies.look_up(episode, target.configurations[over])
    assert answer.ok and target.sizes_R[answer.row] <= target.limit["at_most"]
    known = samplers.Asked(target.setting, tuple(cheap), 0)
    [point_D] = project([target.configurations[over]], target.space, target.space)
    assert known.size(known.parameters.of_point(point_D)) == target.sizes_R[over]


def unit(source, name):
    return Unit(f"{source}/pretraining", name, f"{source}/pretraining/{name}", 0)


def test_sources_weigh_alike_and_differences_are_paired():
    played = [
        studies.Played(method, unit(source, name), (regret + shift, shift), seconds)
        for method, shift, seconds in (("autollm", 0.0, 1.0), ("random", 0.25, 3.0))
        for source, name, regret in (
            ("one", "a", 0.0), ("one", "b", 0.0), ("one", "c", 0.0), ("two", "a", 0.4),
            ("two", "b", 0.4),
        )
    ]  # fmt: skip
    found = studies.compare(played)
    assert found["autollm"].regrets[0].mean == pytest.approx(0.2)
    difference = found["random"].differences[0]
    assert difference.mean == pytest.approx(-0.25)
    assert difference.low == pytest.approx(-0.25) == difference.high
    assert found["random"].seconds == (3.0, 3.0)
    assert found["random"].by_source["one/pretraining"] == pytest.approx((0.25, 0.25))
    with pytest.raises(ValueError, match="different experiments"):
        studies.compare(played[:-1])


def test_the_script_compares_and_writes_its_section(tmp_path):
    table(tmp_path / "root")
    page, record = tmp_path / "optuna.md", tmp_path / "studies.json"
    page.write_text("# Optuna\n\n## Beside Optuna's samplers\n\nold\n\n## Later\n\nkept\n")
    done = scripts.run(
        "launch/compare_samplers.py", f"--roots={tmp_path / 'root'}", "--seeds=2",
        "--methods=autollm,tpe_added,gp_added,cma_es_enqueued", f"--page={page}",
        f"--json={record}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "old" not in text and text.endswith("\n## Later\n\nkept\n")
    assert "at commit " in text and "1 held-out experiments" in text
    for start in ("| tpe_added | ", "| mine/pretraining | "):
        [row] = [line for line in text.splitlines() if line.startswith(start)]
        assert row in done.stdout
    assert ("gp_added is left out" in done.stdout) is not TORCH
    played = json.loads(record.read_text())["studies"]
    assert len(played) == 2 * (4 if TORCH else 3)
    assert all(math.isfinite(regret) for each in played for regret in each["regrets"])


def test_a_mistake_is_one_line(tmp_path):
    table(tmp_path, levels=("mid",))
    for arguments, message in (
        ((f"--roots={tmp_path}",), "no experiment with cheaper ones"),
        (("--methods=tpe",), "'tpe' is not known; accepted are autollm, "),
        ((f"--page={tmp_path / 'none.md'}",), "no such page; accepted is a Markdown file"),
    ):
        done = scripts.run("launch/compare_samplers.py", *arguments)
        assert done.returncode == 1 and message in done.stderr.splitlines()[-1]
