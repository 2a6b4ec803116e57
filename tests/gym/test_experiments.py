import math
import pickle

import numpy as np
import pytest

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.spaces import Dimension, InvalidConfiguration, Space


def test_regret_is_zero_at_the_optimum_and_one_from_the_median_on(make):
    experiment = make()  # losses 0 to 11: median 5.5
    np.testing.assert_allclose(experiment.outcomes.regrets_R[:5], np.arange(5) / 5.5)
    assert (experiment.outcomes.regrets_R[6:] == 1).all()
    assert experiment.outcomes.regret(-3.0) == 0.0


def test_regret_of_a_score_that_should_be_high(make):
    experiment = make(minimize=False)
    assert experiment.outcomes.optimum == 11
    np.testing.assert_allclose(experiment.outcomes.regret(10.0), 1 / 5.5)
    np.testing.assert_allclose(experiment.outcomes.regret_minmax(10.0), 1 / 11)


def test_a_diverged_run_scores_one_and_counts_as_infinite_in_the_median(make):
    status = ["diverged"] + ["ok"] * 11
    experiment = make(outcomes=range(12), status=status)
    assert experiment.outcomes.regrets_R[0] == 1.0
    assert experiment.outcomes.optimum == 1.0
    assert experiment.outcomes.median == 6.5  # of 1 to 11 and infinity


def test_where_most_runs_failed_the_worst_ok_run_is_the_middling_one(make):
    experiment = make(outcomes=range(12), status=["ok"] * 3 + ["diverged"] * 9)
    np.testing.assert_allclose(experiment.outcomes.regrets_R[:4], [0, 0.5, 1, 1])


def test_infeasible_cells_do_not_move_the_middling_outcome(make):
    experiment = make(outcomes=range(12), status=["ok"] * 3 + ["infeasible"] * 9)
    np.testing.assert_allclose(experiment.outcomes.regrets_R[:4], [0, 1, 1, 1])
    assert experiment.outcomes.median == 1.0


def test_minmax_regret_spans_finite_losses_of_diverged_runs(make):
    outcomes, status = [*range(11), 100.0], ["ok"] * 11 + ["diverged"]
    experiment = make(outcomes=outcomes, status=status)
    np.testing.assert_allclose(experiment.outcomes.regret_minmax(10.0), 0.1)
    assert experiment.outcomes.regret_minmax(50.0, "diverged") == 0.5
    assert experiment.outcomes.regret_minmax(math.nan, "diverged") == 1.0
    assert experiment.outcomes.regret_minmax(0.0, "infeasible") == 1.0


def test_regret_where_all_outcomes_are_equal(make):
    experiment = make(outcomes=[2.0] * 12)
    assert experiment.outcomes.regret(2.0) == 0.0
    assert experiment.outcomes.regret(2.1) == 1.0


def test_repeated_runs_are_pooled(make):
    cells = [{"learning_rate": 0.001, "batch_size": 32}] * 2 + [
        {"learning_rate": 0.002, "batch_size": 32}
    ] * 2
    experiment = make(configurations=cells, outcomes=[1.0, 3.0, 2.0, 2.0], seconds=[2, 4, None, 1])
    np.testing.assert_allclose(experiment.outcomes.values_R, [2.0, 2.0])
    np.testing.assert_allclose(experiment.outcomes.seconds_R, [3.0, 1.0])
    # Pooled over two cells with one degree of freedom each: sqrt((2 + 0) / 2).
    np.testing.assert_allclose(experiment.outcomes.noise, 1.0)


def test_noise_beyond_the_median_is_not_counted(make):
    cells = [{"learning_rate": rate, "batch_size": 32} for rate in (0.001, 0.001, 0.002, 0.002)]
    assert make(configurations=cells, outcomes=[1.0, 1.0, 5.0, 9.0]).outcomes.noise == 0.0


def test_a_configuration_diverged_if_one_of_its_runs_did(make):
    cells = [{"learning_rate": 0.001, "batch_size": b} for b in (32, 32, 64)]
    experiment = make(
        configurations=cells, outcomes=[2.0, 7.0, 3.0], status=["ok", "diverged", "ok"]
    )
    assert experiment.outcomes.status_R.tolist() == ["diverged", "ok"]
    assert experiment.outcomes.values_R.tolist() == [7.0, 3.0]


def test_noise_is_nan_without_repeats(make):
    assert math.isnan(make().outcomes.noise)


