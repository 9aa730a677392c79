"""Object detection: boxes from folders and files, boxes that follow their images, losses that are the same on any number of ranks, and a model that is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from launcher.data.augmentation import augmented_with_boxes
from launcher.data.builtin_shapes import NAMES, ROWS, make_shapes
from launcher.data.images import open_image
from launcher.errors import DataError, ModelError
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import GeometricAugmentation
from launcher.tasks.detection_loss import NO_CLASS
from launcher.tasks.object_detection import ObjectDetection

SIDE = 32
RT_DETR = {
    "model_type": "rt_detr", "encoder_in_channels": [16, 16, 16], "encoder_hidden_dim": 16, "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2, "decoder_in_channels": [16, 16, 16], "d_model": 16, "decoder_layers": 2, "decoder_ffn_dim": 16,
    "decoder_attention_heads": 2, "num_queries": 6, "dropout": 0.0,
    "backbone_config": {
        "model_type": "rt_detr_resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16],
        "depths": [1, 1, 1, 1], "out_features": ["stage2", "stage3", "stage4"],
    },
}  # fmt: skip
YOLOS = {
    "model_type": "yolos", "image_size": [SIDE, SIDE], "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "num_detection_tokens": 6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
# Without batch normalisation, which sees the rows of one process (that of the backbone is frozen).
DETR = {
    "model_type": "detr", "d_model": 16, "encoder_layers": 1,
    "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 6,
    "dropout": 0.0, "backbone_config": {
        "model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "out_features": ["stage2"],
    },
}  # fmt: skip
ALL = {
    "crop_area": 0.5,
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
}
COLOURS = {"blue": (20, 40, 220), "red": (220, 30, 30)}
Objects = dict[str, list[Any]]


def picture(seed: int) -> tuple[Image.Image, Objects]:
    """Return a grey image of 40 x 32 pixels with up to two coloured boxes on it, and what they are; every fifth one has none."""
    draw = np.random.default_rng(seed)
    pixels = np.clip(128 + draw.integers(-20, 20, (32, 40, 3)), 0, 255).astype(np.uint8)
    objects: Objects = {"bbox": [], "category": []}
    for half in range(0 if seed % 5 == 4 else int(draw.integers(1, 3))):
        x, y, width, height = (
            20 * half + int(draw.integers(0, 8)),
            int(draw.integers(0, 14)),
            *map(int, draw.integers(8, 12, 2)),
        )
        name = tuple(COLOURS)[int(draw.integers(2))]
        pixels[y : y + height, x : x + width] = COLOURS[name]
        objects["bbox"].append([x, y, width, height])
        objects["category"].append(name)
    return Image.fromarray(pixels), objects


def write_images(folder: Path, *, train: int = 20, held: int = 8) -> Path:
    for start, (split, count) in enumerate({"train": train, "validation": held, "test": held}.items()):
        (folder / split).mkdir(parents=True)
        lines = []
        for number in range(count):
            image, objects = picture(1000 * start + number)
            image.save(folder / split / f"{number:03d}.png")
            lines.append(json.dumps({"file_name": f"{number:03d}.png", "objects": objects}) + "\n")
        (folder / split / "metadata.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "boxes")


def values_for(data: Path | str, /, **changes: Any) -> dict[str, Any]:
    options = {"type": "object-detection", "image_size": SIDE, **changes.pop("task", {})}
    return {
        "version": 1, "name": "boxes", "task": options,
        "model": {"name_or_path": None, "config": RT_DETR, **changes.pop("model", {})},
        "data": {"source": str(data), **changes.pop("data", {})}, **changes,
    }  # fmt: skip


def task_for(data: Path | str, cache: Path, /, **changes: Any) -> ObjectDetection:
    values = values_for(data, **changes)
    values["data"]["cache_dir"] = str(cache)
    return ObjectDetection(Recipe.model_validate(values), base_folder=Path("/"))


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_folder_with_boxes_for_each_split(images, tmp_path):
    task = task_for(images, tmp_path)
    _, prepared = task.prepare_data()
    assert prepared.label_names == ("blue", "red") and len(prepared.train) == 20
    row, (_, objects) = prepared.train[3], picture(3)
    assert row["boxes"] == objects["bbox"] and row["size"] == [40, 32] and row["text"] == "003.png"
    assert [prepared.label_names[number] for number in row["classes"]] == objects["category"]
    assert prepared.train[4]["boxes"] == [] and prepared.train[4]["classes"] == []
    facts = prepared.facts["splits"]["train"]
    assert sum(facts["labels"]) == sum(map(len, prepared.train["boxes"])) and facts["most_boxes"] == 2
    assert task.mean_boxes == sum(facts["labels"]) / 20
    shown = task.show_row(row, prepared)
    assert "40 x 32 pixels, resized to 32 x 32" in shown.parts[0][0] and shown.label.startswith(objects["category"][0])
    assert task.show_row(prepared.train[4], prepared).label == "no box"


def as_coco(folder: Path, images: Path, *, beside: bool = True) -> Path:
    """Write the images again, with a JSON of COCO for each split in its folder."""
    numbers = {"red": 7, "blue": 3}
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (images / split / "metadata.jsonl").read_text().splitlines()]
        (folder / split).mkdir(parents=True)
        coco: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
        coco["categories"] = [{"id": number, "name": name} for name, number in numbers.items()]
        for number, row in enumerate(rows):
            (folder / split / row["file_name"]).write_bytes((images / split / row["file_name"]).read_bytes())
            coco["images"].append({"id": number, "file_name": row["file_name"], "width": 40, "height": 32})
            for box, name in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
                one = {"id": len(coco["annotations"]), "image_id": number, "category_id": numbers[name], "bbox": box}
                coco["annotations"].append(one)
        coco["annotations"].append({"image_id": 0, "category_id": 7, "bbox": [0, 0, 40, 32], "iscrowd": 1})
        (folder / split / "_annotations.coco.json").write_text(json.dumps(coco))
    return folder


def as_voc(folder: Path, images: Path) -> Path:
    """Write the images again, in JPEGImages and Annotations of each split, as PNG."""
    for split in ("train", "validation", "test"):
        for inner in ("JPEGImages", "Annotations"):
            (folder / split / inner).mkdir(parents=True)
        for line in (images / split / "metadata.jsonl").read_text().splitlines():
            row = json.loads(line)
            (folder / split / "JPEGImages" / row["file_name"]).write_bytes(
                (images / split / row["file_name"]).read_bytes()
            )
            found = zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
            ends = ("xmin", "ymin", "xmax", "ymax")
            objects = "".join(
                f"<object><name>{name}</name><bndbox>"
                + "".join(f"<{e}>{v}</{e}>" for e, v in zip(ends, (x, y, x + w, y + h), strict=True))
                + "</bndbox></object>"
                for (x, y, w, h), name in found
            )
            text = f"<annotation><filename>{row['file_name']}</filename>{objects}</annotation>"
            (folder / split / "Annotations" / f"{Path(row['file_name']).stem}.xml").write_text(text)
    return folder


def as_parquet(folder: Path, images: Path) -> Path:
    import datasets

    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (images / split / "metadata.jsonl").read_text().splitlines()]
        columns = {
            "image": [
                {"bytes": (images / split / row["file_name"]).read_bytes(), "path": row["file_name"]} for row in rows
            ],
            "objects": [
                [{"bbox": box, "label": name} for box, name in zip(*row["objects"].values(), strict=True)]
                for row in rows
            ],
        }
        datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(
            folder / f"{split}.parquet"
        )
    return folder


@pytest.mark.parametrize("write", [as_coco, as_voc, as_parquet])
def test_the_same_rows_from_every_layout(images, tmp_path, write: Callable[..., Path]):
    other = task_for(write(tmp_path / "other", images), tmp_path / "cache").prepare_data()[1]
    ours = task_for(images, tmp_path / "cache").prepare_data()[1]
    assert other.label_names == ours.label_names
    for split in ("train", "validation", "test"):
        mine, theirs = getattr(ours, split), getattr(other, split)
        assert all(mine[name][:] == theirs[name][:] for name in ("image", "boxes", "classes", "size"))


def test_a_coco_file_named_by_itself_and_numbers_with_names(images, tmp_path):
    folder = as_coco(tmp_path / "coco", images)
    _, prepared = task_for(folder / "train/_annotations.coco.json", tmp_path).prepare_data()
    assert len(prepared.train) + len(prepared.validation) == 20
    for split in ("train", "validation", "test"):
        path = images / split / "metadata.jsonl"
        text = path.read_text().replace('"blue"', "0").replace('"red"', "1")
        (tmp_path / split).mkdir()
        for image in (images / split).glob("*.png"):
            (tmp_path / split / image.name).write_bytes(image.read_bytes())
        (tmp_path / split / "metadata.jsonl").write_text(text)
    _, prepared = task_for(tmp_path, tmp_path / "cache", data={"labels": ["sky", "blood"]}).prepare_data()
    assert (
        prepared.label_names == ("sky", "blood") and max(max(row, default=0) for row in prepared.train["classes"]) == 1
    )


def test_test_rows_without_boxes_are_for_prediction_only(images, tmp_path):
    folder = write_images(tmp_path / "hidden")
    (folder / "test/metadata.jsonl").unlink()
    _, prepared = task_for(folder, tmp_path / "cache").prepare_data()
    assert "boxes" not in prepared.test.column_names and "prediction only" in " ".join(prepared.facts["warnings"])


def test_more_boxes_than_the_model_finds_are_told(images, tmp_path):
    config = {**RT_DETR, "num_queries": 1}
    _, prepared = task_for(images, tmp_path, model={"config": config}).prepare_data()
    assert "has 2 boxes, and the model finds 1 at most" in " ".join(prepared.facts["warnings"])


def test_the_built_in_shapes_are_the_same_everywhere_and_lie_in_their_boxes():
    made = make_shapes()
    assert {split: len(rows) for split, rows in made.splits.items()} == ROWS
    row = made.splits["train"][0]
    assert row == make_shapes().splits["train"][0]
    for row in made.splits["test"][:50]:
        image = np.asarray(open_image(row["image"]["bytes"])).astype(int)
        assert image.shape == (64, 64, 3) and set(row["objects"]["category"]) <= set(NAMES)
        for x, y, width, height in np.array(row["objects"]["bbox"], dtype=int):
            inside = image[y : y + height, x : x + width]
            # Every shape fills the middle of its box's last line but one and of its first column, or more, in one colour.
            assert len({tuple(value) for value in inside[-3, width // 2 - 1 : width // 2 + 1]}) == 1
            assert x >= 0 and x + width <= 64 and y >= 0 and y + height <= 64


# --- inputs ----------------------------------------------------------------------------------------------------------


def marked(place: tuple[int, int, int, int], *, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Return a black image with one white box."""
    pixels = np.zeros((*size[::-1], 3), dtype=np.uint8)
    x, y, width, height = place
    pixels[y : y + height, x : x + width] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", ["horizontal_flip", "vertical_flip", "crop_area"])
