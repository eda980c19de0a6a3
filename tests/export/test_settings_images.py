"""How images become patches: every row against transformers' own image processor, in both files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge import families
from gog_edge.crop import crop_patches, region_grid
from gog_edge.errors import CheckpointError, ParityError
from gog_edge.export.checkpoint.image_settings import read_preprocessing
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import ExportOptions
from gog_edge.image.frame import Frame
from gog_edge.manifest import Preprocessing

transformers = pytest.importorskip("transformers")

OLD, NEW = "preprocessor_config.json", "processor_config.json"
NAMED = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16}
# a blend of waves: no two 8-bit steps of it meet in a resize
WAVES = np.sin(np.arange(97)[:, None, None] / 9 + np.arange(131)[:, None] / 7 + np.arange(3) * 2)
PIXELS = np.rint(127 + 120 * WAVES).astype(np.uint8)

HONOURED: dict[str, dict[str, Any]] = {
    "class defaults": {},
    "fast class": {"image_processor_type": "Qwen2VLImageProcessorFast"},
    "class of the model type": {"image_processor_type": None},
    "feature extractor": {"image_processor_type": None, "feature_extractor_type": "Qwen2VLFeatureExtractor"},
    "everything said": {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.2],
        "rescale_factor": 1 / 127.5,
        "resample": 3,
        "size": {"shortest_edge": 4096, "longest_edge": 40_000},
        "merge_size": 2,
        "temporal_patch_size": 2,
    },
    "one number for mean and std": {"image_mean": 0.5, "image_std": 0.25},
    "do_rescale false": {"do_rescale": False, "rescale_factor": 0.5},
    "do_rescale null": {"do_rescale": None},
    "do_normalize false": {"do_normalize": False},
    "neither": {"do_normalize": False, "do_rescale": False},
    "do_convert_rgb false": {"do_convert_rgb": False},
    "min_pixels, max_pixels": {"min_pixels": 4096, "max_pixels": 9000},
    "min_pixels alone": {"min_pixels": 20_000},
    "max_pixels alone": {"max_pixels": 5000},
    "both spellings": {"max_pixels": 5000, "size": {"shortest_edge": 3000, "longest_edge": 99_999}},
    "size completed": {"max_pixels": 5000, "size": {"shortest_edge": 3000}},
    "size in old words, overruled": {
        "min_pixels": 3000, "max_pixels": 5000, "size": {"min_pixels": 1, "max_pixels": 2},
    },
    "nulls": {"min_pixels": None, "max_pixels": None, "size": None},
    "keys of other processors": {"do_center_crop": True, "crop_size": {"height": 10, "width": 10}, "foo": 1},
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "do_resize false": ({"do_resize": False}, "do_resize is false"),
    "do_resize null": ({"do_resize": None}, "do_resize is false"),
    "bilinear": ({"resample": 2}, "resample is 2"),
    "resample null": ({"resample": None}, "resample is None"),
    "resample as a word": ({"resample": "bicubic"}, "resample is 'bicubic'"),
    "mean null": ({"image_mean": None}, "image_mean must be three numbers"),
    "two deviations": ({"image_std": [0.5, 0.5]}, "image_std must be three numbers"),
    "std zero": ({"image_std": [0.5, 0, 0.5]}, "image_std must not hold a zero"),
    "rescale_factor null": ({"rescale_factor": None}, "rescale_factor is missing"),
    "patch_size missing": ({"patch_size": ...}, r"patch_size = 14 \(missing: Qwen2VLImageProcessor's default\)"),
    "patch_size null": ({"patch_size": None}, "patch_size is missing"),
    "patch_size twice": ({"patch_size": [16, 16]}, "patch_size must be a whole number"),
    "merge_size": ({"merge_size": 3}, "merge_size = 3 contradicts"),
    "temporal": ({"temporal_patch_size": 1}, "temporal_patch_size = 1 contradicts"),
    "size halved": ({"size": {"shortest_edge": 4096}}, "size must have shortest_edge and longest_edge"),
    "size in old words": ({"size": {"min_pixels": 4096, "max_pixels": 9999}}, "not max_pixels, min_pixels"),
    "size in sides": ({"size": {"height": 64, "width": 64}}, "not height, width"),
    "size a number": ({"size": 224}, "size must be an object"),
    "other class": ({"image_processor_type": "CLIPImageProcessor"}, "is CLIPImageProcessor"),
    "unknown class": ({"image_processor_type": "Qwen2_5_VLImageProcessor"}, "is Qwen2_5_VLImageProcessor"),
}


def write(tiny: Path, root: Path, file: str, changes: dict[str, Any]) -> Path:
    """A folder with a configuration and this one processor file."""
    root.mkdir()
    shutil.copy(tiny / "config.json", root / "config.json")
    data = {k: v for k, v in {**NAMED, **changes}.items() if v is not ...}
    (root / file).write_text(json.dumps({"image_processor": data} if file == NEW else data))
    return root


def ours(root: Path, **options: Any) -> Preprocessing:
    family = families.find(json.loads((root / "config.json").read_text()))
    dims = family.parse(json.loads((root / "config.json").read_text())).vision
    # the reader wants files only
    checkpoint = Checkpoint(root, json.loads((root / "config.json").read_text()), None, str(root))  # type: ignore[arg-type]
    return read_preprocessing(checkpoint, family, dims, ExportOptions(**options))


def patches(preprocessing: Preprocessing) -> tuple[np.ndarray, list[int]]:
    frame = Frame(PIXELS, "waves")
    grid = region_grid(None, frame.width, frame.height, preprocessing)
    return crop_patches(frame, None, grid, preprocessing), [1, grid.rows, grid.columns]


def assert_equal(root: Path, preprocessing: Preprocessing) -> None:
    from gog_edge.export.parity.reference import PatchMaker

    checkpoint = Checkpoint(root, {}, None, str(root))  # type: ignore[arg-type]
    maker = PatchMaker(checkpoint)
    output = maker.processor([PIXELS], return_tensors="np")
    mine, grid = patches(preprocessing)
    assert output["image_grid_thw"].tolist() == [grid]
    theirs = maker.at_grid(PIXELS, grid[1], grid[2]).reshape(len(mine), 3, 2, -1)
    steps = np.abs(theirs - mine.reshape(len(mine), 3, 1, -1)) * maker.step()[:, None, None]
    assert steps.max() < 1e-3
    # at_grid is the processor itself, but for the order of the two passes of the resize
    whole = output["pixel_values"].reshape(theirs.shape)
    assert (np.abs(theirs - whole) * maker.step()[:, None, None]).max() < 1.01


@pytest.mark.parametrize("file", [OLD, NEW])
@pytest.mark.parametrize("row", HONOURED)
def test_patches_are_those_of_transformers(
    row: str, file: str, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    root = write(tiny_checkpoints["qwen3_vl"], tmp_path / "c", file, HONOURED[row])
    assert_equal(root, ours(root))


@pytest.mark.parametrize("file", [OLD, NEW])
@pytest.mark.parametrize("row", REFUSED)
def test_the_rest_is_refused_in_one_line(
    row: str, file: str, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    changes, words = REFUSED[row]
    root = write(tiny_checkpoints["qwen3_vl"], tmp_path / "c", file, changes)
    with pytest.raises(CheckpointError, match=words) as error:
        ours(root)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


MEANS = {"image_mean": [0.1, 0.2, 0.3]}
FILES: dict[str, tuple[Any, Any]] = {  # what stands in the new file, in the old one
    "the new file beats the old one, as a whole": ({"image_processor": NAMED}, {**NAMED, **MEANS}),
    "a null does not count": ({"image_processor": None}, {**NAMED, **MEANS}),
    "settings beside the section do not count": ({"image_mean": [0, 0, 0], "patch_size": 3}, {**NAMED, **MEANS}),
}


@pytest.mark.parametrize("row", FILES)
def test_which_file_counts(row: str, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    new, old = FILES[row]
    root = write(tiny_checkpoints["qwen3_vl"], tmp_path / "c", OLD, {})
    (root / OLD).write_text(json.dumps(old))
    (root / NEW).write_text(json.dumps(new))
    assert_equal(root, ours(root))


def test_an_empty_section_counts(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """transformers then takes the class's defaults, whose patches are not the model's."""
    root = write(tiny_checkpoints["qwen3_vl"], tmp_path / "c", OLD, {})
    (root / NEW).write_text('{"image_processor": {}}')
    assert transformers.AutoImageProcessor.from_pretrained(root, backend="pil").patch_size == 14
    with pytest.raises(CheckpointError, match=r"processor_config\.json: image_processor\.patch_size = 14"):
        ours(root)


def test_the_class_may_stand_in_config_json(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    root = write(tiny_checkpoints["qwen3_vl"], tmp_path / "c", OLD, {"image_processor_type": ...})
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, "image_processor_type": "CLIPImageProcessor"}))
    assert "CLIP" in type(transformers.AutoImageProcessor.from_pretrained(root, backend="pil")).__name__
    with pytest.raises(CheckpointError, match="is CLIPImageProcessor"):
        ours(root)


def test_without_any_file(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from gog_edge.export.parity.reference import PatchMaker

    root = write(tiny_checkpoints["qwen3_vl"], tmp_path / "c", OLD, {})
    (root / OLD).unlink()
    with pytest.raises(CheckpointError, match="copy the file of the model"):
        ours(root)
    with pytest.raises(ParityError, match="can't load the image processor"):
        PatchMaker(Checkpoint(root, {}, None, str(root)))  # type: ignore[arg-type]


def test_the_users_limits_stand_above(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    root = write(tiny_checkpoints["qwen3_vl"], tmp_path / "c", NEW, {"max_pixels": 9000, "min_pixels": 4096})
    made = ours(root, max_pixels=5000)
    assert (made.min_pixels, made.max_pixels) == (4096, 5000)


# -- the gate's own reading ---------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"resample": 2}, False),
        ({"max_pixels": 5000}, False),
        ({"image_std": [0.5, 0.5, 0.4]}, False),
        ({"do_rescale": False}, False),
    ],
)
def test_the_gate_takes_nothing_from_our_reader(
    changes: dict[str, Any], good: bool, tiny_checkpoints: dict[str, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    """The bundle is of other settings than the folder, which says them in the newer of the two files."""
    from gog_edge.export.parity.gate import verify

    root = tmp_path / "c"
    shutil.copytree(tiny_checkpoints["qwen3_vl"], root)
    data = json.loads((root / OLD).read_text())
    (root / OLD).unlink()
    (root / NEW).write_text(json.dumps({"image_processor": {**data, **changes}}))
    stages = {s.name: s.verdict.value for s in verify(tiny_bundle, root, tokens=1).stages}
    assert stages["pixels"] == ("pass" if good else "fail")
    assert stages["vision"] == "pass"
