"""The grammar of a dialect's turns, in the Lark dialect of llguidance.

Free text, then one action that can be parsed (or several calls, where the dialect takes several). The opening
of an action never occurs inside the free text, so what is opened is finished. Key order and spacing are fixed: they
are what the syntaxes' `format` writes, so everything but names and values is forced and costs no decoder step.

A tag may be one token of the tokenizer (`<tool_call>` in Qwen3) or ordinary letters (`<answer>`). Lines that differ
carry `//@text TAG`, their token form is a comment `//@token TAG`; `TokenGrammar` picks. Unpicked, the grammar is the
text form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gog_edge.dialects.coordinates import CoordinateFrame
from gog_edge.dialects.spec import DialectSpec

if TYPE_CHECKING:
    from gog_edge.dialects.syntax import Syntax


def dialect_grammar(spec: DialectSpec, frame: CoordinateFrame, syntaxes: Iterable[Syntax]) -> str | None:
    """The grammar, or None where the dialect has none (no actions, or switched off)."""
    if not spec.grammar.enabled or not (spec.grammar.lark or spec.actions):
        return None
    if spec.grammar.lark:
        return spec.grammar.lark
    rules = Rules(spec, frame)
    turns = [turn for syntax in syntaxes for turn in syntax.grammar(rules)]
    if spec.parse.otherwise == "answer":
        turns.append(rules.add("plain", "pre FREE?"))
    return "\n".join(["start: " + " | ".join(turns), *rules.lines, *_common(rules)]) + "\n"


class Rules:
    """The lines of a grammar while the syntaxes of a dialect write theirs.

    Shared rules are `box`, `NUM`, `REF` (an image's name), `STR` (JSON), `LIMIT`, `WORDS` and `FREE`.
    """

    def __init__(self, spec: DialectSpec, frame: CoordinateFrame) -> None:
        self.spec, self.frame = spec, frame
        self.lines: list[str] = []
        self.openings: dict[str, str] = {}  # opening text -> its rule
        self._names = 0

    @property
    def references_are_text(self) -> bool:
        """Whether images are named by words, which JSON puts in quotes."""
        return bool(self.spec.images.aliases) or "{n}" in self.spec.images.reference

    def new(self, what: str) -> str:
        """A name that no other rule has."""
        self._names += 1
        return f"{what}_{self._names}"

    def put(self, name: str, body: str) -> str:
        """`name: body`; returns the name."""
        self.lines.append(f"{name}: {body}")
        return name

    def add(self, what: str, body: str) -> str:
        """A new rule; returns its name."""
        return self.put(self.new(what), body)

    def tag(self, what: str, tag: str, *, before: str = "", after: str = "") -> str:
        """A new rule for the text `before`, the tag, then the rules `after`, in both forms; returns its name."""
        name = self.new(what)
        self.lines.append(f"{name}: {quoted(before + tag)}{after} //@text {tag}")
        self.lines.append(f"//@token {tag} {name}: {quoted(before) + ' ' if before else ''}{tag}{after}")
        return name

    def opened(self, opening: str) -> str:
        """The rule for reasoning and free text up to and with `opening`."""
        return self.openings.setdefault(opening, f"open_{len(self.openings)}")

    def until(self, closing: str) -> str:
        """A new rule for any text up to and with `closing`, without the end of reasoning in it; returns its name."""
        name = self.new("text")
        ends = "|".join(pattern(tag) for tag in (closing, self.spec.parse.think_close) if tag)
        upper, other = name.upper(), f"~/(?s:.*)({ends})(?s:.*)/"
        self.lines.append(f"{name}: {upper}_END //@text {closing}")
        self.lines.append(f"//@token {closing} {name}: {upper}_IN? {closing}")
        self.lines.append(f"{upper}_IN: /(?s:.+)/ & {other}")
        self.lines.append(f"{upper}_END: (/(?s:.*)/ & {other}) {quoted(closing)}")
        return name


def _common(rules: Rules) -> list[str]:
    """What all dialects share, and what is known once every opening is."""
    parse = rules.spec.parse
    avoid = "|".join(pattern(opening) for opening in rules.openings)
    out = [f"FREE: /(?s:.+)/ & ~/(?s:.*)({avoid})(?s:.*)/"]
    for index, (opening, rule) in enumerate(rules.openings.items()):
        first = re.match(r"<[^<>\s]+>", opening)
        tag = first.group() if first else opening
        out.append(f"{rule}: pre UNTIL_{index} //@text {tag}")
        rest = f" {quoted(opening[len(tag) :])}" if opening != tag else ""
        out.append(f"//@token {tag} {rule}: pre FREE? {tag}{rest}")
        out.append(f"UNTIL_{index}: (/(?s:.*)/ & ~/(?s:.*)({avoid})(?s:.*)/) {quoted(opening)}")
    own = [tag for tag in (parse.think_open, parse.think_close) if tag]
    # A thinking checkpoint writes its own tags, whatever those of the dialect are (see `split_thought`).
    thinks = list(dict.fromkeys([*own, "<think>", "</think>"])) if own else []
    out.append("pre: " + " ".join(f"think_{i}?" for i in range(len(thinks))))
    for i, tag in enumerate(thinks):
        # In text form the tags are part of FREE; the rule then matches nothing of its own.
        out.append(f'think_{i}: "" //@text {tag}')
        out.append(f"//@token {tag} think_{i}: FREE? {tag}")
    out += [f"NUM: /{rules.frame.number_pattern}/", f"REF: /{_references(rules)}/"]
    out += [r'STR: /"([^"\\\x00-\x1f]|\\["\\\/bfnrt])*"/', "LIMIT: /[1-9][0-9]?/", r"WORDS: /[^<>\n]+/"]
    out.append('box: "[" NUM ", " NUM ", " NUM ", " NUM "]"')
    return out


def _references(rules: Rules) -> str:
    images, number = rules.spec.images, "(0|[1-9][0-9]?)"
    named = pattern(images.reference).replace(pattern("{n}"), number) if "{n}" in images.reference else number
    return "|".join([named, *(pattern(alias) for alias in images.aliases)])


def quoted(text: str) -> str:
    """A string of the grammar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def pattern(text: str) -> str:
    """Escaped for a regular expression between slashes."""
    return re.sub(r"([^\w\s<>:;,=\"'%&@!~`-])", r"\\\1", text).replace("\n", "\\n")
