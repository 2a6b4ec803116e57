"""What made a row: the code's commit."""

import functools
import subprocess
from pathlib import Path


@functools.cache
def code_commit() -> str:
    """Return the checkout's commit, with `+changes` where files differ from it.

    "unknown" where the code is not a git checkout.
    """
    here = Path(__file__).parent

    def git(*words):
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here.parent))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")
