import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from autollm_jax.errors import UserError
from autollm_jax.evaluation.cost import Spending, cost_groups
from autollm_jax.evaluation.run_costs import read_runs
from autollm_jax.evaluation.summary import Results
from autollm_jax.forecasts.relevance import by_relevance
from autollm_jax.gym import tables
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.splits import evidence_for, split
from autollm_jax.sources import gemstones
from autollm_jax.sources.download import sha256_of

# FLOPs a device-hour: the wide, shallow shape gets the most out of a device.
SHAPES = {(512, 12): (1e8, 7e16), (1024, 28): (5e8, 1.5e17), (1792, 7): (5e8, 2.5e17)}


def row(width=512, depth=12, step=1000, nodes=4, **changed):
    parameters, rate = SHAPES[width, depth]
    flops = 6 * parameters * step * 4e6
    hours = flops / rate
    return {
        "run_name": f"PyGemma-{width}x{depth}_pretrain",
        "params_active_precise": int(parameters),
        "width": width,
        "depth": depth,
        "tokens": step * 4_000_000,
        "step": step,
        "num_nodes": nodes,
        "seconds_per_step": hours * 3600 / (8 * nodes * step),
        "final_loss": 5 - 0.1 * np.log2(step) - depth / 100,
    } | changed


def run(width, depth, steps, **changed):
    return [row(width, depth, step, **changed) for step in steps]


DOUBLING = [2**n for n in range(6, 18)]
ROWS = [r for shape in SHAPES for r in run(*shape, DOUBLING)]


def write(folder, rows=ROWS, name=gemstones.FILE):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def load(path, root):
    [(meta, rows)] = gemstones.read(path)
    tables.write_table(root, meta, rows)
    return {e.name: e for e in load_experiments([root])}


def test_an_experiment_is_a_budget_by_one_of_two_rulers(tmp_path):
    experiments = load(write(tmp_path), tmp_path / "root")
    levels = {name: e.fidelity.level for name, e in experiments.items()}
    assert levels == {
        "flops-1e19": "low", "flops-2e19": "low", "flops-5e19": "mid", "flops-1e20": "mid",
        "flops-2e20": "high", "hours-100": "low", "hours-300": "mid", "hours-1000": "high",
        "hours-3000": "high",
    }  # fmt: skip
    hours, flops = experiments["hours-300"], experiments["flops-5e19"]
    assert (hours.facts["ruler"], hours.facts["budget"]) == ("device-hours", "300 device-hours")
    assert (flops.facts["ruler"], flops.facts["budget"]) == ("FLOPs", "5e19 FLOPs")
    assert hours.facts["device"] == "AMD MI250X" and hours.facts["schedule_tokens"] == 350e9


def test_the_outcome_is_interpolated_in_the_budgets_logarithm(tmp_path):
    experiments = load(write(tmp_path), tmp_path / "root")
    for name, budget in (("flops-1e19", 1e19), ("flops-5e19", 5e19)):
        for width, depth in SHAPES:
            step = budget / (6 * SHAPES[width, depth][0] * 4e6)
            # Where the loss is linear in the step's logarithm, so is what stands between two.
            expected = 5 - 0.1 * np.log2(step) - depth / 100
            found = experiments[name].lookup({"width": width, "depth": depth})
            assert found == pytest.approx(expected, abs=1e-9)
    for width, depth in SHAPES:
        parameters, rate = SHAPES[width, depth]
        step = 300 * rate / (6 * parameters * 4e6)
        found = experiments["hours-300"].lookup({"width": width, "depth": depth})
        assert found == pytest.approx(5 - 0.1 * np.log2(step) - depth / 100, abs=1e-9)


