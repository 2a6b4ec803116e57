"""Where the processes of a job meet: what can be wrong with process 0's address is found out here.

Before they wait for each other, and so with the reason.
"""

import ipaddress
import os
import socket
import time

from autollm_jax.errors import UserError

PORT_SECONDS = 10.0  # until what is left of a job that was queued again lets go of its port
TRY_SECONDS = 1.0  # to connect, before the name is looked up again


def check(address: str, field: str, index: int, one_host: bool, timeout_seconds: float) -> None:
    """Check that a process can meet the others at process 0's address.

    Process 0 needs a free port there; the others wait until they reach it. A name may become known
    only while they wait, as that of a pod does.

    Args:
      address: host:port.
      field: what names it, for errors.
      index: this process's number.
      one_host: all processes are on one machine, so that a loopback address will do.
      timeout_seconds: for process 0 to be there.

    Raises:
      UserError: it cannot.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    field, here = f"{field}={address}", socket.gethostname()
    if not (colon and host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"{field}: accepted is HOST:PORT")
    # What a name means on its own host is of no matter: Debian calls that 127.0.1.1, and process 0
    # listens on all addresses.
    if not one_host and (host == "localhost" or _is_loopback(host)):
        raise _loopback_error(field, host)
    own_name = host.partition(".")[0] == here.partition(".")[0]
    if index == 0:
        _check_port(int(port), field)
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            if index == 0:
                return
            ips = [address[0] for *_, address in found]
            if not (one_host or own_name) and all(map(_is_loopback, ips)):
                raise _loopback_error(field, ips[0])
            socket.create_connection((host, int(port)), timeout=TRY_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{field}: process {index} on {here} cannot reach it after {timeout_seconds} s "
                    f"({error}); check that process 0 runs, the address, port and firewall, or "
                    "raise config.distributed.timeout_seconds"
                ) from error
        time.sleep(0.2)


def of_scheduler(timeout_seconds: int) -> str | None:
    """Return the address that JAX will take from Slurm or Open MPI.

    None where neither runs, or where this version of JAX does not say: that has no public name.
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


def _check_port(port: int, field: str) -> None:
    """Listen for a moment where JAX will, on all addresses."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        try:
            socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{field}: process 0 on {socket.gethostname()} cannot listen there "
                    f"({error.strerror}); it has to be a free port"
                ) from error
        time.sleep(0.2)