def test_an_experiment_without_any_ok_run_is_refused(make):
    with pytest.raises(UserError, match="test/pretraining/small: no run is ok"):
        make(status=["diverged"] * 12)


def test_a_measured_configuration_matches_itself(make):
    experiment = make()
    for row, config in enumerate(experiment.configurations):
        assert experiment.match(config) == (row, False)


@pytest.mark.parametrize(
    ("learning_rate", "batch_size", "nearest"),
    [(0.0029, 64, (0.004, 64)), (1.0, 10**6, (0.008, 128)), (0.0041, 70, (0.004, 64))],
)
def test_an_off_grid_number_matches_the_nearest_cell(make, learning_rate, batch_size, nearest):
    experiment = make()
    row, matched = experiment.match({"learning_rate": learning_rate, "batch_size": batch_size})
    assert matched
    assert tuple(experiment.configurations[row].values()) == nearest


def test_a_cell_that_was_not_measured_matches_a_neighbour(make):
    cells = [c for c in make().configurations if tuple(c.values()) != (0.002, 64)]
    experiment = make(configurations=cells)
    row, matched = experiment.match({"learning_rate": 0.002, "batch_size": 64})
    assert matched
    assert experiment.configurations[row] == {"learning_rate": 0.001, "batch_size": 64}


def test_matching_is_by_brute_force_the_nearest(make):
    experiment, rng = make(), np.random.default_rng(0)
    for _ in range(50):
        config = {
            "learning_rate": float(10 ** rng.uniform(-3.5, -1.5)),
            "batch_size": int(rng.integers(8, 500)),
        }
        unit = experiment.space.to_unit(config)
        distances = [
            np.linalg.norm(unit - experiment.space.to_unit(c)) for c in make().configurations
        ]
        assert np.isclose(distances[experiment.match(config).row], min(distances))


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{}",
        {},
        {"learning_rate": 0.001},
        {"learning_rate": 0.001, "batch_size": 32, "x": 1},
        {"learning_rate": "fast", "batch_size": 32},
        {"learning_rate": math.nan, "batch_size": 32},
        {"learning_rate": math.inf, "batch_size": 32},
        {"learning_rate": -0.001, "batch_size": 32},
    ],
)
def test_what_cannot_be_matched_is_invalid(make, config):
    with pytest.raises(InvalidConfiguration):
        make().match(config)


def test_a_used_experiment_with_a_simplex_can_be_pickled(make):
    space = Space((Dimension("mixture", "simplex", ("a", "b")),))
    cells = [{"mixture": {"a": a, "b": 1 - a}} for a in (0.25, 0.5, 0.75)]
    fields = {"space": space, "configurations": cells, "default": cells[0]}
    experiment = make(outcomes=[3.0, 2.0, 1.0], **fields)
    assert experiment.match(cells[1]).row == 1
    again = pickle.loads(pickle.dumps(experiment))
    assert again.match(cells[2]).row == 2 and again.outcomes.optimum == 1.0


def test_a_simplex_configuration_matches_up_to_its_written_digits(make):
    space = Space((Dimension("mixture", "simplex", ("a", "b", "c")),))
    cells = [{"mixture": {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}}, {"mixture": {"a": 1.0}}]
    experiment = make(space=space, configurations=cells, default=cells[0])
    assert experiment.match({"mixture": {"a": 0.3333, "b": 0.3333, "c": 0.3333}}) == (0, False)
    assert experiment.match({"mixture": {"a": 0.9, "b": 0.1}}) == (1, True)
    assert experiment.lookup(cells[1]) == 1.0


def test_lookup_agrees_with_the_table_and_is_nan_where_unmeasured(make):
    experiment = make(configurations=make().configurations[:11])
    for config, outcome in zip(
        experiment.configurations, experiment.outcomes.values_R, strict=True
    ):
        assert experiment.lookup(config) == outcome
    assert experiment.lookup({"batch_size": 31.6, "learning_rate": 0.00205}) == 3.0
    assert math.isnan(experiment.lookup({"learning_rate": 0.008, "batch_size": 128}))


@pytest.mark.parametrize(
    "config",
    [{}, {"learning_rate": 0.003, "batch_size": 32}, {"learning_rate": [], "batch_size": 32}],
)
def test_lookup_does_not_match(make, config):
    with pytest.raises(InvalidConfiguration):
        make().lookup(config)