def test_the_two_rulers_disagree(tmp_path):
    experiments = load(write(tmp_path), tmp_path / "root")
    best = {n: e.configurations[e.outcomes.best_row] for n, e in experiments.items()}
    assert best["flops-5e19"] == {"width": 512, "depth": 12}
    losses = {"hours": experiments["hours-300"], "flops": experiments["flops-5e19"]}
    gaps = {
        ruler: e.lookup({"width": 1792, "depth": 7}) - e.lookup({"width": 1024, "depth": 28})
        for ruler, e in losses.items()
    }
    assert gaps["flops"] - gaps["hours"] == pytest.approx(0.1 * np.log2(2.5 / 1.5))


def test_a_row_says_what_was_spent(tmp_path):
    [(_, rows)] = gemstones.read(write(tmp_path))
    for found in rows:
        assert found["flops"] == pytest.approx(6 * found["parameters"] * found["tokens"])
        assert found["seconds"] == pytest.approx(found["hours"] * 3600 / (8 * found["nodes"]))
        ruler, budget = found["experiment"].split("-")
        assert found[ruler] == float(budget)
        assert (found["seed"], found["status"]) == (0, "ok")


def test_a_shape_without_checkpoints_on_both_sides_was_not_measured(tmp_path):
    short = [*ROWS[:24], *run(1792, 7, [1000, 2000, 4000])]  # 1.2e19 to 4.8e19 FLOPs
    experiments = load(write(tmp_path, [*short, *run(512, 12, [3])]), tmp_path / "root")
    missing = {"width": 1792, "depth": 7}
    assert "flops-1e19" not in experiments and "flops-5e19" not in experiments
    assert np.isfinite(experiments["flops-2e19"].lookup(missing))
    [(meta, _)] = gemstones.read(tmp_path)
    assert {"flops-1e19", "flops-5e19", "flops-1e21"} <= set(meta["left_out"])


def test_a_checkpoint_at_the_budget_is_on_both_sides(tmp_path):
    exact = run(1792, 7, [1000])  # 1.2e19 FLOPs
    [shape] = gemstones._read_shapes(write(tmp_path, exact))
    point = gemstones.at_budget(shape.checkpoints, "flops", shape.checkpoints[0].flops)
    assert point == shape.checkpoints[0]
    assert gemstones.at_budget(shape.checkpoints, "flops", 1.3e19) is None
    assert gemstones.at_budget(shape.checkpoints, "flops", 1.1e19) is None


def test_the_choices_are_those_of_all_shapes(tmp_path):
    rows = [*ROWS[:24], *run(1792, 7, DOUBLING[:8]), *run(512, 12, [2**19])]
    experiments = load(write(tmp_path, rows), tmp_path / "root")
    spaces = {e.space for e in experiments.values()}
    assert len(spaces) == 1
    width, depth = spaces.pop().dimensions
    assert (width.kind, width.choices) == ("log-ordinal", (512, 1024, 1792))
    assert (depth.kind, depth.choices) == ("log-ordinal", (7, 12, 28))
    # Not measured is not off the grid: such a proposal is answered by the nearest shape.
    match = experiments["flops-1e19"].match({"width": 1024, "depth": 12})
    assert match.matched


def test_the_fidelity_is_a_model_of_the_budgets_flops(tmp_path):
    experiments = load(write(tmp_path), tmp_path / "root")
    for e in experiments.values():
        assert e.fidelity.tokens == pytest.approx(20 * e.fidelity.parameters)
        assert e.fidelity.flops == pytest.approx(6 * e.fidelity.parameters * e.fidelity.tokens)
    assert experiments["flops-5e19"].fidelity.flops == 5e19
    # Of device-hours: times the median shape's FLOPs a device-hour.
    assert experiments["hours-300"].fidelity.flops == pytest.approx(300 * 1.5e17)


