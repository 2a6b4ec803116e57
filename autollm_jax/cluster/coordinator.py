"""The rendezvous: the processes of a job meet at an address before JAX connects them.

When a process is missing, JAX aborts the others without naming the missing one. This rendezvous
comes first, at the address that JAX's service will use later. Process 0 listens. Every other
process connects and sends its number. Process 0 answers once every process has connected. A failure
is an error that names the cause.
"""

import contextlib
import ipaddress
import json
import os
import select
import socket
import time

from autollm_jax.errors import UserError

PORT_SECONDS = 10.0  # wait for the port: the former processes of a requeued job may still hold it
TRY_SECONDS = 1.0  # one wait for the network; Python handles signals between two waits
GO = "go"
LONGEST = 4096  # largest message, in bytes


def meet(
    address: str, field: str, index: int, processes: int, one_host: bool, timeout_seconds: float
) -> None:
    """Wait until every process of the job has connected to process 0.

    Process 0 needs a free port at the address. The others try until they reach it. DNS may learn
    the host's name during the wait, as for a Kubernetes pod.

    Args:
      address: host:port of process 0.
      field: the config field of the address, for errors.
      index: number of this process.
      processes: number of processes.
      one_host: whether all processes are on one machine, where a loopback address is accepted.
      timeout_seconds: most seconds to wait for all processes.

    Raises:
      UserError: a process is missing, or the address is wrong; the message says which.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    field = f"{field}={address}"
    if not (colon and host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"{field}: accepted is HOST:PORT")
    # Only a literal loopback address is an error here. A host may resolve its own name to a
    # loopback address (Debian: 127.0.1.1), which does no harm: process 0 listens on all addresses.
    if not one_host and (host == "localhost" or _is_loopback(host)):
        raise _loopback_error(field, host)
    deadline = time.monotonic() + timeout_seconds
    if index == 0:
        with _listen(int(port), field) as server:
            _known_name(host, int(port), field, deadline, timeout_seconds)
            _receive(server, field, processes, deadline, timeout_seconds)
        return
    while True:
        connection = _connect(host, int(port), field, index, one_host, deadline, timeout_seconds)
        with connection:
            answer = _answer(connection, index, processes, timeout_seconds)
        if answer == GO:
            return
        if answer:
            raise UserError(answer)
        # Process 0 ended, or another program listens at the address.
        if time.monotonic() >= deadline:
            raise UserError(
                f"{field}: process {index} on {socket.gethostname()} got no answer of process 0 "
                f"within {timeout_seconds} s; check that process 0 runs, and that no other program "
                "has the port"
            )
        time.sleep(0.2)


def _receive(
    server: socket.socket, field: str, processes: int, deadline: float, timeout_seconds: float
) -> None:
    """Wait until every other process has sent its number, then send GO to all of them."""
    present: dict[int, socket.socket] = {}
    server.settimeout(TRY_SECONDS)
    with contextlib.ExitStack() as stack:
        while True:
            present = {number: one for number, one in present.items() if not _has_left(one)}
            missing = sorted(set(range(1, processes)) - present.keys())
            if not missing:
                break
            if time.monotonic() >= deadline:
                error = _missing_error(field, missing, processes, timeout_seconds)
                for one in present.values():
                    _say(one, str(error))
                raise error
            try:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(TRY_SECONDS)
                said = json.loads(connection.recv(LONGEST))
                number, count, host = said["process"], said["processes"], said["host"]
            except (OSError, ValueError, KeyError, TypeError):  # no connection, or another program
                continue
            if count != processes or not 0 < number < processes:
                problem = (
                    f"process {number} of {count} on {host} came to a job of {processes} "
                    "processes; give all of them the same config.distributed.processes, and each a "
                    "number of its own"
                )
                _say(connection, problem)
                raise UserError(f"{field}: {problem}")
            if number in present:
                _say(present[number], f"{field}: another process has number {number}, on {host}")
            present[number] = connection
        for one in present.values():
            _say(one, GO)
        # TCP blocks the port of the side that closes first, and JAX needs this port at once. So
        # wait until the others close.
        for one in present.values():
            with contextlib.suppress(OSError):
                one.recv(1)


def _has_left(connection: socket.socket) -> bool:
    """Whether the other process has closed the connection (it sends nothing after its number)."""
    heard = select.poll()
    heard.register(connection, select.POLLIN)
    try:
        return bool(heard.poll(0)) and not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def _say(connection: socket.socket, message: str) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(message.encode() + b"\n")


def _missing_error(
    field: str, missing: list[int], processes: int, timeout_seconds: float
) -> UserError:
    kind = "process" if len(missing) == 1 else "processes"
    shown = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
    return UserError(
        f"{field}: process 0 on {socket.gethostname()} waited {timeout_seconds} s for {kind} "
        f"{shown} of {processes}; check that they run and reach this address, or raise "
        "config.distributed.timeout_seconds"
    )


def _answer(
    connection: socket.socket, index: int, processes: int, timeout_seconds: float
) -> str | None:
    """Send this process's number to process 0; return the answer, or None without an answer."""
    said = {"process": index, "processes": processes, "host": socket.gethostname()}
    # Wait longer than process 0, so that its error message arrives.
    deadline = time.monotonic() + timeout_seconds + 2 * TRY_SECONDS
    connection.settimeout(TRY_SECONDS)
    received = b""
    try:
        connection.sendall(json.dumps(said).encode())
        while time.monotonic() < deadline and not received.endswith(b"\n"):
            try:
                part = connection.recv(LONGEST)
            except TimeoutError:
                continue
            if not part:
                break
            received += part
    except OSError:
        pass
    return received.decode(errors="replace").strip() or None


