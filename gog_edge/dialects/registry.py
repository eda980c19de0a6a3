"""Finding and loading dialects: shipped ones by name, a bundle's or a user's by path, `extends` resolved."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from gog_edge.dialects.coordinates import CoordinateFrame
from gog_edge.dialects.dialect import Dialect
from gog_edge.dialects.hooks import HOOKS, Hooks
from gog_edge.dialects.reader import read_table
from gog_edge.dialects.spec import (
    OBSERVED,
    SCHEMA,
    SYSTEM_NAMES,
    USER_NAMES,
    ActionSpec,
    BodySpec,
    DialectSpec,
)
from gog_edge.dialects.syntax import SYNTAXES
from gog_edge.dialects.templates import ChatTemplate
from gog_edge.dialects.wording import Wording, compile_wording
from gog_edge.disk.paths import expand
from gog_edge.errors import DialectError, UsageError
from gog_edge.serde import suggest
from gog_edge.types import BoxFrame

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT = "gog"
MAX_FILE_BYTES = 1_000_000
_MOST_DECIMALS = 12
_ROLES = frozenset({"box", "label", "query", "image", "limit", "url", "text", "unused"})


def names() -> list[str]:
    """Names of the shipped dialects, sorted."""
    folder = files("gog_edge.dialects")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(
    name_or_path: str | Path = DEFAULT,
    *,
    frame: BoxFrame = "thousand",
    chat_template: str | None = None,
    named_tokens: Mapping[str, str] | None = None,
    hooks: Hooks | None = None,
) -> Dialect:
    """A ready dialect.

    Args:
        name_or_path: a shipped name (see `names()`) or a TOML file.
        frame: in what the checkpoint's family writes boxes (`Family.box_frame`), where the dialect leaves it to that.
        hooks: what the system alone does, instead of the hooks that the file names.
        chat_template: the checkpoint's `chat_template.jinja`; None: the package's ChatML template.
        named_tokens: values of `eos_token` and its kin in the template; the dialect's variables stand above them.

    Raises:
        DialectError: no such dialect, or the file is wrong; names the key and how to fix it.
    """
    table, base = read_file(name_or_path)
    spec = _checked(build(table, str(name_or_path)), base, str(name_or_path))
    if spec.chat.template != "checkpoint":
        chat_template = _beside(base, spec.chat.template, f"{name_or_path}: chat.template")
    variables = {**(named_tokens or {}), **spec.chat.variables}
    template = ChatTemplate.default(variables) if chat_template is None else ChatTemplate(chat_template, variables)
    own = spec.coordinates.frame
    chosen = hooks or HOOKS[spec.hooks]()
    coordinates = CoordinateFrame(spec.coordinates, frame if own == "family" else own, chosen)
    dialect = Dialect(spec, template, coordinates)
    try:
        _ = dialect.sampling  # its values are checked where they are put together
    except UsageError as error:
        raise DialectError(f"{name_or_path}: sampling.{error}") from error
    return dialect


def build(table: Mapping[str, Any], where: str) -> DialectSpec:
    """A validated spec from a merged TOML table.

    Raises:
        DialectError: see `load`.
    """
    data = {key: value for key, value in table.items() if key != "extends"}
    try:
        observe = _table(data.get("observe", {}), "observe", ("default", *OBSERVED))
        default = _table(observe.get("default", {}), "observe.default")
        read_table(BodySpec, default, "observe.default")
        bodies = {kind: _table(observe.get(kind, {}), f"observe.{kind}") for kind in OBSERVED}
        data["observe"] = {kind: {**default, **own} for kind, own in bodies.items()}
        return read_table(DialectSpec, data, "")
    except DialectError as error:
        raise DialectError(f"{where}: {error}") from error


def _table(value: Any, where: str, known: Sequence[str] = ()) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DialectError(f"{where}: a table is needed")
    for key in value if known else ():
        if key not in known:
            raise DialectError(f"{where}.{key}: unknown key{suggest(key, sorted(known))}")
    return value


def read_file(name_or_path: str | Path) -> tuple[dict[str, Any], Path | None]:
    """The TOML table with `extends` resolved, and the folder that its file names are relative to.

    Raises:
        DialectError: missing file, TOML error, or a circle of `extends`.
    """
    return _read(name_or_path, None, ())


def _read(name_or_path: str | Path, beside: Path | None, seen: tuple[str, ...]) -> tuple[dict[str, Any], Path | None]:
    text, base, identity = _text(name_or_path, beside)
    if identity in seen:
        raise DialectError(f"{name_or_path}: `extends` runs in a circle: {' -> '.join([*seen, identity])}")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DialectError(f"{name_or_path}: not valid TOML: {error}") from error
    parent = table.pop("extends", None)
    if parent is None:
        return table, base
    if not isinstance(parent, str):
        raise DialectError(f"{name_or_path}: extends: a name or a file is needed")
    inherited, parent_base = _read(parent, base, (*seen, identity))
    if parent_base is not None and parent_base != base:
        inherited = _anchored(inherited, parent_base)
    return _merged(inherited, table), base


def _text(name_or_path: str | Path, beside: Path | None) -> tuple[str, Path | None, str]:
    name = str(name_or_path)
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        known = names()
        if name not in known:
            hint = f"(a file needs its ending, such as ./{name}.toml)"
            raise DialectError(f"no dialect {name!r}{suggest(name, known)} {hint}")
        entry = files("gog_edge.dialects").joinpath(f"{name}.toml")
        return entry.read_text(encoding="utf-8"), None, name
    path = expand(name)
    if beside is not None and not path.is_absolute():
        path = beside / path
    try:
        return _contents(path, f"dialect file {name}"), path.parent, str(path.resolve())
    except DialectError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise DialectError(f"no dialect file {name}; shipped dialects: {', '.join(names())}") from error
        raise


def _contents(path: Path, what: str) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DialectError(f"{what} is larger than {MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # no UTF-8, or a name that no file can have
        if isinstance(error, DialectError):
            raise
        raise DialectError(f"{what} can't be read: {error}") from error


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on `base`: tables key by key, everything else (lists as well) replaced."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _anchored(table: Any, base: Path) -> Any:
    """The parent's file names made absolute, so that they stay beside the parent."""
    if not isinstance(table, Mapping):
        return table
    return {
        key: str(base / value) if key.endswith("_file") and isinstance(value, str) and value else _anchored(value, base)
        for key, value in table.items()
    }


