"""What a public table is to this project: where it is published, and how it is read."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

Tables = list[tuple[dict, list[dict]]]


@dataclasses.dataclass(frozen=True)
class Source:
    """One public table.

    Attributes:
      name: what `--source` calls it; also the folder of its tables.
      address: the upstream repository.
      raw_address: where single files are fetched from, at the pinned commit.
      commit: the pinned commit.
      files: path in the repository -> SHA-256 of the whole file at that commit.
      licence: what may be done with it.
      read: takes a file or a folder as published, returns (meta, rows) per task for
        `gym.tables.write_table`; raises UserError where the content is not as published.
    """

    name: str
    address: str
    raw_address: str
    commit: str
    files: Mapping[str, str]
    licence: str
    read: Callable[[Path], Tables]

    def file_address(self, file: str) -> str:
        """Return the address of one of `files` at the pinned commit."""
        return f"{self.raw_address}/{self.commit}/{file}"
