"""Calls of a closed list in a block of Python, `<code>…</code>`: read, never run (see `code_reader`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gog_edge.dialects.grammar import Rules
from gog_edge.dialects.images import reference
from gog_edge.dialects.spec import ActionSpec
from gog_edge.dialects.syntax.arguments import ArgumentSyntax
from gog_edge.dialects.syntax.base import Call, CallProblem, SizeOf
from gog_edge.dialects.syntax.borders import MAX_CALL_CHARS
from gog_edge.dialects.syntax.code_reader import RefusedCode, read_code
from gog_edge.types import Action, RegisteredImage

CODE_OPEN, CODE_CLOSE = "<code>", "</code>"
_CROPS = ("zoom", "gaze")


class Code(ArgumentSyntax):
    """All functions of a dialect's code blocks. Boxes of 0 to 1 go with functions, `image_1 = crop(image, […])`, and
    pixels with methods, `plt.imshow(image.crop((…)))`: that is how the two systems write their crops."""

    needs = ("name",)

    @classmethod
    def marks(cls, action: ActionSpec) -> tuple[str, str]:
        return action.open or CODE_OPEN, action.close or CODE_CLOSE

    def find(self, text: str, size_of: SizeOf) -> Iterator[Call]:
        at = 0
        while (start := text.find(self.opening, at)) >= 0:
            inner = start + len(self.opening)
            close = text.find(self.closing, inner)
            code, at = (
                text[inner : close if close >= 0 else None],
                close + len(self.closing) if close >= 0 else len(text),
            )
            try:
                if close < 0:
                    raise RefusedCode(f"no {self.closing} at the end")
                yield from self._read(code, start, at, size_of)
            except RefusedCode as error:
                refusal = next((a for a in self.actions if a.kind == "refuse"), None)
                problem = CallProblem("refused", str(error), "python", code.strip())
                yield Call(start, at, refusal, problem=problem, text=code.strip())

    def partial(self, text: str, size_of: SizeOf) -> Call | None:
        """The crop that the lines written so far make, were the block to end here."""
        start = text.rfind(self.opening)
        if start < 0 or self.closing in text[start:]:
            return None
        code = text[start + len(self.opening) :]
        lines = code[: code.rfind("\n") + 1]
        if not any(a.name in lines for a in self.actions if a.kind in _CROPS):
            return None
        fence = "```" if lines.lstrip().startswith("```") else ""
        try:
            return self._read(lines + fence, start, len(text), size_of)[-1]
        except RefusedCode:
            return None

    def _read(self, code: str, start: int, end: int, size_of: SizeOf) -> list[Call]:
        if len(code) > MAX_CALL_CHARS:
            raise RefusedCode("the code is too long")
        actions = {action.name: action for action in self.actions}
        out: list[Call] = []
        for found in read_code(code, actions, size_of, self.frame.frame == "unit"):
            call = self._call(actions[found.name], found.arguments, start, end, code.strip())
            label = {"label": found.arguments["result"]} if "result" in found.arguments else {}
            out.append(replace(call, values={**call.values, **label}))
        return out

    def format(self, form: ActionSpec, action: Action, images: Sequence[RegisteredImage]) -> str:
        image = reference(self.spec.images, action.image)
        if form.kind not in _CROPS:
            values = self._arguments(form, action, images).items()
            written = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values)
            body = f"\n{form.name}({written})\n"
        else:
            numbers = self.frame.numbers(action.region, images[action.image]) if action.region is not None else []
            box = ", ".join(numbers)
            body = f"\n```python\nplt.imshow({image}.crop(({box})))\nplt.show()\n```\n"
            if self.frame.frame == "unit":
                body = f"\nimage_1 = crop({image}, [{box}])\n"
        return self.opening + body + self.closing

    def grammar(self, rules: Rules) -> list[str]:
        opened, close = rules.opened(self.opening), rules.tag("close", self.closing)
        bodies = [self._body(action, rules) for action in self.actions if action.kind != "refuse"]
        return [rules.add("code", f"{opened} {body} {close}") for body in bodies]

    def _body(self, action: ActionSpec, rules: Rules) -> str:
        if action.kind not in _CROPS:
            keys = {role: key if isinstance(key, str) else key[0] for role, key in action.args.items()}
            values = [f'"{keys[role]}=" {self._value(role, action, rules)}' for role in action.required]
            return " ".join([f'"\\n{action.name}("', ' ", " '.join(values), '")\\n"'])
        if self.frame.frame == "unit":
            value = "LIMIT" if action.name == "zoom" else "box"
            return f'"\\nimage_1 = {"zoom" if action.name == "zoom" else "crop"}(" REF ", " {value} ")\\n"'
        numbers = ' ", " '.join(["NUM"] * 4)
        return f'"\\n```python\\nplt.imshow(" REF ".crop((" {numbers} ")))\\nplt.show()\\n```\\n"'
