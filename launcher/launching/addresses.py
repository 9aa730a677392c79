"""How the nodes of a job reach each other: the first node's address off loopback, a free port, the interface of the route."""

from __future__ import annotations

import socket
import subprocess

from launcher.errors import InstallationError

_FIRST_PORT, _PORTS, _PORT_TRIES = 20_000, 10_000, 50


def own_address(nodes: tuple[str, ...]) -> str:
    """Return this node's address as the others of ``nodes`` reach it: that of its route to one of them, never one by its name,
    which on many systems means a loopback address.
    """
    for node in nodes[1:]:
        address = _node_address(node)
        if address is not None:
            return source_address(address)
    return "127.0.0.1"


def _node_address(node: str) -> str | None:
    shown = subprocess.run(["scontrol", "show", "node", "-o", node], capture_output=True, text=True)
    names = [word.partition("=")[2] for word in shown.stdout.split() if word.startswith("NodeAddr=")]
    try:
        return socket.gethostbyname(names[0] if names else node)
    except OSError:
        return None


def source_address(target: str) -> str:
    """Return the address that this machine has on its route to ``target``. Raises OSError where there is no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # A datagram socket sends nothing when it is connected; the kernel only chooses the route.
        probe.connect((target, 9))
        return str(probe.getsockname()[0])


def free_port(job: int, address: str) -> int:
    """Return a port that follows from the job's number, so that jobs of one node do not meet, and is free now.

    Raises:
        InstallationError: none of fifty is free.
    """
    first = _FIRST_PORT + job * 7 % _PORTS
    for port in range(first, first + _PORT_TRIES):
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
                return port
            except OSError:
                continue
    raise InstallationError(f"no port from {first} to {first + _PORT_TRIES - 1} is free on {address}")


def interface_to(address: str) -> str | None:
    """Return the interface that has the address by which this node reaches ``address``; None where none is found."""
    import psutil

    own = source_address(address)
    for name, found in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in found):
            return str(name)
    return None