def _beside(base: Path | None, name: str, where: str) -> str:
    path = expand(name)
    if not path.is_absolute():
        if base is None:
            raise DialectError(f"{where}: {name!r} has no folder to be relative to; give a full path")
        path = base / path
    return _contents(path, f"{where}: {name}")


def _checked(spec: DialectSpec, base: Path | None, where: str) -> DialectSpec:
    """Rules between keys, and the prompt files read in."""
    if spec.schema != SCHEMA:
        raise DialectError(f"{where}: schema {spec.schema} is not {SCHEMA}; this version of gog-edge reads {SCHEMA}")
    if spec.hooks not in HOOKS:
        raise DialectError(f"{where}: hooks: no hooks {spec.hooks!r}{suggest(spec.hooks, sorted(HOOKS)[1:])}")
    if spec.coordinates.decimals > _MOST_DECIMALS:
        raise DialectError(f"{where}: coordinates.decimals: {spec.coordinates.decimals} is more than {_MOST_DECIMALS}")
    if not spec.prompt.user and not spec.prompt.user_file:
        raise DialectError(f'{where}: prompt.user: missing; add it, for example "{{images}}{{question}}"')
    for index, tool in enumerate(spec.tools):
        _check_tool(tool.json, f"{where}: tools[{index}].json")
    if not any(action.kind == "answer" for action in spec.actions) and spec.parse.otherwise != "answer":
        raise DialectError(f"{where}: actions: no action of kind 'answer'; add one or set parse.otherwise = \"answer\"")
    for index, action in enumerate(spec.actions):
        _check_action(action, f"{where}: actions[{index}]")
    calls = any(action.kind != "answer" for action in spec.actions)
    if (calls or spec.parse.otherwise == "error") and not spec.replies.malformed:
        raise DialectError(f"{where}: replies.malformed: missing; add the words for a turn that can't be read")
    return _with_files(spec, base, where)


def _check_tool(source: str, where: str) -> None:
    try:
        tool = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise DialectError(f"{where}: not JSON: {error}") from error
    if not isinstance(tool, dict):
        raise DialectError(f"{where}: an object is needed")


def _check_action(action: ActionSpec, where: str) -> None:
    if action.via not in SYNTAXES:
        raise DialectError(f"{where}.via: no syntax {action.via!r}{suggest(action.via, list(SYNTAXES))}")
    for need in SYNTAXES[action.via].needs:
        if not getattr(action, need) and action.kind != "refuse":
            raise DialectError(f'{where}.{need}: missing; `via = "{action.via}"` needs it')
    for role, key in action.args.items():
        if role not in _ROLES:
            raise DialectError(f"{where}.args.{role}: unknown role{suggest(role, sorted(_ROLES))}")
        if isinstance(key, tuple) and role == "box" and not 2 <= len(key) <= 4:
            raise DialectError(f"{where}.args.box: one key, its alternatives or four are needed, not {len(key)}")
    for list_ in ("required", "always"):
        for role in getattr(action, list_):
            if role not in action.args:
                raise DialectError(f"{where}.{list_}: {role!r} is not in args{suggest(role, sorted(action.args))}")
    boxed = "box" in action.args or action.content in ("box", "box_or_label")
    if action.kind in ("gaze", "zoom") and not boxed:
        raise DialectError(f"{where}.args.box: missing; kind {action.kind!r} needs a box")


def _with_files(spec: DialectSpec, base: Path | None, where: str) -> DialectSpec:
    """Prompt and instruction files read in."""
    prompt, observe = spec.prompt, dict(spec.observe)
    if prompt.system_file:
        text = _beside(base, prompt.system_file, f"{where}: prompt.system_file")
        prompt = dataclasses.replace(prompt, system=_file_wording(text, SYSTEM_NAMES, where))
    if prompt.user_file:
        text = _beside(base, prompt.user_file, f"{where}: prompt.user_file")
        prompt = dataclasses.replace(prompt, user=_file_wording(text, USER_NAMES, where))
    for kind, body in spec.observe.items():
        if body.after_file:
            text = _beside(base, body.after_file, f"{where}: observe.{kind}.after_file")
            observe[kind] = dataclasses.replace(body, after=_file_wording(text, ("question",), where))
    return dataclasses.replace(spec, prompt=prompt, observe=observe)


def _file_wording(text: str, allowed: tuple[str, ...], where: str) -> Wording:
    """A prompt file is plain text: the allowed placeholders are special, all other braces are literal."""
    escaped = re.sub(r"[{}]", lambda brace: brace.group() * 2, text.removesuffix("\n"))
    for name in allowed:
        escaped = escaped.replace("{{" + name + "}}", "{" + name + "}")
    return compile_wording(escaped, allowed, where)
