"""Progress of long work: a bar on a terminal, a line now and then where output is a file."""

import sys
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
        drawn = {"dynamic_ncols": True}
    else:
        drawn = {"bar_format": LINE, "mininterval": SECONDS, "miniters": 1}
    return tqdm(iterable, desc, disable=not shown, **drawn, **options)
