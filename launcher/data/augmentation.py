"""Changes of images in training that do not change what they show: the usual set, on Pillow images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from launcher.recipe.task_options import GeometricAugmentation, ImageAugmentation

_ASPECTS = (3 / 4, 4 / 3)
_TRIES = 10


def augmented(image: Image, options: ImageAugmentation, generator: np.random.Generator) -> Image:
    """Return a changed copy of ``image``; the same generator gives the same one.

    In this order: crop, flips, rotation and shift, colours, erasing. Every number is drawn whether or not it is used, so that an option
    does not change what others draw.
    """
    from PIL import ImageOps

    draws = generator.random(16)
    if options.crop_area is not None:
        image = _cropped(image, least=options.crop_area, generator=generator)
    if draws[0] < options.horizontal_flip:
        image = ImageOps.mirror(image)
    if draws[1] < options.vertical_flip:
        image = ImageOps.flip(image)
    if options.rotation or options.shift:
        image = _moved(image, options, draws[2:5])
    image = _coloured(image, options, draws[5:8])
    if draws[8] < options.erasing:
        image = _erased(image, draws[9:13])
    return image


def augmented_with_boxes(
    image: Image, boxes: np.ndarray, options: GeometricAugmentation, generator: np.random.Generator
) -> tuple[Image, np.ndarray, np.ndarray]:
    """Return a changed copy of ``image``, its boxes float64 [kept, 4] (x, y, width, height in pixels), and which are kept, bool [boxes].

    A crop cuts boxes at its edges, and drops those whose centre lies outside. Numbers are drawn as for ``augmented``.
    """
    from PIL import ImageOps

    draws = generator.random(16)
    boxes, kept = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).copy(), np.ones(len(boxes), dtype=bool)
    if options.crop_area is not None:
        left, top, right, bottom = part = _crop_place(image.size, least=options.crop_area, generator=generator)
        centres = boxes[:, :2] + boxes[:, 2:] / 2
        kept = np.all((centres >= (left, top)) & (centres < (right, bottom)), axis=1)
        low = np.maximum(boxes[kept, :2], (left, top))
        high = np.minimum(boxes[kept, :2] + boxes[kept, 2:], (right, bottom))
        boxes, image = np.concatenate([low - (left, top), high - low], axis=1), image.crop(part)
    if draws[0] < options.horizontal_flip:
        boxes[:, 0], image = image.width - boxes[:, 0] - boxes[:, 2], ImageOps.mirror(image)
    if draws[1] < options.vertical_flip:
        boxes[:, 1], image = image.height - boxes[:, 1] - boxes[:, 3], ImageOps.flip(image)
    return _coloured(image, options, draws[5:8]), boxes, kept


def augmented_with_mask(
    image: Image, mask: Image, options: GeometricAugmentation, generator: np.random.Generator
) -> tuple[Image, Image]:
    """Return changed copies of ``image`` and of its mask, which is as large. Numbers are drawn as for ``augmented``."""
    from PIL import ImageOps

    draws = generator.random(16)
    if options.crop_area is not None:
        part = _crop_place(image.size, least=options.crop_area, generator=generator)
        image, mask = image.crop(part), mask.crop(part)
    if draws[0] < options.horizontal_flip:
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    if draws[1] < options.vertical_flip:
        image, mask = ImageOps.flip(image), ImageOps.flip(mask)
    return _coloured(image, options, draws[5:8]), mask


def _cropped(image: Image, *, least: float, generator: np.random.Generator) -> Image:
    return image.crop(_crop_place(image.size, least=least, generator=generator))


def _crop_place(size: tuple[int, int], *, least: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a random part of at least ``least`` of the area, its sides in a ratio of 3/4 to 4/3 to those of
    the image; all of it where none was found.

    Source: Szegedy et al. 2015, "Going Deeper with Convolutions", section 6.
    """
    across, down = size
    for _ in range(_TRIES):
        area, ratio = (
            generator.uniform(least, 1),
            math.exp(generator.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1]))),
        )
        width, height = (across * math.sqrt(area * ratio), down * math.sqrt(area / ratio))
        if width <= across and height <= down:
            left, top = (generator.uniform(0, across - width), generator.uniform(0, down - height))
            return round(left), round(top), max(round(left + width), 1), max(round(top + height), 1)
    return 0, 0, across, down


def _moved(image: Image, options: ImageAugmentation, draws: np.ndarray) -> Image:
    from PIL.Image import Resampling

    turn, across, down = 2 * draws - 1
    shift = (round(across * options.shift * image.width), round(down * options.shift * image.height))
    return image.rotate(float(turn) * options.rotation, Resampling.BILINEAR, translate=shift)


def _coloured(image: Image, options: ImageAugmentation | GeometricAugmentation, draws: np.ndarray) -> Image:
    from PIL import ImageEnhance

    changes = (
        (ImageEnhance.Brightness, options.brightness),
        (ImageEnhance.Contrast, options.contrast),
        (ImageEnhance.Color, options.saturation),
    )
    for (enhance, strength), draw in zip(changes, draws, strict=True):
        if strength:
            image = enhance(image).enhance(1 + strength * (2 * float(draw) - 1))
    return image


def _erased(image: Image, draws: np.ndarray) -> Image:
    """Return the image with a rectangle of 2 to 20 % of its area in the mean colour (Zhong et al. 2017, "Random Erasing Data
    Augmentation", algorithm 1).
    """
    area = (0.02 + 0.18 * draws[0]) * image.width * image.height
    ratio = math.exp(math.log(_ASPECTS[0]) + draws[1] * (math.log(_ASPECTS[1]) - math.log(_ASPECTS[0])))
    width, height = (
        min(round(math.sqrt(area * ratio)), image.width - 1),
        min(round(math.sqrt(area / ratio)), image.height - 1),
    )
    left, top = (int(draws[2] * (image.width - width)), int(draws[3] * (image.height - height)))
    mean = np.asarray(image).reshape(image.height * image.width, -1).mean(axis=0).round().astype(int)
    changed = image.copy()
    changed.paste(tuple(map(int, mean)) if len(mean) > 1 else int(mean[0]), (left, top, left + width, top + height))
    return changed
