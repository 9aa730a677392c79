"""Runs on nodes with networks of their own: the address that the nodes meet at, and what becomes of a broken network."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from slurm_jobs import Site

from launcher.atomic import read_jsonl
from launcher.backends.slurm import jobs_of
from launcher.errors import PreflightFailed
from launcher.launching.addresses import _FIRST_PORT, _PORTS
from launcher.rundir import RunDir
from tests.slurm.cluster import Cluster, missing_programs, start_cluster
from tests.slurm.networks import Networks, networks_missing

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(require) -> Iterator[Cluster]:
    lacking = missing_programs()
    require(not lacking, f"needs Slurm and munge (apt-get install slurm-wlm munge); missing: {', '.join(lacking)}")
    reason = networks_missing()
    require(not reason, f"needs network namespaces: {reason}")
    with start_cluster(networks=True) as found:
        yield found


@pytest.fixture
def networks(cluster) -> Networks:
    assert cluster.networks is not None
    return cluster.networks


@pytest.fixture(scope="module")
def site(cluster, tmp_path_factory) -> Site:
    return Site.make(cluster, tmp_path_factory.mktemp("network") / "project")


def submit(site: Site, name: str) -> RunDir:
    """Submit a run that an unfit node ends: it is not tried again."""
    distributed = {"nodes": 2, "processes_per_node": 1, "zero_stage": 2}
    slurm = {"max_crashes": 0, "preflight": True}
    return site.submit(name, slurm=slurm, training={"num_train_epochs": 1}, distributed=distributed)


def event(run: RunDir, name: str) -> dict[str, Any]:
    """Return the only event of that name."""
    (row,) = [row for row in read_jsonl(run.events) if row["event"] == name]
    return row


def place(run: RunDir) -> dict[str, Any]:
    return json.loads(run.place(1).read_text())


def look(run: RunDir, node: int) -> dict[str, Any]:
    return json.loads(run.preflight(1, node).read_text())


@pytest.mark.soak
def test_nodes_meet_at_the_address_of_their_network(cluster, networks, site):
    run = submit(site, "healthy")
    site.until_gone(run)
    assert event(run, "attempt_ended")["kind"] == "finished", run.job_log.read_text()
    assert place(run)["head"] == networks.address("n1")
    found = look(run, 1)["facts"]
    assert (found["address"], found["interface"]) == (networks.address("n2"), networks.interface("n2"))
    assert [look(run, node)["facts"]["host"] for node in (0, 1)] == ["n1", "n2"]


def test_neither_a_wrong_hosts_entry_nor_a_busy_port_keeps_nodes_from_meeting(cluster, networks, site):
    """Debian gives a machine's own name to 127.0.1.1, where no other machine reaches it."""
    for node in cluster.nodes:
        networks.write_hosts(node, own="127.0.1.1")
    own_name = "import socket; print(socket.gethostbyname(socket.gethostname()))"
    assert cluster.inside("n1", sys.executable, "-c", own_name).stdout.strip() == "127.0.1.1"
    # The job's number, from which its port follows, is known before the job may start.
    assert cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN").returncode == 0
    run = submit(site, "misled")
    head = networks.address("n1")
    port = _FIRST_PORT + int(jobs_of(run)[0]) * 7 % _PORTS
    listen = f"import socket, time; s = socket.create_server(({head!r}, {port})); print(flush=True); time.sleep(600)"
    listener = cluster.start_inside("n1", sys.executable, "-c", listen)
    try:
        assert listener.stdout is not None and listener.stdout.readline() == "\n"
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
        site.until_gone(run)
    finally:
        listener.kill()
        listener.communicate()
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
        for node in cluster.nodes:
            networks.write_hosts(node)
    assert event(run, "attempt_ended")["kind"] == "finished", run.job_log.read_text()
    assert (place(run)["head"], place(run)["port"]) == (head, port + 1)


def test_a_port_that_a_firewall_closes_is_named_before_training(cluster, networks, site):
    closed = ["to", networks.address("n1"), "ipproto", "tcp", "dport", f"{_FIRST_PORT}-{_FIRST_PORT + _PORTS - 1}"]
    networks.change("n2", "rule", "add", *closed, "blackhole")
    try:
        run = submit(site, "closed")
        site.until_gone(run)
    finally:
        networks.change("n2", "rule", "delete", *closed, "blackhole")
    reason = assert_ended_by_node_2(site, run)
    assert f"it does not reach n1 at {networks.address('n1')}, port {place(run)['port']}" in reason


@pytest.mark.parametrize("when", ["before", pytest.param("meanwhile", marks=pytest.mark.soak)])
def test_a_node_that_the_first_one_does_not_reach_is_named_before_training(networks, site, when):
    """It still reaches slurmctld, so that Slurm misses nothing: not for minutes where the preflight has begun on both."""
    lost = ["blackhole", networks.address("n1")]
    if when == "before":
        networks.change("n2", "route", "add", *lost)
    try:
        run = submit(site, f"lost-{when}")
        if when == "meanwhile":
            site.wait(run.preflight(1, 1).exists, run)
            networks.change("n2", "route", "add", *lost)
        site.until_gone(run)
    finally:
        networks.change("n2", "route", "delete", *lost)
    reason = assert_ended_by_node_2(site, run)
    assert ("Slurm could not start launcher on n2" if when == "before" else "it does not reach n1") in reason


def assert_ended_by_node_2(site: Site, run: RunDir) -> str:
    """See that a run has ended in time, untrained, as everything that tells of it says; return the reason."""
    ended = event(run, "attempt_ended")
    assert (ended["kind"], ended["node"]) == ("preflight", "n2"), run.job_log.read_text()
    assert ended["exit_code"] == PreflightFailed.exit_code
    assert ended["time"] - event(run, "job_started")["time"] < 75
    assert not read_jsonl(run.progress)
    told = site.launcher("explain", run.path).stdout
    assert "n2" in ended["reason"] and ended["reason"] in told and "no step was made" in told
    assert site.status(run)["state"] == "failed"
    return str(ended["reason"])
