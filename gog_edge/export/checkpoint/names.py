"""The spellings of weight names in the wild, and the one that the rest of export sees: that of transformers 5."""

from __future__ import annotations

import re

# What precedes the two towers in the wild: transformers 4 (visual.…, model.layers.…), 5 (model.visual.…,
# model.language_model.…), and wrappers of training frameworks.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")
_RENAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(?:model\.|language_model\.)?lm_head\.", "lm_head."),
        (r"^(?:model\.)?visual\.", "model.visual."),
        (r"^(?:model\.)?language_model\.(?:model\.)?", "model.language_model."),
        (r"^(?:model\.)?(?=(?:layers|embed_tokens|norm)\.)", "model.language_model."),
    )
)


def bare_name(name: str) -> str:
    """A name without what wrappers of training frameworks (peft's included) put before it."""
    return _WRAPPERS.sub("", name)


def canonical_name(name: str) -> str:
    """The transformers 5 spelling of a weight name; names of neither tower come back as they are."""
    name = bare_name(name)
    for pattern, replacement in _RENAMES:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return renamed
    return name
