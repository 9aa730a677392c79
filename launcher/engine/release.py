"""Take an engine down, so that the next phase can build its own in the same process."""

from __future__ import annotations

import gc
from typing import Any

import torch
from accelerate.state import AcceleratorState


def release(trainer: Any) -> None:
    """Free what a phase's engine holds; torch.distributed stays. The trainer and its model cannot be used afterwards."""
    engine = getattr(trainer, "deepspeed", None)
    if engine is not None:
        engine.destroy()
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = trainer.deepspeed = None
    trainer.callback_handler.model = trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    # Accelerate keeps the first engine's settings for the whole process; the next one may have another batch.
    AcceleratorState._reset_state()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
