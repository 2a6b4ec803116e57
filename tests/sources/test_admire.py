import numpy as np
import pytest

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.sources import admire

OTHERS = {f"ratio_{column}": 0.0 for column, _ in admire.DATA_SETS.values()}


def run(model="Qwen2.5-0.5B", mean=0.3, gsm8k=0.5, train_time=90, extra=None, **ratios):
    named = {f"ratio_{admire.DATA_SETS[name][0]}": ratio for name, ratio in ratios.items()}
    return (
        {"model": model}
        | OTHERS
        | (named or {"ratio_flan_v2_converted": 1.0})
        | {"metric_gsm8k::tulu": gsm8k, "metric_arc_challenge:rc::tulu": 0.25}
        | {"train_time": train_time}
        | {"metric_avg_id+ood": mean, "metric_avg_id": 0.4, "metric_avg_ood": 0.2}
        | (extra or {})
    )


@pytest.fixture
def write(write_csv):
    return lambda *rows, **fields: write_csv("admire_ift_runs.csv", rows, **fields)


def load(path, root):
    [(meta, rows)] = admire.read(path)
    tables.write_table(root, meta, rows)
    return {e.name: e for e in load_experiments([root])}


def test_an_experiment_is_a_model_and_an_objective_to_maximise(write, tmp_path):
    write(run(flan=1.0), run(aya=1.0, mean=0.35, gsm8k=0.25))
    experiments = load(tmp_path, tmp_path / "root")
    assert sorted(experiments) == [
        f"Qwen2.5-0.5B_{name}" for name in ("arc_challenge", "gsm8k", "mean", "mean_id", "mean_ood")
    ]
    mean, gsm8k = experiments["Qwen2.5-0.5B_mean"], experiments["Qwen2.5-0.5B_gsm8k"]
    assert (mean.outcomes.best_row, gsm8k.outcomes.best_row, mean.objective.minimize) == (
        1,
        0,
        False,
    )
    assert (mean.objective.metric, gsm8k.objective.metric) == ("metric.mean", "metric.gsm8k")
    assert gsm8k.facts["objective"] == "gsm8k" and mean.cells is gsm8k.cells


@pytest.mark.parametrize(
    ("model", "level"), [("Qwen2.5-0.5B", "low"), ("Qwen2.5-3B", "mid"), ("Qwen2.5-7B", "high")]
)
def test_fidelity_follows_from_the_models_size(write, tmp_path, model, level):
    write(run(model))
    fidelity = load(tmp_path, tmp_path / "root")[f"{model}_mean"].fidelity
    assert fidelity.level == level
    assert fidelity.flops == 6 * fidelity.parameters > 0


def test_ratios_that_sum_to_about_one_are_normalised(write, tmp_path):
    write(run(flan=0.5006, aya=0.5))
    config = load(tmp_path, tmp_path / "root")["Qwen2.5-0.5B_mean"].configurations[0]["mixture"]
    np.testing.assert_allclose(config["flan"], 0.5006 / 1.0006)


def test_a_missing_score_leaves_the_run_out_of_that_objective_alone(write, tmp_path):
    write(run(flan=1.0, gsm8k=""), run(aya=1.0, gsm8k="nan"), run(oasst=1.0))
    experiments = load(tmp_path, tmp_path / "root")
    assert len(experiments["Qwen2.5-0.5B_mean"].configurations) == 3
    assert experiments["Qwen2.5-0.5B_gsm8k"].configurations[0]["mixture"]["oasst"] == 1.0


def test_an_objective_without_any_score_is_left_out_and_named(write, tmp_path):
    [(meta, _)] = admire.read(write(run(gsm8k="")))
    assert meta["left_out"] == ["Qwen2.5-0.5B_gsm8k"]
    assert "Qwen2.5-0.5B_gsm8k" not in meta["experiments"]


def test_the_default_is_the_measured_mixture_nearest_to_tulu_3s(write, tmp_path):
    total = sum(size for _, size in admire.DATA_SETS.values())
    assert total == 939_344  # what the data set's card says
    near = {name: size / total for name, (_, size) in admire.DATA_SETS.items()}
    write(run(flan=1.0), run(**near), run(aya=1.0))
    experiment = load(tmp_path, tmp_path / "root")["Qwen2.5-0.5B_mean"]
    assert experiment.match(experiment.default) == (1, False)
    assert "2411.15124" in experiment.default_origin


def test_columns_in_another_order_and_other_columns_change_nothing(write, tmp_path):
    rows = [run(flan=1.0), run("Qwen2.5-3B", aya=1.0)]
    [(_, expected)] = admire.read(write(*rows))
    extended = [row | {"note": "x"} for row in rows]
    [(_, made)] = admire.read(write(*extended, columns=list(reversed(extended[0]))))
    assert sorted(map(str, made[0].items())) == sorted(map(str, expected[0].items()))


def test_the_file_is_found_in_a_clone_and_under_another_name(write, tmp_path):
    folder = tmp_path / "admire_ift_runs"
    folder.mkdir()
    path = write(run(), folder=folder)
    assert admire.read(tmp_path)[0][1] == admire.read(path.rename(tmp_path / "part.csv"))[0][1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (run(flan=0.5), "line 2: the weights sum to 0.5"),
        (run(flan="nan"), "`ratio_flan_v2_converted` is nan"),
        (run("Llama"), "`model` is 'Llama'; accepted is such as Qwen2.5-0.5B"),
        (run("../7B"), "`model` is '../7B'"),
        (run(gsm8k="good"), "`metric_gsm8k::tulu` is 'good'; accepted is a number"),
        (run(gsm8k="inf"), "`metric_gsm8k::tulu` is inf"),
        (run(extra={"ratio_new": 0}), "column `ratio_new` is of no data set of Tulu 3's mixture"),
    ],
)
def test_what_is_not_as_published_is_one_clear_line(write, row, message):
    with pytest.raises(UserError, match=message) as error:
        admire.read(write(row))
    assert "\n" not in str(error.value)


def test_other_files_and_none_are_named(write_csv, tmp_path):
    with pytest.raises(UserError, match="no ADMIRE file; accepted is admire_ift_runs.csv"):
        admire.read(tmp_path)
    with pytest.raises(UserError, match="column `model` is missing; ADMIRE files"):
        admire.read(write_csv("admire_ift_runs.csv", [{"lr": 1}]))
    with pytest.raises(UserError, match="no run in it has a score"):
        admire.read(write_csv("admire_ift_runs.csv", [], columns=list(run())))


def test_the_published_file_imports_as_described(published, tmp_path):
    experiments = load(published("admire"), tmp_path)
    assert len(experiments) >= 40
    low, mid = experiments["Qwen2.5-0.5B_mean"], experiments["Qwen2.5-3B_mean"]
    assert (len(low.configurations), len(mid.configurations)) == (256, 128)
    keys = {low.space.key_of(c) for c in low.configurations}
    assert all(mid.space.key_of(c) in keys for c in mid.configurations)
    assert (
        0.3
        < low.outcomes.median
        < low.outcomes.optimum
        < mid.outcomes.median
        < mid.outcomes.optimum
        < 0.6
    )