def test_batched_lookup_agrees_with_scalar_lookup(make):
    experiment = make(configurations=make().configurations[:11])
    index_ND = np.array([[a, b] for a in range(4) for b in range(3)])
    expected = [
        experiment.lookup(
            {d.name: d.choices[i] for d, i in zip(experiment.space.dimensions, ix, strict=True)}
        )
        for ix in index_ND
    ]
    np.testing.assert_array_equal(experiment.lookup_many(index_ND), expected)


def test_batched_lookup_in_a_space_too_large_for_an_array(make):
    space = Space(tuple(Dimension(f"d{i}", "ordinal", (0, 1, 2)) for i in range(70)))
    rng = np.random.default_rng(0)
    index_RD = rng.integers(0, 3, (200, 70))
    cells = [{f"d{i}": int(v) for i, v in enumerate(ix)} for ix in index_RD]
    experiment = make(space=space, configurations=cells, default=cells[0])
    np.testing.assert_array_equal(experiment.lookup_many(index_RD), np.arange(200))
    other_ND = index_RD.copy()
    other_ND[:, 0] = (other_ND[:, 0] + 1) % 3
    assert np.isnan(experiment.lookup_many(other_ND)).all()


@pytest.mark.parametrize("index", [[[0, 3]], [[-1, 0]], [[0]], [0, 1], [[0.0, 1.0]]])
def test_batched_lookup_refuses_what_is_no_index(make, index):
    with pytest.raises(IndexError):
        make().lookup_many(np.array(index))


def test_outcomes_cannot_be_written(make):
    with pytest.raises(ValueError, match="read-only"):
        make().outcomes.values_R[0] = -1


def table(space, name="one", source="test", rows=1, **changes):
    meta = {
        "format": 1,
        "source": source,
        "task": "pretraining",
        "experiments": {
            name: {
                "context": {"width": 64},
                "fidelity": {"level": "mid", "parameters": 1, "tokens": 2, "flops": 12},
                "space": space.to_json(),
                "objective": {"metric": "loss", "goal": "minimize"},
                "default": {"learning_rate": 0.001, "batch_size": 32},
                "default_origin": "the tests",
            }
        },
    }
    row = {
        "experiment": name,
        "config.learning_rate": 0.00101,
        "config.batch_size": 64,
        "loss": 2.5,
        "flops": 12.0,
        "seconds": 3.0,
        "seed": 0,
        "status": "ok",
    } | changes
    return meta, [row] * rows


def test_experiments_load_from_several_roots_sorted_by_id(tmp_path, space):
    tables.write_table(tmp_path / "a", *table(space, "zebra"))
    tables.write_table(tmp_path / "b", *table(space, "ant", source="other", loss=3.0))
    loaded = load_experiments([tmp_path / "a", tmp_path / "b"])
    assert [e.id for e in loaded] == ["other/pretraining/ant", "test/pretraining/zebra"]
    assert loaded[0].outcomes.optimum == 3.0 and loaded[0].facts == {"width": 64}
    assert loaded[0].configurations == ({"learning_rate": 0.001, "batch_size": 64},)
    assert (loaded[0].fidelity.level, loaded[0].fidelity.flops) == ("mid", 12)


def test_an_experiment_without_rows_yet_is_left_out(tmp_path, space):
    meta, rows = table(space)
    meta["experiments"]["planned"] = meta["experiments"]["one"]
    tables.write_table(tmp_path, meta, rows)
    assert [e.name for e in load_experiments([tmp_path])] == ["one"]


def test_an_experiment_in_two_roots_is_refused(tmp_path, space):
    tables.write_table(tmp_path / "a", *table(space))
    tables.write_table(tmp_path / "b", *table(space))
    with pytest.raises(UserError, match="test/pretraining/one is also in"):
        load_experiments([tmp_path / "a", tmp_path / "b"])


def test_roots_without_a_table_of_the_task_are_named(tmp_path, space):
    tables.write_table(tmp_path, *table(space))
    with pytest.raises(UserError, match="no outcome table of task grpo"):
        load_experiments([tmp_path], tasks=["grpo"])


def test_a_row_outside_its_space_is_named(tmp_path, space):
    tables.write_table(tmp_path, *table(space, **{"config.batch_size": 50}))
    with pytest.raises(UserError, match=r"row 1 \(experiment one\): batch_size is 50"):
        load_experiments([tmp_path])
