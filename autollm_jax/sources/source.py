"""A public table as a source: where it is published, under which licence, and its reader."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from autollm_jax.gym.tables import FORMAT

Tables = list[tuple[dict, list[dict]]]


@dataclasses.dataclass(frozen=True)
class Source:
    """One public table.

    Attributes:
      name: the value of `--source`; also the folder of its tables.
      address: the upstream repository.
      raw_address: the address of single files, before the commit and the path.
      commit: the pinned commit.
      files: path in the repository -> SHA-256 of the whole file at that commit.
      licence: the upstream licence, in a line.
      read: reads a file or a folder as published and returns (meta, rows) per task for
        `gym.tables.write_table`; raises UserError if the content is not as published.
    """

    name: str
    address: str
    raw_address: str
    commit: str
    files: Mapping[str, str]
    licence: str
    read: Callable[[Path], Tables]

    @property
    def pinned(self) -> frozenset[str]:
        """The SHA-256 of every whole file at the pinned commit."""
        return frozenset(self.files.values())

    def file_address(self, file: str) -> str:
        """Return the address of one of `files` at the pinned commit."""
        return f"{self.raw_address}/{self.commit}/{file}"

    @property
    def archive_address(self) -> str:
        """The address of GitHub's archive of the whole repository at the pinned commit."""
        return f"{self.address}/archive/{self.commit}.zip"

    def place(self, file: str) -> str:
        """Return where one of `files` lies in a folder of downloads, as `read` finds it.

        It is the file's name, or its whole path where several of the files have one name.
        """
        names = {Path(other).name for other in self.files}
        return Path(file).name if len(names) == len(self.files) else file

    def meta(self, task: str, hashes: Mapping[str, str], **described) -> dict:
        """Return the JSON file's content.

        Args:
          task: the table's task.
          hashes: SHA-256 of the files that were read, by name.
          **described: further fields: `units`, `experiments`, `left_out`.
        """
        upstream = {"address": self.address, "commit": self.commit, "files": dict(hashes)}
        table = {"format": FORMAT, "source": self.name, "task": task}
        return {**table, "licence": self.licence, "upstream": upstream, **described}
