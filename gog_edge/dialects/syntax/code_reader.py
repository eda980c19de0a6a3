"""Code calls of a closed list, read from the syntax tree. Nothing is executed.

Two styles of policies that crop by code are understood:

    cropped = image_1.crop((10, 20, 300, 400)); plt.imshow(cropped); plt.show()      (pixels, methods)
    image_1 = crop(raw_image, [0.1, 0.2, 0.5, 0.6])                                  (0-1, functions)

besides plain calls of listed functions with literal arguments. Numbers may be computed from literals and image sizes.
Whatever else a block holds makes it general code, which is refused as a whole.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gog_edge.dialects.spec import ActionSpec
from gog_edge.dialects.syntax.borders import FENCE

MAX_NODES = 2000
_IMPORTS = {"PIL", "matplotlib", "matplotlib.pyplot"}
_PURE: dict[str, Callable[..., Any]] = {
    "int": int, "float": float, "round": round, "min": min, "max": max, "abs": abs, "tuple": tuple, "list": list,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip
_VIEW_METHODS = {"resize", "convert", "copy"}  # change how a view is drawn, not what it shows


class RefusedCode(Exception):
    """The block is not of the closed list; the message says what is not."""


@dataclass(frozen=True)
class View:
    """An image in the block: a named image of the session, and the box in the dialect's frame that is left of it."""

    image: str
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class CodeCall:
    """One understood call: the action's `name`, and its arguments by key (`box`, `image`, `result` for a crop)."""

    name: str
    arguments: Mapping[str, Any]


