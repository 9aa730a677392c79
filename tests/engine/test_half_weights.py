"""Weights that DeepSpeed converts to 16 bits, statistics that it leaves, and inputs of the weights' type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from launcher.engine.half_weights import convert_statistics, convert_weights, inputs_for
from launcher.engine.trainer import RunMixin
from launcher.plans import BatchPlan, LaunchPlan
from launcher.workflows.verify import logits_of

BATCH = BatchPlan(2, 1, 2, 1)
BF16 = LaunchPlan("deepspeed", 2, "bf16", "cpu", 1, 1, BATCH)


def resnet() -> Any:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    return transformers.ResNetForImageClassification(config)


def pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def test_batch_normalisation_computes_beside_weights_in_bf16():
    model = resnet()
    convert_weights(model, BF16)
    with pytest.raises(RuntimeError, match="expected scalar type"):
        model(**inputs_for(model, pixels()))
    convert_statistics(model, BF16)
    before = model.state_dict()["resnet.embedder.embedder.normalization.running_mean"].clone()
    model(**inputs_for(model, pixels()))["logits"].sum().backward()
    after = model.state_dict()["resnet.embedder.embedder.normalization.running_mean"]
    assert after.dtype == torch.bfloat16 and not torch.equal(before, after)
    counted = [tensor for name, tensor in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert counted and all(tensor.dtype == torch.int64 for tensor in counted)


def test_frozen_statistics_hand_on_bf16():
    from transformers.models.rt_detr.modeling_rt_detr import RTDetrFrozenBatchNorm2d

    model = nn.Sequential(RTDetrFrozenBatchNorm2d(3), nn.Conv2d(3, 2, 1))
    convert_statistics(model, BF16)
    convert_weights(model, BF16)
    assert model(torch.randn(1, 3, 4, 4).bfloat16()).dtype == torch.bfloat16


def test_rotary_positions_keep_their_digits():
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaModel(config)
    convert_statistics(model, BF16)
    assert model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(
    "launch", [LaunchPlan("ddp", None, "bf16", "cpu", 1, 2, BATCH), LaunchPlan("deepspeed", 2, "fp32", "cpu", 1, 2, BATCH)]
)  # fmt: skip
def test_what_deepspeed_does_not_convert_stays(launch):
    model = resnet()
    convert_weights(model, launch)
    convert_statistics(model, launch)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}
    assert inputs_for(model, pixels())["pixel_values"].dtype == torch.float32


def test_only_floating_inputs_change_their_type():
    model = resnet().bfloat16()
    found = inputs_for(model, pixels() | {"pixel_mask": torch.ones(2, 3, dtype=torch.int64), "name": "a"})
    assert [getattr(value, "dtype", None) for value in found.values()] == [torch.bfloat16, torch.int64, None]
    # A saved model in bf16 is asked in the same way.
    assert logits_of(model.eval(), [pixels()], [torch.arange(2)]).shape == (2, 2)


class Rounding:
    """Trainer under DeepSpeed in bf16."""

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}


def test_labels_are_not_rounded():
    class Both(RunMixin, Rounding):
        args = transformers.TrainingArguments("x", use_cpu=True, report_to="none")

    batch = pixels() | {"labels": torch.tensor([[257.0, 0.501, 0.25]]), "sample_weight": torch.tensor([0.1])}
    found = Both.__new__(Both)._prepare_inputs(batch)
    assert found["pixel_values"].dtype == torch.bfloat16
    assert torch.equal(found["labels"], batch["labels"]) and torch.equal(found["sample_weight"], batch["sample_weight"])
