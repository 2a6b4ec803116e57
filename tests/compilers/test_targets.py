"""Names of compilers, and what is said where one is missing; those installed compile."""

import importlib.util
import re

import pytest

from autollm_jax.compilers import targets
from autollm_jax.errors import UserError
from autollm_jax.sharding.mesh import MeshShape, make_mesh

MODULES = {
    "tpu:v5e:2x4": "libtpu",
    "tpu:v5e:2x4:2": "libtpu",
    "tpu:v5e:4x4:2": "libtpu",
    "gpu:h100:1x8": "jax_cuda12_plugin",
}


@pytest.mark.parametrize(
    ("name", "count"),
    [("tpu:v5e:4x4", 16), ("tpu:v5e:4x4:2", 32), ("tpu:v5p:2x2x2", 8), ("gpu:h100:2x8", 16)],
)
def test_names_and_their_devices(name, count):
    assert re.fullmatch(targets.NAME, name) and targets.device_count(name) == count
    assert targets.chip_of(name).peak > 1e14


@pytest.mark.parametrize(
    "name", ["", "tpu", "tpu:v9:4x4", "tpu:v5e:16", "gpu:h100:8", "gpu:a100:1x8"]
)
def test_other_names_are_none(name):
    assert not re.fullmatch(targets.NAME, name)


@pytest.mark.parametrize("name", list(MODULES))
def test_a_compiler_that_is_not_installed(name, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    monkeypatch.setitem(__import__("sys").modules, "jax_plugins.xla_cuda12", None)
    with pytest.raises(UserError, match="not installed here.*requirements-compilers.txt") as error:
        targets.devices_of(name)
    assert f"config.plan.compiler={name}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape"), [("tpu:v5e:4x4:2", (2, 4, 4)), ("gpu:h100:1x8", (1, 2, 4))]
)
def test_devices_of_an_installed_compiler_make_a_mesh(name, shape):
    if not importlib.util.find_spec(MODULES[name]):
        pytest.skip(f"{MODULES[name]} is not installed")
    devices = targets.devices_of(name)
    mesh = make_mesh(MeshShape(*shape), devices)
    assert len(devices) == targets.device_count(name) == mesh.size
    for place in mesh.devices:  # the data axis alone crosses slices
        assert len({device.slice_index or 0 for device in place.flat}) == 1
    assert len({device.slice_index or 0 for device in mesh.devices.flat}) == max(1, shape[0])


def test_a_topology_that_does_not_exist():
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is not installed")
    with pytest.raises(UserError, match="config.plan.compiler=tpu:v5e:3x5: .*accepted is"):
        targets.devices_of("tpu:v5e:3x5")
