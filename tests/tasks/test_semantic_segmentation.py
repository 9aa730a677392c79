"""Semantic segmentation: masks and their faults, the loss against torch, counts of pixels, and runs."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from sklearn.metrics import jaccard_score
from torch.nn import functional as F

from launcher.contracts import Predictions
from launcher.data.augmentation import augmented_with_mask
from launcher.data.builtin import make_builtin
from launcher.data.masks import read_mask, write_mask
from launcher.engine.loading import Rows
from launcher.engine.predicting import predict_logits
from launcher.errors import DataError
from launcher.evaluation.baselines_pixels import usual_pixels
from launcher.evaluation.kinds import kind_of, metrics_for
from launcher.evaluation.predictions_io import read_predictions, write_predictions
from launcher.evaluation.segmentation import nearest, pixel_counts
from launcher.recipe.schema import Recipe
from launcher.recipe.task_checks import METRICS
from launcher.recipe.task_options import GeometricAugmentation
from launcher.tasks.semantic_segmentation import SemanticSegmentation

TASK = {"type": "semantic-segmentation", "image_size": 32}
MODEL = {
    "name_or_path": None,
    "config": {
        "model_type": "segformer", "hidden_sizes": [8, 16, 16, 16], "num_attention_heads": [1, 2, 2, 2], "depths": [1, 1, 1, 1],
        "decoder_hidden_size": 16, "hidden_dropout_prob": 0.0, "classifier_dropout_prob": 0.0, "drop_path_rate": 0.0,
    },
}  # fmt: skip
NAMES = ["ground", "bar"]


def drawing(number: int) -> tuple[Image.Image, np.ndarray]:
    """A bright bar somewhere on dark noise, of 40 x 24 pixels, and its mask; a corner is of no class."""
    rng = np.random.default_rng(number)
    pixels, mask = rng.integers(0, 60, size=(24, 40, 3), dtype=np.uint8), np.zeros((24, 40), dtype=np.int64)
    left = int(rng.integers(2, 28))
    pixels[:, left : left + 10], mask[:, left : left + 10] = 230, 1
    mask[:2, :2] = 255
    return Image.fromarray(pixels), mask


def write_split(folder: Path, number: int, count: int) -> None:
    folder.mkdir(parents=True)
    lines = []
    for row in range(count):
        image, mask = drawing(1000 * number + row)
        image.save(folder / f"i{row}.png")
        (folder / f"m{row}.png").write_bytes(write_mask(mask))
        lines.append(json.dumps({"file_name": f"i{row}.png", "mask": f"m{row}.png"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, (name, count) in enumerate({"train": 24, "validation": 6, "test": 10}.items()):
        write_split(folder / name, number, count)
    return folder


def values_for(source: Path | str, /, **changes: Any) -> dict[str, Any]:
    values = tiny.recipe_values("unused", source, **{"task": TASK, "model": MODEL, **changes})
    values["model"].pop("tokenizer_name_or_path", None)
    values["data"].pop("max_length", None)
    return values


def task_for(source: Path | str, /, **changes: Any) -> SemanticSegmentation:
    return SemanticSegmentation(Recipe.model_validate(values_for(source, **changes)))


@pytest.fixture(scope="module")
def prepared(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    task = task_for(images, data={"cache_dir": str(tmp_path_factory.mktemp("cache")), "labels": NAMES})
    return task, task.prepare_data()[1]


# --- data ------------------------------------------------------------------------------------------------------------


def test_rows_hold_images_and_masks(prepared):
    task, data = prepared
    counts = sum(np.bincount(mask[mask != 255], minlength=2) for mask in (drawing(n)[1] for n in range(24)))
    assert data.label_names == ("ground", "bar") and data.facts["splits"]["train"]["labels"] == counts.tolist()
    assert (read_mask(data.train[3]["mask"]) == drawing(3)[1]).all() and data.train[3]["size"] == [40, 24]
    assert (
        "ground 7" in task.show_row(data.train[3], data).label
        and "%, bar 2" in task.show_row(data.train[3], data).label
    )


def test_numbers_are_names_where_there_are_no_others(images, tmp_path):
    assert task_for(images, data={"cache_dir": str(tmp_path)}).prepare_data()[1].label_names == ("0", "1")


def test_a_palette_holds_its_places_and_large_numbers_are_kept():
    buffer = io.BytesIO()
    picture = Image.fromarray(np.array([[0, 3], [2, 1]], dtype=np.uint8), mode="P")
    picture.putpalette([10, 20, 30] * 4)
    picture.save(buffer, "PNG")
    assert read_mask(buffer.getvalue()).tolist() == [[0, 3], [2, 1]]
    large = np.array([[0, 300], [65535, 7]])
    assert (read_mask(write_mask(large)) == large).all()


def broken(folder: Path, name: str) -> str:
    """Spoil row 5 of train; return what the error has to say."""
    path = folder / "train" / "m4.png"
    if name == "colours":
        Image.new("RGB", (40, 24)).save(path)
        return r"metadata\.jsonl:5 \(row 5\).*m4\.png is an image of colours \(RGB\).*grey"
    if name == "another size":
        path.write_bytes(write_mask(np.zeros((20, 40), dtype=np.int64)))
        return r"row 5.*m4\.png is 40 x 20 pixels, and i4\.png 40 x 24"
    if name == "no image":
        path.write_text("nothing")
        return r"row 5.*m4\.png cannot be read as an image"
    if name == "missing":
        path.unlink()
        return r"row 5.*there is no mask .*m4\.png"
    mask = drawing(4)[1]
    mask[5, 5:8] = 9
    path.write_bytes(write_mask(mask))
    return (
        r"row 5.*its mask has the number 9 in 3 pixels, and there are 2 classes \(0 to 1: ground, bar\).*ignore_index"
    )


@pytest.mark.parametrize("name", ["colours", "another size", "no image", "missing", "no class"])
def test_masks_that_cannot_be_used_are_named_or_left_out(tmp_path, name):
    for number, (split, count) in enumerate({"train": 24, "validation": 4}.items()):
        write_split(tmp_path / "d" / split, number, count)
    said, data = broken(tmp_path / "d", name), {"cache_dir": str(tmp_path / "c"), "labels": NAMES}
    with pytest.raises(DataError, match=said):
        task_for(tmp_path / "d", data=data).prepare_data()
    _, kept = task_for(tmp_path / "d", data={**data, "on_bad_row": "skip"}).prepare_data()
    assert len(kept.train) == 23 and kept.facts["skipped"]


def test_a_mask_follows_its_image():
    image, mask = drawing(7)
    options = GeometricAugmentation(crop_area=0.5, horizontal_flip=0.5, vertical_flip=0.5)
    for seed in range(20):
        changed, followed = augmented_with_mask(
            image, Image.fromarray(mask.astype(np.int32)), options, np.random.default_rng(seed)
        )
        numbers = np.asarray(followed)
        assert changed.size == followed.size
        assert ((np.asarray(changed)[..., 0] > 200) == (numbers == 1))[numbers != 255].all()


def test_shapes_have_masks_that_fit_their_boxes():
    rows = make_builtin("shapes").splits["validation"][:40]
    for row in rows:
        numbers = read_mask(row["mask"]["bytes"])
        for (x, y, width, height), name in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
            inside = numbers[int(y) : int(y + height), int(x) : int(x + width)]
            assert (inside == ("circle", "square", "triangle").index(name) + 1).mean() > 0.4


# --- loss and counts -------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_torch_and_padding_rows_count_nothing(prepared):
    task, data = prepared
    batch = task.collator(training=True)(Rows(data.train).__getitems__([0, 1, -3]))
    assert batch["labels"].shape == (3, 32, 32) and batch["pixel_values"].shape == (3, 3, 32, 32)
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 8, 8)
    large = F.interpolate(logits[:2], size=(32, 32), mode="bilinear", align_corners=False)
    wanted = F.cross_entropy(large, batch["labels"][:2], ignore_index=255, reduction="sum")
    assert task.loss({"logits": logits}, batch).item() == pytest.approx(wanted.item(), rel=1e-6)
    assert task.items(batch) == (batch["labels"][:2] != 255).sum()


def test_class_weights_weigh_pixels(images, tmp_path):
    data = {"cache_dir": str(tmp_path), "labels": NAMES}
    task = task_for(images, task={**TASK, "class_weights": {"bar": 3.0}}, data=data)
    _, found = task.prepare_data()
    batch, logits = task.collator()(Rows(found.train).__getitems__([0, 1])), torch.randn(2, 2, 8, 8)
    large = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    wanted = F.cross_entropy(large, batch["labels"], ignore_index=255, weight=torch.tensor([1.0, 3.0]))
    assert (task.loss({"logits": logits}, batch) / task.items(batch)).item() == pytest.approx(wanted.item(), rel=1e-5)


def made(rows: int = 6, *, classes: int = 3, seed: int = 0) -> tuple[Predictions, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    found, true = rng.integers(0, classes, (rows, 5, 7)), rng.integers(0, classes, (rows, 5, 7))
    found = np.where(rng.random(found.shape) < 0.5, true, found)
    true[:, 0, :2] = 255
    counts = [pixel_counts(f, t, classes=classes, ignored=255).ravel() for f, t in zip(found, true, strict=True)]
    names, ids = tuple("abc"[:classes]), tuple(range(rows))
    predictions = Predictions(
        "semantic_segmentation", np.array(counts, dtype=float), np.full(rows, 33), names, tuple("tuvwxy"[:rows]), ids
    )
    return predictions, found, true


def test_iou_is_that_of_scikit_learn():
    predictions, found, true = made()
    counted = true != 255
    metrics = metrics_for(predictions)
    assert metrics["mean_iou"] == pytest.approx(jaccard_score(true[counted], found[counted], average="macro"))
    assert metrics["pixel_accuracy"] == pytest.approx((true == found)[counted].mean())
    records = kind_of(predictions).details(predictions)["per_class"]
    each = jaccard_score(true[counted], found[counted], average=None)
    assert [r["iou"] for r in records] == pytest.approx(each) and [r["name"] for r in records] == ["a", "b", "c"]
    drawn = np.array([[0, 0, 3, 4, 4, 5]])
    some = true[drawn[0]] != 255
    wanted = jaccard_score(true[drawn[0]][some], found[drawn[0]][some], average="macro")
    assert kind_of(predictions).statistics(predictions)["mean_iou"](drawn)[0] == pytest.approx(wanted)


def test_sums_beyond_what_float32_holds_are_exact():
    from launcher.evaluation.statistics import summed_rows

    table = np.array([[2**24 + 1.0, 3.0], [1.0, 2**25 + 3.0]])
    assert summed_rows(table)(np.array([[0, 1], [0, 0]])).tolist() == [[2**24 + 2, 2**25 + 6], [2**25 + 2, 6]]


def test_predictions_go_to_a_file_and_back_and_to_people(tmp_path):
    predictions, found, _ = made(2)
    write_predictions(predictions, tmp_path / "p.parquet")
    assert metrics_for(read_predictions(tmp_path / "p.parquet")) == metrics_for(predictions)
    maps = tuple(write_mask(one) for one in found)
    counts = np.array([np.bincount(one.ravel(), minlength=3) for one in found], dtype=float)
    unlabelled = Predictions("semantic_segmentation", counts, None, ("a", "b", "c"), ("t", "u"), (0, 1), maps=maps)
    write_predictions(unlabelled, tmp_path / "u.parquet")
    again = read_predictions(tmp_path / "u.parquet")
    assert again.maps == maps and again.labels is None
    row = kind_of(again).rows(again)[0]
    assert (read_mask(base64.b64decode(row["mask"])) == found[0]).all()
    assert sum(row["classes"].values()) == pytest.approx(1, abs=1e-5)
    assert kind_of(again).line(row).startswith("t\t") and "%" in kind_of(again).line(row)


def test_the_baseline_says_what_each_place_mostly_is():
    predictions, _, true = made()
    train = [np.tile(np.arange(8)[None] // 4, (6, 1)), np.tile(np.arange(4)[None] // 2, (6, 1)), np.full((3, 3), 255)]
    baseline = usual_pixels(train, iter(true), predictions, ignored=255)
    usual = np.tile((np.arange(7) + 0.5 >= 3.5).astype(int)[None], (5, 1))
    wanted = [pixel_counts(usual, mask, classes=3, ignored=255).ravel() for mask in true]
    assert (baseline.predictions.scores == np.array(wanted)).all() and baseline.metrics["mean_iou"] < 0.5
    assert nearest(np.array([[1, 2], [3, 4]]), 4, 4)[[0, 0, 3, 3], [0, 3, 0, 3]].tolist() == [1, 2, 3, 4]


def test_what_is_checked_is_what_is_computed(prepared):
    task, data = prepared
    model = task.build_model(data).model.eval()
    logits, loss = predict_logits(
        model, data.test, task.collator(), batch_size=4, device="cpu", row_outputs=task.row_outputs,
        loss=lambda outputs, batch: (task.loss(outputs, batch), task.items(batch)),
    )  # fmt: skip
    predictions = task.predictions(logits, data.test, data)
    assert {*task.metrics(predictions), "loss"} == set(METRICS["semantic-segmentation"]) and loss is not None
    assert predictions.labels.tolist() == predictions.scores.reshape(10, 2, 3)[..., 2].sum(axis=1).tolist()


# --- runs ------------------------------------------------------------------------------------------------------------


def learn(place: Path, name: str, data: Path | str, /, **changes: Any) -> dict[str, Any]:
    values = {**values_for(data, **{"data": {"labels": NAMES}, **changes}), "name": name}
    done = tiny.launcher("run", tiny.write_recipe(place / f"{name}.yaml", values), cwd=place, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((place / "runs" / f"{name}-001" / "evaluation/metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_train_it_and_the_model_is_used(images, tmp_path):
    """Its head has batch normalisation, whose statistics are of a rank's own rows: losses are near those of one process, not equal."""
    from launcher.workflows.inference import FinishedModel, evaluate_run, prediction_rows, write_rows

    changes: dict[str, Any] = {
        "training": {"learning_rate": 5e-3, "num_train_epochs": 8},
        "task": {**TASK, "augmentation": {"horizontal_flip": 0.5}},
    }
    learn(tmp_path, "one", images, **changes)
    found = learn(tmp_path, "two", images, **changes, distributed={"processes_per_node": 2, "zero_stage": 2})
    one, two = (tmp_path / "runs" / f"{name}-001" for name in ("one", "two"))
    assert tiny.losses(two)[1] == pytest.approx(tiny.losses(one)[1], rel=0.1) and tiny.ledger(two) == tiny.ledger(one)
    assert found["metrics"]["mean_iou"] > 0.5 > found["baselines"][0]["metrics"]["mean_iou"]
    assert "Images with the fewest pixels right" in (two / "report.html").read_text()
    finished = FinishedModel(two)
    path = images / "test" / "i3.png"
    predicted = finished.predict_texts([str(path)])
    (row,) = prediction_rows(predicted)
    numbers = read_mask(base64.b64decode(row["mask"]))
    assert numbers.shape == (24, 40) and (numbers == drawing(2003)[1])[2:].mean() > 0.7
    for ending in ("csv", "jsonl", "parquet"):
        write_rows(predicted, tmp_path / f"out.{ending}")
    assert (tmp_path / "out.csv").read_text().startswith("image,class,share\n")
    assert evaluate_run(two).metrics == pytest.approx(found["metrics"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", tiny.TWO_RANKS)
def test_it_trains_on_every_engine(images, tmp_path, engine):
    assert learn(tmp_path, "two", images, distributed=tiny.TWO_RANKS[engine])["rows"] == 10


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", tiny.STRATEGIES)
def test_every_strategy_trains_and_is_saved(images, tmp_path, strategy):
    """From a model that was trained before: some of them keep what is pretrained."""
    learn(tmp_path, "base", images)
    found = learn(
        tmp_path, "next", images, model={"name_or_path": str(tmp_path / "runs/base-001/model"), "config": None},
        strategy=tiny.STRATEGIES[strategy], evaluation={"bootstrap": 20, "verify_saved": True},
    )  # fmt: skip
    manifest = json.loads((tmp_path / "runs/next-001/model/MANIFEST.json").read_text())
    assert manifest["verification"]["passed"] is True and found["rows"] == 10
