"""A Slurm cluster of several nodes on this one machine, in a folder of its own, on ports of its own; nothing of it stays.

    python -m tests.slurm.cluster            starts one, prints what to export, and ends it with Ctrl-C

It needs Debian's slurm-wlm and munge (22.05). Nodes are slurmd processes on the loopback address, or, if root asks for it, in networks
of their own (networks.py); jobs run as the user who started it.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from launcher.launching.processes import die_with_parent
from tests.slurm.networks import Networks, start_networks

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
_START_SECONDS = 60.0
# munge's sockets have paths of at most 108 bytes, which pytest's folders exceed.
_SHORT = Path("/tmp")
_LOOPBACK = "127.0.0.1"


def missing_programs() -> list[str]:
    """Return the programs of Slurm and munge that are not installed here."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [name for name in NEEDED if shutil.which(name, path=path) is None]


@dataclass
class Cluster:
    """A running cluster; made by ``start_cluster``."""

    folder: Path
    nodes: tuple[str, ...]
    networks: Networks | None = None
    """Where the nodes have addresses of their own; None: they are all on the loopback address."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find this cluster and no other."""
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def run(self, *command: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm and return it, whatever its exit code."""
        env = {**os.environ, **self.environment, **environment}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)

    def inside(self, node: str, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command on a node and return it, whatever its exit code."""
        return self.run(*self._inside(node, *command), timeout=timeout)

    def start_inside(self, node: str, *command: str) -> subprocess.Popen[str]:
        """Start a command on a node, whose output can be read while it runs; the caller ends it."""
        env = {**os.environ, **self.environment}
        return subprocess.Popen(self._inside(node, *command), stdout=subprocess.PIPE, text=True, env=env)

    def _inside(self, node: str, *command: str) -> list[str]:
        return self.networks.inside(node, *command) if self.networks is not None else list(command)

    def cut(self, node: str) -> None:
        """Pull a node's cable."""
        assert self.networks is not None, "the cluster was started without networks"
        self.networks.cut(node)

    def join(self, node: str) -> None:
        """Put a node's cable back."""
        assert self.networks is not None, "the cluster was started without networks"
        self.networks.join(node)

    def log(self, name: str) -> str:
        """Return the log of a daemon: ctld, or a node's name."""
        path = self.folder / "log" / f"{name}.log"
        return path.read_text(errors="replace") if path.is_file() else ""

    def write_configuration(self, partitions: Sequence[str], options: Mapping[str, str]) -> None:
        """Write slurm.conf."""
        (self.folder / "slurm.conf").write_text(_configuration(self, partitions, options))

    def start(self, program: str, *arguments: str, node: str | None = None) -> None:
        """Start a daemon in the foreground, so that it is a child that can be ended; on a node, if one is named."""
        env = {**os.environ, **self.environment}
        where = shutil.which(program, path=env["PATH"])
        assert where is not None, f"{program} is not installed"
        with (self.folder / "log" / "started.log").open("ab") as log:
            command = [where, *arguments] if node is None else self._inside(node, where, *arguments)
            # Daemons end also with a test session that is killed outright.
            found = subprocess.Popen(
                command, stdout=log, stderr=log, env=env, start_new_session=True, preexec_fn=die_with_parent
            )
        self.processes.append(found)

    def wait_until_idle(self) -> None:
        """Wait until every node takes jobs. Raises TimeoutError with the daemons' logs."""
        ends = time.monotonic() + _START_SECONDS
        while time.monotonic() < ends:
            found = self.run("sinfo", "-h", "-N", "-o", "%N %t").stdout.split()
            if found and set(found[1::2]) == {"idle"} and set(found[::2]) == set(self.nodes):
                return
            time.sleep(0.2)
        logs = "\n".join(f"--- {name}\n{self.log(name)[-2000:]}" for name in ("ctld", *self.nodes))
        raise TimeoutError(f"the cluster did not start within {_START_SECONDS:.0f} s\n{logs}")

    def stop(self) -> list[str]:
        """End jobs, daemons and every process that they have left; return what had to be killed, in words."""
        with suppress(subprocess.TimeoutExpired, OSError):
            self.run("scancel", "--full", *self._jobs(), timeout=20)
        left = self._of_jobs()
        _, alive = psutil.wait_procs(left, timeout=10)
        words = []
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                words.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
                process.kill()
        for daemon in reversed(self.processes):
            with suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGTERM)
        for daemon in self.processes:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
        return words

    def _jobs(self) -> list[str]:
        return self.run("squeue", "-h", "-o", "%A", timeout=20).stdout.split() or ["0"]

    def _of_jobs(self) -> list[psutil.Process]:
        """Return the processes that jobs of this cluster have started: they inherit its configuration's name."""
        own = {os.getpid(), *(process.pid for process in self.processes)}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                environment = process.environ()
                if environment.get("SLURM_CONF") == str(self.folder / "slurm.conf") and "SLURM_JOB_ID" in environment:
                    found += [process] if process.pid not in own else []
        return found