def test_boxes_follow_their_images_pixel_by_pixel(name):
    place = (5, 3, 12, 9)
    options = GeometricAugmentation(**{name: 0.6 if name == "crop_area" else 1.0})
    moved = set()
    for seed in range(20):
        image, boxes, kept = augmented_with_boxes(
            marked(place), np.array([place]), options, np.random.default_rng(seed)
        )
        white = np.argwhere(np.asarray(image)[..., 0] > 128)
        if not kept.all():
            continue
        (top, left), (bottom, right) = white.min(axis=0), white.max(axis=0) + 1
        assert boxes.tolist() == [[left, top, right - left, bottom - top]]
        moved.add((left, top))
    assert moved and (5, 3) not in moved if name != "crop_area" else len(moved) > 5


def test_a_box_whose_centre_is_cropped_away_is_left_out():
    boxes = np.array([[0, 0, 4, 4], [36, 26, 4, 4], [0, 26, 4, 4], [36, 0, 4, 4], [15, 10, 10, 10]], dtype=float)
    options, seen = GeometricAugmentation(crop_area=0.3), set()
    for seed in range(30):
        image, found, kept = augmented_with_boxes(marked((0, 0, 1, 1)), boxes, options, np.random.default_rng(seed))
        assert len(found) == kept.sum() and (found >= 0).all() and (found[:, 2:] > 0).all()
        assert (found[:, 0] + found[:, 2] <= image.width).all() and (found[:, 1] + found[:, 3] <= image.height).all()
        seen.add(tuple(kept))
    assert len(seen) > 3