def read_code(
    source: str, actions: Mapping[str, ActionSpec], size_of: Callable[[str], tuple[float, float] | None], unit: bool
) -> list[CodeCall]:
    """The calls of a block.

    Args:
        actions: the closed list, by function or method name.
        size_of: width and height in pixels of a named image, None when there is no such image.
        unit: boxes are 0-1 of the image (else pixels).

    Raises:
        RefusedCode: the block holds anything that is not of the list.
    """
    fenced = FENCE.match(source)
    body = (fenced.group(1) if fenced else source).strip()
    try:
        tree = ast.parse(body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RefusedCode("the code can not be parsed") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise RefusedCode("the code is too long")
    reader = _Reader(actions, size_of, unit)
    try:
        return reader.run(tree)
    except (ArithmeticError, TypeError, ValueError, IndexError, KeyError, RecursionError, AttributeError) as error:
        raise RefusedCode(f"{type(error).__name__}: {error}") from error


class _Reader:
    def __init__(
        self, actions: Mapping[str, ActionSpec], size_of: Callable[[str], tuple[float, float] | None], unit: bool
    ) -> None:
        self._actions, self._size_of, self._unit = actions, size_of, unit
        self._names: dict[str, Any] = {}
        self._made: dict[str, View] = {}  # images assigned in this block
        self._shown: list[View] = []
        self._calls: list[CodeCall] = []

    def run(self, tree: ast.Module) -> list[CodeCall]:
        for statement in tree.body:
            self._statement(statement)
        if self._shown or (self._made and not self._calls):
            views = self._shown or [list(self._made.values())[-1]]
            if len(views) != 1:
                raise RefusedCode("only one image can be shown in a block")
            result = next((name for name, view in self._made.items() if view is views[0]), "")
            self._calls.append(self._crop(views[0], result))
        if not self._calls:
            raise RefusedCode("there is no known call in the code")
        return self._calls

    def _crop(self, view: View, result: str) -> CodeCall:
        size = self._size_of(view.image)
        if size is None:
            raise RefusedCode(f"name '{view.image}' is not defined")
        whole = (0.0, 0.0, 1.0, 1.0) if self._unit else (0.0, 0.0, *size)
        name = next(name for name, action in self._actions.items() if action.kind in ("zoom", "gaze"))
        return CodeCall(name, {"box": list(view.box or whole), "image": view.image, "result": result})

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Import) and all(alias.name in _IMPORTS for alias in node.names):
            return
        if isinstance(node, ast.ImportFrom) and node.module in _IMPORTS:
            return
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            self._assign(node.targets[0], self._value(node.value))
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            value = self._call(node.value)
            if isinstance(value, View):
                self._shown.append(value)
            return
        raise RefusedCode(f"{type(node).__name__} is not allowed")

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self._names[target.id] = value
            if isinstance(value, View):
                self._made[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, _Plot):
            for part in target.elts:
                self._assign(part, value)
        elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (tuple, list)):
            if len(target.elts) != len(value):
                raise RefusedCode("not enough values to unpack")
            for part, item in zip(target.elts, value):
                self._assign(part, item)
        else:
            raise RefusedCode("this assignment is not allowed")

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)):
            return node.value
        if isinstance(node, (ast.Tuple, ast.List)):
            return tuple(self._value(item) for item in node.elts)
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._number(self._value(node.operand))
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Subscript):
            return self._subscript(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        raise RefusedCode(f"{type(node).__name__} is not allowed")

    def _name(self, name: str) -> Any:
        if name in self._names:
            return self._names[name]
        if name == "plt":
            return _Plot()
        if self._size_of(name) is not None or self._size_of(f"{name}[0]") is not None:
            return View(name)
        raise RefusedCode(f"name '{name}' is not defined")

    def _subscript(self, node: ast.Subscript) -> Any:
        value, index = self._value(node.value), self._value(node.slice)
        if isinstance(value, View) and value.box is None and isinstance(index, int):
            name = f"{value.image}[{index}]"
            if self._size_of(name) is not None:
                return View(name)
        if isinstance(value, tuple) and isinstance(index, int):
            return value[index]
        raise RefusedCode("this index is not allowed")

    def _attribute(self, node: ast.Attribute) -> Any:
        value = self._value(node.value)
        if isinstance(value, View) and node.attr in ("size", "width", "height"):
            width, height = self._extent(value)
            return {"size": (width, height), "width": width, "height": height}[node.attr]
        raise RefusedCode(f"attribute '{node.attr}' is not allowed")

    def _extent(self, view: View) -> tuple[float, float]:
        size = self._size_of(view.image)
        if size is None:
            raise RefusedCode(f"name '{view.image}' is not defined")
        if view.box is None:
            return size
        scale = size if self._unit else (1.0, 1.0)
        return (view.box[2] - view.box[0]) * scale[0], (view.box[3] - view.box[1]) * scale[1]

    def _arithmetic(self, node: ast.BinOp) -> float:
        apply = _OPERATORS.get(type(node.op))
        if apply is None:
            raise RefusedCode("this operator is not allowed")
        return self._number(apply(self._number(self._value(node.left)), self._number(self._value(node.right))))

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise RefusedCode("a number is needed")
        if abs(value) > 1e9:
            raise RefusedCode("the number is too large")
        return value

    def _call(self, node: ast.Call) -> Any:
        arguments = [self._value(argument) for argument in node.args]
        keywords = {str(k.arg): self._value(k.value) for k in node.keywords if k.arg is not None}
        if len(keywords) != len(node.keywords):
            raise RefusedCode("** is not allowed")
        if isinstance(node.func, ast.Attribute):
            return self._method(self._value(node.func.value), node.func.attr, arguments)
        if not isinstance(node.func, ast.Name):
            raise RefusedCode("this call is not allowed")
        name = node.func.id
        if name in _PURE and not keywords:
            return _PURE[name](*arguments)
        action = self._actions.get(name)
        if action is None or action.kind == "refuse":
            raise RefusedCode(f"{name}() is not allowed")
        if action.kind in ("zoom", "gaze"):
            return self._function(name, [*arguments, *keywords.values()])
        keys = [key for key in action.args.values() if isinstance(key, str)]
        if len(arguments) > len(keys):
            raise RefusedCode(f"{name}() takes {len(keys)} arguments")
        self._calls.append(CodeCall(name, {**dict(zip(keys, arguments)), **keywords}))
        return None

    def _method(self, owner: Any, method: str, arguments: list[Any]) -> Any:
        if isinstance(owner, _Plot):
            if method == "imshow" and arguments and isinstance(arguments[0], View):
                self._shown.append(arguments[0])
            return owner
        if isinstance(owner, View) and method == "show" and not arguments:
            return owner
        if isinstance(owner, View) and method in _VIEW_METHODS:
            return View(owner.image, owner.box)
        if isinstance(owner, View) and method == "crop" and method in self._actions and len(arguments) == 1:
            return self._cut(owner, arguments[0])
        raise RefusedCode(f".{method}() is not allowed")

    def _function(self, name: str, arguments: list[Any]) -> View:
        if len(arguments) < 2 or not isinstance(arguments[0], View):
            raise RefusedCode(f"{name}() needs an image and a value")
        if name == "zoom":
            if self._number(arguments[1]) <= 0:
                raise RefusedCode("The scaling factor must be greater than 0.")
            return View(arguments[0].image, arguments[0].box)
        return self._cut(arguments[0], arguments[1])

    def _cut(self, view: View, box: Any) -> View:
        if not isinstance(box, tuple) or len(box) != 4:
            raise RefusedCode("a box of four numbers is needed")
        x0, y0, x1, y1 = (self._number(v) for v in box)
        if self._unit and not all(0 <= v <= 1 for v in (x0, y0, x1, y1)):
            raise RefusedCode("crop_box must be 4 values between 0 and 1")
        if x1 <= x0 or y1 <= y0:
            raise RefusedCode("the box is empty or inverted")
        if view.box is None:
            return View(view.image, (x0, y0, x1, y1))
        left, top, right, bottom = view.box
        sx, sy = (right - left, bottom - top) if self._unit else (1.0, 1.0)
        inner = (left + x0 * sx, top + y0 * sy, min(left + x1 * sx, right), min(top + y1 * sy, bottom))
        return View(view.image, inner)


class _Plot:
    """Stands for `plt` and for what its calls return."""
