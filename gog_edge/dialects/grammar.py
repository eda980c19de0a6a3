"""The grammar of a dialect's turns, in the Lark dialect of llguidance.

Free text, then one action that can be read for sure (or several calls, where the dialect takes several). The opening
of an action never occurs inside the free text, so what is opened is finished. Key order and spacing are fixed: they
are what `write_action` writes, so everything but names and values is forced and costs no decoder step.

A tag may be one token of the tokenizer (`<tool_call>` in Qwen3) or ordinary letters (`<answer>`). Lines that differ
carry `//@text TAG`, their token form is a comment `//@token TAG`; `TokenGrammar` picks. Unpicked, the grammar is the
text form.
"""

from __future__ import annotations

import re
from itertools import product

from gog_edge.dialects.coordinates import CoordinateFrame
from gog_edge.dialects.spec import ActionSpec, DialectSpec

_TOKEN_LINE = re.compile(r"^//@token (\S+) (.*)$")
_TEXT_LINE = re.compile(r"^(.*?) //@text (\S+)$")

_NUMBERS = {
    "unit": r"0|1|0\.[0-9]{1,4}|1\.0{1,4}",
    "thousand": r"0|[1-9][0-9]{0,2}|1000",
    "shown": r"0|[1-9][0-9]{0,4}",
    "original": r"0|[1-9][0-9]{0,4}",
}


def dialect_grammar(spec: DialectSpec, frame: CoordinateFrame) -> str | None:
    """The grammar, or None where the dialect has none (no actions, or switched off)."""
    if not spec.grammar.enabled:
        return None
    if spec.grammar.lark:
        return spec.grammar.lark
    return _Writer(spec, frame).write() if spec.actions else None


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