def drawn(prepared: Any, *, epoch: int, rows: int = 6) -> list[dict[str, Any]]:
    return [{**prepared.train[row], "row_id": row, "weight": 1.0, "epoch": epoch} for row in range(rows)]


def test_changes_follow_from_seed_epoch_and_row_alone(images, tmp_path):
    changes = {"task": {"augmentation": ALL}}
    task = task_for(images, tmp_path, **changes)
    _, prepared = task.prepare_data()
    collate = task.collator(training=True)
    first = collate(drawn(prepared, epoch=0))
    halves = [collate(drawn(prepared, epoch=0)[part]) for part in (slice(0, 2), slice(2, 6))]
    assert torch.equal(torch.cat([half["pixel_values"] for half in halves]), first["pixel_values"])
    for half, part in zip(halves, (slice(0, 2), slice(2, 6)), strict=True):
        assert torch.equal(half["labels"], first["labels"][part, : half["labels"].shape[1]])
    assert not torch.equal(collate(drawn(prepared, epoch=1))["pixel_values"], first["pixel_values"])
    other = task_for(images, tmp_path, **changes, training={"seed": 7}).collator(training=True)
    assert not torch.equal(other(drawn(prepared, epoch=0))["pixel_values"], first["pixel_values"])
    plain = task_for(images, tmp_path).collator()(drawn(prepared, epoch=0))
    assert torch.equal(task.collator()([prepared.train[row] for row in range(6)])["labels"], plain["labels"])


