"""The ledger: the outcomes of the finished runs of a table that is being made."""

import json
from collections.abc import Mapping
from pathlib import Path

from autollm_jax.files import append_json_lines, read_json_lines


class Ledger:
    """The outcomes of a table's runs, as lines of `ROOT/SOURCE/TASK.runs.jsonl`.

    The file lies beside the table, so that the finished part of a long sweep can be kept in version
    control and another machine goes on from it. Each of several shares appends to a file of its
    own, and reads the files of all. Lines of another setup stay, and count for nothing.

    Attributes:
      path: the file that this ledger appends to.
    """

    def __init__(self, table: Path, setup: str, share: tuple[int, int] = (0, 1)):
        """Read the finished runs.

        Args:
          table: path of the table's Parquet file.
          setup: the plan's `setup_digest`; a run's outcome depends on the setup besides its name.
          share: (i, n), as for `produce`.

        Raises:
          UserError: a line is damaged; half a last line is dropped.
        """
        index, count = share
        part = "" if count == 1 else f"-{index}-of-{count}"
        self.path = table.with_name(f"{table.stem}.runs{part}.jsonl")
        self._table, self._setup = table, setup
        self._entries: dict[str, dict] = {}
        for path in self._paths():
            remedy = "delete the line to train it again"
            for run, its_setup, outcome in read_json_lines(path, _parse, log=True, remedy=remedy):
                if its_setup == setup:
                    self._entries[run] = outcome

    def _paths(self) -> list[Path]:
        return sorted(self._table.parent.glob(f"{self._table.stem}.runs*.jsonl"))

    def record(self, entries: Mapping[str, dict]) -> None:
        """Append the outcomes of a group's runs, by name."""
        lines = [
            {"run": run, "setup": self._setup, "outcome": entry} for run, entry in entries.items()
        ]
        append_json_lines(self.path, lines)
        self._entries.update(entries)

    def read(self, run: str) -> dict | None:
        """Return the outcome of a run, or None where the run is not finished."""
        return self._entries.get(run)

    def remove(self) -> None:
        """Delete the files of all shares; the finished table holds what they hold."""
        for path in self._paths():
            path.unlink()


def _parse(text: str) -> tuple[str, str, dict]:
    line = json.loads(text)
    return line["run"], line["setup"], line["outcome"]
