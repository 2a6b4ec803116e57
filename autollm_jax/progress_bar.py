"""Progress of long work: a bar on a terminal, a line now and then where output is a file."""

import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

SECONDS = 30.0  # between two lines of a file
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]\n"


def progress_bar(
    iterable: Iterable | None = None, desc: str | None = None, *, shown: bool = True, **options
) -> tqdm:
    """Make a bar on standard error.

    Args:
      iterable: what is gone through; None where `update` is called.
      desc: what is done.
      shown: False in processes that leave it to another.
      options: those of tqdm: total, unit, leave, ...
    """
    if sys.stderr.isatty():
        return tqdm(iterable, desc, disable=not shown, dynamic_ncols=True, **options)
    lines = {"bar_format": LINE, "mininterval": SECONDS, "miniters": 1, "position": 0}
    return _Lines(iterable, desc, disable=not shown, **lines, **options)


class _Lines(tqdm):
    """A bar of lines: a first, a last, and those between `SECONDS` apart."""

    last_line = -1e9

    def __iter__(self):
        # tqdm counts rounds where it prints alone, and a postfix may print between.
        for each in self.iterable:
            yield each
            self.update()
        self.close()

    def refresh(self, *arguments, **options):
        now = time.monotonic()
        if now - self.last_line >= SECONDS:
            self.last_line = now
            super().refresh(*arguments, **options)
