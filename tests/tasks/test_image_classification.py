"""Image classification: images from folders, tables and files, the same changes on any number of ranks, and a model that is used."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from launcher.data.augmentation import augmented
from launcher.data.images import open_image
from launcher.errors import DataError, ModelError
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import ImageAugmentation
from launcher.tasks.image_classification import ImageClassification

VIT = {
    "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (220, 30, 30)}
ALL = {
    "crop_area": 0.5, "horizontal_flip": 0.5, "vertical_flip": 0.5, "rotation": 20, "shift": 0.1, "brightness": 0.3,
    "contrast": 0.3, "saturation": 0.3, "erasing": 0.5,
}  # fmt: skip


def picture(colour: str, seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    noise = np.random.default_rng([seed, len(colour)]).integers(-20, 20, (*size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(COLOURS[colour]) + noise, 0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder: Path, *, train: int = 8, held: int = 4) -> Path:
    for start, (split, count) in enumerate({"train": train, "validation": held, "test": held}.items()):
        for colour in COLOURS:
            (folder / split / colour).mkdir(parents=True)
            for number in range(count):
                picture(colour, 100 * start + number).save(folder / split / colour / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "colours")


def values_for(data: Path | str, /, **changes: Any) -> dict[str, Any]:
    options = {"type": "image-classification", **changes.pop("task", {})}
    return {
        "version": 1, "name": "images", "task": options,
        "model": {"name_or_path": None, "config": VIT, **changes.pop("model", {})},
        "data": {"source": str(data), **changes.pop("data", {})}, **changes,
    }  # fmt: skip


def task_for(data: Path | str, cache: Path, /, **changes: Any) -> ImageClassification:
    values = values_for(data, **changes)
    values["data"]["cache_dir"] = str(cache)
    return ImageClassification(Recipe.model_validate(values), base_folder=Path("/"))


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_folder_for_each_split_and_label(images, tmp_path):
    _, prepared = task_for(images, tmp_path).prepare_data()
    assert prepared.label_names == ("blue", "green", "red") and len(prepared.train) == 24
    assert prepared.facts["splits"]["test"]["labels"] == [4, 4, 4]
    row = prepared.train[0]
    assert row["text"] == "blue/000.png" and row["image"] == (images / "train/blue/000.png").read_bytes()


def test_the_same_rows_from_folders_metadata_and_parquet(images, tmp_path):
    """One fingerprint, wherever the images lie: a cache that moves with the files stays valid."""
    import datasets

    listed, packed = tmp_path / "listed", tmp_path / "packed"
    packed.mkdir()
    for split in ("train", "validation", "test"):
        found = sorted((images / split).glob("*/*.png"))
        (listed / split).mkdir(parents=True)
        rows = [{"file_name": f"{p.parent.name}/{p.name}", "label": p.parent.name} for p in found]
        for path, row in zip(found, rows, strict=True):
            (listed / split / path.parent.name).mkdir(exist_ok=True)
            (listed / split / row["file_name"]).write_bytes(path.read_bytes())
        (listed / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        columns = {
            "image": [{"bytes": p.read_bytes(), "path": row["file_name"]} for p, row in zip(found, rows, strict=True)],
            "label": [list(COLOURS).index(row["label"]) for row in rows],
        }
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(COLOURS))})
        datasets.Dataset.from_dict(columns, features=features).to_parquet(packed / f"{split}.parquet")
    ours = [task_for(source, tmp_path / "cache").prepare_data()[1] for source in (images, listed, packed)]
    assert ours[0].fingerprint == ours[1].fingerprint
    for prepared in ours[1:]:
        assert prepared.train["labels"][:] == ours[0].train["labels"][:]
        assert prepared.train["image"][:] == ours[0].train["image"][:]


def test_one_folder_of_labels_is_all_train(images, tmp_path):
    _, prepared = task_for(images / "train", tmp_path).prepare_data()
    assert len(prepared.train) + len(prepared.validation) == 24 and prepared.test is None
    assert "stratified by label" in " ".join(prepared.facts["warnings"])


def test_an_image_that_stands_in_two_splits_is_told(tmp_path):
    folder = write_images(tmp_path / "leak")
    (folder / "test/red/leak.png").write_bytes((folder / "train/red/003.png").read_bytes())
    _, prepared = task_for(folder, tmp_path / "cache").prepare_data()
    assert "1 of the 13 test rows also stand in train" in " ".join(prepared.facts["warnings"])


def _breaks(folder: Path, how: str) -> str:
    place = folder / "train/red/002.png"
    if how == "text":
        place.write_text("no image")
    elif how == "empty":
        place.write_bytes(b"")
    elif how == "cut":
        place.write_bytes(place.read_bytes()[:200])
    elif how == "loose":
        (folder / "train/loose.png").write_bytes(place.read_bytes())
        return "put each image into the folder of its label"
    elif how == "label":
        (folder / "train/violet").mkdir()
        return "violet: holds no image"
    elif how == "unknown":
        (folder / "test/rde").mkdir()
        (folder / "test/rde/1.png").write_bytes(place.read_bytes())
        return "'rde' of test is not known; did you mean 'red'"
    return "train/red/002.png cannot be read as an image"


@pytest.mark.parametrize("how", ["text", "empty", "cut", "loose", "label", "unknown"])
def test_what_is_no_image_is_found_before_training(tmp_path, how):
    folder = write_images(tmp_path / "bad")
    wanted = _breaks(folder, how)
    with pytest.raises(DataError) as caught:
        task_for(folder, tmp_path / "cache").prepare_data()
    assert wanted in str(caught.value) and str(folder) in str(caught.value)


def test_a_named_image_that_is_not_there(images, tmp_path):
    rows = [{"image": f"{images}/train/red/00{n}.png", "label": "red"} for n in range(3)]
    rows.append({"image": "gone.png", "label": "blue"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"train.jsonl:4 \(row 4\): there is no image .*gone.png; restore it"):
        task_for(tmp_path / "train.jsonl", tmp_path / "cache").prepare_data()


def test_images_are_turned_upright_and_given_the_models_channels():
    image = picture("red", 1, size=(6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert open_image(buffer.getvalue()).size == (4, 6) and open_image(buffer.getvalue(), mode="L").mode == "L"


def test_an_image_that_a_file_names_may_change_without_the_file(tmp_path):
    """Of a folder the quick look at its files suffices; a table's images lie anywhere."""
    import os

    folder = write_images(tmp_path / "old")
    rows = [{"image": str(p), "label": p.parent.name} for p in sorted((folder / "train").glob("*/*.png"))]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in [*folder.rglob("*"), *(tmp_path / "rows").rglob("*")]:
        os.utime(path, (0, 0))
    assert task_for(folder, tmp_path).read_from() == [folder]
    source = tmp_path / "rows"
    assert task_for(source, tmp_path).read_from() is None
    before = task_for(source, tmp_path / "cache").prepare_data()[1]
    (folder / "train/red/001.png").write_bytes(png(picture("red", 77)))
    after = task_for(source, tmp_path / "cache").prepare_data()[1]
    assert before.fingerprint != after.fingerprint


