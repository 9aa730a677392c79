"""The loss of detectors: that of transformers for each family, and sums over rows that do not depend on how rows are divided."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launcher.errors import ModelError
from launcher.tasks.detection_loss import MODEL_TYPES, NO_CLASS, SetLoss, detections, paired_iou

QUERIES, CLASSES = 7, 3
# Boxes of each row: none, one, several, and more than there are queries.
COUNTS = (2, 0, 1, 3)


def config_of(kind: str) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind)
    config.num_labels = CLASSES
    return config


def made(kind: str, counts: tuple[int, ...] = COUNTS) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return outputs, classes [rows, boxes] and boxes [rows, boxes, 4] of chance."""
    generator = torch.Generator().manual_seed(len(kind))
    extra = SetLoss.of(config_of(kind)).family == "softmax"

    def boxes(*size: int) -> torch.Tensor:
        return 0.2 + 0.3 * torch.rand(*size, 4, generator=generator)

    rows = len(counts)
    outputs = {
        "logits": torch.randn(rows, QUERIES, CLASSES + extra, generator=generator),
        "pred_boxes": boxes(rows, QUERIES),
    }
    if SetLoss.of(config_of(kind)).family == "varifocal":
        outputs["intermediate_logits"] = torch.randn(rows, 2, QUERIES, CLASSES, generator=generator)
        outputs["intermediate_reference_points"] = boxes(rows, 2, QUERIES)
        outputs["intermediate_logits"][:, -1] = outputs["logits"]
        outputs["intermediate_reference_points"][:, -1] = outputs["pred_boxes"]
        outputs["enc_topk_logits"] = torch.randn(rows, QUERIES, CLASSES, generator=generator)
        outputs["enc_topk_bboxes"] = boxes(rows, QUERIES)
    most = max(1, *counts)
    classes = torch.randint(CLASSES, (rows, most), generator=generator)
    for row, count in enumerate(counts):
        classes[row, count:] = NO_CLASS
    return outputs, classes, boxes(rows, most)


def theirs(kind: str, outputs: dict[str, torch.Tensor], classes: torch.Tensor, boxes: torch.Tensor) -> float:
    """Return the loss that a model of transformers computes of these."""
    from transformers.loss.loss_utils import LOSS_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES as NAMES

    has_own = NAMES[kind] if NAMES[kind] in LOSS_MAPPING else "ForObjectDetection"
    labels = [
        {"class_labels": row[row != NO_CLASS], "boxes": place[row != NO_CLASS]}
        for row, place in zip(classes, boxes, strict=True)
    ]
    more = {}
    if "intermediate_logits" in outputs:
        more = {
            "outputs_class": outputs["intermediate_logits"],
            "outputs_coord": outputs["intermediate_reference_points"],
            "enc_topk_logits": outputs["enc_topk_logits"],
            "enc_topk_bboxes": outputs["enc_topk_bboxes"],
        }
    loss, _, _ = LOSS_MAPPING[has_own](
        outputs["logits"], labels, torch.device("cpu"), outputs["pred_boxes"], config_of(kind), **more
    )
    return float(loss)


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_the_loss_is_that_of_transformers_where_rows_have_their_average_of_boxes(kind):
    """It divides by the boxes of a batch, we by their expectation: on a batch that has just that, the two are one."""
    outputs, classes, boxes = made(kind)
    mean = sum(COUNTS) / len(COUNTS)
    rows = SetLoss.of(config_of(kind)).row_losses(outputs, classes, boxes, mean_boxes=mean)
    assert rows.shape == (len(COUNTS),) and rows.dtype == torch.float32
    assert float(rows.mean()) == pytest.approx(theirs(kind, outputs, classes, boxes), rel=1e-5)


@pytest.mark.parametrize("kind", ["detr", "deformable_detr", "rt_detr"])
def test_a_rows_loss_depends_on_that_row_alone(kind):
    outputs, classes, boxes = made(kind, (2, 0, 9, 3))
    loss = SetLoss.of(config_of(kind))
    whole = loss.row_losses(outputs, classes, boxes, mean_boxes=2.0)
    assert torch.isfinite(whole).all() and (whole > 0).all()
    for row in range(4):
        one = {name: tensor[row : row + 1] for name, tensor in outputs.items()}
        count = max(1, int((classes[row] != NO_CLASS).sum()))
        alone = loss.row_losses(one, classes[row : row + 1, :count], boxes[row : row + 1, :count], mean_boxes=2.0)
        assert float(alone) == pytest.approx(float(whole[row]), rel=1e-5)


@pytest.mark.parametrize("kind", ["detr", "deformable_detr", "rt_detr"])
def test_gradients_reach_logits_and_boxes(kind):
    outputs, classes, boxes = made(kind)
    for tensor in outputs.values():
        tensor.requires_grad_(True)
    SetLoss.of(config_of(kind)).row_losses(outputs, classes, boxes, mean_boxes=2.0).sum().backward()
    assert all(
        tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in (outputs["logits"], outputs["pred_boxes"])
    )


def test_a_batch_without_any_box_has_a_loss():
    outputs, classes, boxes = made("detr", (0, 0))
    rows = SetLoss.of(config_of("detr")).row_losses(outputs, classes, boxes, mean_boxes=2.0)
    assert torch.isfinite(rows).all() and (rows > 0).all()


def test_an_unknown_detector_is_refused():
    with pytest.raises(
        ModelError, match="the loss of a d_fine is not known here; name a detector whose model_type is one of detr"
    ):
        SetLoss.of(SimpleNamespace(model_type="d_fine"))


def test_overlaps_by_hand():
    a = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2]])
    b = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.5, 0.25, 0.5, 0.5], [0.9, 0.9, 0.2, 0.2]])
    found = paired_iou(a, b)
    assert found.plain.tolist() == pytest.approx([1, 1 / 3, 0])
    # The third pair has nothing in common, and the box around both is of area 1.
    assert found.generalised.tolist() == pytest.approx([1, 1 / 3, -0.92])


@pytest.mark.parametrize("kind", ["detr", "yolos", "conditional_detr", "deformable_detr", "rt_detr"])
def test_what_is_found_is_what_the_models_processor_finds(kind):
    from launcher.recipe.schema import ModelSection
    from launcher.tasks.image_processors import load_image_processor

    outputs, _, _ = made(kind)
    processor = load_image_processor(ModelSection(config={"model_type": kind}, name_or_path=None), size=16)
    held = SimpleNamespace(logits=outputs["logits"], pred_boxes=outputs["pred_boxes"])
    wanted = processor.post_process_object_detection(held, threshold=0.3, target_sizes=[(10, 10)] * len(COUNTS))
    found = detections(outputs, config_of(kind), most=100)
    for row, right in zip(found, wanted, strict=True):
        kept = row[row[:, 0] > 0.3]
        order = right["scores"].argsort(descending=True)[: len(kept)]
        assert kept[:, 0].tolist() == pytest.approx(right["scores"][order].tolist(), abs=1e-6)
        assert kept[:, 1].tolist() == right["labels"][order].tolist()
        corners = torch.cat([kept[:, 2:4] - kept[:, 4:] / 2, kept[:, 2:4] + kept[:, 4:] / 2], dim=1) * 10
        assert torch.allclose(corners, right["boxes"][order], atol=1e-5)
