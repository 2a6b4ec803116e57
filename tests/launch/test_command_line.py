"""What scripts have in common."""

import os
import pathlib
import subprocess
import sys

import pytest

import autollm_jax
from autollm_jax.errors import PREEMPTED_EXIT_CODE

ROOT = pathlib.Path(autollm_jax.__file__).parents[1]
# 50 arrays of 64 MB, one at a time: 800,000 pages if each one's are asked for anew.
CHURN = """
import resource
from autollm_jax import command_line
import numpy as np
for _ in range(50):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(**variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    env |= variables | {"NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CHURN], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_scripts_keep_freed_memory_unless_the_environment_says_otherwise():
    assert page_faults() < 0.2 * page_faults(MALLOC_PERTURB_="0")


# Told to stop in its main function, or while Python ends.
STOPPED = """
import atexit, os, signal, sys
from autollm_jax import command_line
def stop():
    os.kill(os.getpid(), signal.SIGTERM)
moment = sys.argv.pop()
if moment == "late":
    atexit.register(stop)
command_line.run(lambda argv: stop() if moment == "early" else None)
"""


@pytest.mark.parametrize(("moment", "code"), [("early", PREEMPTED_EXIT_CODE), ("late", 0)])
def test_a_stop_after_the_work_is_done_leaves_it_a_success(moment, code):
    done = subprocess.run([sys.executable, "-c", STOPPED, moment], cwd=ROOT, capture_output=True)
    assert done.returncode == code, done.stderr


LOGS = """
from absl import logging
from autollm_jax import command_line
def main(argv):
    logging.info("a detail")
    logging.warning("a warning")
command_line.run(main)
"""


@pytest.mark.parametrize(("flags", "detailed"), [([], False), (["--verbosity=0"], True)])
def test_libraries_details_are_shown_to_those_who_ask(flags, detailed):
    done = subprocess.run(
        [sys.executable, "-c", LOGS, *flags], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "a warning" in done.stderr
    assert ("a detail" in done.stderr) == detailed
