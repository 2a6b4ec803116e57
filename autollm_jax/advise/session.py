"""A session: a folder that keeps a question, what was told since, and every advice given.

`session.json` is replaced as a whole at each step, so that a kill leaves the step before it.
"""

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path

from autollm_jax.advise.values import number
from autollm_jax.errors import UserError
from autollm_jax.files import writable_folder, write_json_atomic

FILE, FORMAT = "session.json", 1


@dataclasses.dataclass(frozen=True)
class Told:
    """One expensive run that a person told of.

    Attributes:
      config: what was run.
      outcome: the objective, None where there is none.
      status: ok, diverged or infeasible.
      time: when it was told, in UTC.
    """

    config: Mapping
    outcome: float | None
    status: str
    time: str = ""


@dataclasses.dataclass(frozen=True)
class Session:
    """The state of a session.

    Attributes:
      arguments: of the question, by flag name.
      told: expensive runs, in order.
      advice: given so far, as JSON values.
    """

    arguments: Mapping
    told: tuple[Told, ...] = ()
    advice: tuple[Mapping, ...] = ()

    def save(self, folder: Path) -> None:
        """Write the session, all of it or nothing."""
        writable_folder(folder)
        write_json_atomic(folder / FILE, {"format": FORMAT} | dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Session | None":
        """Read a folder's session; None where it has none.

        Raises:
          UserError: the file is damaged.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            value = json.loads(path.read_text())
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']}; accepted is {FORMAT}")
            told = tuple(Told(**each) for each in value["told"])
            return cls(value["arguments"], told, tuple(value["advice"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a session ({error}); delete it to begin anew") from error

    def tell(self, told: Told) -> "Session":
        """Add a run."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return dataclasses.replace(self, told=(*self.told, dataclasses.replace(told, time=now)))

    def undo(self) -> "Session":
        """Take the latest run back.

        Raises:
          UserError: there is none.
        """
        if not self.told:
            raise UserError("--undo: nothing was told in this session")
        return dataclasses.replace(self, told=self.told[:-1])


def parse_told(text: str, objective: str) -> Told:
    """Read '{"learning_rate": 3e-4} loss=2.41', or status=diverged in the outcome's place.

    Raises:
      UserError: the text is not of that form.
    """
    accepted = (
        f"""--tell: accepted is '{{"NAME": VALUE, ...}} {objective}=NUMBER' or status=diverged"""
    )
    try:
        config, end = json.JSONDecoder().raw_decode(text.strip())
    except ValueError as error:
        raise UserError(f"{accepted} ({error})") from error
    if not isinstance(config, dict) or not config:
        raise UserError(accepted)
    outcome, status = None, "ok"
    for part in text.strip()[end:].split():
        name, _, value = part.partition("=")
        if name == "status" and value in ("ok", "diverged", "infeasible"):
            status = value
        elif name in (objective, "outcome", "loss") and number(value) is not None:
            outcome = number(value)
        else:
            raise UserError(f"{accepted}; this has {part!r}")
    if outcome is None and status == "ok":
        raise UserError(accepted)
    return Told(config, outcome, status)
