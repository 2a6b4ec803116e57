"""What became of the rows: every row is accounted for, and each that is left out says why."""

import json
import math

import pytest

from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.decider import Panels
from autollm_jax.advise.question import MOST_EXPERIMENTS, MOST_ROWS, MOST_TRIALS
from autollm_jax.advise.reading import read

from .conftest import TARGET
from .test_clumsy import ANSWERED, many


def usage_of(rows, target=TARGET):
    return Advisor.from_runs(rows, target=target, decider=Panels()).question.usage


def total(usage):
    cheap = sum(size.rows for size in usage.sizes)
    return cheap + usage.trials + usage.running + len(usage.left_out)


@pytest.mark.parametrize("kind", sorted(set(ANSWERED) - {"a tracker's other prefixes"}))
def test_every_row_of_a_clumsy_file_is_accounted_for(rows, tmp_path, kind):
    path = tmp_path / "runs.csv"
    path.write_bytes(ANSWERED[kind](rows).encode("cp1252" if kind == "latin letters" else "utf-8"))
    found = read(str(path))
    usage = usage_of(found)
    assert usage.read == len(found.rows) == total(usage)
    assert f"{usage.read} read, {usage.used} used" in usage.describe()


def mixed(rows):
    """Cheap runs that failed, that run, that have no number; two expensive ones; another size."""
    made = [{**row, "state": "finished"} for row in rows]
    made[3]["state"] = "crashed"
    made[5]["state"] = "running"
    made[7]["loss"] = "lost"
    made[9]["state"] = "OOM"
    made[20]["loss"] = "nan"
    other = {**made[0], "parameters": 8e6, "tokens": 1.6e8, "loss": "nan"}
    dear = [{**made[0], **TARGET, "loss": 2.3}, {**made[1], **TARGET, "state": "running"}]
    return [*made, other, *dear]


def test_how_many_rows_of_which_sizes_are_used_is_said_and_why_others_are_not(rows):
    usage = usage_of(mixed(rows))
    assert usage.read == len(rows) + 3 == total(usage)
    sizes = {size.name: (size.rows, size.configurations) for size in usage.sizes}
    assert sizes == {
        "parameters=4e+06,tokens=8e+07": (15, 15),
        "parameters=2e+06,tokens=4e+07": (15, 15),
        "parameters=1e+06,tokens=2e+07": (12, 12),
    }
    assert usage.sizes[2].ended == {"ok": 11, "infeasible": 1}
    assert (usage.trials, usage.running) == (1, 1)
    assert {each.place: each.reason for each in usage.left_out} == {
        "row 4": "failed, for a reason that is not known",
        "row 6": "under way at a cheaper size",
        "row 8": "loss is lost, not a number",
        "row 46": "no run of its size has an outcome",
    }
    text = usage.describe()
    assert "48 read, 43 used (42 cheap ones of 3 sizes, 1 of the target's size)" in text
    assert "parameters=2e+06,tokens=4e+07: 15 rows, 15 configurations; 1 diverged" in text
    assert "left out, 1: loss is lost, not a number (row 8)" in text
    told = json.loads(json.dumps(usage.to_json()))
    assert told["left_out"][1] == {"place": "row 8", "reason": "loss is lost, not a number"}


def test_rows_that_are_left_out_since_there_are_very_many_are_counted(rows):
    usage = usage_of(many(rows, 6000))
    assert usage.read == 6000 == total(usage)
    assert all(size.rows <= MOST_ROWS for size in usage.sizes)
    assert any("configurations of its size" in each.reason for each in usage.left_out)
    near = [{**row, "parameters": 1e6 * 1.05**n, "tokens": 2e7 * 1.05**n}
            for n in range(MOST_EXPERIMENTS + 6) for row in rows[:3]]  # fmt: skip
    usage = usage_of(near, {"parameters": 1e9, "tokens": 2e10})
    assert len(usage.sizes) == MOST_EXPERIMENTS and usage.read == total(usage)
    assert [each.reason for each in usage.left_out] == 18 * [
        f"of a size further from the target's than the nearest {MOST_EXPERIMENTS}"
    ]
    dear = [{**row, **TARGET} for row in many(rows, 1000)]
    usage = usage_of([*rows, *dear])
    assert usage.trials <= MOST_TRIALS and usage.read == total(usage)


def test_one_run_under_several_limits_counts_once(rows):
    sized = [{**row, "parameters": row["parameters"] * (1 + n % 3)} for n, row in enumerate(rows)]
    for row in sized:
        row["tokens"] = 2e7
    usage = usage_of(sized, {"parameters<=": 4e6, "tokens": 4e7})
    assert usage.read == len(rows) == usage.used == total(usage)


def test_rows_that_were_exported_twice_count_once_and_are_no_second_seed(rows):
    dear = [{**rows[0], **TARGET, "loss": 2.3}]
    once, twice = (
        Advisor.from_runs(each, target=TARGET, decider=Panels())
        for each in ([*rows, *dear], [*rows, *dear, *rows[:20], *dear])
    )
    usage = twice.question.usage
    assert (usage.read, usage.used, usage.trials) == (67, 46, 1)
    assert usage.read == total(usage)
    assert usage.left_out[0].place == "row 47"
    assert usage.left_out[0].reason == "the same in every column as row 1"
    assert "left out, 21: " in usage.describe()
    assert "and 18 more: the same in every column as an earlier row" in usage.describe()
    first, second = once.ask(), twice.ask()
    assert math.isnan(first.noise) and math.isnan(second.noise)
    assert first.ranked == second.ranked


def test_runs_of_other_seeds_are_not_rows_exported_twice(rows):
    seeds = [{**row, "seed": 2, "loss": row["loss"] * 1.001} for row in rows]
    usage = usage_of([*({**row, "seed": 1} for row in rows), *seeds])
    assert usage.used == 2 * len(rows) == total(usage)
