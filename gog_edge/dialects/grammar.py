"""The grammar of a dialect's turns, in the Lark dialect of llguidance.

Free text, then one action that can be parsed (or several calls, where the dialect takes several). The opening
of an action never occurs inside the free text, so what is opened is finished. Key order and spacing are fixed: they
are what the syntaxes' `format` writes, so everything but names and values is forced and costs no decoder step.

A tag may be one token of the tokenizer (`<tool_call>` in Qwen3) or ordinary letters (`<answer>`). Lines that differ
carry `//@text TAG`, their token form is a comment `//@token TAG`; `TokenGrammar` picks. Unpicked, the grammar is the
text form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gog_edge.dialects.coordinates import CoordinateFrame
from gog_edge.dialects.spec import DialectSpec
from gog_edge.errors import DialectError

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


def answer_grammar(
    spec: DialectSpec,
    frame: CoordinateFrame,
    syntaxes: Iterable[Syntax],
    schema: Mapping[str, Any],
    *,
    forced: bool = False,
) -> str:
    """The grammar of turns whose answer is a JSON object by `schema`. `forced`: of one that answers, behind the
    dialect's prefill.

    Raises:
        DialectError: the dialect has a grammar of its own, or none, or its answers can't hold an object.
    """
    if not spec.grammar.enabled or spec.grammar.lark:
        raise DialectError(f"dialect {spec.name!r} has no grammar that a JSON schema could be put into")
    rules = Rules(spec, frame, schema)
    if forced or not spec.actions:
        turn, common = _answer_alone(rules, syntaxes, spec.forced.prefill if forced else ""), _thoughts(rules)
    else:
        turns = [turn for syntax in syntaxes for turn in syntax.grammar(rules)]
        if not any(action.kind == "answer" for action in spec.actions):
            rules.free = "[^{](?s:.*)"  # or it would be an answer, as far as can be told from its beginning
            turns.append(rules.add("plain", f"pre {rules.json()}"))
        turn, common = " | ".join(turns), _common(rules)
    if not rules.holds_json:
        raise DialectError(f"dialect {spec.name!r} writes its answers as a call's text, which can't be a JSON object")
    return "\n".join([f"start: {turn}", *rules.lines, *common]) + "\n"


def _answer_alone(rules: Rules, syntaxes: Iterable[Syntax], begun: str) -> str:
    """The rules of a turn that answers, behind `begun`."""
    for syntax in syntaxes:
        if syntax.first.kind == "answer" and (form := syntax.json_answer(rules)):
            return form if syntax.opening in begun else f"thought? {quoted(syntax.opening)} {form}"
    return f"thought? {rules.json()}"


def _thoughts(rules: Rules) -> list[str]:
    """Reasoning in front of an answer. What can't be told from an answer by its beginning is not reasoning, since a
    lexeme takes all that it can."""
    parse = rules.spec.parse
    opens = list(dict.fromkeys(tag for tag in (parse.think_open, "<think>") if tag))
    closes = list(dict.fromkeys(tag for tag in (parse.think_close, "</think>") if tag))
    out = ["thought: " + " | ".join(f"thought_{i}" for i in range(len(closes)))]
    out.append("begun: " + " | ".join(f"begun_{i}" for i in range(len(opens))))
    out += ["THOUGHT: /[^{<\\\\](?s:.*)/", "SPACE: /\\s+/"]
    for i, tag in enumerate(opens):
        out += [f"begun_{i}: {quoted(tag)} //@text {tag}", f"//@token {tag} begun_{i}: {tag}"]
    begins = "|".join(["[^{<\\\\]", *map(pattern, opens)])
    for i, tag in enumerate(closes):
        out.append(f"thought_{i}: THOUGHT_{i} //@text {tag}")
        out.append(f"//@token {tag} thought_{i}: begun? THOUGHT? {tag} SPACE?")
        out.append(f"THOUGHT_{i}: (/({begins})(?s:.*)/ & ~/(?s:.*){pattern(tag)}(?s:.*)/) {quoted(tag)} /\\s*/")
    return out


class Rules:
    """The lines of a grammar while the syntaxes of a dialect write theirs.

    Shared rules are `box`, `NUM`, `REF` (an image's name), `STR` (JSON), `LIMIT`, `WORDS` and `FREE`.
    """

    def __init__(self, spec: DialectSpec, frame: CoordinateFrame, schema: Mapping[str, Any] | None = None) -> None:
        self.spec, self.frame, self.schema = spec, frame, schema
        self.free, self.holds_json = "(?s:.+)", False
        self.lines: list[str] = []
        self.openings: dict[str, str] = {}  # opening text -> its rule
        self._names = 0

    @property
    def references_are_text(self) -> bool:
        """Whether images are named by words, which JSON puts in quotes."""
        return bool(self.spec.images.aliases) or "{n}" in self.spec.images.reference

    def json(self) -> str:
        """The rule for an object by the schema that answers have."""
        if not self.holds_json:
            self.holds_json = True
            compact = {"type": "object", **(self.schema or {}), "x-guidance": {"whitespace_flexible": False}}
            # no comment of a grammar's line can begin in it
            self.lines.append("json_answer: %json " + json.dumps(compact).replace("/", "\\/"))
        return "json_answer"

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
    out = [f"FREE: /{rules.free}/ & ~/(?s:.*)({avoid})(?s:.*)/"]
    for index, (opening, rule) in enumerate(rules.openings.items()):
        first = re.match(r"<[^<>\s]+>", opening)
        tag = first.group() if first else opening
        out.append(f"{rule}: pre UNTIL_{index} //@text {tag}")
        rest = f" {quoted(opening[len(tag) :])}" if opening != tag else ""
        out.append(f"//@token {tag} {rule}: pre FREE? {tag}{rest}")
        free = "(?s:.*)" if rules.free == "(?s:.+)" else f"({rules.free})?"
        out.append(f"UNTIL_{index}: (/{free}/ & ~/(?s:.*)({avoid})(?s:.*)/) {quoted(opening)}")
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
