"""Runs scripts in processes that are forked from one which has loaded the packages.

Loading them takes more CPU time than the work of most scripts that the tests run. A test of how a
process starts uses `subprocess` instead.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import autollm_jax

ROOT = Path(autollm_jax.__file__).parents[1]
FORKS = multiprocessing.get_context("forkserver")
# The first is what scripts import first, too: it sets up the allocator and SIGTERM.
FORKS.set_forkserver_preload(
    ["autollm_jax.command_line", "autollm_jax.job.stages", "autollm_jax.advise.advisor"]
)


class Script:
    """A script that runs: `python COMMAND`, where a command is FILE or -m MODULE, and arguments."""

    def __init__(self, command: Sequence, environment: Mapping[str, str] = os.environ):
        for name in {*environment, *os.environ}:
            if name.startswith("JAX_"):  # read before the fork
                assert environment.get(name) == os.environ.get(name), name
        # Files: processes may wait for each other, and none may wait for a full pipe.
        self._streams = [tempfile.NamedTemporaryFile("r") for _ in range(2)]
        names = [stream.name for stream in self._streams]
        arguments = ([str(argument) for argument in command], dict(environment), *names)
        self._process = FORKS.Process(target=_run, args=arguments)
        self._process.start()

    def kill(self) -> None:
        """End the process, if it still runs."""
        self._process.kill()

    def wait(self, seconds: float) -> subprocess.CompletedProcess:
        """Return the exit code and the output; a process that takes longer is killed."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired("script", seconds)
        return subprocess.CompletedProcess(
            (), self._process.exitcode, *(stream.read() for stream in self._streams)
        )


def run(
    *command, environment: Mapping[str, str] = os.environ, seconds: float = 300
) -> subprocess.CompletedProcess:
    """Run a script in the repository's root, and wait for it."""
    return Script(command, environment).wait(seconds)


def _run(command: list[str], environment: dict[str, str], out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forked process ends without them
