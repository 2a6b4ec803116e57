"""Every forecast answers alike: a mean and a deviation for any configurations, from the trials."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autollm_jax.errors import UserError
from autollm_jax.forecasts.advisers import COUNSEL, FORECASTS, forecast
from autollm_jax.forecasts.matern import matern
from autollm_jax.forecasts.shifted import Shifted
from autollm_jax.forecasts.surface import SurfaceTransfer
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import make_experiment
from autollm_jax.gym.settings import Fidelity, make_setting
from autollm_jax.gym.spaces import Dimension, InvalidConfiguration, Space
from tests.families import bowl_experiment

MAKERS = {
    **FORECASTS,
    **{name: COUNSEL[name] for name in ("nearest", "trees")},  # these learn from trials here
}
# The learned order follows the outcomes; the nearest experiment's images and the law's bowl do not.
LEARNING = [name for name in MAKERS if name not in ("nearest_experiment", "nearest", "scaling_law")]


@pytest.fixture(params=["bowls", "scores", "mixtures", "architectures", "tunings"])
def known(request):
    """Settings of every kind with evidence: (target, evidence), outcomes to minimise and not."""
    names = {"bowls": "family", "scores": "scores"}
    *evidence, target = request.getfixturevalue(names.get(request.param, request.param))
    return target, tuple(evidence)


def tried(target, evidence, rows):
    episode = Episode(target, evidence, len(rows))
    for row in rows:
        episode.exec_config(target.configurations[row])
    return episode.trials


@pytest.mark.parametrize("name", MAKERS)
def test_a_forecast_gives_mean_and_deviation_of_every_configuration(name, known):
    target, evidence = known
    made = MAKERS[name](target.setting, evidence)
    rows = np.flatnonzero(target.feasible_R)[:3]
    for trials in ((), tried(target, evidence, rows[:1]), tried(target, evidence, rows)):
        predicted = made.predict(trials)
        assert predicted.mean_R.shape == predicted.deviation_R.shape == (len(target.cells),)
        assert np.isfinite(predicted.mean_R).all() and (predicted.deviation_R > 0).all()
        expected_R = made.expected_regrets(trials)
        open_R = target.feasible_R & ~np.isin(np.arange(len(target.cells)), [t.row for t in trials])
        np.testing.assert_array_equal(np.isfinite(expected_R), open_R)
        assert ((expected_R >= 0) & (expected_R[open_R].max() <= 1)).all()


@pytest.mark.parametrize("name", MAKERS)
def test_a_forecast_computes_on_the_cpu_whatever_device_jax_prefers(name, family):
    """The last of eight devices stands for an accelerator."""
    *evidence, target = family
    preferred = jax.devices()[-1]
    before = set(map(id, jax.live_arrays()))
    with jax.default_device(preferred):
        made = MAKERS[name](target.setting, evidence)
        made.predict(tried(target, evidence, (3, 40)))
        arrays = [array for array in jax.live_arrays() if id(array) not in before]
    assert all(array.devices() == {jax.devices()[0]} for array in arrays)
    assert bool(arrays) == (name in ("gaussian_process", "panel"))


@pytest.mark.parametrize("name", MAKERS)
def test_evidence_of_one_run_is_enough(name, known):
    target, evidence = known
    other = evidence[0]
    row = other.outcomes.best_row
    one = make_experiment(
        source=other.source,
        task=other.task,
        name="one run",
        space=other.space,
        fidelity=other.fidelity,
        configurations=[other.configurations[row]],
        outcomes=[float(other.outcomes.values_R[row])],
        default=other.configurations[row],
        default_origin="the one run",
        objective_metric=other.objective.metric,
        minimize=other.objective.minimize,
    )
    made = MAKERS[name](target.setting, [one])
    rows = np.flatnonzero(target.feasible_R)[:2]
    for trials in ((), tried(target, (one,), rows)):
        predicted = made.predict(trials)
        assert np.isfinite(predicted.mean_R).all() and (predicted.deviation_R > 0).all()
        assert np.isfinite(made.expected_regrets(trials)).any()


@pytest.mark.parametrize("name", MAKERS)
def test_predicted_outcomes_lie_where_outcomes_do(name, known):
    """Mapped back, a prediction of good rows is near their outcomes, in the right direction."""
    target, evidence = known
    made = MAKERS[name](target.setting, evidence)
    good = np.argsort(target.outcomes.losses_R)[:5]
    trials = tried(target, evidence, good[:1])
    for predicted in (made.predict(), made.predict(trials)):
        mean_R, deviation_R = predicted.outcomes()
        assert mean_R.shape == deviation_R.shape == (len(target.cells),)
        away_R = np.abs(mean_R[good] - target.outcomes.values_R[good])
        assert away_R.max() < 2.5 * max(target.outcomes.unit, predicted.unit)


@pytest.mark.parametrize("name", LEARNING)
def test_means_go_with_regrets(name, known):
    target, evidence = known
    mean_R = MAKERS[name](target.setting, evidence).predict().mean_R
    rows = np.flatnonzero(target.feasible_R)
    assert np.corrcoef(mean_R[rows], target.outcomes.regrets_R[rows])[0, 1] > 0.4


@pytest.mark.parametrize("name", MAKERS)
def test_a_forecast_is_a_function_of_the_trials(name, known):
    """Asked of other trials in between, it answers as one that was not."""
    target, evidence = known
    rows = np.flatnonzero(target.feasible_R)
    some, others = tried(target, evidence, rows[:2]), tried(target, evidence, rows[-3:])
    made, fresh = (MAKERS[name](target.setting, evidence) for _ in range(2))
    for trials in ((), others, some[:1], others[:2]):
        made.predict(trials)
    for attribute in ("mean_R", "deviation_R"):
        np.testing.assert_array_equal(
            getattr(made.predict(some), attribute), getattr(fresh.predict(some), attribute)
        )
    np.testing.assert_array_equal(made.expected_regrets(some), fresh.expected_regrets(some))


@pytest.mark.parametrize("name", MAKERS)
def test_configurations_of_the_setting_are_predicted_alike_one_by_one(name, known):
    target, evidence = known
    made = MAKERS[name](target.setting, evidence)
    trials = tried(target, evidence, np.flatnonzero(target.feasible_R)[:2])
    asked = [target.configurations[row] for row in (5, 2, 5)]
    parts, whole = made.predict_at(asked, trials), made.predict(trials)
    np.testing.assert_array_equal(parts.mean_R, whole.mean_R[[5, 2, 5]])
    np.testing.assert_array_equal(parts.deviation_R, whole.deviation_R[[5, 2, 5]])


FREE = Space(
    (
        Dimension("learning_rate", "log-continuous", bounds=(2.0**-13, 2.0**-6)),
        Dimension("batch_size", "log-ordinal", (32, 64, 128, 192, 256, 352, 512)),
    )
)


@pytest.mark.parametrize("name", MAKERS)
def test_a_setting_that_nobody_has_run_is_predicted_at_any_configuration(name, family):
    setting = make_setting(
        source="made", task="pretraining", name="next", space=FREE,
        fidelity=Fidelity("high", 8e7, 32e8, 1.5e18),
        default={"learning_rate": 2.0**-9, "batch_size": 128},
    )  # fmt: skip
    made = MAKERS[name](setting, tuple(family))
    low, middle, high = ({"learning_rate": 2.0**n, "batch_size": 256} for n in (-12.9, -9.6, -6.1))
    predicted = made.predict_at([low, middle, high])
    assert np.isfinite(predicted.mean_R).all() and np.isfinite(predicted.outcomes()[0]).all()
    assert predicted.mean_R[1] < min(predicted.mean_R[0], predicted.mean_R[2]) + 1e-9
    with pytest.raises(InvalidConfiguration):
        made.predict_at([{"learning_rate": 1.0, "batch_size": 256}])


def test_a_new_configuration_under_a_limit_needs_its_parameters(architectures):
    *evidence, target = architectures
    kept = tuple(range(len(target.cells) - 1))
    setting = make_setting(
        source="made", task="architecture", name="fewer", space=target.space,
        fidelity=target.fidelity, default=target.configurations[0], limit=target.limit,
        configurations=[target.configurations[row] for row in kept],
        parameters=target.parameters_R[list(kept)],
    )  # fmt: skip
    made = forecast(setting, tuple(evidence))
    new = [target.configurations[-1]]
    with pytest.raises(UserError, match="`parameters` has to give one number for each of the 1 "):
        made.predict_at(new)
    assert np.isfinite(made.predict_at(new, parameters=[1e6]).mean_R).all()


@pytest.mark.parametrize("name", [*FORECASTS])
def test_without_evidence_a_forecast_starts_at_the_default_and_learns_its_level(name, known):
    target, _ = known
    made = FORECASTS[name](target.setting, ())
    first = made.start_row()
    assert target.configurations[first] == target.default or not target.feasible_R[0]
    assert np.isnan(made.predict().outcomes()[0]).all()
    trials = tried(target, (), [target.outcomes.best_row])
    assert np.isfinite(made.predict(trials).outcomes()[0]).all()


def test_a_panel_pools_its_members(known):
    target, evidence = known
    panel = forecast(target.setting, evidence, "panel")
    members = [make(target.setting, evidence).predict() for make in COUNSEL.values()]
    means, deviations = (np.array([getattr(m, n) for m in members]) for n in
                         ("mean_R", "deviation_R"))  # fmt: skip
    np.testing.assert_allclose(panel.predict().mean_R, means.mean(0))
    second = (deviations**2 + means**2).mean(0) - means.mean(0) ** 2
    np.testing.assert_allclose(panel.predict().deviation_R, np.sqrt(second), rtol=1e-6)


def test_an_unknown_forecast_is_a_users_error(family):
    with pytest.raises(UserError, match="forecast 'oracle': accepted are own, nearest_experiment"):
        forecast(family[0].setting, (), "oracle")


def test_evidence_that_no_law_can_move_is_carried_over_as_a_surface(family):
    """A dimension that the evidence lacks leaves the rest of it of use."""
    target = family[3].setting
    assert isinstance(forecast(target, tuple(family[:3])), Shifted)
    cheap = bowl_experiment("rates", 1e7, 2e8, (2.0**-10, 64), batch_sizes=(64,))
    fewer = Space((cheap.space.dimensions[0],))
    cheap = make_experiment_over(cheap, fewer)
    seen = forecast(target, (cheap,))
    assert isinstance(seen, SurfaceTransfer) and seen.nearest == (cheap,)
    near = target.configurations[int(seen.expected_regrets().argmin())]
    assert abs(np.log2(near["learning_rate"]) + 10) < 1


def make_experiment_over(experiment, space):
    """Return an experiment with fewer dimensions."""
    from autollm_jax.gym.experiments import make_experiment

    return make_experiment(
        space=space,
        configurations=[{n: c[n] for n in space.names} for c in experiment.configurations],
        outcomes=experiment.outcomes.values_R,
        default={n: experiment.default[n] for n in space.names},
        **{n: getattr(experiment, n) for n in
           ("source", "task", "name", "fidelity", "default_origin")},
    )  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_a_missing_number_of_tokens_leaves_the_parameters_to_go_by(name, bowl):
    unknown = [bowl(f"m{n}", 1e7 * 2**n, float("nan"), (2.0 ** (-8 - n / 2), 64)) for n in range(3)]
    made = MAKERS[name](unknown[2].setting, tuple(unknown[:2]))
    assert np.isfinite(made.predict().mean_R).all()
    assert [e.name for e in made.nearest] == ["m1", "m0"]


def test_one_matern_kernel_serves_numpy_and_jax():
    squared = np.linspace(0, 9, 7)
    with jax.enable_x64(True):
        np.testing.assert_allclose(matern(jnp.asarray(squared)), matern(squared), rtol=1e-12)
    assert np.all(np.isfinite(jax.grad(lambda s: matern(s, floor=1e-10).sum())(jnp.zeros(3))))
    root = np.sqrt(5 * squared)
    np.testing.assert_allclose(matern(squared), (1 + root + root**2 / 3) * np.exp(-root))


LIGHT = (
    "import importlib, pkgutil, sys\n"
    "for room in ('text', 'curriculum'):\n"
    "    package = importlib.import_module('autollm_jax.' + room)\n"
    "    for found in pkgutil.iter_modules(package.__path__):\n"
    "        importlib.import_module(package.__name__ + '.' + found.name)\n"
    "for name in ('advisers', 'base', 'coordinates', 'gathering', 'landscapes', 'matern',\n"
    "             'nearest', 'panel', 'relevance', 'scaling_law', 'shifted', 'surface'):\n"
    "    importlib.import_module('autollm_jax.forecasts.' + name)\n"
    "print(*sorted({'jax', 'optuna', 'lightgbm', 'cmaes'} & sys.modules.keys()))\n"
)


def test_words_and_plain_forecasts_load_no_optimiser():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
