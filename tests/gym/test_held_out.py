"""What is held out is read by trials alone."""

import ast
import copy
import dataclasses
import inspect
import pathlib
import pickle

import numpy as np
import pytest

import autollm_jax
from autollm_jax.gym.experiments import HeldOutError, reveal

ROOT = pathlib.Path(autollm_jax.__file__).parents[1]
READS = {
    "outcomes_R": lambda e: e.outcomes_R,
    "status_R": lambda e: e.status_R,
    "seconds_R": lambda e: e.seconds_R,
    "noise": lambda e: e.noise,
    "optimum": lambda e: e.optimum,
    "best_row": lambda e: e.best_row,
    "median": lambda e: e.median,
    "regrets_R": lambda e: e.regrets_R,
    "regret": lambda e: e.regret(2.0, "ok"),
    "regret_minmax": lambda e: e.regret_minmax(2.0, "ok"),
    "lookup": lambda e: e.lookup(e.configurations[0]),
    "lookup_many": lambda e: e.lookup_many(np.zeros((1, 2), int)),
}
COPIES = {
    "itself": lambda e: e,
    "sealed twice": lambda e: e.sealed(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "dataclasses.replace": lambda e: dataclasses.replace(e, name="other"),
    "rebuilt from its fields": lambda e: type(e)(**vars(e)),
}


@pytest.mark.parametrize("read", READS)
def test_reads_work_while_open(make, read):
    READS[read](make())


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("read", READS)
def test_reads_raise_once_sealed(make, read, how):
    experiment = make()
    READS[read](experiment)  # whatever this has cached must not travel
    sealed = COPIES[how](experiment.sealed())
    with pytest.raises(HeldOutError, match="held out"):
        READS[read](sealed)


def test_every_attribute_made_from_outcomes_is_in_the_list_above(make):
    """Whatever works on an open experiment and is not known to be harmless must raise."""
    harmless = {"id", "space", "configurations", "units_RD", "nearest_row", "match"}
    harmless |= {"feasible_R", "is_sealed", "sealed"}
    harmless |= {field.name for field in dataclasses.fields(make())}
    public = {name for name, _ in inspect.getmembers_static(make()) if not name.startswith("_")}
    assert public - harmless == set(READS)


def test_a_sealed_experiment_is_not_pickled(make):
    with pytest.raises(HeldOutError, match="cannot be pickled"):
        pickle.dumps(make().sealed())


def test_text_of_a_sealed_experiment_shows_no_outcome(make):
    sealed = make(outcomes=[123.456 + i for i in range(12)]).sealed()
    assert "123.456" not in repr(sealed) + repr(vars(sealed)) + str(dataclasses.asdict(sealed))


def test_what_is_open_stays_readable(make):
    sealed = make().sealed()
    assert sealed.match(sealed.default) == (1, False)
    assert sealed.units_RD.shape == (12, 2)
    assert sealed.id == "test/pretraining/small"


def test_revealing_opens(make):
    assert reveal(make().sealed()).optimum == 0.0
    open_experiment = make()
    assert reveal(open_experiment) is open_experiment


def mentions(name: str) -> set[str]:
    """Return the project's files that import or read `name`."""
    files = [*(ROOT / "autollm_jax").rglob("*.py")]
    for folder in ("launch", "configs"):
        files += (ROOT / folder).rglob("*.py")
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            imported = isinstance(node, ast.ImportFrom | ast.Import) and any(
                alias.name.split(".")[-1] == name for alias in node.names
            )
            read = isinstance(node, ast.Attribute) and node.attr == name
            text = isinstance(node, ast.Constant) and node.value == name
            if imported or read or text:
                found.add(file.relative_to(ROOT).as_posix())
    return found


def test_only_the_report_reveals():
    assert mentions("reveal") <= {"autollm_jax/evaluation/report.py"}


def test_only_trials_use_the_private_door():
    assert mentions("_measured") == {"autollm_jax/gym/environment.py"}


def test_only_the_door_looks_behind_the_seal():
    doors = {"autollm_jax/gym/experiments.py", "autollm_jax/gym/outcomes.py"}
    assert mentions("_inside") == doors
