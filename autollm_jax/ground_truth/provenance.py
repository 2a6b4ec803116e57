"""Provenance of a row: the commit of the code, the package versions, the device."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import jax

_PACKAGES = ("jax", "flax", "optax")


@functools.cache
def code_commit() -> str:
    """Return the checkout's commit, followed by `+changes` where tracked files differ from it.

    Returns "unknown" where the code is not a git checkout.
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


@functools.cache
def device_kind() -> str:
    """Return the accelerator's name; for a CPU the architecture, since losses agree within it."""
    device = jax.devices()[0]
    return platform.machine() if device.platform == "cpu" else device.device_kind


@functools.cache
def package_versions() -> str:
    """Return names and versions of the packages that a loss depends on."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
