"""The tokenizer: byte-level BPE with Qwen's special tokens, in which a coordinate of a box is one token.

The pre-tokeniser differs from Qwen's in two places: ``[150`` and ``, 300`` in front of a comma or bracket are words of
their own (so each of the 2 x 41 grid coordinates is ONE token), and ``>`` is not glued to the word after it (so that what
stands in ``<answer>`` has the tokens that it has in a search result).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from . import geometry

SIZE = 3072
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
PATTERN = r" ?\[\d{1,4}(?=,)|, \d{1,4}(?=[,\]])|[^\r\n\p{L}\p{N}>]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def coordinates() -> list[str]:
    values = range(0, 1001, geometry.STEP)
    return [f" [{v}" for v in values] + [f", {v}" for v in values]


def train(texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    boxes = [f" [{a}, {a}, {a}, {a}]" for a in range(0, 1001, geometry.STEP) for _ in range(3000)]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(SPECIAL) - len(PLAIN),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *boxes], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN])
    for word in coordinates():
        if len(tokenizer.encode(word + ",").ids) != 2:
            raise ValueError(f"coordinate {word!r} is not one token; raise its count in the corpus")
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """``tokenizer.json`` and its configuration, loadable by AutoTokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")