class _Writer:
    def __init__(self, spec: DialectSpec, frame: CoordinateFrame) -> None:
        self.spec, self.frame = spec, frame
        self.lines: list[str] = []
        self.openers: dict[str, str] = {}  # opening text -> rule

    def write(self) -> str:
        parse = self.spec.parse
        calls = [self._action(i, a) for i, a in enumerate(self.spec.actions) if a.kind not in ("answer", "refuse")]
        answers = [self._action(i, a) for i, a in enumerate(self.spec.actions) if a.kind == "answer"]
        turns = list(answers)
        in_block = [a for a in self.spec.actions if a.via == "tool_call" and a.kind != "refuse"]
        if in_block:
            calls = [c for c in calls if c != "tool"]
            calls.append("tool_turn")
            several = ' ("\\n" next_call)*' if parse.pick == "all" else ""
            self._rule("tool_turn", f"{self._open(parse.call_open)} tool_body{several}")
            names = [i for i, a in enumerate(self.spec.actions) if a in in_block]
            bodies = " | ".join(f"tool_{i}" for i in names)
            self.lines.append(f'tool_body: "\\n{{\\"{parse.name_key}\\": \\"" ({bodies}) tool_close')
            self._tag_rule("tool_close", "", "\n", parse.call_close)
            if several:
                self._tag_rule("next_call", " tool_body", "", parse.call_open)
        turns += calls
        if parse.otherwise == "answer":
            turns.append("plain")
            self.lines.append("plain: pre FREE?")
        head = ["start: " + " | ".join(dict.fromkeys(turns))]
        return "\n".join([*head, *self.lines, *self._common()]) + "\n"

    # -- pieces ------------------------------------------------------------------------------------------------

    def _rule(self, name: str, body: str) -> None:
        self.lines.append(f"{name}: {body}")

    def _tag_rule(self, name: str, after: str, before: str, tag: str) -> None:
        """`name: "before tag" after`, in both forms."""
        self.lines.append(f"{name}: {_quote(before + tag)}{after} //@text {tag}")
        lead = f"{_quote(before)} " if before else ""
        self.lines.append(f"//@token {tag} {name}: {lead}{tag}{after}")

    def _open(self, opening: str) -> str:
        """The rule for free text up to and with `opening`."""
        if opening not in self.openers:
            self.openers[opening] = f"open_{len(self.openers)}"
        return self.openers[opening]

    def _until(self, name: str, closing: str) -> str:
        """A rule for any text up to and with `closing`."""
        upper = name.upper()
        self.lines.append(f"{name}: {upper}_END //@text {closing}")
        self.lines.append(f"//@token {closing} {name}: {upper}_IN? {closing}")
        self.lines.append(f"{upper}_IN: /(?s:.+)/ & ~/(?s:.*){_regex(closing)}(?s:.*)/")
        self.lines.append(f"{upper}_END: (/(?s:.*)/ & ~/(?s:.*){_regex(closing)}(?s:.*)/) {_quote(closing)}")
        return name

    def _common(self) -> list[str]:
        parse = self.spec.parse
        avoid = "|".join(_regex(opening) for opening in self.openers)
        out = [f"FREE: /(?s:.+)/ & ~/(?s:.*)({avoid})(?s:.*)/"]
        for index, (opening, rule) in enumerate(self.openers.items()):
            first = re.match(r"<[^<>\s]+>", opening)
            tag = first.group() if first else opening
            out.append(f"{rule}: pre UNTIL_{index} //@text {tag}")
            rest = f" {_quote(opening[len(tag) :])}" if opening != tag else ""
            out.append(f"//@token {tag} {rule}: pre FREE? {tag}{rest}")
            out.append(f"UNTIL_{index}: (/(?s:.*)/ & ~/(?s:.*)({avoid})(?s:.*)/) {_quote(opening)}")
        own = [tag for tag in (parse.think_open, parse.think_close) if tag]
        # A thinking checkpoint writes its own tags, whatever those of the dialect are (see `split_thought`).
        thinks = list(dict.fromkeys([*own, "<think>", "</think>"])) if own else []
        out.append("pre: " + " ".join(f"think_{i}?" for i in range(len(thinks))))
        for i, tag in enumerate(thinks):
            # In text form the tags are part of FREE; the rule then matches nothing of its own.
            out.append(f'think_{i}: "" //@text {tag}')
            out.append(f"//@token {tag} think_{i}: FREE? {tag}")
        out += [f"NUM: /{self._numbers()}/", f"REF: /{self._references()}/"]
        out += [r'STR: /"([^"\\\x00-\x1f]|\\["\\\/bfnrt])*"/', "LIMIT: /[1-9][0-9]?/", r"WORDS: /[^<>\n]+/"]
        out.append('box: "[" NUM ", " NUM ", " NUM ", " NUM "]"')
        return out

    def _numbers(self) -> str:
        frames = [self.frame.frame]
        if self.spec.coordinates.fallback != "none":
            frames.append(self.spec.coordinates.fallback)
        return "|".join(dict.fromkeys(_NUMBERS[f] for f in frames))

    def _references(self) -> str:
        images = self.spec.images
        number = "(0|[1-9][0-9]?)"
        pattern = _regex(images.reference).replace(_regex("{n}"), number)
        if "{n}" not in images.reference:
            pattern = number
        return "|".join([pattern, *(_regex(alias) for alias in images.aliases)])

    # -- actions -----------------------------------------------------------------------------------------------

    def _action(self, index: int, action: ActionSpec) -> str:
        name = f"act_{index}"
        if action.via == "tool_call":
            call = f'{_quote(action.name + chr(34))} ({self._arguments_part(action)}) "}}"'
            self._rule(f"tool_{index}", call)
            return "tool"
        if action.via == "literal":
            self._rule(name, self._open(action.literal))
        elif action.via == "json":
            self._rule(name, f"{self._open(action.open)} ({self._object(action)}) close_{index}")
            self._tag_rule(f"close_{index}", "", "", action.close)
        elif action.via == "boxed":
            self._rule(name, f'{self._open(chr(92) + "boxed{")} braces "}}" FREE?')
            if "braces: " not in "".join(self.lines):
                self.lines.append('braces: (BRACE_TEXT | "{" braces "}")*')
                self.lines.append("BRACE_TEXT: /[^{}]+/")
        elif action.via == "code":
            self._rule(name, self._code(index, action))
        else:
            self._rule(name, f"{self._open(action.open)} {self._content(index, action)}")
        return name

    def _content(self, index: int, action: ActionSpec) -> str:
        """What stands between two tags, with the closing tag."""
        close = f"close_{index}"
        if action.content == "text":
            return self._until(f"text_{index}", action.close)
        self._tag_rule(close, "", "", action.close)
        if action.content in ("box", "box_or_label"):
            return f"box {close}" if action.content == "box" else f"box WORDS? {close}"
        return close if action.content == "none" else f"WORDS {close}"

    def _arguments_part(self, action: ActionSpec) -> str:
        if action.bare:
            return '""'
        key = self.spec.parse.arguments_key
        body = f'", \\"{key}\\": " ({self._object(action)})'
        return f"({body})?" if not action.args else body

    def _object(self, action: ActionSpec) -> str:
        """A JSON object with the required keys and any of the optional ones, in the order of `args`."""
        image = self._image_is_text()
        pairs: list[tuple[str, bool]] = []
        for role, keys in action.args.items():
            needed = role in action.required or role in ("box", "unused")
            if role == "box" and isinstance(keys, tuple):
                pairs.append((' ", " '.join(f'"\\"{key}\\": " NUM' for key in keys), needed))
                continue
            key = keys if isinstance(keys, str) else keys[0]
            pairs.append((f'"\\"{key}\\": " {self._value(role, action, image)}', needed))
        forms: list[str] = []
        for kept in product(*(((True,) if needed else (True, False)) for _, needed in pairs)):
            chosen = [pair for (pair, _), keep in zip(pairs, kept) if keep]
            forms.append('"{" ' + ' ", " '.join(chosen) + ' "}"' if chosen else '"{}"')
        return " | ".join(forms)

    def _value(self, role: str, action: ActionSpec, image_is_text: bool) -> str:
        if role == "box":
            return '"[" box (", " box)* "]"' if action.many else "box"
        if role == "image":
            named = r'"\"" REF "\""' if image_is_text else "REF"
            return f'"[" {named} "]"' if action.listed else named
        if role == "limit":
            return "LIMIT"
        listed = action.listed and role in ("query", "url")
        several = ' (", " STR)*' if action.many else ""
        return f'"[" STR{several} "]"' if listed else "STR"

    def _image_is_text(self) -> bool:
        images = self.spec.images
        return bool(images.aliases) or "{n}" in images.reference

    def _code(self, index: int, action: ActionSpec) -> str:
        opened = self._open(action.open or "<code>")
        close = action.close or "</code>"
        self._tag_rule(f"close_{index}", "", "", close)
        if self.frame.frame == "unit" and action.name == "zoom":
            return f'{opened} "\\nimage_1 = zoom(" REF ", " LIMIT ")\\n" close_{index}'
        if self.frame.frame == "unit":
            return f'{opened} "\\nimage_1 = crop(" REF ", " box ")\\n" close_{index}'
        numbers = '", " '.join(["NUM "] * 4).strip()
        head = '"\\n```python\\nplt.imshow(" REF ".crop(("'
        return f'{opened} {head} {numbers} ")))\\nplt.show()\\n```\\n" close_{index}'


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _regex(text: str) -> str:
    """Escaped for a regular expression between slashes."""
    return re.sub(r"([^\w\s<>:;,=\"'%&@!~`-])", r"\\\1", text).replace("\n", "\\n")
