"""The small files of a bundle: tokenizer, chat template, preprocessing, sampling defaults, special tokens, dialect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gog_edge.errors import CheckpointError, DialectError, UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.checkpoint.tokenizer_files import tokenizer_json
from gog_edge.export.families.base import ModelConfig, VisionDims
from gog_edge.export.options import ExportOptions
from gog_edge.manifest import Family, Preprocessing, SpecialTokens
from gog_edge.serde import Section

TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
DIALECT = "dialect.toml"
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# What each family's processor assumes when preprocessor_config.json does not say: mean, std, min and max pixels.
_DEFAULTS: dict[Family, tuple[tuple[float, ...], tuple[float, ...], int, int]] = {
    "qwen2_5_vl": (_CLIP_MEAN, _CLIP_STD, 56 * 56, 28 * 28 * 1280),
    "qwen3_vl": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 256 * 256, 4096 * 4096),
}


def write_tokenizer(checkpoint: Checkpoint, folder: Path, *, allow_missing: bool) -> dict[str, int]:
    """Write tokenizer.json and return its added tokens (content -> id).

    Raises:
        CheckpointError: there is none, or it can't be read.
    """
    text = tokenizer_json(checkpoint)
    if text is None:
        if allow_missing:
            return {}
        raise CheckpointError(
            f"{checkpoint.origin} has neither tokenizer.json nor vocab.json and merges.txt: "
            "copy them into the checkpoint"
        )
    (folder / TOKENIZER).write_text(text, "utf-8")
    try:
        return {str(token["content"]): int(token["id"]) for token in json.loads(text).get("added_tokens") or []}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{checkpoint.origin}: tokenizer.json can't be read ({e})") from e


def write_template(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the checkpoint's chat template, if it has one (without it the runtime uses plain ChatML)."""
    template = checkpoint.chat_template()
    if template:
        (folder / TEMPLATE).write_text(template, "utf-8")


def write_dialect(dialect: str, folder: Path, family: Family) -> str:
    """What the manifest says of the dialect: a shipped name, or the file that was copied. Loads it, so that a wrong
    one is met now and not at the first question. Call after `write_template`.

    Raises:
        UsageError: a file was named that is not there, or that needs other files.
        DialectError: no such dialect, or its file is wrong.
    """
    from gog_edge.dialects import load

    own = folder / TEMPLATE
    template = own.read_text("utf-8") if own.is_file() else None
    if not dialect.endswith(".toml"):
        load(dialect, family=family, chat_template=template)
        return dialect
    path = Path(dialect).expanduser()
    if not path.is_file():
        raise UsageError(f"dialect file {dialect} does not exist")
    load(path, family=family, chat_template=template)
    copied = folder / DIALECT
    copied.write_bytes(path.read_bytes())
    try:
        load(copied, family=family, chat_template=template)
    except DialectError as e:
        raise UsageError(f"dialect file {dialect} needs files beside it; put everything into one file ({e})") from e
    return DIALECT


def read_preprocessing(
    checkpoint: Checkpoint, family: Family, vision: VisionDims, options: ExportOptions
) -> Preprocessing:
    """preprocessor_config.json in all its spellings, checked against the vision tower.

    Raises:
        CheckpointError: a value is wrong or contradicts config.json. UsageError: pixel limits that leave nothing.
    """
    data: dict[str, Any] = checkpoint.json("preprocessor_config.json")
    if not data:
        nested = checkpoint.json("processor_config.json").get("image_processor")
        data = nested if isinstance(nested, dict) else {}
    section = Section(data, file="preprocessor_config.json")
    mean, std, low, high = _DEFAULTS[family]
    size = section.section("size")
    preprocessing = Preprocessing(
        patch_size=_same(section, "patch_size", vision.patch),
        merge_size=_same(section, "merge_size", vision.merge),
        temporal_patch_size=_same(section, "temporal_patch_size", vision.temporal),
        min_pixels=options.min_pixels or section.integer("min_pixels", size.integer("shortest_edge", low)),
        max_pixels=options.max_pixels or section.integer("max_pixels", size.integer("longest_edge", high)),
        image_mean=_triple(section, "image_mean", mean),
        image_std=_triple(section, "image_std", std),
        rescale_factor=section.number("rescale_factor", 1 / 255),
    )
    if preprocessing.max_pixels < max(preprocessing.min_pixels, preprocessing.factor**2):
        raise UsageError(
            f"max_pixels = {preprocessing.max_pixels} is less than min_pixels = {preprocessing.min_pixels} "
            f"or one image token ({preprocessing.factor}^2)"
        )
    return preprocessing


def read_generation(checkpoint: Checkpoint) -> dict[str, Any]:
    """The sampling defaults of generation_config.json that the runtime knows."""
    known = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
    data = checkpoint.json("generation_config.json")
    return {key: data[key] for key in known if isinstance(data.get(key), (bool, int, float))}


def special_tokens(checkpoint: Checkpoint, config: ModelConfig, added: dict[str, int]) -> SpecialTokens:
    """Ids the session needs: config.json first, then the tokenizer's own names, which must not contradict it.

    Raises:
        CheckpointError: an id is unknown, out of the vocabulary, or differs between config and tokenizer.
    """

    vocab = config.decoder.spec.vocab

    def one(configured: int | None, key: str, content: str) -> int:
        known = added.get(content)
        if configured is not None and known is not None and configured != known:
            raise CheckpointError(f"config.json: {key} is {configured}, tokenizer.json says {known} ({content})")
        found = configured if configured is not None else known
        if found is None:
            raise CheckpointError(f"config.json: {key} is missing and tokenizer.json has no {content}")
        if found >= vocab:
            raise CheckpointError(f"config.json: {key} = {found} is beyond the vocabulary of {vocab}")
        return found

    generation = Section(checkpoint.json("generation_config.json"), file="generation_config.json")
    eos = {*generation.ids("eos_token_id"), *config.eos}
    eos |= {added[content] for content in ("<|im_end|>", "<|endoftext|>") if content in added}
    eos = {token for token in eos if token < vocab}
    if not eos:
        raise CheckpointError(f"{checkpoint.origin}: no end-of-turn token in generation_config.json or tokenizer.json")
    return SpecialTokens(
        image_pad=one(config.image_token, "image_token_id", "<|image_pad|>"),
        vision_start=one(config.vision_start, "vision_start_token_id", "<|vision_start|>"),
        vision_end=one(config.vision_end, "vision_end_token_id", "<|vision_end|>"),
        eos=tuple(sorted(eos)),
        pad=config.pad,
    )


def _same(section: Section, key: str, expected: int) -> int:
    value = section.size(key, expected)
    if value != expected:
        raise section.fail(key, f"= {value} contradicts config.json's {expected}")
    return value


def _triple(section: Section, key: str, default: tuple[float, ...]) -> tuple[float, float, float]:
    value = section.data.get(key, default)
    numbers = isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value)
    if not numbers or len(value) != 3:
        raise section.fail(key, f"must be three numbers, not {value!r}")
    return (float(value[0]), float(value[1]), float(value[2]))
