"""Grammar-constrained turns: what a dialect writes is admitted, what the grammar admits is read, forced tokens."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from gog_edge import dialects
from gog_edge.dialects import Dialect
from gog_edge.errors import GrammarError
from gog_edge.export.synthetic.text import tokenizer_json
from gog_edge.runtime.constraint import TokenConstraint, TokenGrammar, available, for_tokenizer
from gog_edge.types import ActionKind
from tests.dialects.helpers import PHOTO, complete, qwen3
from tests.dialects.scenes import THINKING
from tests.dialects.script import ACTIONS, kinds, write_turn

pytest.importorskip("llguidance")
pytestmark = pytest.mark.slow
WITH_GRAMMAR = [name for name in dialects.names() if dialects.load(name).grammar()]


def small_grammar() -> tuple[TokenGrammar, Any]:
    """A small byte-level BPE with Qwen's added tokens, like gog-nano's."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(1000)))
    return TokenGrammar(tokenizer, [tokenizer.token_to_id("<|im_end|>")], 1100), tokenizer


@pytest.fixture(scope="module")
def small() -> tuple[TokenGrammar, Any]:
    return small_grammar()


@pytest.fixture(scope="module")
def letters() -> tuple[TokenGrammar, object]:
    """The same without tags among the added tokens: every tag is spelled."""
    from tokenizers import Tokenizer

    data = tokenizer_json(1000)
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"].startswith("<|")]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    return TokenGrammar(tokenizer, [tokenizer.token_to_id("<|im_end|>")]), tokenizer


@pytest.fixture(scope="module")
def real() -> tuple[TokenGrammar, object]:
    """The real Qwen3 tokenizer, with the padded vocabulary of the checkpoints."""
    tokenizer = qwen3()
    return TokenGrammar(tokenizer, [151645, 151643], 151936), tokenizer


@pytest.mark.parametrize("gap", [40, 150_000])
def test_a_vocabulary_with_holes_is_ready_in_seconds_and_never_allows_them(gap: int) -> None:
    from tokenizers import Tokenizer

    data = tokenizer_json(1000)
    for token in data["added_tokens"]:  # as a synthetic checkpoint has them: special tokens at the end of a wide table
        token["id"] += gap
    tokenizer = Tokenizer.from_str(json.dumps(data))
    end = tokenizer.token_to_id("<|im_end|>")
    start = time.perf_counter()
    grammar = TokenGrammar(tokenizer, [end], 1100 + gap)
    assert time.perf_counter() - start < 30  # minutes, when every hole was a special token
    constraint = grammar.constraint("start: /(.|\\n)+/")
    known = set(tokenizer.get_vocab(with_added_tokens=True).values())
    allowed = set(np.flatnonzero(constraint.mask()).tolist())
    assert len(allowed) > 100 and allowed <= known
    hole = max(set(range(1000 + gap)) - known)
    with pytest.raises(GrammarError, match="may not follow"):
        constraint.accept(hole)
    word = next(iter(allowed - {end}))
    constraint.accept(word)


def walk(constraint: TokenConstraint, ids: list[int]) -> int:
    """Write `ids`; every one must be admitted. Returns how many were forced."""
    at = forced = 0
    while at < len(ids):
        tokens = constraint.forced()
        if tokens:
            assert tokens == ids[at : at + len(tokens)], "a forced token is not the canonical one"
            at, forced = at + len(tokens), forced + len(tokens)
            continue
        assert constraint.mask()[ids[at]], f"token {at} of the turn is not admitted"
        constraint.accept(ids[at])
        at += 1
    return forced


@pytest.mark.parametrize("which", ["small", "letters", "real"])
@pytest.mark.parametrize("name", WITH_GRAMMAR)
def test_what_a_dialect_writes_is_admitted(name: str, which: str, request: pytest.FixtureRequest) -> None:
    grammar, tokenizer = request.getfixturevalue(which)
    dialect = dialects.load(name)
    for kind in kinds(dialect):
        text = write_turn(dialect, kind)
        constraint = grammar.constraint(dialect.grammar())
        forced = walk(constraint, tokenizer.encode(text, add_special_tokens=False).ids)
        assert complete(constraint), (kind, text)
        if '"arguments"' in text:
            assert forced > 8, "names, keys and punctuation of a call cost no decoder step"


@pytest.mark.parametrize("name", WITH_GRAMMAR)
def test_a_thinking_checkpoint_can_end_its_reasoning(name: str, real) -> None:
    """Its </think> is a token of its own, and not part of free text: the grammar must let it through."""
    grammar, tokenizer = real
    dialect = dialects.load(name, chat_template=THINKING)
    kind = next(k for k in kinds(dialect))
    text = f"hm\n</think>\n\n{dialect.write(ACTIONS[kind], [PHOTO])}"
    constraint = grammar.constraint(dialect.grammar())
    walk(constraint, tokenizer.encode(text, add_special_tokens=False).ids)
    assert complete(constraint)


@pytest.mark.parametrize("name", WITH_GRAMMAR)
def test_what_the_grammar_admits_is_read(name: str, small) -> None:
    read_what_is_admitted(dialects.load(name), *small)


