"""What all tests share: tiers, a home folder without keys, and a way to skip that is an error in CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The first example of a test may import torch, and other work may share the machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Helpers of the tests (tiny.py) are imported by name; import mode importlib leaves sys.path as it is.
sys.path.insert(0, str(Path(__file__).resolve().parent))

# Before anything imports torch: the machine may be shared, and tiny models gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

SHARED = Path(__file__).resolve().parents[1].parent / "shared"

# What could lead a test to a key, a cache or a setting of the person who runs it.
_PERSONAL = (
    "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_RUN_ID", "NETRC", "HF_TOKEN", "HF_HOME",
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def require(condition: object, reason: str) -> None:
    """Skip the test where it cannot run; in CI, where everything should be at hand, fail instead."""
    if condition:
        return
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"CI lacks what this test needs: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder of the tests' own: no key, no cache and no configuration of the user's takes part."""
    folder = tmp_path_factory.mktemp("home")
    # What DeepSpeed compiles once (minutes) may be kept between test sessions.
    built = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache/torch_extensions")
    with pytest.MonkeyPatch.context() as patch:
        for name in _PERSONAL:
            patch.delenv(name, raising=False)
        patch.setenv("TORCH_EXTENSIONS_DIR", str(built))
        patch.setenv("HOME", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / ".cache"))
        _fix_precision()
        yield folder


def _fix_precision() -> None:
    """What ``precision: auto`` means on a processor must not depend on the machine of the tests: fp32, and nothing is measured."""
    from launcher.planning.cpu_precision import keep

    keep({"bf16_is_fast": False})


@pytest.fixture(name="require", scope="session")
def require_fixture() -> Callable[[object, str], None]:
    """The function above, for test modules, which cannot import this one."""
    return require


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the checkout."""
    require(SHARED.is_dir(), f"needs the data in {SHARED}")
    return SHARED
