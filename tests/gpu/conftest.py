"""A folder with a model of 0.5 billion random weights, made once; and the GPUs, without which these tests are skipped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Its helpers are imported by name, as those of all tests.
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def gpus(require) -> int:
    """Number of visible GPUs."""
    from launcher.planning.hardware import detect_hardware

    found = len(detect_hardware().gpus)
    require(found, "no GPU is visible")
    return found


@pytest.fixture(scope="session")
def half_billion(gpus: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import cells

    return cells.make_place(tmp_path_factory.mktemp("half-billion"), cells.HALF_BILLION)
