"""The options that launch scripts give XLA: the installed one knows them, and a user's go first."""

import os
import subprocess
import sys

SHOWN = "JAX_OPTIMIZATION_LEVEL", "XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION"


def flags(**environment):
    """Return what the script sets, by variable."""
    shown = " ".join(f'"{name}=${name}"' for name in SHOWN)
    done = subprocess.run(
        ["bash", "-euc", f"source launch/gpu_flags.sh; printf '%s\\n' {shown}"],
        env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def devices(environment):
    """Look for devices in a new process, on the CPU; XLA reads all its flags for it."""
    code = "import jax; print(jax.config.jax_optimization_level, jax.devices())"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_installed_xla_knows_the_flags():
    known = devices(flags())
    assert known.returncode == 0 and known.stdout.startswith("O1 "), known.stderr[-2000:]
    unknown = devices(flags(XLA_FLAGS="--xla_gpu_no_such=true"))
    assert unknown.returncode != 0 and "xla_gpu_no_such" in unknown.stderr


def test_what_the_user_has_set_has_the_last_word():
    own = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5", "JAX_OPTIMIZATION_LEVEL": "O3"}
    found = flags(XLA_FLAGS="--xla_own=1", **own)
    assert found["XLA_FLAGS"].split()[-1] == "--xla_own=1" and len(found["XLA_FLAGS"].split()) > 1
    assert {name: found[name] for name in own} == own
