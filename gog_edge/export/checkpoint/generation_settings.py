"""generation_config.json as transformers' `generate` reads it: how tokens are chosen, and which of them end a turn.

The file counts as a whole: where it is there, config.json's values are not looked at; where it is not, they are, key
by key, the root before text_config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gog_edge.errors import CheckpointError, UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.sampling_options import Sampling
from gog_edge.serde import Section

FILE = "generation_config.json"
TURN_END = "<|im_end|>"
"""What Qwen's chat templates close a turn with: what a policy writes behind it belongs to no turn."""

_HONOURED = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# Changes what is written, and is not done here: values (besides null) that are the same as not saying it.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "stop_strings": ([],),
    "watermarking_config": (),
    "token_healing": (False,),
}
_REFUSED_SAMPLING: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
}


def read_generation(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the manifest keeps: the keys that say how tokens are chosen, as they are written.

    Raises:
        CheckpointError: a value that transformers refuses, or one that changes the text in a way not done here.
    """
    section = _section(checkpoint)
    sampled = section.flag("do_sample", False)
    for key, neutral in {**_REFUSED, **(_REFUSED_SAMPLING if sampled else {})}.items():
        if section.has(key) and section.data[key] not in neutral:
            raise section.fail(key, f"is {section.data[key]!r}, which gog-edge does not do: remove it there")
    found = {key: section.data[key] for key in _HONOURED if section.has(key)}
    for key, value in found.items():
        if key != "do_sample" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise section.fail(key, f"must be a number, not {value!r}")
    if sampled and found.get("temperature") == 0:
        raise section.fail("temperature", "is 0 with do_sample, which transformers refuses: set do_sample to false")
    try:
        Sampling.of_checkpoint(found)
    except (UsageError, TypeError) as e:
        raise CheckpointError(f"{section.file}: {e}") from e
    return found


def end_tokens(
    checkpoint: Checkpoint, added: Mapping[str, int], vocab: int, configured: tuple[int, ...], own: str | None
) -> tuple[int, ...]:
    """Ids that end a turn, ascending: those that end `generate`, and the one that closes a turn in the template.

    Args:
        added: the tokenizer's added tokens by content.
        vocab: rows of the embedding; ids beyond it can't be written.
        configured: config.json's ids, used where the generation settings name none.
        own: the tokenizer's `eos_token`, used where neither does.

    Raises:
        CheckpointError: nothing ends a turn.
    """
    eos = set(_section(checkpoint).ids("eos_token_id")) or set(configured)
    if not eos and own is not None and own in added:
        eos = {added[own]}
    if TURN_END in added:
        eos.add(added[TURN_END])
    eos = {token for token in eos if token < vocab}
    if not eos:
        raise CheckpointError(f"{checkpoint.origin}: no end-of-turn token in {FILE}, config.json or the tokenizer")
    return tuple(sorted(eos))


def _section(checkpoint: Checkpoint) -> Section:
    if checkpoint.file(FILE) is not None:
        return Section(checkpoint.json(FILE), file=FILE)
    config = checkpoint.config
    text = config.get("text_config")
    merged = {k: v for k, v in (text if isinstance(text, dict) else {}).items() if v is not None}
    merged |= {k: v for k, v in config.items() if v is not None}
    return Section(merged, file="config.json")
