"""Boxes that cannot be used, through the whole of reading and preparing: what the error says, and which rows `on_bad_row: skip` leaves out.

Every source has 40 images that are good, but for what the case says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launcher.contracts import Prepared
from launcher.errors import DataError
from launcher.recipe.schema import Recipe
from launcher.tasks.object_detection import ObjectDetection

ROWS, BAD = 40, 16
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Bad:
    """A kind of bad data."""

    name: str
    change: Callable[[Path, dict[str, Any]], Any]
    """What is done to the folder and to the row number BAD; it may return another text for the row's line."""
    said: str
    place: str = "train/metadata.jsonl:17"


def put(**objects: Any) -> Callable[[Path, dict[str, Any]], Any]:
    return lambda folder, row: row["objects"].update(objects)


def box(*values: Any) -> Callable[[Path, dict[str, Any]], Any]:
    return put(bbox=[list(values), [1, 1, 3, 3]], category=["a", "b"])


def no_image(folder: Path, row: dict[str, Any]) -> None:
    (folder / "train" / row["file_name"]).unlink()


def text_for_image(folder: Path, row: dict[str, Any]) -> None:
    (folder / "train" / row["file_name"]).write_text("no image")


def only_text(folder: Path, row: dict[str, Any]) -> None:
    row["objects"] = "cat"


def nothing(folder: Path, row: dict[str, Any]) -> None:
    row["objects"] = None


KINDS = [
    Bad("to the right", box(10, 2, 12, 4), "of 016.png holds, as box 1 of 2, [10, 2, 12, 4], which reaches out of its image of 20 x 16 pixels (a box is x, y,"),
    Bad("below", box(1, 14, 3, 4), "which reaches out of its image"),
    Bad("to the left", box(-3, 1, 9, 4), "[-3, 1, 9, 4], which reaches out of its image"),
    Bad("corners for sizes", box(8, 8, 19, 15), "a box is x, y, width and height in pixels"),
    Bad("no width", box(1, 1, 0, 4), "[1, 1, 0, 4], whose width or height is not above 0; mend or remove it"),
    Bad("a negative height", box(1, 9, 4, -4), "[1, 9, 4, -4], whose width or height is not above 0"),
    Bad("nothing left of it", box(20.4, 1, 0.4, 4), "of which nothing lies in the image"),
    Bad("three numbers", box(1, 1, 4), "[1, 1, 4], which is not four numbers"),
    Bad("a word", box(1, 1, 4, "4"), "which is not four numbers"),
    Bad("no number", box(1, 1, 4, None), "which is not four numbers"),
    Bad("infinite", lambda folder, row: json.dumps(row).replace("[[", "[[1, 1, Infinity, 2], [", 1), "holds 3 boxes and 2 categories"),
    Bad("more boxes than categories", put(category=["a"]), "holds 2 boxes and 1 categories; give each box one category"),
    Bad("no list of boxes", put(bbox=None), 'objects are {"bbox": [[x, y, width, height], ...], "category": [...]}'),
    Bad("no categories", lambda folder, row: row["objects"].pop("category") and None, "objects are"),
    Bad("text for objects", only_text, "(objects) of 016.png holds 'cat'; objects are"),
    Bad("no objects", nothing, "has no label (null); add it, or remove the row"),
    Bad("an empty category", put(category=["a", " "]), "as box 2 of 2, the category ' ', which is neither a name nor a whole number"),
    Bad("half a category", put(category=["a", 1.5]), "the category 1.5"),
    Bad("no image", no_image, "there is no image"),
    Bad("an image that is none", text_for_image, "cannot be read as an image"),
    Bad("broken JSON", lambda folder, row: "{", "broken JSON"),
]  # fmt: skip


def good(number: int, count: int = 2) -> dict[str, Any]:
    boxes = [[2, 2, 5 + number % 3, 5], [12, 4, 6, 8]][:count]
    return {"file_name": f"{number:03d}.png", "objects": {"bbox": boxes, "category": ["a", "b"][:count]}}


def write(folder: Path, bad: Bad | None = None) -> Path:
    for split in ("train", "validation"):
        (folder / split).mkdir(parents=True)
        rows = [good(number) for number in range(ROWS)]
        for number in range(ROWS):
            colour = (number, 0, 100 if split == "train" else 200)
            Image.new("RGB", (20, 16), colour).save(folder / split / f"{number:03d}.png")
        lines = [json.dumps(row) for row in rows]
        if bad is not None and split == "train":
            lines[BAD] = bad.change(folder, rows[BAD]) or json.dumps(rows[BAD])
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def prepare(data: dict[str, Any], cache: Path) -> Prepared:
    recipe = {
        "version": 1, "name": "r", "task": {"type": "object-detection", "image_size": 16}, "model": {"config": {"model_type": "yolos"}, "name_or_path": None},
        "data": {"cache_dir": str(cache), **data},
    }  # fmt: skip
    return ObjectDetection(Recipe.model_validate(recipe), base_folder=Path("/")).prepare_data()[1]


