"""A policy whose weights are elsewhere: what has to be known of it here, as a bundle without graphs.

From a checkpoint's folder (config.json and preprocessor_config.json; weights are not looked at), or from nothing but
the name of its family, whose image processor's defaults hold then.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gog_edge import families
from gog_edge.bundle import Bundle, hash_file
from gog_edge.errors import BundleError, UsageError
from gog_edge.families.base import Processor
from gog_edge.manifest import (
    FORMAT,
    FORMAT_VERSION,
    DecoderSpec,
    EmbeddingSpec,
    FileDigest,
    GraphSpec,
    Manifest,
    Preprocessing,
    SpecialTokens,
    VisionSpec,
)

_KEPT = ("dialect.toml", "chat_template.jinja", "tokenizer_config.json")
_TOWER = "vision"  # stands for the tower's file, which nobody opens
_SIZES = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}


def is_policy(given: str | Path) -> bool:
    """Whether this is a checkpoint's folder, or a family's name."""
    return (Path(given) / "config.json").is_file() or str(given) in families.FAMILIES.names()


def open_policy(given: str | Path) -> Bundle:
    """The bundle without graphs of a checkpoint's folder or of a family.

    Raises:
        BundleError: a file can't be read, or is of a family that is not known here.
    """
    root = Path(given)
    if not (root / "config.json").is_file():
        family = families.named(str(given))
        return _bundle(Path(), str(given), family.name, asdict(family.processor), {}, 0)
    config = _json(root / "config.json")
    name = str(config.get("model_type"))
    if families.FAMILIES.get(name) is None:
        raise BundleError(f"{root / 'config.json'}: model_type {name!r}: {families.FAMILIES.listed()}")
    settings = asdict(families.named(name).processor) | _preprocessing(root, families.named(name).processor)
    text = config.get("text_config")
    context = (text if isinstance(text, dict) else config).get("max_position_embeddings")
    files = {kept: hash_file(root / kept) for kept in _KEPT if (root / kept).is_file()}
    return _bundle(root, root.absolute().name, name, settings, files, context if isinstance(context, int) else 0)


def _bundle(
    root: Path, name: str, family: str, settings: dict[str, Any], files: dict[str, FileDigest], context: int
) -> Bundle:
    try:
        preprocessing = Preprocessing(
            **{key: int(settings[key]) for key in ("patch_size", "merge_size", "temporal_patch_size")},
            **{key: int(settings[key]) for key in _SIZES.values()},
            image_mean=_three(settings["image_mean"]),
            image_std=_three(settings["image_std"]),
        )
    except (TypeError, ValueError) as e:
        raise BundleError(f"{root}: how pictures are prepared can't be read ({e})") from e
    if preprocessing.factor < 1 or preprocessing.max_pixels < preprocessing.factor**2:
        raise BundleError(f"{root}: patches or pixel limits of the image processor leave nothing")
    tower = hashlib.sha256(repr((family, preprocessing)).encode()).hexdigest()
    graph = GraphSpec(_TOWER, (), ())
    manifest = Manifest(
        format=FORMAT,  # type: ignore[arg-type]
        format_version=FORMAT_VERSION,
        name=name,
        family=family,
        backend="portable",
        precision="fp32",
        preprocessing=preprocessing,
        vision=VisionSpec(0, 0, 0, 0, 0),
        decoder=DecoderSpec(0, 0, 0, 0, 0, 0, 0.0, (0, 0, 0), False, context),
        embedding=EmbeddingSpec(_TOWER, "float32", 0, 0),
        tokens=SpecialTokens(0, 0, 0, ()),
        graphs={"vision": graph, "decoder": graph},
        dialect="dialect.toml" if "dialect.toml" in files else "",
        named_tokens=_named_tokens(root) if "tokenizer_config.json" in files else {},
        files={**files, _TOWER: FileDigest(tower, 0)},
    )
    return Bundle(root, manifest)


def check_dialect(bundle: Bundle, dialect: object) -> None:
    """Raises UsageError where neither the policy nor the user says which dialect it speaks."""
    if dialect is None and not bundle.manifest.dialect:
        raise UsageError(f"{bundle.manifest.name} does not say how the policy speaks: name its dialect (--dialect)")


def _preprocessing(root: Path, usual: Processor) -> dict[str, Any]:
    """What the image processor's file says of the fields of `usual`."""
    whole = root / "processor_config.json"
    said = _json(whole).get("image_processor") if whole.is_file() else None
    if not isinstance(said, dict):
        alone = root / "preprocessor_config.json"
        said = _json(alone) if alone.is_file() else {}
    size = said.get("size")
    found = {_SIZES[k]: v for k, v in size.items() if k in _SIZES} if isinstance(size, dict) else {}
    return found | {key: said[key] for key in asdict(usual) if said.get(key) is not None}


def _named_tokens(root: Path) -> dict[str, str]:
    said = _json(root / "tokenizer_config.json")
    names = {k: v.get("content") if isinstance(v, dict) else v for k, v in said.items() if k.endswith("_token")}
    return {k: v for k, v in names.items() if isinstance(v, str)}


def _three(values: Any) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in values)
    return r, g, b


def _json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise BundleError(f"{path} can't be read ({e})") from e
    if not isinstance(said, dict):
        raise BundleError(f"{path}: a JSON object is needed")
    return said
