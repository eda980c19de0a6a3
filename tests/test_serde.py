"""Checked plain data: what it writes it reads, and a mistake is named by its path."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gog_edge.serde import SerdeError, decode, encode
from gog_edge.types import ActionKind


@dataclass(frozen=True)
class Leaf:
    kind: Literal["a", "b"]
    numbers: tuple[float, ...] = ()
    pair: tuple[int, str] | None = None


@dataclass(frozen=True)
class Tree:
    name: str
    leaves: dict[str, Leaf] = field(default_factory=dict)
    action: ActionKind = ActionKind.ANSWER
    size: int | str = 0
    flag: bool = False


leaves = st.builds(
    Leaf,
    kind=st.sampled_from(["a", "b"]),
    numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
    pair=st.none() | st.tuples(st.integers(), st.text()),
)
trees = st.builds(
    Tree,
    name=st.text(),
    leaves=st.dictionaries(st.text(), leaves, max_size=3),
    action=st.sampled_from(ActionKind),
    size=st.integers() | st.text(),
    flag=st.booleans(),
)


@given(trees)
def test_round_trip_through_json(tree: Tree) -> None:
    assert decode(Tree, json.loads(json.dumps(encode(tree)))) == tree


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "Tree.name: missing"),
        ({"name": 3}, "Tree.name: a string is needed, not a whole number"),
        ({"name": "x", "extra": 1}, "Tree.extra: unknown key; known here: action, flag"),
        ({"name": "x", "flag": 1}, "Tree.flag: true or false is needed, not a whole number"),
        ({"name": "x", "action": "fly"}, "Tree.action: 'fly' is not one of"),
        ({"name": "x", "leaves": {"l": {"kind": "c"}}}, "Tree.leaves.l.kind: 'c' is not one of"),
        (
            {"name": "x", "leaves": {"l": {"kind": "a", "numbers": ["1"]}}},
            "numbers[0]: a number is needed, not a string",
        ),
        ({"name": "x", "leaves": {"l": {"kind": "a", "pair": [1]}}}, "pair: 2 values are needed, not 1"),
        ([], "Tree: a table is needed, not a list"),
    ],
)
def test_mistakes_name_their_path(data: Any, message: str) -> None:
    with pytest.raises(SerdeError) as caught:
        decode(Tree, data)
    assert message in str(caught.value)


def test_true_is_not_a_number() -> None:
    @dataclass(frozen=True)
    class Count:
        n: int

    # hints of a local class resolve against the module, so the field's annotation is set by hand
    Count.__annotations__["n"] = int
    with pytest.raises(SerdeError):
        decode(Count, {"n": True})
    assert dataclasses.asdict(decode(Count, {"n": 1})) == {"n": 1}
