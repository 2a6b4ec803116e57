"""Running a script of `launch/`: flags, and a user's mistake as one line with exit code 1.

A script that is pre-empted before its job has begun ends as a pre-empted job does: exit code 75.
"""

import ctypes
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable

from absl import app, flags, logging

from autollm_jax.errors import PREEMPTED_EXIT_CODE, UserError

# Parameters of glibc's mallopt (malloc.h) that keep freed memory, in one arena.
_KEPT = {"M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 2**28), "M_MMAP_MAX": (-4, 0),
         "M_ARENA_MAX": (-8, 1)}  # fmt: skip


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory; other C libraries are left alone.

    XLA on a CPU allocates and frees every temporary array of a step. By default glibc returns large
    ones to the kernel, which clears their pages before the next use: a third of a train step's CPU
    time (docs/performance.md). Variables MALLOC_* take precedence.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        for parameter, value in _KEPT.values():
            mallopt(parameter, value)


# While there is one thread: the second one fixes the number of arenas when it allocates. So scripts
# import this module before any that starts threads.
_keep_freed_memory()
# Spawned processes and XLA share the cores, and BLAS threads spin while they wait for work: two
# processes took three times as long to simulate (docs/performance.md). NumPy reads it when loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Loading JAX takes seconds, in which there is nothing to save.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(PREEMPTED_EXIT_CODE))


_HELP = {"help", "helpshort", "helpfull"}

# A flag defined here is the script's, for --help.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser):
    """Reads a path; a leading `~` is the home folder."""

    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


def define_path(name: str, default: str | None, help: str) -> flags.FlagHolder[str]:
    """Define a flag that is a path; every path flag of `launch/` is defined by this."""
    return flags.DEFINE(_PathParser(), name, default, help, serializer=flags.ArgumentSerializer())


def run(main: Callable[[list[str]], None]) -> None:
    """Parse the flags and run `main`.

    A `UserError`, and any mistake in a flag or a config file, ends the script with one line. Of
    libraries' logs only warnings are shown, unless --verbosity asks for more.
    """
    logging.set_verbosity(logging.WARNING)
    if main.__module__ != "__main__":  # --help shows the text and the flags of main's module
        sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__
        for flag in flags.FLAGS.get_key_flags_for_module(main.__module__):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)

    def whole(argv):
        main(argv)
        # The work is done: a stop that comes while Python ends must not change the exit code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    try:
        app.run(whole, flags_parser=_parse)
    except UserError as error:
        sys.exit(f"error: {error}")
    except SystemExit:
        if _HELP & {arg.lstrip("-") for arg in sys.argv[1:]}:
            sys.exit(0)  # absl says 1, though what was asked for was done
        raise


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            # A config file that could not be read is replaced by an object that raises when read.
            getattr(flags.FLAGS["config"].value, "to_dict", None)
        return rest
    except (AttributeError, KeyError) as error:  # ml_collections' errors for an unknown field
        raise UserError(_unknown_field(argv) or f"unknown field {error}") from error
    except (flags.Error, OSError, ValueError, TypeError) as error:
        raise UserError(_one_line(error)) from error


def _unknown_field(argv: list[str]) -> str | None:
    """Name the first field given on the command line that the config does not have."""
    given = dict(arg.removeprefix("--").split("=", 1) for arg in argv if "=" in arg)
    path, _, variant = given.get("config", "").partition(":")
    if not path:
        return None
    config = runpy.run_path(path)["get_config"](*([variant] if variant else []))
    for field in given:
        node, here = config, "config"
        for name in field.split(".")[1:] if field.startswith("config.") else ():
            if name not in node:
                return f"--{field}: {here} has no field {name!r}; it has {', '.join(node)}"
            node, here = node[name], f"{here}.{name}"
    return None


def _one_line(error: Exception) -> str:
    """Take the cause's own line out of a message that quotes a stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if len(lines) > 1 else " ".join(lines)
