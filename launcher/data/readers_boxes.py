"""Boxes in the layouts of COCO (a JSON of images, annotations and categories) and Pascal VOC (an XML file for each image) as rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from launcher.data.tables import ColumnsTable, Fault, Faults, Places
from launcher.errors import DataError

_COCO = ("images", "annotations", "categories")
_FOLDER = "Annotations"
# Where the images of XML files lie, from their folder on.
_BESIDE = (".", "../JPEGImages", "../images", "images")


# --- COCO ----------------------------------------------------------------------------------------------------------


def is_coco(value: Any) -> bool:
    """Whether a JSON value has the lists that COCO's files have."""
    return isinstance(value, dict) and all(isinstance(value.get(name), list) for name in _COCO)


def coco_columns(value: dict[str, Any], shown: str) -> tuple[dict[str, list[Any]], Faults]:
    """Return the columns file_name, objects ({bbox, category}, by the categories' names) and id: a row for each image, in the file's order.

    Annotations of crowds (iscrowd) are areas without single objects, and are left out. An annotation of a category that is none has a fault.
    Raises DataError naming the place of an image, category or annotation that lacks what COCO's have.
    """
    _check(value["images"], ("id", "file_name"), f"{shown}, image")
    _check(value["categories"], ("id", "name"), f"{shown}, category")
    _check(value["annotations"], ("image_id", "category_id", "bbox"), f"{shown}, annotation")
    names = {one["id"]: str(one["name"]) for one in value["categories"]}
    rows = {one["id"]: row for row, one in enumerate(value["images"])}
    objects: list[dict[str, list[Any]]] = [{"bbox": [], "category": []} for _ in value["images"]]
    faults: Faults = {}
    for number, one in enumerate(value["annotations"], start=1):
        row = rows.get(one["image_id"])
        if row is None:
            raise DataError(
                f"{shown}, annotation {number}: its image_id {one['image_id']!r} is none of the images; mend or remove it"
            )
        if one["category_id"] not in names:
            reason = (
                f"(annotation {number}) its category_id {one['category_id']!r} is none of the categories "
                f"{', '.join(map(str, names))}; mend or remove it"
            )
            faults.setdefault(row, Fault(reason, one["category_id"]))
        elif not one.get("iscrowd"):
            objects[row]["bbox"].append(one["bbox"])
            objects[row]["category"].append(names[one["category_id"]])
    files = [str(one["file_name"]) for one in value["images"]]
    return {"file_name": files, "objects": objects, "id": [str(one["id"]) for one in value["images"]]}, faults


def _check(listed: list[Any], keys: tuple[str, ...], where: str) -> None:
    for number, one in enumerate(listed, start=1):
        missing = [key for key in keys if not isinstance(one, dict) or one.get(key) is None]
        unhashable = [key for key in keys if key.endswith("id") and not missing and isinstance(one[key], list | dict)]
        if missing or unhashable:
            what = (
                f"has no {' and no '.join(missing)}"
                if missing
                else f"has, as its {unhashable[0]}, {one[unhashable[0]]!r}"
            )
            raise DataError(f"{where} {number}: {what}, which COCO's files have; mend it")


# --- Pascal VOC ----------------------------------------------------------------------------------------------------


def voc_files(folder: Path) -> list[Path]:
    """Return the XML files of a folder, or of its folder Annotations, by name; none where it has none."""
    places = (folder, folder / _FOLDER)
    found = [sorted(path for path in place.glob("*.xml") if path.is_file()) for place in places if place.is_dir()]
    return next((files for files in found if files), [])


def read_voc_folder(folder: Path) -> ColumnsTable:
    """Return the rows of a folder's XML files: image (a path from the folder on) and objects ({bbox, category}).

    An image lies beside its file, or in JPEGImages or images beside the folder of the files. A box reaches from xmin and ymin to xmax and ymax, as these stand.
    A file that is broken is a fault of its row.
    """
    files = voc_files(folder)
    images: list[str | None] = []
    objects: list[dict[str, list[Any]] | None] = []
    faults: Faults = {}
    for row, path in enumerate(files):
        image, held = None, None
        try:
            root = ElementTree.fromstring(path.read_bytes())
            image, held = _image_of(root, path, folder=folder), _objects_of(root)
        except (ElementTree.ParseError, _Faulty) as error:
            reason = f"broken XML ({error})" if isinstance(error, ElementTree.ParseError) else str(error)
            faults[row] = Fault(f"{path.name}: {reason}; mend or remove the file", path.name)
        images.append(image)
        objects.append(held)
    places = Places(str(files[0].parent), folder=folder)
    return ColumnsTable(places, {"image": images, "objects": objects}, {"format": "voc"}, faults=faults)


class _Faulty(Exception):
    """A file that does not say what Pascal VOC's do: what is wrong, in words."""


def _image_of(root: ElementTree.Element, path: Path, *, folder: Path) -> str:
    name = (root.findtext("filename") or "").strip()
    if not name:
        raise _Faulty("has no <filename>, which names its image")
    tried = [(path.parent / place / name).resolve() for place in _BESIDE]
    found = next((one for one in tried if one.is_file()), None)
    if found is None:
        raise _Faulty(f"there is no image {name} beside it, nor in {', '.join(str(one.parent) for one in tried[1:])}")
    # Without what lies above the folder: rows are the same wherever it lies.
    return os.path.relpath(found, folder.resolve())


def _objects_of(root: ElementTree.Element) -> dict[str, list[Any]]:
    boxes, names = [], []
    for number, one in enumerate(root.iter("object"), start=1):
        ends = [one.findtext(f"bndbox/{end}") for end in ("xmin", "ymin", "xmax", "ymax")]
        try:
            left, top, right, bottom = (float(end or "") for end in ends)
        except ValueError:
            raise _Faulty(f"its object {number} has no <bndbox> of four numbers xmin, ymin, xmax and ymax") from None
        boxes.append([left, top, right - left, bottom - top])
        names.append((one.findtext("name") or "").strip())
    return {"bbox": boxes, "category": names}
