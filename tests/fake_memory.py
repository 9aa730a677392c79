"""A memory estimate by a formula, for tests of what is made of estimates."""

from __future__ import annotations

from typing import Any

from launcher.plans import MemoryEstimate, MemorySetting

GB = 10**9


def setting(**changes: Any) -> MemorySetting:
    """Eight ranks with plain data parallelism, 8 rows at a time, as often as one step needs."""
    values: dict[str, Any] = {
        "engine": "ddp", "zero_stage": None, "offload": "none", "precision": "bf16", "device": "cuda", "world_size": 8,
        "micro_batch_size": 8, "accumulation": 2, "length": 1024, "activation_checkpointing": False, "eval_batch_size": 8,
        "eval_length": 1024, "optimizer": "adamw_torch_fused",
    }  # fmt: skip
    return MemorySetting(**(values | changes))


class FakeMemory:
    """ZeRO's arithmetic for a model of ``billions`` of parameters, with ``row`` bytes of activations for each row.

    2 bytes of weights, 2 of gradients and 12 of optimizer state a parameter, sharded as the stage says.
    """

    def __init__(self, billions: float, *, row: float = 1.0, base: float = 0.5) -> None:
        self.numel = billions * GB
        self.row = row * GB
        self.base = int(base * GB)
        self.asked: list[MemorySetting] = []

    def __call__(self, setting: MemorySetting) -> MemoryEstimate:
        self.asked.append(setting)
        stage, ranks = setting.zero_stage or (3 if setting.engine == "fsdp" else 0), setting.world_size
        weights = self.numel * 2 / (ranks if stage >= 3 else 1)
        gradients = self.numel * 2 / (ranks if stage >= 2 else 1)
        optimizer = self.numel * 12 / (ranks if stage >= 1 else 1)
        rows = self.row * (0.1 if setting.activation_checkpointing else 1.0)
        device = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
        away = {"none": (), "optimizer": ("optimizer", "gradients"), "all": ("optimizer", "gradients", "weights")}
        host = {name: int(device.pop(name)) for name in away[setting.offload]}
        held = {name: int(size) for name, size in device.items()}
        moments = {
            "training": {**held, "activations": int(rows * setting.micro_batch_size)},
            "evaluation": {**held, "activations": int(0.2 * self.row * setting.eval_batch_size)},
        }
        return MemoryEstimate(moments, {"training": host} if host else {}, self.base)
