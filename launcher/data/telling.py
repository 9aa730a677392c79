"""How far reading and tokenizing have come, for whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], object]
"""Called with what is done now, how much of it is done, and how much there is; 0, 0: nobody knows."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let ``listener`` hear what ``tell`` tells meanwhile."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(what: str, done: int, total: int) -> None:
    """Tell how far the work has come, where somebody listens."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)