# --- inputs ----------------------------------------------------------------------------------------------------------


def drawn(prepared: Any, *, epoch: int) -> list[dict[str, Any]]:
    return [{**prepared.train[row], "row_id": row, "weight": 1.0, "epoch": epoch} for row in range(6)]


def test_changes_follow_from_seed_epoch_and_row_alone(images, tmp_path):
    changes = {"task": {"augmentation": ALL}}
    task = task_for(images, tmp_path, **changes)
    _, prepared = task.prepare_data()
    assert task.inputs_vary and not task_for(images, tmp_path).inputs_vary
    collate = task.collator(training=True)
    first = collate(drawn(prepared, epoch=0))["pixel_values"]
    halves = [collate(drawn(prepared, epoch=0)[part]) for part in (slice(0, 2), slice(2, 6))]
    assert torch.equal(torch.cat([half["pixel_values"] for half in halves]), first)
    assert not torch.equal(collate(drawn(prepared, epoch=1))["pixel_values"], first)
    other = task_for(images, tmp_path, **changes, training={"seed": 7})
    assert not torch.equal(other.collator(training=True)(drawn(prepared, epoch=0))["pixel_values"], first)
    plain = task_for(images, tmp_path).collator()([prepared.train[row] for row in range(6)])["pixel_values"]
    assert torch.equal(task.collator()([prepared.train[row] for row in range(6)])["pixel_values"], plain)


