import socket
import threading

import pytest

from autollm_jax import coordinator, distributed
from autollm_jax.coordinator import check, free_address
from autollm_jax.distributed import Settings
from autollm_jax.errors import UserError

NAME = "node-0.example"


@pytest.fixture
def known(monkeypatch):
    """Addresses of names, besides those that are known anyway; to be changed by a test."""
    names, real = {}, socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        return real(names.get(host, host), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


@pytest.fixture
def taken_port():
    """The port of another program on this host."""
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        yield other.getsockname()[1]


def meet(index, address, one_host=False):
    check(address, "field", index, one_host, timeout_seconds=1)


def test_a_process_that_stays_away_is_reported_in_time():
    words = r"field=.*cannot reach it after 1 s.*check that process 0 runs"
    with pytest.raises(UserError, match=words):
        meet(1, free_address(), one_host=True)


@pytest.mark.parametrize("index", [0, 1])
def test_a_name_that_stays_unknown_is_reported_in_time(index):
    with pytest.raises(UserError, match=r"cannot reach it after 1 s .*(not known|resol)"):
        meet(index, f"no.such.host.invalid:{free_address().partition(':')[2]}")


def test_a_name_that_becomes_known_later_is_waited_for(known, taken_port):
    known[NAME] = "no.such.host.invalid"
    timer = threading.Timer(1.0, known.update, [{NAME: "127.0.0.1"}])
    timer.start()
    check(f"{NAME}:{taken_port}", "field", 1, one_host=True, timeout_seconds=60)
    assert known[NAME] == "127.0.0.1"
    timer.join()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("host", ["localhost", "127.0.1.1", "[::1]"])
def test_an_address_that_means_every_host_is_refused(host, index):
    with pytest.raises(UserError, match="loopback address.*config.distributed.one_host=True"):
        meet(index, f"{host}:1234")


def test_a_name_that_is_loopback_on_its_own_host_alone_will_do(known, taken_port, monkeypatch):
    known[NAME] = "127.0.0.1"
    monkeypatch.setattr(socket, "gethostname", lambda: "node-0")
    meet(0, f"{NAME}:{free_address().partition(':')[2]}")
    meet(1, f"{NAME}:{taken_port}")
    monkeypatch.setattr(socket, "gethostname", lambda: "node-1")
    with pytest.raises(UserError, match="127.0.0.1 is a loopback address"):
        meet(1, f"{NAME}:{taken_port}")


def test_process_0_says_that_the_port_is_taken(taken_port):
    with pytest.raises(UserError, match="process 0.*cannot listen there.*a free port"):
        meet(0, f"localhost:{taken_port}", one_host=True)


@pytest.fixture
def slurm(monkeypatch):
    """As Slurm starts process 1 of two, on two hosts."""
    for name, value in {
        "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_the_schedulers_address_is_checked_too(slurm, monkeypatch):
    with pytest.raises(UserError, match=r"the scheduler's coordinator=localhost:\d+: .*loopback"):
        distributed.start(Settings(timeout_seconds=1))
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")
    with pytest.raises(UserError, match="process 1 .*cannot reach it after 1 s"):
        distributed.start(Settings(timeout_seconds=1))


def test_open_mpi_says_whether_all_are_on_one_host(monkeypatch):
    for name, value in {
        "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="loopback"):
        distributed.start(Settings(timeout_seconds=1))
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    with pytest.raises(UserError, match="cannot reach it after 1 s"):
        distributed.start(Settings(timeout_seconds=1))


def test_a_jax_that_does_not_name_the_schedulers_address_goes_unchecked(slurm, monkeypatch):
    assert coordinator.of_scheduler(1) is not None
    monkeypatch.delattr("jax._src.clusters.ClusterEnv._cluster_types")
    assert coordinator.of_scheduler(1) is None


def test_no_scheduler_names_no_address(monkeypatch):
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    assert coordinator.of_scheduler(1) is None