def test_changes_that_boxes_cannot_follow_are_no_options():
    with pytest.raises(ValueError, match="rotation"):
        Recipe.model_validate(values_for("x", task={"augmentation": {"rotation": 10}}))


def test_labels_are_classes_and_shares_of_the_image(images, tmp_path):
    task = task_for(images, tmp_path)
    _, prepared = task.prepare_data()
    batch = task.collator()([prepared.train[row] for row in (4, 3)])
    assert batch["pixel_values"].shape == (2, 3, SIDE, SIDE) and batch["sample_weight"].tolist() == [1.0, 1.0]
    assert (batch["labels"][0, :, 0] == NO_CLASS).all()
    row = prepared.train[3]
    for label, number, (x, y, width, height) in zip(batch["labels"][1], row["classes"], row["boxes"], strict=False):
        wanted = [number, (x + width / 2) / 40, (y + height / 2) / 32, width / 40, height / 32]
        assert label.tolist() == pytest.approx(wanted)


def test_the_loss_of_a_batch_is_that_of_its_parts_and_padding_rows_count_nothing(images, tmp_path):
    """What ranks and micro-batches have to sum to."""
    task = task_for(images, tmp_path)
    _, prepared = task.prepare_data()
    torch.manual_seed(0)
    model, collate = task.build_model(prepared).model.eval(), task.collator()
    rows = [{**row, "weight": 1.0} for row in drawn(prepared, epoch=0, rows=7)]

    def loss_of(part: list[dict[str, Any]]) -> tuple[float, float]:
        batch = collate(part)
        outputs = model(pixel_values=batch["pixel_values"])
        return float(task.loss(outputs, batch).detach()), float(task.items(batch))

    whole = loss_of(rows)
    parts = [loss_of(rows[:1]), loss_of(rows[1:4]), loss_of([*rows[4:], {**rows[0], "weight": 0.0}])]
    assert tuple(map(sum, zip(*parts, strict=True))) == pytest.approx(whole, rel=1e-4) and whole[1] == 7


# --- models ----------------------------------------------------------------------------------------------------------