def _connect(
    host: str,
    port: int,
    field: str,
    index: int,
    one_host: bool,
    deadline: float,
    timeout_seconds: float,
) -> socket.socket:
    """Connect to process 0, once DNS knows its name and it listens."""
    here = socket.gethostname()
    own_name = host.partition(".")[0] == here.partition(".")[0]
    while True:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            ips = [address[0] for *_, address in found]
            if not (one_host or own_name) and all(map(_is_loopback, ips)):
                raise _loopback_error(field, ips[0])
            return socket.create_connection((host, port), timeout=TRY_SECONDS)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise _unreachable_error(field, index, timeout_seconds, error) from error
        time.sleep(0.2)


def _known_name(host: str, port: int, field: str, deadline: float, timeout_seconds: float) -> None:
    """Wait until DNS knows the name of process 0."""
    while True:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise _unreachable_error(field, 0, timeout_seconds, error) from error
        time.sleep(0.2)


def _unreachable_error(field: str, index: int, timeout_seconds: float, error: OSError) -> UserError:
    return UserError(
        f"{field}: process {index} on {socket.gethostname()} cannot reach it after "
        f"{timeout_seconds} s ({error}); check that process 0 runs, the address, port and "
        "firewall, or raise config.distributed.timeout_seconds"
    )


def of_scheduler(timeout_seconds: int) -> str | None:
    """Return the coordinator address that JAX will take from Slurm or Open MPI.

    Returns None without these schedulers, or where this version of JAX keeps the address elsewhere:
    JAX has no public function for it.
    """
    try:
        from jax._src.clusters import ClusterEnv

        known = [env for env in ClusterEnv._cluster_types if not env.opt_in_only_method]
        cluster = next((env for env in known if env.is_env_present()), None)
        if cluster is None or cluster.name not in ("slurm", "ompi"):  # others need HTTP
            return None
        port = os.environ.get("JAX_COORDINATOR_PORT")
        given = os.environ.get("JAX_COORDINATOR_ADDRESS")
        return given or cluster.get_coordinator_address(
            timeout_secs=timeout_seconds, override_coordinator_port=port
        )
    except (ImportError, AttributeError, TypeError):
        return None


def free_address() -> str:
    """Return an address for processes on this machine, with a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        return False


def _loopback_error(field: str, host: str) -> UserError:
    return UserError(
        f"{field}: {host} is a loopback address, which other hosts cannot reach; name process 0's "
        "host by an address of its network in config.distributed.coordinator, or give "
        "--config.distributed.one_host=True where all processes are on one machine"
    )


def _listen(port: int, field: str) -> socket.socket:
    """Listen at a port, on all addresses of this host.

    Raises:
      UserError: the port is still in use after PORT_SECONDS.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        try:
            return socket.create_server(
                ("", port), family=family, dualstack_ipv6=both, backlog=4096
            )
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{field}: process 0 on {socket.gethostname()} cannot listen there "
                    f"({error.strerror}); accepted is a free port"
                ) from error
        time.sleep(0.2)