def test_the_default_is_nearest_to_64_in_the_ratios_logarithm(tmp_path):
    experiments = load(write(tmp_path), tmp_path / "root")
    # 512 / 12 is 42.7, 1024 / 28 is 36.6, 1792 / 7 is 256.
    assert all(e.default == {"width": 512, "depth": 12} for e in experiments.values())
    shape = gemstones.Shape("", 0, 0, 1, 1, ())
    shapes = [dataclasses.replace(shape, width=w, depth=1) for w in (16, 130, 250)]
    assert gemstones.untuned_default(shapes)[0]["width"] == 130


def test_evidence_by_the_same_ruler_comes_first(tmp_path):
    experiments = load(write(tmp_path), tmp_path / "root")
    training = split(list(experiments.values()), "dev").training

    def order(name):
        setting = experiments[name].setting
        return [e.name for e in by_relevance(evidence_for(setting, training), setting)]

    assert order("hours-300") == ["hours-100", "flops-2e19", "flops-1e19"]
    assert order("flops-5e19") == ["flops-2e19", "flops-1e19", "hours-100"]
    assert order("hours-100") == ["flops-1e19"]  # strictly fewer FLOPs: 1.5e19 here
    assert order("flops-2e19") == ["flops-1e19", "hours-100"]


def test_a_run_that_answers_several_budgets_is_paid_once(tmp_path):
    load(write(tmp_path), tmp_path / "root")
    experiments = load_experiments([tmp_path / "root"])
    parts = split(experiments, "dev")
    runs = read_runs([tmp_path / "root"], experiments)
    spending = Spending(0.0, 0.0, (), runs, parts.training)
    target = parts.held_out[0]
    trial = {"outcome": 3.0, "status": "ok", "regret": 0.0, "regret_minmax": 0.0, "valid": True}
    played = {"method": "random", "seed": 0, "trial": 1, "config": "{}", "matched": False}
    where = {"task": target.task, "source": target.source, "experiment": target.name}
    results = Results(pa.Table.from_pylist([where | {"fidelity": "mid"} | played | trial]))
    [group] = cost_groups(results, [target], spending, [])
    longest = {}
    for e in parts.training:
        for key, flops in runs[e.id].items():
            longest[key] = max(longest.get(key, 0.0), flops)
    assert len(longest) == 3
    assert group.evidence == pytest.approx(sum(longest.values()))


def test_the_order_of_rows_does_not_matter(tmp_path):
    straight = gemstones.read(write(tmp_path))
    mixed = [ROWS[i] for i in np.random.default_rng(0).permutation(len(ROWS))]
    [(meta, rows)] = gemstones.read(write(tmp_path, mixed))
    assert rows == straight[0][1] and meta["experiments"] == straight[0][0]["experiments"]


def test_a_clone_of_the_repository_is_read(tmp_path):
    write(tmp_path, name=f"{gemstones.FOLDER}/{gemstones.FILE}")
    write(tmp_path, [], name=f"{gemstones.FOLDER}/wandb_df_for_fitting_cool_end.jsonl")
    assert len(gemstones.read(tmp_path)[0][1]) == len(gemstones.read(tmp_path / "wandb_dfs")[0][1])


def test_other_runs_of_a_shape_are_left_out_with_a_warning(tmp_path, caplog):
    plain = gemstones.read(write(tmp_path))[0][1]
    other = run(512, 12, DOUBLING, run_name="PyGemma-512x12_lr_ablation", final_loss=1.0)
    assert gemstones.read(write(tmp_path, [*other, *ROWS]))[0][1] == plain
    assert "1 runs with a name unlike PyGemma-512x12_pretrain" in caplog.text
    assert "PyGemma-512x12_lr_ablation" in caplog.text


