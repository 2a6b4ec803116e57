"""The meta-learned baselines: that they learn, from what, and what becomes of it."""

import functools
import json

import jax
import numpy as np
import pytest

from autollm_jax.baselines import (
    META_LEARNED,
    Problem,
    acquisition_network,
    acquisition_training,
    learned,
    neural_acquisition,
)
from autollm_jax.baselines.greedy import Greedy
from autollm_jax.baselines.learned import Learned, experiments_digest
from autollm_jax.forecasts import fsbo
from autollm_jax.forecasts.problem_arrays import column_names, layout, read_problem, training_spaces
from autollm_jax.forecasts.relevance import relevant_evidence
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import make_experiment
from tests.forecasts.test_coordinates import FAMILIES, family
from tests.forecasts.test_coordinates import play as play_apart

from .conftest import bowl, mixed
from .test_methods import limited

METHODS = sorted(META_LEARNED)


class SmallFSBO(Greedy):
    """Greedy by FSBO, with less of everything."""

    SETTINGS = fsbo.Settings(steps=150, batch_rows=48, hidden=16)

    @classmethod
    def learn(cls, training, seed, progress, share=1.0):
        return fsbo.FSBO.learn(training, seed, progress, share, cls.SETTINGS)

    def __init__(self, problem, seed, learned):
        make = functools.partial(fsbo.FSBO, learned=learned, settings=self.SETTINGS)
        super().__init__(make, problem, seed)


class SmallNeuralAcquisition(neural_acquisition.NeuralAcquisition):
    """The neural acquisition process with less of everything."""

    SETTINGS = neural_acquisition.Settings(
        steps=40, problems=6, rollouts=4, trials=3, rows=48, cells=48, width=16, heads=2
    )

    @classmethod
    def learn(cls, training, seed, progress, share=1.0):
        return super().learn(training, seed, progress, share, cls.SETTINGS)

    def __init__(self, problem, seed, learned):
        super().__init__(problem, seed, learned, self.SETTINGS)


SMALL = {"fsbo": SmallFSBO, "neural_acquisition": SmallNeuralAcquisition}


@pytest.fixture(scope="module")
def training(evidence):
    """Return three search spaces: bowls on a law, every kind of dimension, a limit and groups."""
    sources = {"kinds": mixed("low"), "groups": limited("low")}
    return evidence + tuple(renamed(e, source) for source, e in sources.items())


def renamed(experiment, source):
    """Return an experiment as one of another source."""
    return make_experiment(
        source=source,
        space=experiment.space,
        configurations=experiment.configurations,
        outcomes=experiment.outcomes.values_R,
        status=experiment.outcomes.status_R,
        parameters=experiment.parameters_R,
        **{
            name: getattr(experiment, name)
            for name in ("task", "name", "fidelity", "default", "default_origin", "limit")
        },
    )


@pytest.fixture(scope="module")
def built(training, tmp_path_factory):
    """Return each method, having learned."""
    folder = tmp_path_factory.mktemp("baselines")
    return {
        name: Learned(cls, training, 0, folder / f"{name}.npz", progress=False)
        for name, cls in SMALL.items()
    }


def play(build, target, evidence, seed=0, budget=5):
    episode = Episode(target, evidence, budget)
    method = build(Problem(episode.setting, episode.evidence, budget), seed)
    while not episode.done:
        method.tell(episode.exec_config(method.ask()))
    return episode


def test_fsbo_learning_lowers_the_loss(built):
    losses = built["fsbo"].arrays["losses"]
    assert losses[-15:].mean() < losses[:15].mean() - 0.1


def test_neural_acquisition_learning_lowers_the_regret_of_the_same_problems(built, training):
    s, na = SmallNeuralAcquisition.SETTINGS, acquisition_training
    rng, spaces = np.random.default_rng(7), training_spaces(training, 4 * 48)
    before = acquisition_network.init_params(
        rng, s, [space.standard.active for space in [spaces[0], *spaces]]
    )
    learned_arrays = built["neural_acquisition"].arrays
    after = {k: learned_arrays[na.PARAMETER + k] for k in before}
    losses = []
    for params in (before, after):
        rng = np.random.default_rng(8)
        batches = [[na.draw_problem(spaces, s, rng) for _ in range(s.problems)] for _ in range(20)]
        evaluate = jax.jit(na.loss, static_argnums=(3,))
        found = [
            evaluate(params, jax.tree.map(lambda *a: np.stack(a), *b), jax.random.key(i), s)[1]
            for i, b in enumerate(batches)
        ]
        losses.append(float(np.mean(found)))
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_what_was_learned_beats_chance_on_a_dearer_experiment(method, built, target, evidence):
    chance = target.outcomes.regrets_R.mean()
    assert play(built[method], target, evidence, budget=1).best_regret() < 0.25 * chance


@pytest.mark.parametrize("method", METHODS)
def test_learning_is_deterministic_in_its_seed(method, training, built):
    first = built[method].arrays
    same, other = (SMALL[method].learn(training, seed, False) for seed in (0, 1))
    assert all(np.array_equal(first[k], same[k]) for k in same)
    assert not all(np.array_equal(first[k], other[k]) for k in other)


@pytest.mark.parametrize("method", METHODS)
def test_trials_are_measured_cells_and_never_repeated(method, built, target, evidence):
    trials = play(built[method], target, evidence, budget=18).trials
    assert not any(t.matched or not t.valid for t in trials)
    assert len({json.dumps(t.config) for t in trials}) == 18


