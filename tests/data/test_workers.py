"""Several processes: order, errors, and that none outlives its work."""

from __future__ import annotations

import functools
import operator
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import tiny

from launcher.data.workers import in_order
from launcher.errors import DataError


def refused(item):
    raise AssertionError(f"{item} was done here")


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "launcher.data.workers" in child.cmdline()]


def test_results_come_in_order_from_several_processes():
    assert list(in_order(functools.partial(operator.mul, 2), range(50), processes=2, again=refused)) == [
        *range(0, 100, 2)
    ]
    assert not children()


def test_what_fails_elsewhere_is_done_again_here():
    """Here a row has a place, so the error can name it; the results before it come first."""
    found = in_order(functools.partial(operator.floordiv, 12), [1, 2, 0, 3], processes=2, again=refused)
    assert [next(found), next(found)] == [12, 6]
    with pytest.raises(AssertionError, match="^0 was done here"):
        next(found)
    assert not children()


def test_a_function_that_cannot_travel_is_called_here():
    assert list(in_order(lambda item: -item, [1, 2], processes=2, again=lambda item: -item)) == [-1, -2]


def test_a_process_that_dies_is_an_error_with_words():
    with pytest.raises(DataError, match=r"a process that tokenizes ended with exit code 3; start again"):
        list(in_order(os._exit, [3], processes=2, again=refused))
    with pytest.raises(DataError, match=r"ended with signal SIGKILL, as where memory is short"):
        list(in_order(signal.raise_signal, [signal.SIGKILL], processes=2, again=refused))
    assert not children()


def test_results_that_nobody_wants_end_the_processes():
    found = in_order(time.sleep, [0, 60, 60, 60], processes=2, again=refused)
    next(found)
    assert len(children()) == 2
    found.close()
    assert not children()


SLEEPER = """
import signal, time
# Who starts tests in the background may have told them to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from launcher.data.workers import in_order
results = in_order(time.sleep, [0, 1, 1, 1], processes=2, again=None)
next(results)
print("working", flush=True)
for _ in results:
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_one_that_asked_is_interrupted_or_killed(number):
    command = [sys.executable, "-c", SLEEPER]
    asked = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=tiny.environment(), start_new_session=True
    )
    assert asked.stdout.readline() == b"working\n"
    own = psutil.Process(asked.pid).children()
    assert len(own) == 2
    # A terminal's Ctrl-C reaches them all.
    os.killpg(asked.pid, number) if number == signal.SIGINT else asked.kill()
    asked.wait(timeout=60)
    asked.stdout.close()
    assert not psutil.wait_procs(own, timeout=60)[1]