@pytest.mark.parametrize("bad", KINDS, ids=lambda bad: bad.name)
def test_a_bad_row_is_named_or_left_out(bad: Bad, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", bad)
    with pytest.raises(DataError) as caught:
        prepare({"source": str(folder)}, tmp_path / "cache")
    assert bad.place in str(caught.value) and bad.said in str(caught.value)
    assert any(word in str(caught.value) for word in ("mend", "remove", "restore", "give each"))
    prepared = prepare({"source": str(folder), "on_bad_row": "skip"}, tmp_path / "cache")
    assert (
        prepared.facts["skipped"]["counts"] == {"train": 1} and prepared.facts["skipped"]["rows"][0]["row"] == BAD + 1
    )
    assert prepared.train["text"][:] == [f"{number:03d}.png" for number in range(ROWS) if number != BAD]


def test_a_category_that_train_does_not_have(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    path = folder / "validation/metadata.jsonl"
    path.write_text(path.read_text().replace('"b"', '"bb"', 1))
    with pytest.raises(
        DataError,
        match=r"validation/metadata.jsonl:1 \(row 1\): label 'bb' of validation is not known; did you mean 'b'\?",
    ):
        prepare({"source": str(folder)}, tmp_path / "cache")
    found = prepare({"source": str(folder), "on_bad_row": "skip"}, tmp_path / "cache")
    assert found.facts["skipped"]["counts"] == {"validation": 1} and len(found.validation) == ROWS - 1
    with pytest.raises(DataError, match="label 'b' of train is not known"):
        prepare({"source": str(folder), "labels": ["a", "c"]}, tmp_path / "cache")


def test_what_is_legal(tmp_path: Path) -> None:
    """Images without any box, one class alone, a box that reaches over the edge by less than a pixel, and any number of boxes."""
    folder = write(tmp_path / "data")
    rows = [good(number, 1) for number in range(ROWS)]
    rows[3]["objects"] = {"bbox": [], "category": []}
    rows[4]["objects"]["bbox"] = [[-0.5, 3, 21, 13.5]]
    (folder / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "validation/metadata.jsonl").write_text("\n".join(json.dumps(good(n, 1)) for n in range(ROWS)))
    prepared = prepare({"source": str(folder)}, tmp_path / "cache")
    assert prepared.label_names == ("a",) and prepared.train["boxes"][3] == []
    assert prepared.train["boxes"][4] == [[0, 3, 20, 13]]


def test_no_box_at_all_is_nothing_to_learn(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    (folder / "train/metadata.jsonl").write_text("\n".join(json.dumps(good(n, 0)) for n in range(ROWS)))
    with pytest.raises(DataError, match="no row of train has a label"):
        prepare({"source": str(folder)}, tmp_path / "cache")


# --- COCO and Pascal VOC ---------------------------------------------------------------------------------------------


def coco(folder: Path) -> dict[str, Any]:
    for number in range(ROWS):
        Image.new("RGB", (20, 16), (number, 0, 0)).save(folder / f"{number:03d}.png")
    return {
        "images": [{"id": n, "file_name": f"{n:03d}.png"} for n in range(ROWS)],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 4, 4]} for n in range(ROWS)],
        "categories": [{"id": 1, "name": "a"}],
    }


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("annotations", {"category_id": 9}, r"row 17.*\(annotation 17\) its category_id 9 is none of the categories 1; mend or remove it"),
        ("annotations", {"bbox": [1, 1, 40, 4]}, "row 17.*of 016.png holds, as box 1 of 1, .*reaches out of its image"),
        ("annotations", {"image_id": 99}, "annotation 17: its image_id 99 is none of the images"),
        ("annotations", {"bbox": None}, "annotation 17: has no bbox, which COCO's files have"),
        ("images", {"file_name": None}, "image 17: has no file_name"),
        ("images", {"id": [1]}, r"image 17: has, as its id, \[1\], which COCO's files have"),
    ],
)  # fmt: skip
def test_faults_of_coco(tmp_path: Path, part: str, change: dict[str, Any], said: str) -> None:
    value = coco(tmp_path)
    value[part][BAD].update(change)
    (tmp_path / "boxes.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"boxes.json.*" + said):
        prepare({"source": str(tmp_path / "boxes.json")}, tmp_path / "cache")


VOC = "<annotation><filename>{n:03d}.png</filename><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("</annotation>", "", r"016.xml: broken XML \(no element found: .*\); mend or remove the file"),
        ("<filename>016.png</filename>", "", "016.xml: has no <filename>, which names its image"),
        ("016.png", "gone.png", "016.xml: there is no image gone.png beside it"),
        ("<ymax>9</ymax>", "", "016.xml: its object 1 has no <bndbox> of four numbers"),
        ("<xmax>9</xmax>", "<xmax>wide</xmax>", "016.xml: its object 1 has no <bndbox> of four numbers"),
        ("<xmax>9</xmax>", "<xmax>1</xmax>", r"of 016.png holds, as box 1 of 1, \[1, 1, 0, 8\], whose width or height is not above 0"),
        ("<name>a</name>", "", "the category ''"),
    ],
)  # fmt: skip
def test_faults_of_voc(tmp_path: Path, old: str, new: str, said: str) -> None:
    folder = tmp_path / "voc"
    folder.mkdir()
    for number in range(ROWS):
        Image.new("RGB", (20, 16), (number, 0, 0)).save(folder / f"{number:03d}.png")
        text = VOC.format(n=number)
        (folder / f"{number:03d}.xml").write_text(text.replace(old, new) if number == BAD else text)
    with pytest.raises(DataError, match=r"voc, row 17: .*" + said):
        prepare({"source": str(folder)}, tmp_path / "cache")
    found = prepare({"source": str(folder), "on_bad_row": "skip"}, tmp_path / "cache")
    assert len(found.train) + len(found.validation) == ROWS - 1
