"""How nodes reach each other, with real sockets and this machine's own interfaces."""

from __future__ import annotations

import socket

import pytest

from launcher.errors import InstallationError
from launcher.launching.addresses import free_port, interface_to, own_address, source_address

LOOPBACK = "127.0.0.1"


def test_a_jobs_port_follows_from_its_number():
    first, second = free_port(90_001, LOOPBACK), free_port(90_002, LOOPBACK)
    assert first == free_port(90_001, LOOPBACK) != second
    assert 20_000 <= first < 30_050


def test_a_port_on_which_something_listens_is_passed_over():
    wanted = free_port(90_003, LOOPBACK)
    with socket.create_server((LOOPBACK, wanted)):
        other = free_port(90_003, LOOPBACK)
    assert wanted < other < wanted + 50
    assert free_port(90_003, LOOPBACK) == wanted


def test_no_free_port_is_an_error_that_names_the_address():
    # No machine has an address of this network (RFC 5737), so no port of it can be had.
    with pytest.raises(InstallationError, match=r"no port from \d+ to \d+ is free on 203\.0\.113\.9"):
        free_port(1, "203.0.113.9")


def test_the_interface_is_that_of_the_route():
    assert source_address("127.0.0.5") == LOOPBACK
    assert interface_to("127.0.0.5") == "lo"


def test_a_node_that_is_alone_needs_no_address():
    assert own_address(("n1",)) == LOOPBACK