def test_parts_of_a_loss_that_are_not_computed_are_refused(images, tmp_path):
    def build(**config: Any) -> Any:
        return task_for(images, tmp_path, model={"config": config}).build_model(None)

    with pytest.raises(ModelError, match="model.config.num_denoising is 9, but the denoising loss is not there"):
        build(**RT_DETR, num_denoising=9)
    with pytest.raises(ModelError, match="auxiliary_loss is true in the configuration of this yolos"):
        build(**YOLOS, auxiliary_loss=True)
    with pytest.raises(ModelError, match="the loss of a d_fine is not known here"):
        build(model_type="d_fine")
    assert build(**RT_DETR).model.config.num_denoising == 0


def test_the_heads_of_a_detector_are_told_apart_wherever_they_lie(images, tmp_path):
    from launcher.strategies.layers import list_parameters

    for config, wanted in (
        (RT_DETR, ("class_embed", "bbox_embed", "enc_score_head", "enc_bbox_head")),
        (DETR, ("class_labels_classifier", "bbox_predictor")),
        (YOLOS, ("class_labels_classifier", "bbox_predictor")),
    ):
        model = task_for(images, tmp_path, model={"config": config}).build_model(None).model
        for parameter in list_parameters(model):
            is_head = any(name in parameter.name for name in wanted)
            assert (parameter.role == "head") == is_head, parameter.name


def test_a_plan_knows_the_memory_and_leaves_nothing_behind(images, tmp_path):
    """RT-DETR keeps positions between calls: those of a trace, which have no values, must not meet a real model."""
    values = values_for(images)
    values["data"]["cache_dir"] = str(tmp_path)
    done = tiny.launcher("plan", tiny.write_recipe(tmp_path / "plan.yaml", values), cwd=tmp_path)
    assert done.returncode == 0 and "memory of each process, estimate" in done.stdout, done.stdout + done.stderr


def test_a_model_of_any_size_asks_for_one(images, tmp_path):
    with pytest.raises(ModelError, match="write task.image_size"):
        _ = task_for(images, tmp_path, task={"image_size": None}).processor
    assert (
        task_for(images, tmp_path, task={"image_size": None}, model={"config": YOLOS}).pixels([picture(0)[0]]).shape[2]
        == SIDE
    )


# --- runs ------------------------------------------------------------------------------------------------------------


