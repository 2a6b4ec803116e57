"""Where the processes of a job meet, before JAX connects them.

JAX aborts a process whose partners stay away, without saying which ones. So the processes meet here
first, at the address that JAX's service will use: process 0 listens, every other process connects
and says its number, and process 0 answers once all of them have come. Whatever keeps them from
meeting is an error that names the cause.
"""

import contextlib
import ipaddress
import json
import os
import select
import socket
import time

from autollm_jax.errors import UserError

PORT_SECONDS = 10.0  # until what is left of a job that was queued again lets go of its port
TRY_SECONDS = 1.0  # of one wait for the network; between two waits Python hears of signals
GO = "go"
LONGEST = 4096  # bytes of a message


def meet(
    address: str, field: str, index: int, processes: int, one_host: bool, timeout_seconds: float
) -> None:
    """Wait until all processes have come to process 0's address.

    Process 0 needs a free port there; the others wait until they reach it. A name may become known
    only while they wait, as that of a pod does.

    Args:
      address: host:port.
      field: what names it, for errors.
      index: this process's number.
      processes: how many there are.
      one_host: all processes are on one machine, so that a loopback address will do.
      timeout_seconds: for all of them to come.

    Raises:
      UserError: they do not meet; the line says which process is missing, or what is wrong with the
        address.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    field = f"{field}={address}"
    if not (colon and host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"{field}: accepted is HOST:PORT")
    # The address of a name on its own host does not matter: Debian says 127.0.1.1, and process 0
    # listens on all addresses.
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
        # Process 0 left, or another program listens there.
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
    """Wait for every other process to say its number, and let all of them go on."""
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
            except (OSError, ValueError, KeyError, TypeError):  # nobody, or another program
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
        # The side that closes first keeps the port for a while, and here JAX needs it at once.
        for one in present.values():
            with contextlib.suppress(OSError):
                one.recv(1)


def _has_left(connection: socket.socket) -> bool:
    """Whether the other side has closed; it says nothing more after its number."""
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
    """Say this process's number to process 0; returns its answer, None where it left."""
    said = {"process": index, "processes": processes, "host": socket.gethostname()}
    # Process 0 gives up first, so that its reason arrives.
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
    """Connect to process 0, as soon as its name is known and it listens."""
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
    """Wait until process 0's own name is known to it."""
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
    """Return the address that JAX will take from Slurm or Open MPI.

    Returns None where neither runs, or where this version of JAX does not say: the address has no
    public name.
    """
    try:
        from jax._src.clusters import ClusterEnv

        known = [env for env in ClusterEnv._cluster_types if not env.opt_in_only_method]
        cluster = next((env for env in known if env.is_env_present()), None)
        if cluster is None or cluster.name not in ("slurm", "ompi"):  # others are asked over HTTP
            return None
        port = os.environ.get("JAX_COORDINATOR_PORT")
        given = os.environ.get("JAX_COORDINATOR_ADDRESS")
        return given or cluster.get_coordinator_address(
            timeout_secs=timeout_seconds, override_coordinator_port=port
        )
    except (ImportError, AttributeError, TypeError):
        return None


def free_address() -> str:
    """Return an address, with a port that is free now, for processes on this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _loopback_error(field: str, host: str) -> UserError:
    return UserError(
        f"{field}: {host} is a loopback address, which other hosts cannot reach; name process 0's "
        "host by an address of its network in config.distributed.coordinator, or give "
        "--config.distributed.one_host=True where all processes are on one machine"
    )


def _listen(port: int, field: str) -> socket.socket:
    """Listen at JAX's port, on all addresses.

    Raises:
      UserError: the port is taken.
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
