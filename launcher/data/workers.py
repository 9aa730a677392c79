"""One function over many items in several processes: results in the items' order, and nothing left behind however it ends."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from typing import Any

from launcher.errors import DataError

# Each holds a tokenizer and what it is made of, about 100 MiB; with more of them, the one that writes is what they wait for.
_MOST_PROCESSES = 16
# What ends or stops the process that started them is for it to heed: it ends them, or its pipes close.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def usable_processes() -> int:
    """Return how many processes can work at the same time."""
    return min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)


def in_order(
    function: Callable[[Any], Any], items: Iterable[Any], *, processes: int, again: Callable[[Any], Any]
) -> Iterator[Any]:
    """Yield ``function(item)`` for each item, in their order.

    Args:
        function: goes to the other processes by pickle; one that cannot is called here.
        again: called here with an item for which ``function`` has raised in another process: it says what was wrong, and where.

    Raises:
        DataError: a process has died.
    """
    job = _pickled(function) if processes > 1 else None
    if job is None:
        yield from map(again, items)
        return
    idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
    children = []

    def run(item: Any) -> tuple[bool, Any]:
        child = idle.get()
        try:
            return child.ask(item)
        finally:
            idle.put(child)

    def result(item: Any, asked: Future[tuple[bool, Any]]) -> Any:
        is_done, value = asked.result()
        return value if is_done else again(item)

    pool = ThreadPoolExecutor(processes)
    try:
        for _ in range(processes):
            children.append(_Child(job))
            idle.put(children[-1])
        waiting: deque[tuple[Any, Future[tuple[bool, Any]]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(run, item)))
            if len(waiting) > 2 * processes:
                yield result(*waiting.popleft())
        while waiting:
            yield result(*waiting.popleft())
    finally:
        for child in children:
            child.end()
        pool.shutdown(cancel_futures=True)


def _pickled(function: Callable[[Any], Any]) -> bytes | None:
    try:
        return pickle.dumps(function)
    except Exception:
        # Tokenizers of a model's own code raise whatever they like.
        return None


class _Child:
    """A process that calls one function for one item after the other."""

    def __init__(self, job: bytes) -> None:
        self.job: bytes | None = job
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by end()
        self.connection, theirs = Pipe()
        # Threads of their own would only take the cores from the others.
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "launcher.data.workers", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors,
            env=environment,
        )  # fmt: skip
        theirs.close()

    def ask(self, item: Any) -> tuple[bool, Any]:
        """Return (True, the function's result), or (False, None) where it has raised. Raises DataError where the process is gone."""
        try:
            if self.job is not None:
                self.connection.send_bytes(self.job)
                self.job = None
            self.connection.send(item)
            found: tuple[bool, Any] = self.connection.recv()
        except (EOFError, OSError):
            raise DataError(self._how_it_ended()) from None
        return found

    def _how_it_ended(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        more = f" ({last})" if last else ", as where memory is short" if code == -signal.SIGKILL else ""
        return (
            f"a process that tokenizes ended with {how}{more}; start again, and where it happens again allow fewer processors "
            "(taskset -c 0), with which fewer processes share the memory"
        )

    def end(self) -> None:
        """End the process, whatever it does, and wait for its end."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.errors.close()


def _serve(connection: Connection) -> None:
    """Call the function that comes first for each item that follows, until the other side closes."""
    function = pickle.loads(connection.recv_bytes())
    while True:
        item = connection.recv()
        try:
            found = True, function(item)
        except Exception:
            # The other side calls it again, and raises where the row has a place.
            found = False, None
        connection.send(found)


def _main() -> None:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    try:
        _serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The process that asked is gone.
        return


if __name__ == "__main__":
    _main()
