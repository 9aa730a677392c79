"""The loss of detectors of the DETR family: each true box is matched with one prediction, and losses are summed row by row.

The families differ in how classes are scored: one of them or none (softmax: DETR, YOLOS), each by itself (sigmoid and focal loss: Deformable,
Conditional and DAB-DETR), or each by how well its box fits (varifocal loss: RT-DETR). A row's loss depends on that row alone, so that sums over rows
are the same however rows are divided into batches and among ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from launcher.errors import ModelError

NO_CLASS = -100
"""Class of the places that fill up a row of boxes."""

_SOFTMAX = ("detr", "table-transformer", "yolos")
_FOCAL = ("conditional_detr", "dab-detr", "deformable_detr")
_VARIFOCAL = ("rt_detr", "rt_detr_v2")
MODEL_TYPES = (*_SOFTMAX, *_FOCAL, *_VARIFOCAL)
"""Values of a configuration's model_type whose loss is known here."""

# As DeformableDetrHungarianMatcher has them, whatever the configuration says.
_MATCHER_ALPHA, _MATCHER_GAMMA, _FOCAL_GAMMA = 0.25, 2.0, 2.0


@dataclass(frozen=True)
class SetLoss:
    """What a detector's configuration says of its loss."""

    family: Literal["softmax", "focal", "varifocal"]
    costs: tuple[float, float, float]
    """Weights of class, distance (L1) and generalised IoU when predictions are matched with boxes."""
    weights: tuple[float, float, float]
    """Weights of the three in the loss."""
    no_object: float = 1.0
    """Weight of a prediction without a box, softmax only."""
    alpha: float = 0.25
    gamma: float = 2.0
    matcher_alpha: float = _MATCHER_ALPHA
    matcher_gamma: float = _MATCHER_GAMMA

    @classmethod
    def of(cls, config: Any) -> SetLoss:
        """Return what ``config`` says. Raises ModelError for a model whose loss is not known."""
        kind = config.model_type
        if kind in _VARIFOCAL:
            return cls(
                "varifocal",
                (config.matcher_class_cost, config.matcher_bbox_cost, config.matcher_giou_cost),
                (config.weight_loss_vfl, config.weight_loss_bbox, config.weight_loss_giou),
                alpha=config.focal_loss_alpha,
                gamma=config.focal_loss_gamma,
                matcher_alpha=config.matcher_alpha,
                matcher_gamma=config.matcher_gamma,
            )
        if kind not in MODEL_TYPES:
            raise ModelError(
                f"the loss of a {kind} is not known here; name a detector whose model_type is one of {', '.join(MODEL_TYPES)}"
            )
        costs = (config.class_cost, config.bbox_cost, config.giou_cost)
        weights = (1.0, config.bbox_loss_coefficient, config.giou_loss_coefficient)
        if kind in _SOFTMAX:
            return cls("softmax", costs, weights, no_object=config.eos_coefficient)
        return cls("focal", costs, weights, alpha=config.focal_alpha, gamma=_FOCAL_GAMMA)

    def row_losses(self, outputs: Mapping[str, Any], classes: Tensor, boxes: Tensor, *, mean_boxes: float) -> Tensor:
        """Return each row's loss, float32 [rows]; where a model predicts several times, layer by layer, the sum over these.

        Args:
            outputs: logits [rows, queries, classes] and pred_boxes [rows, queries, 4] (centre x, y, width, height from 0 to 1).
            classes: int64 [rows, boxes], NO_CLASS where a row has fewer boxes.
            boxes: float32 [rows, boxes, 4].
            mean_boxes: boxes of a row of train on average. DETR divides by the boxes of a batch; their expectation makes a box count the
                same in each batch, on any number of ranks.
        """
        return sum(
            (
                self._one(logits.float(), found.float(), classes, boxes, mean_boxes)
                for logits, found in _layers(outputs)
            ),
            torch.zeros(len(classes), device=classes.device),
        )

    def _one(self, logits: Tensor, found: Tensor, classes: Tensor, boxes: Tensor, mean_boxes: float) -> Tensor:
        rows, queries, places = self._match(logits, found, classes, boxes)
        true, picked = boxes[rows, places], found[rows, queries]
        fits = paired_iou(picked, true)
        distance = (picked - true).abs().sum(-1)
        of_boxes = self.weights[1] * distance + self.weights[2] * (1 - fits.generalised)
        summed = torch.zeros(len(classes), device=classes.device).index_add(0, rows, of_boxes) / mean_boxes
        targets = torch.full(logits.shape[:2], NO_CLASS, device=classes.device)
        targets[rows, queries] = classes[rows, places]
        overlap = torch.zeros(logits.shape[:2], device=classes.device)
        overlap[rows, queries] = fits.plain.detach()
        return summed + self.weights[0] * self._of_classes(logits, targets, overlap, mean_boxes)

    def _of_classes(self, logits: Tensor, targets: Tensor, overlap: Tensor, mean_boxes: float) -> Tensor:
        """Return each row's loss of classes [rows]; ``targets`` int64 [rows, queries], ``overlap`` IoU with the matched box."""
        has_box = targets != NO_CLASS
        if self.family == "softmax":
            nothing = logits.shape[-1] - 1
            losses = functional.cross_entropy(logits.transpose(1, 2), targets.where(has_box, nothing), reduction="none")
            weights = torch.where(has_box, 1.0, self.no_object)
            # DETR takes the weighted mean: here too over the weight that a row has on average.
            queries = logits.shape[1]
            matched = min(mean_boxes, queries)
            return (losses * weights).sum(1) / (matched + self.no_object * (queries - matched))
        hot = functional.one_hot(targets.where(has_box, logits.shape[-1]), logits.shape[-1] + 1)[..., :-1].float()
        scores = logits.sigmoid()
        if self.family == "varifocal":
            wanted = hot * overlap[..., None]
            weight = (self.alpha * scores.detach() ** self.gamma) * (1 - hot) + wanted
            losses = functional.binary_cross_entropy_with_logits(logits, wanted, weight=weight, reduction="none")
        else:
            losses = functional.binary_cross_entropy_with_logits(logits, hot, reduction="none")
            right = scores * hot + (1 - scores) * (1 - hot)
            losses = losses * (1 - right) ** self.gamma
            if self.alpha >= 0:
                losses = losses * (self.alpha * hot + (1 - self.alpha) * (1 - hot))
        return losses.sum((1, 2)) / mean_boxes

    @torch.no_grad()
    def _match(self, logits: Tensor, found: Tensor, classes: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, query and place of each matched pair, int64 [pairs]: those with the least cost in all, row by row.

        Source: Carion et al. 2020, "End-to-End Object Detection with Transformers", section 3.1.
        """
        from scipy.optimize import linear_sum_assignment

        by_class = self._class_costs(logits).gather(
            2, classes.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)
        )  # [rows, queries, boxes]
        distance = torch.cdist(found, boxes, p=1)
        overlap = paired_iou(found[:, :, None], boxes[:, None]).generalised
        cost = self.costs[0] * by_class + self.costs[1] * distance - self.costs[2] * overlap
        if isinstance(cost, FakeTensor):
            # A plan traces tensors without values: any pairs do, as many as there are.
            return _first_pairs(cost)
        # Weights that are broken give no number: their loss says so, not the matching.
        table = torch.nan_to_num(cost, nan=1e9, posinf=1e9, neginf=-1e9).cpu().numpy()
        real = (classes != NO_CLASS).cpu().numpy()
        found_pairs: list[np.ndarray] = [np.zeros((3, 0), dtype=np.int64)]
        for row, is_real in enumerate(real):
            places = np.flatnonzero(is_real)
            queries, picked = linear_sum_assignment(table[row][:, places])
            found_pairs.append(np.stack([np.full_like(queries, row), queries, places[picked]]))
        pairs = torch.as_tensor(np.concatenate(found_pairs, axis=1), device=classes.device)
        return pairs[0], pairs[1], pairs[2]

    def _class_costs(self, logits: Tensor) -> Tensor:
        """Return what it costs that a query has a class, [rows, queries, classes]."""
        if self.family == "softmax":
            return -logits.softmax(-1)
        scores = logits.sigmoid()
        against = (1 - self.matcher_alpha) * scores**self.matcher_gamma * -(1 - scores + 1e-8).log()
        return self.matcher_alpha * (1 - scores) ** self.matcher_gamma * -(scores + 1e-8).log() - against


def _first_pairs(cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, queries, boxes = cost.shape
    number = min(queries, boxes)
    places = torch.arange(number, device=cost.device).repeat(rows)
    return torch.arange(rows, device=cost.device).repeat_interleave(number), places, places


def _layers(outputs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Return (logits, boxes) of each time that a model predicts: the last one, and what RT-DETR has before it, which has to be learnt too."""
    layers = [(outputs["logits"], outputs["pred_boxes"])]
    # An output that is None is left out of the mapping.
    if outputs.get("intermediate_logits") is not None:
        logits, boxes = outputs["intermediate_logits"][:, :-1], outputs["intermediate_reference_points"][:, :-1]
        layers += list(zip(logits.unbind(1), boxes.unbind(1), strict=True))
        layers.append((outputs["enc_topk_logits"], outputs["enc_topk_bboxes"]))
    return layers


@dataclass(frozen=True)
class Overlap:
    """Intersection over union of pairs of boxes."""

    plain: Tensor
    """From 0 to 1."""
    generalised: Tensor
    """From -1 to 1 (Rezatofighi et al. 2019, "Generalized Intersection over Union", algorithm 1)."""


def paired_iou(a: Tensor, b: Tensor) -> Overlap:
    """Return the overlap of boxes [..., 4] (centre x, y, width, height) that broadcast."""
    low_a, high_a, low_b, high_b = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2, *_ends(b)
    shared = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared
    around = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).prod(-1)
    plain = shared / union.clamp(min=1e-12)
    return Overlap(plain, plain - (around - union) / around.clamp(min=1e-12))


def _ends(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2


def detections(outputs: Mapping[str, Any], config: Any, *, most: int) -> Tensor:
    """Return what a model finds, float32 [rows, found, 6]: score, class, centre x, y, width, height (from 0 to 1), best first.

    As transformers' processors read it: with softmax the likeliest class of each query, otherwise the best of all pairs of query and class.
    ``most``: how many are kept of a row.
    """
    logits, boxes = outputs["logits"].float(), outputs["pred_boxes"].float()
    family = SetLoss.of(config).family
    if family == "softmax":
        scores, classes = logits.softmax(-1)[..., :-1].max(-1)
        scores, places = scores.topk(min(most, scores.shape[1]), dim=1)
        classes = classes.gather(1, places)
    else:
        flat = logits.sigmoid().flatten(1)
        # RT-DETR's processor keeps as many pairs as there are queries, the others 100.
        limit = min(most, flat.shape[1], *([logits.shape[1]] if family == "varifocal" else []))
        scores, pairs = flat.topk(limit, dim=1)
        places, classes = pairs // logits.shape[-1], pairs % logits.shape[-1]
    picked = boxes.gather(1, places[..., None].expand(-1, -1, 4))
    return torch.cat([scores[..., None], classes[..., None].float(), picked], dim=-1)