@pytest.mark.parametrize("method", METHODS)
def test_play_is_deterministic_in_its_seed(method, built, target, evidence):
    first, second = (play(built[method], target, evidence, seed=3).trials for _ in range(2))
    assert [t.config for t in first] == [t.config for t in second]


@pytest.mark.parametrize("method", METHODS)
def test_the_first_ask_does_not_depend_on_the_targets_outcomes(method, built, evidence):
    asked = []
    for sign in (1, -1):
        target = bowl(4e8, 16e9, level="mid")
        target = bowl(
            4e8, 16e9, level="mid", outcomes=sign * np.nan_to_num(target.outcomes.values_R)
        )
        asked.append(built[method](Problem(target.setting, evidence, 5), 0).ask())
    assert asked[0] == asked[1]


@pytest.mark.parametrize("method", METHODS)
def test_trials_are_learned_from(method, built, evidence):
    """An experiment turned upside down is left for other cells than the one it pretends to be."""
    right = bowl(4e8, 16e9, level="mid")
    wrong = bowl(
        4e8, 16e9, level="mid", outcomes=6 - np.nan_to_num(right.outcomes.values_R, nan=3.0)
    )
    asked = [[t.config for t in play(built[method], t, evidence).trials] for t in (right, wrong)]
    assert asked[0][0] == asked[1][0] and asked[0] != asked[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", ["test", "never met"])
def test_plays_on_without_evidence(method, built, source, target):
    trials = play(built[method], renamed(target, source), ()).trials
    assert len({json.dumps(t.config) for t in trials}) == 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", ["kinds", "never met"])
def test_plays_every_kind_of_dimension(method, built, source):
    cheap = (mixed("low", 1e6), mixed("low", 2e6, layers=(4, 6, 8)))
    target = renamed(mixed("mid", 1e7, layers=(12, 16, 24)), source)
    trials = play(built[method], target, cheap).trials
    assert len({json.dumps(t.config) for t in trials}) == 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_plays_where_the_evidence_differs_among_itself(method, name, built):
    play_apart(built[method], *family(name))


@pytest.mark.parametrize("method", METHODS)
def test_learns_from_spaces_that_differ(method, tmp_path):
    """One search space holds experiments of other dimensions, choices and components each."""
    training = tuple(e for name in FAMILIES for e in family(name)[0])
    evidence, target = family("low and mid of a scale")
    learned_apart = Learned(SMALL[method], training, 0, tmp_path / "a.npz", 0.1, progress=False)
    play_apart(learned_apart, evidence, target)


@pytest.mark.parametrize("method", METHODS)
def test_only_feasible_cells_are_tried_and_then_again(method, built):
    trials = play(built[method], renamed(limited("mid", 1e7), "groups"), (limited(),), 0, 8).trials
    assert {t.status for t in trials} == {"ok"} and len({json.dumps(t.config) for t in trials}) == 8


class Counting:
    """A method that counts how often it learned."""

    calls = 0

    @classmethod
    def learn(cls, training, seed, progress, share=1.0):
        cls.calls += 1
        return {"weights": np.arange(3.0) + seed}

    def __init__(self, problem, seed, arrays):
        self.arrays = arrays


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(Counting, "calls", 0)
    return Counting


def test_what_was_learned_is_restored(counting, evidence, tmp_path, problem):
    for _ in range(2):
        built = Learned(counting, evidence, 1, tmp_path / "a.npz", progress=False)
        assert built(problem, 0).arrays["weights"].tolist() == [1, 2, 3]
    assert counting.calls == 1


def test_other_tables_another_seed_and_damage_learn_again(counting, evidence, tmp_path):
    path = tmp_path / "a.npz"
    for training, seed in ((evidence, 0), (evidence[1:], 0), (evidence[1:], 1)):
        assert Learned(counting, training, seed, path).arrays
    path.write_bytes(path.read_bytes()[:40])
    assert Learned(counting, evidence[1:], 1, path).arrays
    assert counting.calls == 4


def test_what_was_read_of_the_experiments_meanwhile_changes_nothing(evidence):
    fresh = tuple(evidence)
    for e in fresh:
        vars(e.fidelity).pop("log", None)  # as if nobody had asked yet
    before = experiments_digest(fresh)
    assert all(np.isfinite(e.fidelity.log).all() for e in fresh)
    assert experiments_digest(fresh) == before


def test_changed_code_learns_again(counting, evidence, tmp_path, monkeypatch):
    before = Learned(counting, evidence, 0, tmp_path / "a.npz").digest
    monkeypatch.setattr(learned, "package_digest", lambda: "changed")
    assert Learned(counting, evidence, 0, tmp_path / "a.npz").digest != before


def test_a_new_choice_does_not_move_the_columns_of_the_others(target, evidence):
    known = ["other", *layout(evidence)]
    moved = read_problem(target.setting, evidence, known, 50)
    plain = read_problem(target.setting, evidence, [], 50)
    assert (moved.cells_RZ[:, 1:3] == plain.cells_RZ[:, :2]).all()
    assert (moved.rows_NZ[:, 1:3] == plain.rows_NZ[:, :2]).all()
    assert (moved.cells_RZ[:, 0] == 0).all()


def test_columns_have_a_name_each():
    names = column_names(mixed().space)
    assert names[:4] == ["layers", "rate", "bias=True", "bias=False"]
    assert column_names(limited().space) == ["width", "layers", "mlp"]


def test_the_evidence_of_a_problem_is_that_of_every_method(problem):
    context = read_problem(problem.setting, problem.evidence, [], 60)
    assert len(np.unique(context.experiments_N)) == len(
        relevant_evidence(problem.evidence, problem.setting)
    )
    assert len(context.cells_RZ) == len(problem.setting.configurations)