def test_an_image_that_is_drawn_twice_in_an_epoch_is_changed_in_two_ways(images, tmp_path):
    task = task_for(images, tmp_path, task={"augmentation": ALL, "class_sampling": "balanced"})
    row = drawn(task.prepare_data()[1], epoch=0)[0]
    first, again, second = task.collator(training=True)([row, {**row, "copy": 0}, {**row, "copy": 1}])["pixel_values"]
    assert torch.equal(first, again) and not torch.equal(first, second)


@pytest.mark.parametrize("name", ALL)
def test_each_change_changes_and_keeps_the_size(name):
    image = picture("green", 3, size=(40, 32))
    options = ImageAugmentation(**{name: 1.0 if "flip" in name or name == "erasing" else ALL[name]})
    found = [augmented(image, options, np.random.default_rng(seed)) for seed in range(3)]
    assert any(np.asarray(one).tobytes() != np.asarray(image).tobytes() for one in found)
    if name == "crop_area":
        assert all(one.width * one.height >= 0.45 * 40 * 32 for one in found)
    else:
        assert all(one.size == image.size for one in found)
    none = augmented(image, ImageAugmentation(), np.random.default_rng(0))
    assert np.asarray(none).tobytes() == np.asarray(image).tobytes()


def test_the_models_size_or_the_recipes(images, tmp_path):
    task = task_for(images, tmp_path)
    assert task.pixels([picture("red", 0)]).shape == (1, 3, 8, 8)
    grey = {**VIT, "num_channels": 1}
    task = task_for(images, tmp_path, task={"image_size": 16}, model={"config": {**grey, "image_size": 16}})
    assert task.mode == "L" and task.pixels([picture("red", 0).convert("L")]).shape == (1, 1, 16, 16)
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    with pytest.raises(ModelError, match="write task.image_size"):
        _ = task_for(images, tmp_path, model={"config": resnet}).processor


def test_the_loss_is_that_of_torch_and_padding_rows_count_nothing(images, tmp_path):
    task = task_for(images, tmp_path, task={"class_weights": {"red": 3.0}, "focal_gamma": 2.0})
    task.prepare_data()
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 2, 0])
    weights = torch.tensor([1.0, 1, 1, 1, 0])
    batch = {"labels": labels, "sample_weight": weights}
    right = logits.softmax(1)[torch.arange(5), labels]
    alpha = torch.tensor([1.0, 1.0, 3.0])[labels]
    expected = (-alpha * (1 - right) ** 2 * right.log() * weights).sum()
    assert float(task.loss({"logits": logits}, batch)) == pytest.approx(float(expected), rel=1e-5)
    assert float(task.items(batch)) == float((alpha * weights).sum()) == 8


# --- runs ------------------------------------------------------------------------------------------------------------


