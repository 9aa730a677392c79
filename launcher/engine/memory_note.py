"""What a rank has really used of memory, written down while it runs: its base after imports, and the peak at each moment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from launcher.atomic import write_json

MOMENTS = ("loading", "training", "evaluation", "saving")
"""The moments of a run, as planning/memory.py predicts them."""


class MemoryNote:
    """A rank's note about its memory, a file that is written anew at each moment's end; all values are bytes.

    ``{"device": "cpu" or "cuda", "base_bytes": ..., "peak_bytes": ..., "moments": {moment: bytes}}``. On the processor the base is
    what the process holds after its imports, and peaks are the kernel's high-water mark (VmHWM), that base included. On a GPU
    the base is 0, and peaks are what torch's allocator has reserved at most. A moment's peak is the highest value up to its end,
    so it says something about this moment only where it is higher than those before.
    """

    def __init__(self, path: Path, *, device: str) -> None:
        self._path = path
        self._device = device
        self._moments: dict[str, int] = {}
        self._base = 0 if device == "cuda" else status_bytes("VmRSS")
        self._peak = 0

    def add(self, moment: str) -> None:
        """Note the peak at the end of a moment of the run."""
        assert moment in MOMENTS
        self._peak = max(self._peak, self._peak_bytes())
        self._moments[moment] = self._peak
        values = {"device": self._device, "base_bytes": self._base, "peak_bytes": self._peak, "moments": self._moments}
        write_json(self._path, values)

    def _peak_bytes(self) -> int:
        if self._device == "cuda" and "torch" in sys.modules:
            import torch

            return int(torch.cuda.max_memory_reserved())
        return status_bytes("VmHWM")


class NotesMemory(TrainerCallback):
    """Tells a note of memory when the moments of Trainer's loop are over."""

    def __init__(self, note: MemoryNote) -> None:
        self._note = note

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The model and its engine stand."""
        self._note.add("loading")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer has all its state after the first step; later ones are looked at when something else follows."""
        if control.should_evaluate or control.should_save or state.global_step == 1:
            self._note.add("training")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation is over."""
        self._note.add("evaluation")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint is written."""
        self._note.add("saving")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last step is done."""
        self._note.add("training")


def status_bytes(name: str) -> int:
    """Return a line of /proc/self/status in bytes; 0 where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
