"""Files as people who train models keep them: understood as they would be by such a person."""

import itertools

import numpy as np
import pytest

from autollm_jax.advise import levels
from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.columns import Hints
from autollm_jax.advise.decider import Panels
from autollm_jax.advise.levels import best_loss
from autollm_jax.advise.reading import of_mappings, read
from autollm_jax.advise.understanding import understand

from .conftest import TARGET, loss


def asked(rows, target=TARGET, **arguments):
    return Advisor.from_runs(rows, target=target, decider=Panels(), **arguments)


GROUPS = {
    "merged cells": ",Model,,Optimiser,,Results\n",
    "a title and merged cells": "Sweep of autumn,,,,,\n,Model,,Optimiser,,Results\n",
    "two lines of groups": ",All,,,,\n,Model,,Optimiser,,\n",
}


@pytest.mark.parametrize("kind", GROUPS)
def test_names_of_groups_above_the_header_are_no_header(rows, tmp_path, kind):
    lines = [
        f"{row['run']},{row['parameters'] / 1e6:g}M,{row['tokens'] / 1e6:g}M,"
        f"{row['learning_rate']},{row['batch_size']},{row['loss']:.4f}"
        for row in rows
    ]
    path = tmp_path / "sheet.csv"
    path.write_text(GROUPS[kind] + "Run #,Size,Tokens,Peak LR,Batch,Val loss\n" + "\n".join(lines))
    advisor = asked(read(str(path)))
    assert set(advisor.question.setting.space.names) == {"Peak LR", "Batch"}
    assert advisor.question.usage.used == len(rows)


def named(rows, spell):
    """Rows whose size stands in the model's name alone, and whose length is in steps."""
    kept = [{k: v for k, v in row.items() if k not in ("parameters", "tokens")} for row in rows]
    return [
        {**short, "model": spell(row["parameters"]), "max_steps": row["tokens"] / 1e4}
        for short, row in zip(kept, rows, strict=True)
    ]


@pytest.mark.parametrize(
    "spell", [lambda n: f"pythia-{n / 1e6:g}m", lambda n: f"Qwen2.5-{n / 1e9:g}B-base"]
)
def test_a_models_size_is_read_from_its_name_where_no_number_says_it(rows, spell):
    target = {"parameters": 1.6e7, "steps": 3.2e4}
    advisor = asked(named(rows, spell), target)
    assert "model" not in advisor.ask().config
    sizes = sorted({e.fidelity.parameters for e in advisor.question.evidence})
    assert sizes == [1e6, 2e6, 4e6]
    assert "the size that its text says" in advisor.known.describe()
    # A target without parameters leaves the model to be chosen, and numbers come first.
    alike = [{**row, "max_steps": 1000} for row in named(rows, spell)]
    assert "model" in asked(alike, {"steps": 3.2e4}).question.setting.space.names
    both = [{**row, "model": spell(row["parameters"])} for row in rows]
    known = understand(of_mappings(both), Hints(wanted=("parameters", "tokens")))
    assert known.columns["parameters"].role == "fidelity"
    assert known.columns["model"].role == "ignored"


def test_equal_steps_with_another_batch_size_are_said_to_differ_in_cost(rows):
    advisor = asked(named(rows, lambda n: f"gpt-{n / 1e6:g}m"), {"parameters": 1.6e7, "steps": 4e4})
    assert any("a larger batch_size, and cost more" in note for note in advisor.question.notes)
    assert not any("cost more" in note for note in asked(rows).question.notes)


def test_a_size_that_no_run_says_is_not_part_of_a_runs_cost(rows):
    short = [{k: v for k, v in row.items() if k != "parameters"} for row in rows]
    run = asked(short, {"parameters": 1.6e7, "tokens": 3.2e8}).ask().cheap_run
    assert run is not None and 0.01 < run.cost < 1


def test_without_a_size_the_prediction_is_said_to_be_of_the_runs_own(rows):
    short = [{k: v for k, v in row.items() if k not in ("parameters", "tokens")} for row in rows]
    notes = " ".join(asked(short[:15]).ask().notes)
    assert "outcomes are predicted for runs of their size, not for the target's" in notes


def test_a_summary_of_a_measure_is_not_another_objective(rows):
    more = [
        {**{k: v for k, v in row.items() if k != "loss"}, "eval/loss": row["loss"],
         "eval/loss.min": row["loss"] - 0.01, "eval/loss (mean)": row["loss"] + 0.1,
         "train/loss": row["loss"] - 0.1}
        for row in rows
    ]  # fmt: skip
    assert asked(more).known.objective.name == "eval/loss"


def ladder(sizes):
    grid = itertools.product(sizes, (1e-4, 3e-4, 1e-3, 3e-3), (32, 64, 128))
    return [
        {"learning_rate": rate, "batch_size": batch, "parameters": size, "tokens": 20 * size,
         "loss": loss(rate, batch, size)}
        for size, rate, batch in grid
    ]  # fmt: skip


def test_three_sizes_tell_a_level_no_better_than_the_laws_that_may_be_right():
    """One test chooses among four laws by luck: its error alone promised a few hundredths."""
    question = asked(ladder([1e6, 2e6, 4e6]), {"parameters": 5e8, "tokens": 1e10}).question
    setting, evidence = question.setting, question.evidence
    laws = [levels._straight, *map(levels._power, levels.FLOORS)]
    spread = float(np.std([law(setting, evidence) for law in laws]))
    level = levels.level_of(setting, evidence, 1.0)
    assert level.tested and level.error >= spread > 0.01


def test_a_loss_that_is_never_negative_has_no_interval_below_zero():
    far = asked(ladder([1e6, 2e6, 4e6]), {"parameters": 1e13, "tokens": 2e14})
    assert min(map(best_loss, far.question.evidence)) > 0
    for ranked in far.ask().ranked:
        assert 0 <= ranked.interval_95[0] <= ranked.interval_80[0] < ranked.interval_80[1]
