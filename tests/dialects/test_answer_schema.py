"""Answers that have to be JSON by a schema: every dialect's grammar admits them, and nothing else for an answer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gog_edge import dialects
from gog_edge.errors import DialectError
from gog_edge.runtime.constraint import problem_of
from gog_edge.types import Action, ActionKind
from tests.dialects.helpers import PHOTO, complete
from tests.dialects.script import kinds, write_turn
from tests.dialects.test_answer_stream import TOOL, written
from tests.dialects.test_answer_text import NAMES, dialect

pytest.importorskip("llguidance")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "n //@text x": {"enum": [1, 2]}},
    "required": ["name", "n //@text x"],
    "additionalProperties": False,
}
GOOD = json.dumps({"name": 'a } </answer> "b"', "n //@text x": 2}, separators=(",", ":"))
BAD = json.dumps({"name": "a", "n //@text x": 3}, separators=(",", ":"))


@pytest.fixture(scope="module", params=["tokens", "letters"])
def small(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A small tokenizer whose tags are tokens, or spelled."""
    from tokenizers import Tokenizer

    from gog_edge.export.synthetic.text import tokenizer_json
    from gog_edge.runtime.constraint import TokenGrammar

    data = tokenizer_json(1000)
    if request.param == "letters":
        data["added_tokens"] = [t for t in data["added_tokens"] if t["content"].startswith("<|")]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    return TokenGrammar(tokenizer, [tokenizer.token_to_id("<|im_end|>")], 1100), tokenizer


def admits(small: tuple[Any, Any], lark: str, text: str) -> bool:
    """Whether a whole turn may be written so; token for token, where the text leaves a choice of tokens."""
    grammar, tokenizer = small
    constraint = grammar.constraint(lark)
    done = ""
    while done != text:
        ids = tokenizer.encode(text[len(done) :], add_special_tokens=False).ids
        forced = constraint.forced()
        if forced:
            done += tokenizer.decode(forced, skip_special_tokens=False)
            if not text.startswith(done):
                return False
            continue
        allowed = np.flatnonzero(constraint.mask())
        token = ids[0]
        if token not in allowed:
            return False
        constraint.accept(token)
        done += tokenizer.decode([token], skip_special_tokens=False)
    return complete(constraint)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_by_the_schema_is_admitted_and_no_other(name: str, small: tuple[Any, Any]) -> None:
    spoken = dialect(name)
    lark, forced = spoken.grammar(SCHEMA), spoken.forced_grammar(SCHEMA)
    assert lark is not None and not problem_of(lark) and not problem_of(forced)
    for said, good in ((GOOD, True), (BAD, False), ("Paris", False)):
        turn = spoken.write(Action(ActionKind.ANSWER, said), [PHOTO])
        assert admits(small, lark, turn) == good
        assert admits(small, forced, turn.removeprefix(spoken.spec.forced.prefill)) == good
    for kind in kinds(spoken):
        if kind != "answer":
            assert admits(small, lark, write_turn(spoken, kind)), kind  # calls are as before


@pytest.mark.parametrize("name", NAMES)
def test_it_is_read_as_it_was_written(name: str) -> None:
    spoken = dialect(name)
    for forced in (False, True):
        turn = spoken.write(Action(ActionKind.ANSWER, GOOD), [PHOTO])
        turn = turn.removeprefix(spoken.spec.forced.prefill) if forced else turn
        assert written(spoken, turn, forced=forced, constrained=True, as_json=True)[1] == GOOD


def test_reasoning_comes_first_where_answers_have_no_marks(small: tuple[Any, Any]) -> None:
    spoken = dialect("direct")
    lark = spoken.grammar(SCHEMA)
    assert lark is not None and spoken.grammar() is None
    assert admits(small, lark, f"hm {{ x\n</think>\n\n{GOOD}") and not admits(small, lark, f"hm {GOOD}")


def test_an_answer_in_a_call_can_not_be_an_object(tmp_path: Any) -> None:
    (tmp_path / "d.toml").write_text(TOOL.replace("VIA", "tool_call"))
    with pytest.raises(DialectError, match="can't be a JSON object"):
        dialects.load(tmp_path / "d.toml").grammar(SCHEMA)
    (tmp_path / "e.toml").write_text('extends = "gog"\nschema = 1\nname = "e"\n[grammar]\nenabled = false\n')
    with pytest.raises(DialectError, match="no grammar"):
        dialects.load(tmp_path / "e.toml").grammar(SCHEMA)


@pytest.mark.parametrize(
    "schema",
    [{}, {"properties": {"name": {"type": "string"}}}, {"$ref": "#/$defs/A", "$defs": {"A": {"required": ["name"]}}}],
)
def test_an_answer_is_an_object_where_the_schema_leaves_it_open(schema: Any, small: tuple[Any, Any]) -> None:
    spoken = dialect("gog")
    lark = spoken.forced_grammar(schema)
    for said, good in (('{"name":"x"}', True), ("true", False), ('"x"', False), ("[1]", False), ("null", False)):
        turn = spoken.write(Action(ActionKind.ANSWER, said), [PHOTO]).removeprefix(spoken.spec.forced.prefill)
        assert admits(small, lark, turn) == good


def test_what_is_wrong_with_a_schema_is_said_in_one_line() -> None:
    lark = dialect("gog").grammar({"type": "object", "properties": {"a": {"type": "text"}}})
    assert lark is not None and problem_of(lark) == "Invalid type: text"
