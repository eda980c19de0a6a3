"""Token constraints from a dialect's grammar, by llguidance (an optional dependency).

A `TokenGrammar` belongs to one tokenizer (building it reads the whole vocabulary: seconds for Qwen's, once). Each turn
gets its own `TokenConstraint`, which masks logits, follows the tokens, and tells which ones are forced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import GrammarError
from gog_edge.sanitize import cut

_MANY = 1024  # unused ids
# A tag may be one token or ordinary letters; lines of a grammar that differ say for which tag they are.
_TOKEN_LINE = re.compile(r"^//@token (\S+) (.*)$")
_TEXT_LINE = re.compile(r"^(.*?) //@text (\S+)$")


def available() -> bool:
    """Whether llguidance is installed."""
    from importlib.util import find_spec

    return find_spec("llguidance") is not None


def problem_of(lark: str) -> str:
    """What is wrong with a grammar, in one line; "" if nothing is, as far as can be told without a tokenizer."""
    import llguidance

    failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(for_tokenizer(lark, set()))
    first = messages[0].splitlines()[0] if failed and messages and messages[0] else "it can't be compiled"
    return first.rpartition("JSON schema: ")[2] if failed else ""


class TokenGrammar:
    """A tokenizer prepared for grammars.

    Args:
        tokenizer: a `tokenizers.Tokenizer` with its added tokens.
        end_tokens: ids that end a turn; they become possible where the grammar is complete.
        vocab_size: width of the logits (0: the tokenizer's own size). Ids beyond the tokenizer are never allowed.

    Raises:
        GrammarError: llguidance is missing, or can't use this tokenizer.
    """

    def __init__(self, tokenizer: Any, end_tokens: Sequence[int], vocab_size: int = 0) -> None:
        try:
            import llguidance
        except ImportError as error:
            mend = "install gog-edge[grammar] or run with the grammar off"
            raise GrammarError(f"a grammar was asked for, but llguidance is missing; {mend}") from error
        if not end_tokens:
            raise GrammarError("a grammar needs the ids of the tokens that end a turn; none were given")
        self.added_tokens = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        self.end_tokens = frozenset(int(token) for token in end_tokens)
        ids = set(tokenizer.get_vocab(with_added_tokens=True).values())
        self.vocab_size = max(vocab_size, max(ids) + 1)
        self._known: NDArray[np.bool_] = np.zeros(self.vocab_size, np.bool_)
        self._known[sorted(ids)] = True
        self._llguidance = llguidance
        try:
            self._tokenizer = llguidance.LLTokenizer(
                _dense(tokenizer.to_str(), ids), n_vocab=self.vocab_size, eos_token=sorted(self.end_tokens)
            )
        except (ValueError, RuntimeError) as error:
            raise GrammarError(f"llguidance can't use this tokenizer: {error}") from error

    def constraint(self, lark: str) -> TokenConstraint:
        """A constraint for one turn.

        Raises:
            GrammarError: the grammar has an error.
        """
        matcher = self._llguidance.LLMatcher(self._tokenizer, for_tokenizer(lark, self.added_tokens), log_level=0)
        if matcher.is_error():
            raise GrammarError(f"the grammar can't be compiled: {_brief(matcher.get_error())}")
        return TokenConstraint(matcher, self._known, self.end_tokens)


def for_tokenizer(lark: str, added_tokens: set[str]) -> str:
    """The grammar with every tag written as the token it is in a tokenizer with these added tokens."""
    out: list[str] = []
    for line in lark.splitlines():
        token, text = _TOKEN_LINE.match(line), _TEXT_LINE.match(line)
        if token:
            if token.group(1) in added_tokens:
                out.append(token.group(2))
        elif not text or text.group(2) not in added_tokens:
            out.append(text.group(1) if text else line)
    return "\n".join(out) + "\n"


def _brief(error: str) -> str:
    """llguidance's errors end with its state and the whole grammar, which may be large."""
    return cut(" ".join(error.partition("<state>")[0].split()), 300)


def _dense(source: str, ids: set[int]) -> str:
    """The tokenizer with its unused ids named: llguidance takes vocabularies without gaps only.

    A few become special tokens. Thousands (a synthetic checkpoint's) would take minutes so: they become ordinary words,
    which `TokenConstraint` never allows.
    """
    missing = sorted(set(range(max(ids))) - ids)
    if not missing:
        return source
    data = json.loads(source)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    if len(missing) > _MANY:
        data["model"]["vocab"].update({f"<|unused_id_{i}|>": i for i in missing})
        return json.dumps(data, ensure_ascii=False)
    unused = [{"id": i, "content": f"<|unused_id_{i}|>", **flags} for i in missing]
    data["added_tokens"] = sorted([*data["added_tokens"], *unused], key=lambda token: int(token["id"]))
    return json.dumps(data, ensure_ascii=False)


class TokenConstraint:
    """What may follow in one turn. Made by `TokenGrammar.constraint`."""

    def __init__(self, matcher: Any, known: NDArray[np.bool_], end_tokens: frozenset[int]) -> None:
        self._matcher, self._known, self._end_tokens = matcher, known, end_tokens
        self._vocab_size = vocab_size = len(known)
        self._bits = np.zeros((vocab_size + 31) // 32, dtype=np.int32)
        self._ended = False
        self._mask: NDArray[np.bool_] | None = None  # of the present position

    def mask(self) -> NDArray[np.bool_]:
        """Allowed tokens, [vocab_size]; valid until the next token.

        Raises:
            GrammarError: the grammar became too complex to follow.
        """
        if self._ended:
            return np.zeros(self._vocab_size, dtype=np.bool_)
        if self._mask is not None:
            return self._mask
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check("mask")
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size]
        self._mask = bits.astype(np.bool_) & self._known
        return self._mask

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Set the logits [V] of tokens that may not follow to -inf, in place. V may be smaller or larger than ours."""
        allowed = self.mask()
        size = min(len(allowed), logits.shape[-1])
        logits[..., :size][..., ~allowed[:size]] = -np.inf
        logits[..., size:] = -np.inf

    def accept(self, token: int) -> None:
        """`token` was written.

        Raises:
            GrammarError: it may not follow here.
        """
        if self._ended:
            raise GrammarError(f"token {token} follows the end of the turn")
        if token in self._end_tokens:
            if not self._matcher.is_accepting():
                raise GrammarError(f"token {token} ends the turn inside an action")
            self._ended = True
            return
        if not 0 <= token < self._vocab_size or not self._known[token] or self._matcher.validate_tokens([token]) != 1:
            raise GrammarError(f"token {token} may not follow here by the grammar")
        self._mask = None
        self._matcher.consume_token(token)
        self._check(f"token {token}")

    def forced(self) -> list[int]:
        """Tokens that must follow, accepted already; empty where there is a choice or an end."""
        if self.finished:
            return []
        tokens = [int(token) for token in self._matcher.compute_ff_tokens()]
        end = next((i for i, token in enumerate(tokens) if token in self._end_tokens), len(tokens))
        tokens = tokens[:end]
        if tokens:
            self._mask = None
            self._matcher.consume_tokens(tokens)
            self._check("forced tokens")
        return tokens

    def fits(self, tokens: Sequence[int]) -> int:
        """How many of `tokens`, from the first on, may follow here; nothing is accepted."""
        if self._ended or self._matcher.is_stopped():
            return 0
        known = 0
        while known < len(tokens) and 0 <= tokens[known] < self._vocab_size and self._known[tokens[known]]:
            known += 1
        some = list(tokens[:known])
        return int(self._matcher.validate_tokens(some)) if some else 0

    @property
    def finished(self) -> bool:
        """Nothing but the end can follow."""
        if self._ended or self._matcher.is_stopped():
            return True
        if not self._matcher.is_accepting():
            return False
        allowed = np.flatnonzero(self.mask())
        return all(int(token) in self._end_tokens for token in allowed[: len(self._end_tokens) + 1])

    def reset(self) -> None:
        """Back to the beginning of a turn."""
        self._matcher.reset()
        self._ended, self._mask = False, None

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"grammar, {what}: {_brief(self._matcher.get_error())}")
