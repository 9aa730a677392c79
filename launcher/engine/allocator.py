"""How a rank on the processor gets its memory: large tensors straight from the system, and back to it as soon as they are freed."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BYTES = 2**17
"""Blocks of this size or more are mapped one by one."""


def return_freed_memory() -> bool:
    """Make the C library map large blocks one by one; return whether it does. Only glibc has to be told.

    By itself it takes blocks of up to 32 MB from one heap, in which long-lived gradients come to lie between activations: what a
    rank holds then grows to 1.1-1.8 times of what its tensors need, by the order in which they come. Mapped blocks cost some
    more time, and a rank holds what its tensors need, so that it can be planned.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES))
