"""How an image becomes patches, as transformers' image processor reads it from the checkpoint's files.

processor_config.json's `image_processor` counts as a whole before preprocessor_config.json; what the chosen one leaves
out is the default of the image processor's class (`Family.processor`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from gog_edge.errors import CheckpointError, UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import ExportOptions
from gog_edge.families.base import Family, Processor, VisionDims
from gog_edge.manifest import Preprocessing
from gog_edge.serde import Section

_BICUBIC = 3  # PIL's number
# What every class says where the files say nothing; the rest stands with the family (`Processor`). A null in the files
# is not nothing: it is a value that is false.
_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "resample": _BICUBIC,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}


def read_preprocessing(
    checkpoint: Checkpoint, family: Family, vision: VisionDims, options: ExportOptions
) -> Preprocessing:
    """The image processor's settings, checked against the vision tower; the user's pixel limits stand above them.

    Raises:
        CheckpointError: no settings, ones that transformers refuses, that contradict config.json, or that are not done
            here. UsageError: pixel limits that leave nothing.
    """
    found, usual = _settings(checkpoint), family.processor
    _check_class(found, checkpoint, usual.name)
    section = Section({**_DEFAULTS, **dataclasses.asdict(usual), **found.data}, found.path, found.file)
    if not _flag(section, "do_resize"):
        raise section.fail("do_resize", "is false; crops of any size are shown, which must be resized: set it to true")
    if isinstance(section.data["resample"], bool) or section.data["resample"] != _BICUBIC:
        raise section.fail("resample", f"is {section.data['resample']!r}; only {_BICUBIC} (bicubic) can be exported")
    low, high = _limits(found, usual)
    rescaled, normalised = _flag(section, "do_rescale"), _flag(section, "do_normalize")
    preprocessing = Preprocessing(
        patch_size=_same(section, found, "patch_size", vision.patch, usual),
        merge_size=_same(section, found, "merge_size", vision.merge, usual),
        temporal_patch_size=_same(section, found, "temporal_patch_size", vision.temporal, usual),
        min_pixels=options.min_pixels or low,
        max_pixels=options.max_pixels or high,
        image_mean=_triple(section, "image_mean") if normalised else (0.0, 0.0, 0.0),
        image_std=_triple(section, "image_std") if normalised else (1.0, 1.0, 1.0),
        rescale_factor=section.number("rescale_factor") if rescaled else 1.0,
    )
    if 0.0 in preprocessing.image_std:
        raise section.fail("image_std", "must not hold a zero")
    if preprocessing.max_pixels < max(preprocessing.min_pixels, preprocessing.factor**2):
        raise UsageError(
            f"max_pixels = {preprocessing.max_pixels} is less than min_pixels = {preprocessing.min_pixels} "
            f"or one image token ({preprocessing.factor}^2)"
        )
    return preprocessing


def _settings(checkpoint: Checkpoint) -> Section:
    """The section that counts.

    Raises:
        CheckpointError: there is none, or it is not an object.
    """
    outer = Section(checkpoint.json("processor_config.json"), file="processor_config.json")
    if outer.has("image_processor"):
        return outer.section("image_processor")
    name = "preprocessor_config.json"
    if checkpoint.file(name) is None:
        raise CheckpointError(
            f"{checkpoint.origin} says nowhere how images are prepared ({name} or processor_config.json): "
            "copy the file of the model that it was trained from"
        )
    return Section(checkpoint.json(name), file=name)


def _check_class(section: Section, checkpoint: Checkpoint, wanted: str) -> None:
    named = section.text("image_processor_type", "")
    if not named:
        named = section.text("feature_extractor_type", "").replace("FeatureExtractor", "ImageProcessor")
    if not named:
        named = Section(checkpoint.config).text("image_processor_type", wanted)
    if named.removesuffix("Fast").removesuffix("Pil") != wanted:
        raise section.fail("image_processor_type", f"is {named}; only {wanted} can be exported")


def _flag(section: Section, key: str) -> bool:
    """A null is false, as in transformers."""
    return section.flag(key, False)


def _limits(section: Section, usual: Processor) -> tuple[int, int]:
    """(smallest, largest) area in pixels: `min_pixels` and `max_pixels` above those of `size`.

    Raises:
        CheckpointError: `size` is of another kind, or lacks one of the two.
    """
    default = {"shortest_edge": usual.min_pixels, "longest_edge": usual.max_pixels}
    size: dict[str, Any] = dict(section.section("size").data) if section.has("size") else dict(default)
    for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if section.has(key):
            size[edge] = section.integer(key)
            size.pop(key, None)
    if set(size) != set(default):
        had = ", ".join(sorted(size)) or "nothing"
        raise section.fail("size", f"must have shortest_edge and longest_edge (areas in pixels), not {had}")
    checked = Section(size, f"{section.path}.size".lstrip("."), section.file)
    return checked.integer("shortest_edge"), checked.integer("longest_edge")


def _same(section: Section, found: Section, key: str, expected: int, usual: Processor) -> int:
    value = section.integer(key)
    if value != expected:
        default = "" if key in found.data else f" (missing: {usual.name}'s default)"
        raise section.fail(key, f"= {value}{default} contradicts config.json's {expected}")
    return value


def _triple(section: Section, key: str) -> tuple[float, float, float]:
    value = section.data[key]
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(_is_number(v) for v in values):
        raise section.fail(key, f"must be three numbers, not {value!r}")
    return (float(values[0]), float(values[1]), float(values[2]))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
