"""Eight fake CPU devices, and no silent broadcasting, for every test.

With JAX_PLATFORMS set the tests run on what it names, with AUTOLLM_TEST_DEVICES set on so many fake
devices; those whose mesh does not fit fewer than eight are skipped there.
"""

import os
import signal
import tempfile

import pytest

from tests import quick_xla

pytest_plugins = ["tests.families", "tests.small"]

PLATFORM = os.environ.setdefault("JAX_PLATFORMS", "cpu")
if PLATFORM == "cpu":
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count="
        + os.environ.get("AUTOLLM_TEST_DEVICES", "8")
        + f" {quick_xla.FLAGS}"
    )
# A program that several tests or their child processes compile is compiled once: pytest's workers
# inherit the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# The suite shares its cores with XLA; BLAS threads would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from _with_the_devices_there_are())


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    return (yield from _with_the_devices_there_are())


def _with_the_devices_there_are():
    """Skip a test, or a fixture's tests, whose mesh does not fit; on eight devices, fail it."""
    import jax

    from autollm_jax.errors import UserError

    try:
        return (yield)
    except UserError as error:
        if "does not fit" in str(error) and "config.mesh" in str(error) and len(jax.devices()) < 8:
            pytest.skip(f"needs more devices: {error}")
        raise


@pytest.fixture
def listening():
    """SIGTERM is heeded as in a job."""
    from autollm_jax.cluster import preemption

    before = signal.getsignal(signal.SIGTERM)
    preemption.listen()
    yield
    signal.signal(signal.SIGTERM, before)
    preemption._asked.clear()
