"""What turns images into a model's inputs: its own image processor, or one that its configuration asks for."""

from __future__ import annotations

from typing import Any

from launcher.errors import ModelError
from launcher.recipe.schema import ModelSection
from launcher.tasks.models import explained, load_config, locate


def load_image_processor(section: ModelSection, *, size: int | None = None) -> Any:
    """Return the model's image processor, or for a model without pretrained weights one that resizes to the size of its
    configuration and brings pixels to -1 to 1. ``size``: width and height in pixels instead of its own.

    Raises:
        ModelError: there is none, or the size is nowhere said.
    """
    if section.name_or_path is None:
        return _new_image_processor(load_config(section, skeleton=True), size=size)
    from transformers import AutoImageProcessor

    location = locate(section.name_or_path)
    with explained(location, "preprocessor_config.json"):
        processor = AutoImageProcessor.from_pretrained(
            location, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    if size is not None:
        processor.size, processor.do_resize = {"height": size, "width": size}, True
        processor.do_center_crop = False
    return processor


# Their processors also turn outputs into boxes.
_DETECTOR_PROCESSORS = {
    "conditional_detr": "ConditionalDetr",
    "dab-detr": "ConditionalDetr",
    "deformable_detr": "DeformableDetr",
    "detr": "Detr",
    "rt_detr": "RTDetr",
    "rt_detr_v2": "RTDetr",
    "table-transformer": "Detr",
    "yolos": "Yolos",
}


def _new_image_processor(config: Any, *, size: int | None) -> Any:
    import transformers
    from transformers import ViTImageProcessorPil

    found = size or getattr(config, "image_size", None)
    if found is None:
        raise ModelError(f"a {config.model_type} takes images of any size; write task.image_size, such as 224")
    height, width = (found, found) if isinstance(found, int) else found
    if config.model_type in _DETECTOR_PROCESSORS:
        own = getattr(transformers, f"{_DETECTOR_PROCESSORS[config.model_type]}ImageProcessorPil")
        return own(size={"height": height, "width": width})
    channels = getattr(config, "num_channels", 3)
    return ViTImageProcessorPil(
        size={"height": height, "width": width}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    )