@contextmanager
def start_cluster(
    *,
    nodes: int = 2,
    cpus: int = 2,
    partitions: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
    networks: bool = False,
) -> Iterator[Cluster]:
    """Start a cluster and end it; a process that its jobs have left behind is an error.

    Args:
        cpus: of each node.
        partitions: lines of slurm.conf after ``PartitionName=``; none: one named main.
        options: keys of slurm.conf.
        networks: whether each node has a network, an address and a host name of its own.
    """
    names = tuple(f"n{number + 1}" for number in range(nodes))
    with ExitStack() as around:
        own = around.enter_context(start_networks(names)) if networks else None
        folder = Path(tempfile.mkdtemp(prefix="launcher-slurm-", dir=_SHORT))
        around.callback(shutil.rmtree, folder, ignore_errors=True)
        cluster = Cluster(folder, names, own)
        left: list[str] = []
        try:
            _start_daemons(cluster, partitions, {"_cpus": str(cpus), **(options or {})})
            yield cluster
        finally:
            left = cluster.stop()
        assert not left, f"jobs have left processes behind: {left}"


def _start_daemons(cluster: Cluster, partitions: Sequence[str], options: Mapping[str, str]) -> None:
    for name in ("state", "spool", "log", "munge"):
        (cluster.folder / name).mkdir()
    (cluster.folder / "munge").chmod(0o711)
    cluster.write_configuration(partitions, options)
    _start_munge(cluster)
    configuration = str(cluster.folder / "slurm.conf")
    cluster.start("slurmctld", "-D", "-f", configuration)
    for node in cluster.nodes:
        cluster.start("slurmd", "-D", "-f", configuration, "-N", node, node=node)
    cluster.wait_until_idle()


def _start_munge(cluster: Cluster) -> None:
    folder = cluster.folder / "munge"
    key = folder / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    names = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    files = [f"--{option}={folder / name}" for option, name in names.items()]
    cluster.start("munged", "--foreground", "--force", "--num-threads=2", *files)
    ends = time.monotonic() + _START_SECONDS
    while not (folder / "sock").exists():
        if time.monotonic() > ends:
            raise TimeoutError("munged did not start")
        time.sleep(0.05)


def _configuration(cluster: Cluster, partitions: Sequence[str], options: Mapping[str, str]) -> str:
    folder, nodes, networks = cluster.folder, cluster.nodes, cluster.networks
    host = platform.node().partition(".")[0]
    address = networks.host if networks is not None else _LOOPBACK
    ports = _free_ports(len(nodes) + 1)
    own = {
        "ClusterName": "launchertest", "SlurmctldHost": f"{host}({address})", "SlurmctldPort": str(ports[0]),
        "AuthType": "auth/munge", "AuthInfo": f"socket={folder}/munge/sock", "CredType": "cred/munge",
        "SlurmUser": _user(), "SlurmdUser": _user(), "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/spool/%n", "SlurmctldPidFile": f"{folder}/ctld.pid",
        "SlurmdPidFile": f"{folder}/spool/%n.pid", "SlurmctldLogFile": f"{folder}/log/ctld.log",
        "SlurmdLogFile": f"{folder}/log/%n.log", "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none",
        "SwitchType": "switch/none", "MpiDefault": "none", "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU", "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=2,bf_interval=2,batch_sched_delay=0", "ReturnToService": "2",
        "JobRequeue": "1", "KillWait": "15", "AccountingStorageType": "accounting_storage/none",
        "JobCompType": "jobcomp/none", "SlurmdParameters": "config_overrides", "InactiveLimit": "0",
    }  # fmt: skip
    cpus = options.get("_cpus", "2")
    lines = [f"{name}={value}" for name, value in {**own, **options}.items() if not name.startswith("_")]
    for node, port in zip(nodes, ports[1:], strict=True):
        name, place = (node, networks.address(node)) if networks is not None else (host, _LOOPBACK)
        lines.append(f"NodeName={node} NodeHostname={name} NodeAddr={place} Port={port} CPUs={cpus} State=UNKNOWN")
    whole = [f"main Nodes={','.join(nodes)} Default=YES MaxTime=INFINITE State=UP"]
    lines += [f"PartitionName={line}" for line in partitions or whole]
    return "\n".join(lines) + "\n"


def _user() -> str:
    return psutil.Process().username()


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now; held together until all are known, so that no two are the same."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((_LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def main() -> None:
    """Start a cluster for a person to look at."""
    with start_cluster() as cluster:
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
