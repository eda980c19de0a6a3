"""Dialect files: `extends`, files beside them, and errors that name the key and the mend."""

# ruff: noqa: E501 - literal calls and replies

from __future__ import annotations

from pathlib import Path

import pytest

from gog_edge import dialects
from gog_edge.dialects.hooks import HOOKS, Hooks
from gog_edge.errors import DialectError
from gog_edge.types import ActionKind, Control, Text
from tests.dialects.helpers import plain

MINIMAL = 'schema = 1\nname = "mine"\n[prompt]\nuser = "{images}{question}"\n[parse]\notherwise = "answer"\n'


def load(tmp_path: Path, text: str):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return dialects.load(path)


def test_a_minimal_file(tmp_path: Path) -> None:
    dialect = load(tmp_path, MINIMAL)
    assert dialect.name == "mine"
    assert dialect.grammar() is None
    assert [type(s) for s in dialect.opening("q", 0)] == [Control, Text, Control]


def test_extends_overrides_few_keys(tmp_path: Path) -> None:
    mine = load(tmp_path, 'extends = "gog"\nname = "mine"\n[limits]\nturns = 3\n[observe.gaze]\ncrop = ""\n')
    gog = dialects.load("gog")
    assert (mine.name, mine.limits.turns, mine.limits.results) == ("mine", 3, gog.limits.results)
    assert not mine.shows_crop(ActionKind.GAZE) and gog.shows_crop(ActionKind.GAZE)
    assert mine.spec.observe["gaze"].body == gog.spec.observe["gaze"].body
    assert mine.opening("q", 1) == gog.opening("q", 1)


def test_extends_a_file_and_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "system.txt").write_text('Say {"a": 1} on {date}. <tool_call>\n')
    (tmp_path / "base" / "after.txt").write_text("Now {question}!")
    (tmp_path / "base" / "base.toml").write_text(
        'extends = "gog"\n[prompt]\nsystem_file = "system.txt"\n[observe.glance]\nafter_file = "after.txt"\nbody = "{results}{after}"\n'
    )
    dialect = load(tmp_path, 'extends = "base/base.toml"\nname = "mine"\n')
    text = plain(dialect.opening("q", 1))
    assert 'system\nSay {"a": 1} on 2' in text and "<tool_call>\n\n# Tools" in text
    assert dialect.spec.observe["glance"].after.source == "Now {question}!"


