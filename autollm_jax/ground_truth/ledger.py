"""The ledger: the outcome of every finished run, each in a file of its own."""

import json
from pathlib import Path

from autollm_jax.errors import UserError
from autollm_jax.files import write_json_atomic


class Ledger:
    """The outcomes of a sweep's runs, as files `FOLDER/runs/RUN.json`, written atomically.

    A sweep that was killed resumes from these files. No two runs write one file, so the ledgers of
    several machines can be copied into one folder.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, run: str) -> Path:
        return self.folder / "runs" / f"{run}.json"

    def record(self, run: str, entry: dict) -> None:
        """Write the outcome of a run."""
        write_json_atomic(self.path(run), entry)

    def read(self, run: str) -> dict | None:
        """Return the outcome of a run, or None where the run is not finished.

        Raises:
          UserError: the file is not a JSON object.
        """
        path = self.path(run)
        if not path.exists():
            return None
        try:
            entry = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(
                f"{path}: not JSON ({error}); delete it to train that run again"
            ) from error
        if not isinstance(entry, dict):
            raise UserError(f"{path}: not a JSON object; delete it to train that run again")
        return entry