def test_a_checkpoint_without_a_loss_is_left_out_with_a_warning(tmp_path, caplog):
    rows = [*ROWS, row(512, 12, 100, final_loss=None)]
    assert gemstones.read(write(tmp_path, rows)) != []
    assert "1 checkpoints without a loss" in caplog.text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"final_loss": float("nan")}, "line 4: `final_loss` is NaN; accepted is a finite number"),
        ({"final_loss": "3.2"}, 'line 4: `final_loss` is "3.2"; accepted is a finite number'),
        ({"final_loss": -3.2}, "line 4: `final_loss` is -3.2; accepted is a positive number"),
        ({"tokens": 0}, "line 4: `tokens` is 0; accepted is a positive number"),
        ({"tokens": 10**400}, "line 4: `tokens` is an integer of 1329 bits"),
        ({"tokens": 1e200}, "line 4: `tokens` is 1e\\+200; accepted is a positive number"),
        ({"seconds_per_step": True}, "line 4: `seconds_per_step` is true"),
        ({"num_nodes": 1.5}, "line 4: `num_nodes` is 1.5; accepted is a whole number"),
        ({"width": 640}, "line 4: `width` is 640; accepted is 512, as the run PyGemma-512x12_p"),
        ({"params_active_precise": 7}, "line 4: `params_active_precise` is 7; accepted is 1000000"),
        ({"step": 64}, "line 4: `step` is 64 a second time in the run .*, after line 1"),
        ({"run_name": 7}, "line 4: `run_name` is 7; accepted is a text"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(tmp_path, changed, message):
    rows = [*ROWS[:3], ROWS[3] | changed, *ROWS[4:]]
    with pytest.raises(UserError, match=message) as error:
        gemstones.read(write(tmp_path, rows))
    assert "\n" not in str(error.value) and gemstones.FILE in str(error.value)


def test_a_missing_field_is_named(tmp_path):
    rows = [{k: v for k, v in ROWS[0].items() if k != "step"}]
    with pytest.raises(UserError, match="line 1: field `step` is missing; Gemstones lines have"):
        gemstones.read(write(tmp_path, rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no run named such as PyGemma-512x12_pretrain"),
        (ROWS[:12], "no budget has 3 shapes with checkpoints on both sides"),
    ],
)
def test_a_file_without_an_experiment_is_an_error(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        gemstones.read(write(tmp_path, rows))


def test_a_folder_without_the_file_is_an_error(tmp_path):
    write(tmp_path, name="other.jsonl")
    with pytest.raises(UserError, match="no Gemstones file; accepted is wandb_df_for_fitting_hot"):
        gemstones.read(tmp_path)


def test_a_last_line_that_is_cut_is_left_out_unless_the_file_is_pinned(
    tmp_path, caplog, monkeypatch
):
    path = write(tmp_path, [*ROWS, row(512, 12, 2**18)])
    path.write_bytes(path.read_bytes()[:-20])
    cut = gemstones.read(path)[0][1]
    assert f"line {len(ROWS) + 1}: has no line end and is cut off" in caplog.text
    assert cut == gemstones.read(write(tmp_path / "whole"))[0][1]
    pinned = dataclasses.replace(gemstones.SOURCE, files={"file": sha256_of(path)})
    monkeypatch.setattr(gemstones, "SOURCE", pinned)
    with pytest.raises(UserError, match=f"line {len(ROWS) + 1}: not valid JSON"):
        gemstones.read(path)


def test_the_published_part_is_read(published, tmp_path):
    experiments = load(published("gemstones"), tmp_path / "root")
    sizes = {name: len(e.configurations) for name, e in experiments.items()}
    parts = {name: sizes[name] for name in ("flops-1e19", "flops-2e19", "hours-100", "hours-300")}
    assert parts == {"flops-1e19": 16, "flops-2e19": 19, "hours-100": 19, "hours-300": 22}
    width, depth = experiments["hours-300"].space.dimensions
    assert (len(width.choices), len(depth.choices)) == (11, 18)
    # Wide and shallow wins on device-hours, narrow and deep on FLOPs.
    best = {n: e.configurations[e.outcomes.best_row] for n, e in experiments.items()}
    assert best["hours-100"] == {"width": 1792, "depth": 7}
    assert best["flops-1e19"] == {"width": 384, "depth": 36}
