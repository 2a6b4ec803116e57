"""Which column is the objective, and whether low is good."""

import re
from collections.abc import Mapping, Sequence

from autollm_jax.advise.columns import Hints, listed
from autollm_jax.advise.names import MAXIMISED, MEASURED, USUAL, VALIDATION, plainly, stripped
from autollm_jax.advise.rows import Rows
from autollm_jax.advise.values import ColumnCells
from autollm_jax.errors import UserError


def guessed_objective(names: Sequence[str], values: Mapping[str, ColumnCells], hints: Hints) -> str:
    """Guess the objective: something measured, of validation first.

    Raises:
      UserError: nothing or several things could be it.
    """
    may = [
        name
        for name in names
        if values[name].is_numeric
        and values[name].varies
        and hints.roles.get(name, "objective") == "objective"
        and stripped(name) == name
        and (re.fullmatch(MEASURED, plainly(name)) or name == "value")
        and not re.fullmatch(
            r".*(seconds|runtime|duration|hours|memory|mem|wall|elapsed|norm).*",
            plainly(name),
        )  # fmt: skip
        and not re.fullmatch(USUAL, plainly(name).replace("loss", ""))
    ]
    # loss.web, loss/code and loss.min are parts of loss, where that is there.
    may = [name for name in may if not any(re.match(rf"{re.escape(m)}[./ (]", name) for m in may)]
    validation = rf".*({VALIDATION}).*"
    validation_loss = rf".*({VALIDATION}).*loss.*|.*loss.*({VALIDATION}).*"
    for pattern in (r"objective|value", validation, validation_loss, r".*loss.*", r".*"):
        found = [name for name in may if re.fullmatch(pattern, plainly(name))]
        if len(found) == 1:
            return found[0]
    numeric = [name for name in names if values[name].is_numeric and values[name].varies]
    if not numeric:
        raise UserError(
            f"no column holds numbers that differ; the columns are {listed(names)}; accepted is a "
            "header line, then a line for each run, with its hyperparameters, size and outcome"
        )
    which = f"it may be {listed(may)}" if may else f"columns of numbers are {listed(numeric)}"
    empty = [n for n in names if re.fullmatch(MEASURED, plainly(n)) and not values[n].finite]
    if empty and not may:
        which += f"; {listed(empty)} holds no finite number"
    raise UserError(f"which column is the objective? {which}; name it by --objective=NAME")


def is_minimized(objective: str, rows: Rows, hints: Hints) -> bool:
    """Whether low is good: as a person says, else the file, else the objective's name."""
    if hints.minimize is not None:
        return hints.minimize
    if rows.minimize is not None:
        return rows.minimize
    plain = plainly(objective)
    return not re.search(MAXIMISED, plain) or bool(re.search(r"loss|err|neg", plain))
