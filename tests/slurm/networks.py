"""A network of its own for every node of a cluster on this machine: a name, an address and a cable that can be pulled.

A node is a network namespace whose one cable (a pair of veth devices) ends in a bridge, and so does the cable of this machine. The
bridge has a namespace too: firewalls of this machine, such as Docker's, would look at what crosses a bridge beside them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

# Kept free for benchmarks of networks (RFC 2544): no site and no provider gives out these addresses.
_SUBNET = "198.18.{number}.{last}"
_NUMBERS = range(1, 255)
_FIRST_NODE = 11
# `ip netns exec` would put an empty /sys/fs/cgroup over this machine's, without which slurmd does not start.
_ENTER = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
_SPACES = Path("/run/netns")
_END_SECONDS = 20.0


class NetworkError(Exception):
    """A command of iproute2 has failed."""


@dataclass(frozen=True)
class Networks:
    """The networks of a cluster's nodes; made by ``start_networks``."""

    number: int
    nodes: tuple[str, ...]
    folder: Path
    """Where each node's /etc/hosts lies."""

    @property
    def name(self) -> str:
        """Of this machine's end of its cable; the names of namespaces begin with it."""
        return f"launcher{self.number}"

    @property
    def host(self) -> str:
        """This machine's address among the nodes."""
        return _SUBNET.format(number=self.number, last=1)

    def address(self, node: str) -> str:
        """Return a node's address."""
        return _SUBNET.format(number=self.number, last=_FIRST_NODE + self.nodes.index(node))

    def interface(self, node: str) -> str:
        """Return what a node calls its end of the cable: another name on every node, as on machines of several kinds."""
        return f"cable-{node}"

    def inside(self, node: str, *command: str) -> list[str]:
        """Return a command that runs ``command`` on a node: in its network, under its host name, with its own /etc/hosts."""
        entered = ["nsenter", f"--net={_SPACES / self._namespace(node)}", "unshare", "--uts", "--mount"]
        return [*entered, "sh", "-c", _ENTER, node, str(self.folder / node), *command]

    def cut(self, node: str) -> None:
        """Pull a node's cable; the node keeps its address and sees that nothing is connected."""
        _ip("-n", self._switch, "link", "set", node, "down")

    def join(self, node: str) -> None:
        """Put the cable back."""
        _ip("-n", self._switch, "link", "set", node, "up")

    def change(self, node: str, *arguments: str) -> None:
        """Change a node's network with a command of ``ip``."""
        _ip("-n", self._namespace(node), *arguments)

    def write_hosts(self, node: str, own: str | None = None) -> None:
        """Write a node's /etc/hosts: every node by its address, but itself as ``own``.

        The file is written over, not replaced: the node's processes have this very file mounted.
        """
        rows = {name: self.address(name) for name in self.nodes} | {node: own or self.address(node)}
        text = "".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **rows}.items())
        (self.folder / node).write_text(text)

    def remove(self) -> list[str]:
        """Remove everything; return the processes that had to be killed first, since a namespace lasts as long as they do."""
        words = [word for node in self.nodes for word in _end_processes(self._namespace(node))]
        for space in (*map(self._namespace, self.nodes), self._switch):
            with suppress(NetworkError):
                _ip("netns", "delete", space)
        # It goes with the namespace at its other end, but some time later.
        with suppress(NetworkError):
            _ip("link", "delete", self.name)
        return words

    @property
    def _switch(self) -> str:
        return f"{self.name}-switch"

    def _namespace(self, node: str) -> str:
        return f"{self.name}-{node}"

    def build(self) -> None:
        """Make the namespaces, the bridge and the cables."""
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        _ip("link", "add", self.name, "type", "veth", "peer", "name", "host", "netns", self._switch)
        self._plug_in("host")
        _give_address(self.name, self.host)
        for node in self.nodes:
            space, interface = self._namespace(node), self.interface(node)
            _ip("netns", "add", space)
            _ip("link", "add", interface, "netns", space, "type", "veth", "peer", "name", node, "netns", self._switch)
            self._plug_in(node)
            _give_address(interface, self.address(node), space)
            _ip("-n", space, "link", "set", "lo", "up")
            self.write_hosts(node)

    def _plug_in(self, end: str) -> None:
        _ip("-n", self._switch, "link", "set", end, "master", "bridge", "up")


@contextmanager
def start_networks(nodes: Sequence[str]) -> Iterator[Networks]:
    """Build the networks of nodes, and remove them; processes that are left in them are an error."""
    left: list[str] = []
    with tempfile.TemporaryDirectory(prefix="launcher-networks-") as folder:
        networks = _take_number(tuple(nodes), Path(folder))
        try:
            networks.build()
            yield networks
        finally:
            left = networks.remove()
    assert not left, f"processes were left in the networks of nodes: {left}"


def networks_missing() -> str:
    """Return why nodes cannot have networks of their own here; "": they can."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    lacking = [name for name in ("ip", "nsenter", "unshare", "hostname", "mount") if shutil.which(name) is None]
    if lacking:
        return f"missing programs: {', '.join(lacking)} (apt-get install iproute2 util-linux mount hostname)"
    try:
        with start_networks(["n1"]) as networks:
            subprocess.run(networks.inside("n1", "true"), check=True, capture_output=True, text=True)
    except NetworkError as error:
        return str(error)
    except subprocess.CalledProcessError as error:
        return f"a namespace cannot be entered: {error.stderr.strip()}"
    return ""


def _take_number(nodes: tuple[str, ...], folder: Path) -> Networks:
    """Return networks whose number no cluster of this machine has: to add a namespace that exists is an error."""
    refused: Exception = NetworkError()
    for number in _NUMBERS:
        networks = Networks(number, nodes, folder)
        try:
            _ip("netns", "add", networks._switch)
            return networks
        except NetworkError as error:
            if "File exists" not in str(error):
                raise
            refused = error
    raise refused


def _give_address(interface: str, address: str, space: str | None = None) -> None:
    where = ["-n", space] if space else []
    _ip(*where, "address", "add", f"{address}/24", "dev", interface)
    _ip(*where, "link", "set", interface, "up")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise NetworkError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _end_processes(space: str) -> list[str]:
    """Wait until no process is left in a namespace, kill those that stay, and return them in words."""
    ends = time.monotonic() + _END_SECONDS
    while numbers := _processes(space):
        if time.monotonic() > ends:
            return [word for number in numbers for word in _kill(number)]
        time.sleep(0.1)
    return []


def _processes(space: str) -> list[int]:
    with suppress(NetworkError):
        return [int(number) for number in _ip("netns", "pids", space).split()]
    return []


def _kill(number: int) -> Iterator[str]:
    with suppress(psutil.Error):
        process = psutil.Process(number)
        yield f"{number} {' '.join(process.cmdline())[:120]}"
        process.kill()