def test_circles_and_missing_parents(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('extends = "mine.toml"\n')
    with pytest.raises(DialectError, match="circle"):
        load(tmp_path, 'extends = "other.toml"\n')
    with pytest.raises(DialectError, match="did you mean 'gog'"):
        load(tmp_path, 'extends = "gogg"\n')
    with pytest.raises(DialectError, match="extends: a name or a file"):
        load(tmp_path, "extends = 3\n")
    with pytest.raises(DialectError, match=r"no dialect file .*; shipped dialects: agile"):
        dialects.load(tmp_path / "none.toml")
    with pytest.raises(DialectError, match="no dialect 'mini'"):
        dialects.load("mini")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema = ", "not valid TOML"),
        (MINIMAL.replace("schema = 1", "schema = 9"), "schema 9 is not 1"),
        (MINIMAL.replace("schema = 1\n", ""), "schema: missing; add it"),
        (MINIMAL.replace("name =", "nome ="), "nome: unknown key; did you mean 'name'"),
        (MINIMAL.replace("{question}", "{qestion}"), r"prompt.user: unknown placeholder \{qestion\}; did you mean 'question'"),
        (MINIMAL.replace("{question}", "{question"), "prompt.user: a lone '{' at character 8; write '{{' for a brace"),
        (MINIMAL.replace('"answer"', '"anser"'), "parse.otherwise: 'anser' is not one of error, answer; did you mean 'answer'"),
        (MINIMAL + "[limits]\nturns = -1\n", "limits.turns: -1 is negative"),
        (MINIMAL + "[limits]\nturns = true\n", "limits.turns: a whole number is needed, not true or false"),
        (MINIMAL + '[limits]\nturns = "3"\n', "limits.turns: a whole number is needed, not a string"),
        ("observe = 3\n" + MINIMAL, "observe: a table is needed"),
        (MINIMAL + "[observe]\ngaze = 3\n", "observe.gaze: a table is needed"),
        (MINIMAL + "[observe.glanse]\nbody = 'x'\n", "observe.glanse: unknown key; did you mean 'glance'"),
        ("hooks = 'vrag'\n" + MINIMAL, "hooks: no hooks 'vrag'; did you mean 'vrag-rl'"),
        (MINIMAL + "[limits.crop]\nupscale = []\n", "limits.crop.upscale: a number is needed, not a list"),
        ("limits = 3\n" + MINIMAL, "limits: a table is needed, not a whole number"),
        ("stop = 3\n" + MINIMAL, "stop: a list is needed"),
        (MINIMAL + "[observe.glance]\nresult = '{titel}'\n", r"observe.glance.result: unknown placeholder \{titel\}; did you mean 'title'"),
        (MINIMAL + "[observe.default]\nbdy = 'x'\n", "observe.default.bdy: unknown key; did you mean 'body'"),
        (MINIMAL + "[[tools]]\njson = '{'\n", r"tools\[0\].json: not JSON"),
        (MINIMAL + "[[tools]]\njson = '[]'\n", r"tools\[0\].json: an object is needed"),
        (MINIMAL.replace('otherwise = "answer"', ""), "actions: no action of kind 'answer'"),
        (MINIMAL + "[[actions]]\nkind = 'glance'\nvia = 'tool_call'\n", r"actions\[0\].name: missing"),
        (MINIMAL + "[[actions]]\nkind = 'answer'\nvia = 'tag'\nopen = '<a>'\n", r"actions\[0\].close: missing"),
        (MINIMAL + "[[actions]]\nkind = 'gaze'\nvia = 'tool_call'\nname = 'x'\n", r"actions\[0\].args.box: missing; kind 'gaze' needs a box"),
        (MINIMAL + "[[actions]]\nkind = 'glance'\nvia = 'tool_call'\nname = 'x'\nargs = { bux = 'b' }\n", "args.bux: unknown role; did you mean 'box'"),
        (MINIMAL + "[[actions]]\nkind = 'zoom'\nvia = 'tool_call'\nname = 'x'\nargs = { box = ['a', 'b', 'c', 'd', 'e'] }\n", "args.box: one key, its alternatives or four"),
        (MINIMAL + "[[actions]]\nkind = 'glance'\nvia = 'tool_call'\nname = 'x'\nrequired = ['box']\n", "required: 'box' is not in args"),
        (MINIMAL + "[[actions]]\nkind = 'glance'\nvia = 'tool_call'\nname = 'x'\nalways = ['image']\n", "always: 'image' is not in args"),
        (MINIMAL + "[[actions]]\nkind = 'glance'\nvia = 'tool_call'\nname = 'x'\n", "replies.malformed: missing"),
        (MINIMAL.replace('user = "{images}{question}"', "system = ''"), "prompt.user: missing"),
        (MINIMAL + "[chat]\ntemplate = 'none.jinja'\n", "chat.template: none.jinja can't be read"),
        (MINIMAL.replace("[prompt]", "[prompt]\nsystem_file = 'none.txt'"), "prompt.system_file: none.txt can't be read"),
    ],
)  # fmt: skip
def test_errors_name_the_key_and_the_mend(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DialectError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value) and "mine.toml" in str(caught.value)


def test_large_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DialectError, match="larger than"):
        load(tmp_path, MINIMAL + "#" * 1_100_000)
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DialectError, match="can't be read"):
        dialects.load(tmp_path / "mine.toml")


def test_own_grammar_and_switched_off(tmp_path: Path) -> None:
    assert load(tmp_path, 'extends = "gog"\n[grammar]\nenabled = false\n').grammar() is None
    assert load(tmp_path, 'extends = "gog"\n[grammar]\nlark = \'start: "a"\'\n').grammar() == 'start: "a"'


def test_every_shipped_dialect_is_complete() -> None:
    assert len(dialects.names()) >= 15
    for name in dialects.names():
        for frame in ("thousand", "shown"):
            dialect = dialects.load(name, frame=frame)
            assert dialect.name == name and dialect.spec.description
            assert dialect.limits.turns >= 1
            assert dialect.forced_answer("q")


def test_hooks_belong_to_one_system_each_and_are_inherited(tmp_path: Path) -> None:
    used = [dialects.load(name).spec.hooks for name in dialects.names()]
    assert set(used) == set(HOOKS)
    assert [hooks for hooks in HOOKS if hooks and hooks not in dialects.names()] == []
    assert type(dialects.load("gog-mmsearch").frame.hooks) is HOOKS["mmsearch-r1"]  # by extends

    class Mine(Hooks):
        def seen(self, turn: str) -> str:
            return turn.removesuffix("?")

    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    assert dialects.load(path, hooks=Mine()).parse("a cat?", []).actions[0].text == "a cat"
