import concurrent.futures
import re
import socket
import threading
import time

import pytest

from autollm_jax.cluster import coordinator, distributed
from autollm_jax.cluster.coordinator import free_address
from autollm_jax.cluster.distributed import Settings
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


def meet(index, address, one_host=False, processes=2, timeout_seconds=1):
    coordinator.meet(address, "field", index, processes, one_host, timeout_seconds)


def all_meet(address, numbers, processes, **settings):
    """Let several processes meet, a thread each; return each one's error, or None."""

    def one(number):
        try:
            meet(number, address, True, processes, **settings)
        except UserError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(numbers)) as threads:
        return list(threads.map(one, numbers))


def test_processes_meet_and_leave_the_port_free():
    address = free_address()
    assert all_meet(address, (2, 0, 1), 3, timeout_seconds=30) == [None] * 3
    socket.create_server(("", int(address.partition(":")[2]))).close()


def test_process_0_says_who_is_missing_and_the_others_hear_it():
    errors = all_meet(free_address(), (0, 1, 3), 4, timeout_seconds=3)
    assert len(set(errors)) == 1
    assert re.search(r"process 0 on .* waited 3 s for process 2 of 4; check that", errors[0])


def test_another_number_of_processes_is_refused_by_both():
    address = free_address()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        zero = thread.submit(meet, 0, address, True, 2, 10)
        with pytest.raises(UserError, match="process 1 of 3 on .* came to a job of 2 processes"):
            meet(1, address, True, 3, 10)
        with pytest.raises(UserError, match="config.distributed.processes"):
            zero.result()


def test_two_processes_of_one_number_are_told_so():
    errors = all_meet(free_address(), (0, 1, 1), 3, timeout_seconds=3)
    assert sum("another process has number 1" in error for error in errors) == 1
    assert sum("waited 3 s for process 2 of 3" in error for error in errors) == 2


def test_a_program_that_connects_and_leaves_keeps_nobody():
    address = free_address()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        zero = thread.submit(meet, 0, address, True, 2, 30)
        host, _, port = address.partition(":")
        for _ in range(2):
            while True:
                try:
                    socket.create_connection((host, int(port)), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.05)
        meet(1, address, True, 2, 30)
        zero.result()


def test_a_process_that_stays_away_is_reported_in_time():
    words = r"field=.*cannot reach it after 1 s.*check that process 0 runs"
    with pytest.raises(UserError, match=words):
        meet(1, free_address(), one_host=True)


def test_another_program_at_the_address_is_reported_in_time(taken_port):
    with pytest.raises(UserError, match="got no answer of process 0 within 1 s"):
        meet(1, f"localhost:{taken_port}", one_host=True)


@pytest.mark.parametrize("index", [0, 1])
def test_a_name_that_stays_unknown_is_reported_in_time(index):
    with pytest.raises(UserError, match=r"cannot reach it after 1 s .*(not known|resol)"):
        meet(index, f"no.such.host.invalid:{free_address().partition(':')[2]}")


def test_a_name_that_becomes_known_later_is_waited_for(known):
    known[NAME] = "no.such.host.invalid"
    timer = threading.Timer(1.0, known.update, [{NAME: "127.0.0.1"}])
    timer.start()
    port = free_address().partition(":")[2]
    assert all_meet(f"{NAME}:{port}", (0, 1), 2, timeout_seconds=60) == [None] * 2
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
    for index in (0, 1):
        with pytest.raises(UserError, match="waited 1 s for process 1|cannot reach it"):
            meet(index, f"{NAME}:{free_address().partition(':')[2]}")
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
