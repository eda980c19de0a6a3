"""The syntaxes in which policies write their actions: one class each, chosen by `via` of [[actions]], here only."""

from __future__ import annotations

from collections.abc import Mapping

from gog_edge.dialects.coordinates import CoordinateFrame
from gog_edge.dialects.spec import ActionSpec, DialectSpec
from gog_edge.dialects.syntax.base import Call, CallProblem, Syntax
from gog_edge.dialects.syntax.boxed import Boxed
from gog_edge.dialects.syntax.code import Code
from gog_edge.dialects.syntax.function_xml import FunctionXml
from gog_edge.dialects.syntax.json import JsonObject
from gog_edge.dialects.syntax.literal import Literal
from gog_edge.dialects.syntax.tag import Tag
from gog_edge.dialects.syntax.tool_call import ToolCall

SYNTAXES: Mapping[str, type[Syntax]] = {
    "tool_call": ToolCall,
    "function_xml": FunctionXml,
    "json": JsonObject,
    "tag": Tag,
    "literal": Literal,
    "code": Code,
    "boxed": Boxed,
}

__all__ = ["SYNTAXES", "Call", "CallProblem", "Syntax", "syntaxes_of"]


def syntaxes_of(spec: DialectSpec, frame: CoordinateFrame) -> tuple[Syntax, ...]:
    """The syntaxes of a dialect, in the order in which its actions name them; equal marks are one syntax."""
    groups: dict[tuple[type[Syntax], tuple[str, str]], list[ActionSpec]] = {}
    for action in spec.actions:
        syntax = SYNTAXES[action.via]
        groups.setdefault((syntax, syntax.marks(action)), []).append(action)
    return tuple(syntax(actions, spec, frame) for (syntax, _), actions in groups.items())