def read_what_is_admitted(dialect: Dialect, grammar: TokenGrammar, tokenizer: Any) -> None:
    """Random walks through the mask: a finished turn is never malformed or unknown, nor empty but for an answer of
    brackets alone."""
    rng = random.Random(dialect.name)
    opening = [syntax.opening for syntax in dialect.syntaxes]
    closing = [syntax.closing for syntax in dialect.syntaxes if syntax.closing]
    closing += [dialect.spec.parse.think_close, '"', "]", "}"]
    finished = 0
    for _ in range(8):
        constraint = grammar.constraint(dialect.grammar())
        ids: list[int] = []
        queue = [*tokenizer.encode("Hm < a " + rng.choice(opening)).ids]
        while len(ids) < 120:
            ids += constraint.forced()
            if constraint.finished:
                break
            allowed = np.flatnonzero(constraint.mask())
            if not queue and rng.random() < 0.4:
                queue = list(tokenizer.encode(rng.choice(closing)).ids)
            token = queue.pop(0) if queue else int(rng.choice(allowed))
            if token not in allowed:  # the word did not fit here
                queue = []
                continue
            constraint.accept(token)
            if token in grammar.end_tokens:
                break
            ids.append(token)
        if not complete(constraint):
            continue
        finished += 1
        text = tokenizer.decode(ids, skip_special_tokens=False)
        for action in dialect.parse(text, [PHOTO]).actions:
            fine = action.kind is not ActionKind.INVALID or action.label in ("box", "image", "argument", "refused")
            said = {s.closing and text.rpartition(s.opening)[2].removesuffix(s.closing) for s in dialect.syntaxes}
            markup = action.label == "nothing" and any(t and not dialect.answers.read(t) for t in said)
            assert fine or markup, (action, text)  # a grammar can't say that `}` between two tags is no answer
    assert finished >= 2


def test_masks_and_limits(small) -> None:
    grammar, tokenizer = small
    dialect = dialects.load("gog")
    constraint = grammar.constraint(dialect.grammar())
    mask = constraint.mask()
    assert mask.shape == (1100,) and mask.dtype == np.bool_
    known = set(tokenizer.get_vocab(with_added_tokens=True).values())
    assert {int(token) for token in np.flatnonzero(mask)} <= known  # neither gaps nor padding ids of the logits
    assert not mask[tokenizer.token_to_id("<|im_end|>")]  # a turn without an action does not end
    assert not mask[tokenizer.token_to_id("<|im_start|>")] and not mask[tokenizer.token_to_id("</tool_call>")]
    for size in (1000, 1100, 1200):
        logits = np.zeros((1, size), dtype=np.float32)
        constraint.apply(logits)
        assert (np.isneginf(logits[0, :1000]) == ~mask[:1000]).all()
        assert np.isneginf(logits[0, 1100:]).all()


def test_rejected_tokens_leave_the_constraint_usable(small) -> None:
    grammar, tokenizer = small
    constraint = grammar.constraint(dialects.load("gog").grammar())
    for token in (tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("</tool_call>"), -1, 10**9):
        with pytest.raises(GrammarError):
            constraint.accept(token)
    text = write_turn(dialects.load("gog"), "glance")
    walk(constraint, tokenizer.encode(text).ids)
    constraint.accept(tokenizer.token_to_id("<|im_end|>"))
    assert constraint.finished and constraint.forced() == [] and not constraint.mask().any()
    with pytest.raises(GrammarError, match="follows the end"):
        constraint.accept(5)
    constraint.reset()
    assert not constraint.finished
    walk(constraint, tokenizer.encode(text).ids)


def test_a_single_call_finishes_the_turn(small) -> None:
    grammar, tokenizer = small
    dialect = dialects.load("deepeyes")
    constraint = grammar.constraint(dialect.grammar())
    walk(constraint, tokenizer.encode(write_turn(dialect, "zoom")).ids)
    assert constraint.finished


def test_tags_are_the_tokens_they_are() -> None:
    lark = dialects.load("gog").grammar()
    assert lark is not None
    text, token = for_tokenizer(lark, set()), for_tokenizer(lark, {"<tool_call>", "</tool_call>", "<think>"})
    assert "//@" not in text and "//@" not in token
    assert '"\\n</tool_call>"' in text and '"\\n" </tool_call>' in token
    assert "FREE? <think>" in token and "FREE? </think>" not in token


def test_bad_grammars_and_missing_library() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(1000)))
    with pytest.raises(GrammarError, match="can't be compiled"):
        TokenGrammar(tokenizer, [tokenizer.token_to_id("<|im_end|>")]).constraint("start: missing_rule")
    with pytest.raises(GrammarError, match="none were given"):
        TokenGrammar(tokenizer, [])
    assert available()
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from gog_edge.runtime.constraint import TokenGrammar\n"
        "try: TokenGrammar(None, [1])\n"
        "except Exception as e: print(type(e).__name__, e)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("GrammarError") and "install gog-edge[grammar]" in out and out.count("\n") == 1


def test_every_action_has_a_form() -> None:
    assert {"glance", "gaze", "zoom", "text_search", "visit", "answer"} == set(ACTIONS)
