"""Text to token ids and back, with one law: control tokens come from `Control` segments and from nowhere else.

A run of segments between two control tokens is encoded as ONE string, with every added token of the tokenizer
switched off. So wording and outside text join exactly as they would in a rendered prompt (BPE merges cross the
border), and a page that holds `<|im_end|>` or `</tool_response>` yields the letters of it, never the token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gog_edge.errors import BundleError
from gog_edge.runtime.added_tokens import AddedTokens, Span
from gog_edge.types import Control, ImagePart, Segment, Text

EncodedPart = list[int] | ImagePart
_OPEN = "\ufffd"  # what an incomplete UTF-8 sequence decodes to


class Tokenizer:
    """The checkpoint's `tokenizer.json` with its added tokens taken out of the library's hands. Thread-safe.

    Args:
        source: the JSON text of a Hugging Face `tokenizers` file.

    Raises:
        BundleError: the text is not such a file.
    """

    def __init__(self, source: str) -> None:
        import tokenizers

        try:
            added, plain = _without_added_tokens(source)
            self._plain = tokenizers.Tokenizer.from_str(plain)
            self._added = AddedTokens(added, self._normalize)
            self.special = self._added.ids
        except Exception as e:  # `tokenizers` raises bare Exception on malformed files
            raise BundleError(f"tokenizer.json can't be read ({e}); export the checkpoint again") from e
        self._source = source
        self._plain.no_padding()
        self._plain.no_truncation()
        self._names = {i: name for name, i in self.special.items()}

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read `tokenizer.json`.

        Raises:
            BundleError: it is missing or malformed.
        """
        try:
            return cls(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as e:
            raise BundleError(f"{path} can't be read ({e}); export the checkpoint again") from e

    @cached_property
    def backend(self) -> Any:
        """A `tokenizers.Tokenizer` with its added tokens, for the grammar compiler (made at first use: a second)."""
        import tokenizers

        return tokenizers.Tokenizer.from_str(self._source)

    @cached_property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return max(int(self._plain.get_vocab_size()), max(self._names, default=-1) + 1)

    def encode(self, segments: Iterable[Segment]) -> list[EncodedPart]:
        """Segments as runs of ids and images, in order; empty runs are left out."""
        parts: list[EncodedPart] = []
        run: list[Span] = []
        for segment in segments:
            if isinstance(segment, ImagePart):
                self._flush(run, parts)
                parts.append(segment)
            else:
                run.append((segment.text, not isinstance(segment, Text)))
        self._flush(run, parts)
        return parts

    def encode_text(self, text: str) -> list[int]:
        """Outside text: no control token comes out of it, whatever it says."""
        return self._encode_plain(text)

    def encode_control(self, text: str) -> list[int]:
        """Wording: added tokens inside become control tokens."""
        return [i for part in self.encode([Control(text)]) if isinstance(part, list) for i in part]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids as text, control tokens spelled out; an incomplete UTF-8 sequence becomes U+FFFD."""
        out: list[str] = []
        run: list[int] = []
        for i in ids:
            name = self._names.get(i)
            if name is None:
                run.append(i)
                continue
            if run:
                out.append(self._plain.decode(run, skip_special_tokens=False))
                run = []
            out.append(name)
        if run:
            out.append(self._plain.decode(run, skip_special_tokens=False))
        return "".join(out)

    def _flush(self, run: list[Span], parts: list[EncodedPart]) -> None:
        for piece in self._added.split(run):
            _extend(parts, [piece] if isinstance(piece, int) else self._encode_plain(piece))
        run.clear()

    def _normalize(self, text: str) -> str:
        normalizer = self._plain.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(_storable(text)))

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(_storable(text), add_special_tokens=False).ids
        if self._names.keys().isdisjoint(ids):
            return ids
        # A vocabulary that holds its control tokens as ordinary words too: spell the text letter by letter
        # and drop what still comes out as control.
        letters = [i for c in text for i in self._plain.encode(_storable(c), add_special_tokens=False).ids]
        return [i for i in letters if i not in self._names]


def _without_added_tokens(source: str) -> tuple[list[Any], str]:
    """(the added tokens, the file without them): then nothing but the model's own vocabulary can come out.

    The text is cut, not parsed: parsing and writing a vocabulary of 150,000 takes longer than loading it.
    """
    key = source.find('"added_tokens"')
    start = source.find("[", key)
    if key < 0 or source[key + len('"added_tokens"') : start].strip() != ":":
        data = json.loads(source)
        return list(data.get("added_tokens") or []), json.dumps({**data, "added_tokens": []}, ensure_ascii=False)
    added, end = json.JSONDecoder().raw_decode(source, start)
    return list(added), f"{source[:start]}[]{source[end:]}"


def _extend(parts: list[EncodedPart], ids: list[int]) -> None:
    if parts and isinstance(parts[-1], list):
        parts[-1].extend(ids)
    elif ids:
        parts.append(list(ids))


def _storable(text: str) -> str:
    """Lone surrogates (from file names or broken pages) can't be UTF-8: U+FFFD stands for them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


class Detokenizer:
    """Ids that come one by one as text that only grows: a character appears when all its bytes are there.

    Keeps the last few ids only, so a step costs the same at any length (the prefix/read offsets of vLLM's
    incremental detokeniser).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._read = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is still open."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[: self._read])
        now = self._tokenizer.decode(self._ids)
        if len(now) <= len(before) or (now.endswith(_OPEN) and len(self._ids) - self._read < 4):
            return ""
        self._ids = self._ids[self._read :]  # the last piece stays as context for the next one
        self._read = len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """What is left at the end of a turn: an open character as U+FFFD."""
        before = self._tokenizer.decode(self._ids[: self._read])
        now = self._tokenizer.decode(self._ids)
        self._read = len(self._ids)
        return now[len(before) :]
