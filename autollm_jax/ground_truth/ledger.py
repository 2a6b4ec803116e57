"""The ledger: every run's outcome in its own file, written once and atomically."""

import json
from pathlib import Path

from autollm_jax.errors import UserError
from autollm_jax.files import write_json_atomic


class Ledger:
    """Outcomes of a sweep under `FOLDER/runs/RUN.json`.

    A sweep that is killed finds here what is done; shares of it trained elsewhere can be copied
    together, since no two runs write one file.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, run: str) -> Path:
        return self.folder / "runs" / f"{run}.json"

    def record(self, run: str, entry: dict) -> None:
        """Write how a run ended."""
        write_json_atomic(self.path(run), entry)

    def read(self, run: str) -> dict | None:
        """Return how a run ended, or None if it has not been done.

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