def learn(place: Path, name: str, data: Path | str, /, **changes: Any) -> dict[str, Any]:
    values = {**values_for(data, **changes), "name": name}
    values.setdefault("tracking", {"wandb": None})
    values.setdefault("precision", "fp32")
    done = tiny.launcher("run", tiny.write_recipe(place / f"{name}.yaml", values), cwd=place, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((place / "runs" / f"{name}-001" / "evaluation/metrics.json").read_text())
    return found


SHORT = {"learning_rate": 2e-3, "num_train_epochs": 2, "global_batch_size": 8, "logging_steps": 1}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_have_the_losses_of_one_and_the_model_is_used(images, tmp_path):
    """With augmentation, images without boxes, and other numbers of boxes on each rank: what an image adds does not depend on its batch."""
    from transformers import pipeline

    from launcher.workflows.inference import FinishedModel, predict_file, prediction_lines, prediction_rows

    changes: dict[str, Any] = {
        "task": {"augmentation": ALL, "threshold": 0.02},
        "model": {"config": YOLOS},
        "training": {**SHORT, "num_train_epochs": 3, "per_device_train_batch_size": 2},
    }
    learn(tmp_path, "one", images, **changes)
    found = learn(tmp_path, "two", images, **changes, distributed={"processes_per_node": 2, "zero_stage": 2})
    one, two = (tmp_path / "runs" / f"{name}-001" for name in ("one", "two"))
    assert len(tiny.losses(two)) == 9
    assert tiny.losses(two) == pytest.approx(tiny.losses(one), rel=1e-4) and tiny.ledger(two) == tiny.ledger(one)
    assert set(found["metrics"]) == {"map", "map_50", "map_75", "mar_100"}
    assert [b["name"] for b in found["baselines"]] == ["typical_boxes"] and len(found["per_class"]) == 2
    finished = FinishedModel(two)
    paths = [str(images / f"test/00{number}.png") for number in range(3)]
    predicted = finished.predict_texts(paths)
    rows = prediction_rows(predicted)
    assert [row["text"] for row in rows] == paths and paths[0] in next(prediction_lines(predicted))
    served = pipeline("object-detection", model=str(two / "model"), threshold=0.02)
    compared = 0
    for row, answers in zip(rows, served(paths), strict=True):
        assert len(answers) == len(row["objects"])
        for own, other in zip(row["objects"], sorted(answers, key=lambda one: -one["score"]), strict=True):
            x, y, width, height = own["box"]
            ends = (other["box"][end] for end in ("xmin", "ymin", "xmax", "ymax"))
            assert own["label"] == other["label"] and own["score"] == pytest.approx(other["score"], abs=1e-4)
            # The pipeline cuts fractions off, and boxes that reach out of the image are not cut there.
            near = [abs(a - b) < 1.5 for a, b in zip((x, y, x + width, y + height), ends, strict=True)]
            compared += all(near)
    assert compared > 2
    assert len(predict_file(finished, str(images / "test")).texts) == 8
    with pytest.raises(DataError, match="there is no image nowhere.png"):
        finished.predict_texts(["nowhere.png"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_train_batch_normalisation_with_weights_in_bf16(images, tmp_path):
    """DeepSpeed converts weights alone: pixels, and both kinds of statistics, need their type in training, evaluation and the saved model."""
    spread = {"processes_per_node": 2, "zero_stage": 2}
    found = learn(tmp_path, "half", images, precision="bf16", distributed=spread, training=SHORT)
    run = tmp_path / "runs/half-001"
    losses = tiny.losses(run)
    assert len(losses) == 6 and np.isfinite(list(losses.values())).all() and "map" in found["metrics"]
    verified = json.loads((run / "model/MANIFEST.json").read_text())["verification"]
    assert verified["passed"], verified
    # The baseline has nothing to say beside its numbers, so that there is no line for it.
    assert "typical-boxes: " not in (run / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_blood_cells_are_found_better_than_by_their_usual_places(shared, tmp_path):
    """120 photographs and random weights: far from a good detector, and far better than the baseline."""
    recipe = (
        "object-detection/shapes",
        "name=cells",
        f"data.source={shared / 'data/bccd_detection'}",
        "task.image_size=128",
    )
    training = ("training.num_train_epochs=60", "training.eval_strategy=no", "training.load_best_model_at_end=false")
    done = tiny.launcher(
        "run", *recipe, *training, "model.config.num_queries=40", "tracking.wandb=null", cwd=tmp_path, timeout=1700
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "runs/cells-001/evaluation/metrics.json").read_text())
    assert found["comparisons"][0]["differences"]["map"]["low"] > 0.05


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", [RT_DETR, YOLOS], ids=["rt_detr", "yolos"])
@pytest.mark.parametrize("strategy", tiny.STRATEGIES)
def test_every_strategy_trains_and_is_saved(images, tmp_path, strategy, config):
    """From a model that was trained before: some of them keep what is pretrained."""
    learn(tmp_path, "base", images, model={"config": config}, training=SHORT)
    found = learn(
        tmp_path, "next", images, model={"name_or_path": str(tmp_path / "runs/base-001/model"), "config": None},
        strategy=tiny.STRATEGIES[strategy], training=SHORT,
    )  # fmt: skip
    assert "map" in found["metrics"]


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3])
def test_every_engine_has_the_losses_of_one_process(images, tmp_path, stage):
    model = {"config": DETR}
    learn(tmp_path, "one", images, model=model, training=SHORT)
    spread = {"processes_per_node": 2, **({"engine": "ddp"} if stage is None else {"zero_stage": stage})}
    learn(tmp_path, "two", images, model=model, training=SHORT, distributed=spread)
    one, two = (tmp_path / "runs" / f"{name}-001" for name in ("one", "two"))
    assert tiny.losses(two) == pytest.approx(tiny.losses(one), rel=1e-4) and tiny.ledger(two) == tiny.ledger(one)
