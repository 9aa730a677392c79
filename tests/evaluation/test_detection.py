"""Average precision by hand, against pycocotools where it is installed, and as a function of resampled images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from launcher.contracts import Boxes, Predictions
from launcher.errors import DataError
from launcher.evaluation.assessment import evaluate_predictions
from launcher.evaluation.baselines_boxes import typical_boxes
from launcher.evaluation.detection import (
    MOST_PER_IMAGE,
    box_overlaps,
    detection_metrics,
    image_precisions,
    match_classes,
    per_class,
    precision_statistic,
    rows_of,
)
from launcher.evaluation.kinds import kind_of
from launcher.evaluation.predictions_io import read_predictions, write_predictions
from launcher.evaluation.verdict import verdict_sentence

NAMES = ("ant", "bee", "cat", "dog")
Found = tuple[str, float, Sequence[float]]
True_ = tuple[str, Sequence[float]]


def predictions(
    images: Sequence[tuple[Sequence[Found], Sequence[True_]]], names: tuple[str, ...] = NAMES
) -> Predictions:
    """Return predictions of images, each with what was found (class, score, box) and what is there (class, box)."""
    found = [one for image, _ in images for one in image]
    true = [one for _, image in images for one in image]
    return Predictions(
        problem_type="object_detection",
        scores=np.array([score for _, score, _ in found], dtype=np.float64),
        labels=np.array([names.index(name) for name, _ in true], dtype=np.int64),
        label_names=names,
        texts=tuple(f"{n}.png" for n in range(len(images))),
        row_ids=tuple(range(len(images))),
        predicted=np.array([names.index(name) for name, _, _ in found], dtype=np.int64),
        boxes=Boxes(np.array([len(image) for image, _ in images]), _places([box for *_, box in found])),
        true_boxes=Boxes(np.array([len(image) for _, image in images]), _places([box for _, box in true])),
        threshold=0.5,
    )


def _places(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def drawn(seed: int, *, images: int = 25, most: int = 30, ties: bool = False, classes: int = 4) -> Predictions:
    """Return boxes of chance, many of them near true ones."""
    g = np.random.default_rng(seed)
    made: list[tuple[list[Found], list[True_]]] = []
    for _ in range(images):
        true = [
            (NAMES[g.integers(classes)], [*g.uniform(0, 80, 2), *g.uniform(5, 40, 2)]) for _ in range(g.integers(0, 7))
        ]
        found: list[Found] = []
        for _ in range(int(g.integers(0, most))):
            name, box = NAMES[g.integers(classes)], np.array([*g.uniform(0, 80, 2), *g.uniform(5, 40, 2)])
            if true and g.random() < 0.7:
                own, place = true[int(g.integers(len(true)))]
                name, box = own if g.random() < 0.8 else name, np.array(place) + g.normal(0, 2, 4)
            box[2:] = np.maximum(box[2:], 1)
            score = float(g.random())
            found.append((name, round(score, 1) if ties else score, box.tolist()))
        made.append((found, true))
    return predictions(made, NAMES[:classes])


BOX, HALF = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]


def test_overlaps_by_hand():
    found = box_overlaps(_places([BOX, [5, 0, 10, 10], [20, 20, 1, 1]]), _places([BOX, HALF]))
    assert found == pytest.approx(np.array([[1, 0.5], [1 / 3, 25 / 125], [0, 0]]))


def test_all_right_is_one_and_nothing_found_is_zero():
    right = predictions([([("ant", 0.9, BOX)], [("ant", BOX)]), ([("bee", 0.4, HALF)], [("bee", HALF)])])
    assert detection_metrics(match_classes(right)) == pytest.approx({"map": 1, "map_50": 1, "map_75": 1, "mar_100": 1})
    nothing = predictions([([], [("ant", BOX)])])
    assert set(detection_metrics(match_classes(nothing)).values()) == {0.0}


def test_a_loose_box_is_right_up_to_its_overlap():
    """IoU 0.72 reaches the thresholds 0.50 to 0.70, five of ten."""
    loose = predictions([([("ant", 0.9, [0, 0, 10, 7.2])], [("ant", BOX)])])
    assert detection_metrics(match_classes(loose)) == pytest.approx(
        {"map": 0.5, "map_50": 1, "map_75": 0, "mar_100": 0.5}
    )


def test_precision_is_interpolated_at_101_recalls():
    """Two true boxes, found with the first and the third score: precision 1 up to recall 0.5 (51 of 101 points), 2/3 beyond."""
    one = [("ant", 0.9, BOX), ("ant", 0.8, [50, 50, 5, 5]), ("ant", 0.7, [20, 20, 10, 10])]
    found = predictions([(one, [("ant", BOX), ("ant", [20, 20, 10, 10])])])
    assert detection_metrics(match_classes(found))["map_50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_true_box_is_taken_once_by_the_best_score():
    twice = predictions([([("ant", 0.5, BOX), ("ant", 0.9, BOX)], [("ant", BOX)])])
    (ant, *_) = match_classes(twice)
    assert ant.scores.tolist() == [0.9, 0.5] and ant.hits[0].tolist() == [True, False]
    other = predictions([([("bee", 0.9, BOX)], [("ant", BOX)])])
    assert detection_metrics(match_classes(other))["map"] == 0


def test_only_the_best_boxes_of_an_image_count():
    many = [("ant", 0.9 - n / 1000, [50.0, 50.0, 5.0, 5.0]) for n in range(MOST_PER_IMAGE)]
    late = predictions([([*many, ("ant", 0.1, BOX)], [("ant", BOX)])])
    assert detection_metrics(match_classes(late))["map"] == 0


def test_classes_without_true_boxes_are_left_out_and_images_without_boxes_are_legal():
    found = predictions([([("ant", 0.9, BOX), ("bee", 0.8, BOX)], [("ant", BOX)]), ([], [])])
    assert detection_metrics(match_classes(found))["map"] == pytest.approx(1)
    assert np.isnan(image_precisions(match_classes(found))[1])
    none = predictions([([("ant", 0.9, BOX)], [])])
    assert kind_of(none).metrics(none) == {} and "no row has a box" in kind_of(none).omitted(none, {})["map"]
    record = per_class(match_classes(found), NAMES)[0]
    assert record["support"] == 1 and record["f1"] == record["ap"] == 1 and record["score"] == 0.9


def test_broken_outputs_are_told():
    with pytest.raises(DataError, match="output for row 1 is not a finite number"):
        match_classes(predictions([([], [("ant", BOX)]), ([("ant", float("nan"), BOX)], [])]))
    with pytest.raises(DataError, match="there are no rows"):
        match_classes(predictions([]))


# --- against pycocotools ---------------------------------------------------------------------------------------------


def _coco(p: Predictions, rows: Sequence[int]) -> np.ndarray:
    """Return what pycocotools makes of the images ``rows``: AP, AP at 50 and 75, and average recall."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    assert p.boxes is not None and p.true_boxes is not None and p.labels is not None and p.predicted is not None
    true: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image, row in enumerate(rows, start=1):
        for at in np.flatnonzero(rows_of(p.true_boxes) == row):
            box = p.true_boxes.places[at].tolist()
            kept = {"id": len(true) + 1, "image_id": image, "category_id": int(p.labels[at]) + 1, "bbox": box}
            true.append({**kept, "area": box[2] * box[3], "iscrowd": 0})
        for at in np.flatnonzero(rows_of(p.boxes) == row):
            kept = {"image_id": image, "category_id": int(p.predicted[at]) + 1, "bbox": p.boxes.places[at].tolist()}
            found.append({**kept, "score": float(p.scores[at])})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [{"id": n} for n in range(1, len(rows) + 1)]
        categories = [{"id": n, "name": name} for n, name in enumerate(p.label_names, start=1)]
        coco.dataset = {"images": images, "annotations": true, "categories": categories, "info": {}}
        coco.createIndex()
        judged = COCOeval(coco, coco.loadRes(found), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return np.asarray(judged.stats)[[0, 1, 2, 8]]


@pytest.mark.parametrize("seed", range(6))
def test_the_same_numbers_as_pycocotools(seed):
    pytest.importorskip("pycocotools")
    found = drawn(seed, ties=bool(seed % 2), most=250 if seed == 5 else 30, classes=1 if seed == 5 else 4)
    matches = match_classes(found)
    ours = list(detection_metrics(matches).values())
    assert ours == pytest.approx(_coco(found, range(25)), abs=1e-12)
    if seed % 2:
        # Where scores of an image are equal, copies of it may be counted in another order.
        return
    rows = np.random.default_rng(seed).integers(25, size=(2, 25))
    assert precision_statistic(matches, slice(None))(rows) == pytest.approx(
        [_coco(found, row)[0] for row in rows], abs=1e-12
    )


# --- resampled -------------------------------------------------------------------------------------------------------


def test_a_resample_is_what_counting_its_copies_gives():
    """Copies of an image, put in one by one, and counted at once."""
    found = drawn(3, images=12)
    assert found.boxes is not None and found.true_boxes is not None
    rows = np.random.default_rng(1).integers(12, size=(3, 12))
    statistic = precision_statistic(match_classes(found), slice(None))(rows)
    for row, wanted in zip(rows, statistic, strict=True):
        copies = [
            (
                [
                    (NAMES[c], s, b)
                    for c, s, b in _of(found.boxes, n, found.predicted, found.scores, found.boxes.places)
                ],
                [(NAMES[c], b) for c, b in _of(found.true_boxes, n, found.labels, found.true_boxes.places)],
            )
            for n in row
        ]
        assert detection_metrics(match_classes(predictions(copies)))["map"] == pytest.approx(wanted, abs=1e-12)


def _of(boxes: Boxes, row: int, *values: Any) -> list[tuple[Any, ...]]:
    mine = rows_of(boxes) == row
    return list(zip(*(value[mine] for value in values), strict=True))


def test_every_statistic_agrees_with_its_metric_on_all_rows():
    found = drawn(4)
    all_rows = np.arange(25)[None]
    metrics = kind_of(found).metrics(found)
    for name, statistic in kind_of(found).statistics(found).items():
        assert statistic(all_rows) == pytest.approx([metrics[name]], abs=1e-12)


def test_predictions_go_to_a_file_and_back(tmp_path):
    found = drawn(2, images=6)
    write_predictions(found, tmp_path / "p.parquet")
    again = read_predictions(tmp_path / "p.parquet")
    assert kind_of(again).metrics(again) == kind_of(found).metrics(found)
    assert kind_of(again).rows(again) == kind_of(found).rows(found) and again.threshold == 0.5
    assert again.boxes is not None and again.boxes.counts.tolist() == found.boxes.counts.tolist()


def test_rows_for_people_hold_what_reaches_the_threshold():
    found = predictions([([("ant", 0.4, BOX), ("bee", 0.6, HALF), ("cat", 0.9, BOX)], []), ([], [])])
    first, second = kind_of(found).rows(found)
    assert [one["label"] for one in first["objects"]] == ["cat", "bee"] and first["objects"][1]["box"] == HALF
    assert kind_of(found).line(first) == "0.png\tcat 0.900 [0, 0, 10, 10], bee 0.600 [0, 0, 10, 5]"
    assert kind_of(found).line(second) == "1.png\tno box"
    assert list(kind_of(found).table([first, second]))[1:] == [
        ["0.png", "cat", 0.9, *BOX],
        ["0.png", "bee", 0.6, *HALF],
    ]


def test_a_better_model_is_found_to_be_better():
    places = [[10.0 * (n % 5), 8.0 * (n % 7), 10.0, 8.0] for n in range(30)]
    good = predictions([([("ant", 0.9, place)], [("ant", place)]) for place in places], ("ant",))
    assert good.true_boxes is not None and good.labels is not None
    sizes = np.full((30, 2), 64.0)
    baseline = typical_boxes(good.true_boxes, good.labels, sizes, new_sizes=sizes, predictions=good)
    assert baseline.predictions.boxes is not None and baseline.predictions.boxes.counts.tolist() == [10] * 30
    assert 0 < baseline.metrics["map_50"] < 0.9
    found = evaluate_predictions(good, [baseline], bootstrap=200)
    assert found.intervals["map"] == {"low": 1.0, "high": 1.0} and found.comparisons[0]["test"]["p_value"] < 0.01
    said = verdict_sentence(found)
    assert (
        said.startswith("The model is better than the typical-boxes baseline: mAP 1.000") and "30 test images" in said
    )


def test_typical_boxes_of_a_class_that_has_few():
    true = Boxes(np.array([1, 0]), _places([[0, 0, 32, 32]]))
    found = predictions([([], []), ([], []), ([], [])])
    sizes = np.array([[64.0, 64.0], [32.0, 32.0]])
    base = typical_boxes(
        true, np.array([2]), sizes, new_sizes=np.array([[64.0, 64], [128, 64], [8, 8]]), predictions=found
    )
    assert base.predictions.boxes is not None and base.predictions.predicted is not None
    assert base.predictions.predicted.tolist() == [2, 2, 2] and base.predictions.scores.tolist() == [0.5] * 3
    assert base.predictions.boxes.places.tolist() == [[0, 0, 32, 32], [0, 0, 64, 32], [0, 0, 4, 4]]