def learn(place: Path, name: str, data: Path | str, /, **changes: Any) -> dict[str, Any]:
    values = {**values_for(data, **changes), "name": name}
    values.setdefault("tracking", {"wandb": None})
    done = tiny.launcher("run", tiny.write_recipe(place / f"{name}.yaml", values), cwd=place, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((place / "runs" / f"{name}-001" / "evaluation/metrics.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_have_the_losses_of_one_and_the_model_is_used(images, tmp_path):
    """With augmentation: what a row becomes does not depend on the rank that has it."""
    from transformers import pipeline

    from launcher.workflows.inference import FinishedModel, predict_file, prediction_lines, prediction_rows

    changes: dict[str, Any] = {
        "task": {"augmentation": ALL},
        "training": {
            "learning_rate": 5e-3,
            "num_train_epochs": 6,
            "global_batch_size": 8,
            "per_device_train_batch_size": 2,
        },
    }
    learn(tmp_path, "one", images, **changes)
    found = learn(tmp_path, "two", images, **changes, distributed={"processes_per_node": 2, "zero_stage": 2})
    one, two = (tmp_path / "runs" / f"{name}-001" for name in ("one", "two"))
    assert tiny.losses(two) == pytest.approx(tiny.losses(one), rel=1e-4) and tiny.ledger(two) == tiny.ledger(one)
    assert found["metrics"]["accuracy"] > 0.9 and [b["name"] for b in found["baselines"]] == ["majority", "pixels"]
    finished = FinishedModel(two)
    paths = [str(images / f"test/{colour}/001.png") for colour in COLOURS]
    predicted = finished.predict_texts(paths)
    rows = prediction_rows(predicted)
    assert [row["text"] for row in rows] == paths and paths[0] in next(prediction_lines(predicted))
    served = pipeline("image-classification", model=str(two / "model"))
    for row, answers in zip(rows, served(paths), strict=True):
        assert answers[0]["label"] == row["prediction"]
        assert answers[0]["score"] == pytest.approx(row["scores"][row["prediction"]], abs=1e-4)
    assert len(predict_file(finished, str(images / "test")).texts) == 12
    with pytest.raises(DataError, match="there is no image nowhere.png"):
        finished.predict_texts(["nowhere.png"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.soak
def test_a_pretrained_model_beats_the_baseline_on_real_images(shared, tmp_path):
    """MobileNet on 2,000 images of clothes, from a folder for each label: better than a linear model on pixels, and clearly so."""
    data, model = shared / "data/fashion_mnist", shared / "models/mobilenet_v1_0.5_160"
    found = learn(
        tmp_path, "clothes", data, task={"image_size": 96}, model={"name_or_path": str(model), "config": None},
        training={"num_train_epochs": 3, "learning_rate": 1e-3, "lr_scheduler_type": "cosine"},
        evaluation={"baselines": ["pixels"]},
    )  # fmt: skip
    assert found["metrics"]["accuracy"] > found["baselines"][0]["metrics"]["accuracy"] + MARGIN


MARGIN = 0.02


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", tiny.STRATEGIES)
def test_every_strategy_trains_and_is_saved(images, tmp_path, strategy):
    """From a model that was trained before: some of them keep what is pretrained."""
    learn(tmp_path, "base", images, training={"learning_rate": 5e-3, "num_train_epochs": 2, "global_batch_size": 8})
    found = learn(
        tmp_path, "next", images, model={"name_or_path": str(tmp_path / "runs/base-001/model"), "config": None},
        strategy=tiny.STRATEGIES[strategy], training={"learning_rate": 5e-3, "num_train_epochs": 2, "global_batch_size": 8},
    )  # fmt: skip
    assert found["metrics"]["accuracy"] > 0.5


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [None, 0, 1, 3])
def test_every_engine_has_the_losses_of_one_process(images, tmp_path, stage):
    changes: dict[str, Any] = {"training": {"learning_rate": 5e-3, "num_train_epochs": 2, "global_batch_size": 8}}
    learn(tmp_path, "one", images, **changes)
    spread = {"processes_per_node": 2, **({"engine": "ddp"} if stage is None else {"zero_stage": stage})}
    learn(tmp_path, "two", images, **changes, distributed=spread)
    one, two = (tmp_path / "runs" / f"{name}-001" for name in ("one", "two"))
    assert tiny.losses(two) == pytest.approx(tiny.losses(one), rel=1e-4) and tiny.ledger(two) == tiny.ledger(one)
