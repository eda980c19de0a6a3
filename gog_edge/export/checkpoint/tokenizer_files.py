"""tokenizer.json of a checkpoint, or the same made from vocab.json and merges.txt (older Qwen checkpoints)."""

from __future__ import annotations

from typing import Any

from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.reader import Checkpoint

# Qwen2's pre-tokenizer (Qwen2Tokenizer's PRETOKENIZE_REGEX): words, single digits, punctuation, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_json(checkpoint: Checkpoint) -> str | None:
    """The text of tokenizer.json; None when the checkpoint has no tokenizer at all.

    Raises:
        CheckpointError: a file is malformed.
    """
    path = checkpoint.file("tokenizer.json")
    if path is not None:
        return path.read_text("utf-8")
    vocab, merges = checkpoint.file("vocab.json"), checkpoint.file("merges.txt")
    if vocab is None or merges is None:
        return None
    return _byte_level_bpe(checkpoint, str(vocab), str(merges))


def _byte_level_bpe(checkpoint: Checkpoint, vocab: str, merges: str) -> str:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    try:
        tokenizer = Tokenizer(models.BPE.from_file(vocab, merges))
    except Exception as e:
        raise CheckpointError(f"{checkpoint.origin}: vocab.json and merges.txt can't be read ({e})") from e
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    wanted = _added_tokens(checkpoint)
    for number, entry in wanted:
        token = AddedToken(entry["content"], special=bool(entry.get("special", True)), normalized=False)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != number:
            raise CheckpointError(
                f"{checkpoint.origin}: token {token.content} should be {number}, vocab.json makes it "
                f"{tokenizer.token_to_id(token.content)}: the files do not belong together"
            )
    return str(tokenizer.to_str())


def _added_tokens(checkpoint: Checkpoint) -> list[tuple[int, dict[str, Any]]]:
    """(id, entry) of tokens beyond the BPE vocabulary, by id; from tokenizer_config.json or added_tokens.json."""
    decoder = checkpoint.json("tokenizer_config.json").get("added_tokens_decoder")
    if isinstance(decoder, dict) and decoder:
        return sorted(((int(number), entry) for number, entry in decoder.items()), key=lambda pair: pair[0])
    added = checkpoint.json("added_tokens.json")
    return sorted(((int(number), {"content": content}) for content, number in added.items()), key=lambda pair: pair[0])
