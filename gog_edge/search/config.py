"""Providers out of a TOML file: presets by name, own descriptions, MCP servers, replays, and how each may be used.

    [[provider]]
    preset = "serper"          # serpapi, serper, brave, searxng, wikipedia, jina
    read = 3                   # read the first pages and cut them to passages

    [[provider]]
    kind = "fetch"             # reads pages itself

Keys are never in the file: templates name environment variables, `${SERPER_API_KEY}`. Everything is validated here,
so a wrong file fails when it is loaded and says where.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from gog_edge.deadline import seconds_of
from gog_edge.errors import EngineError, SearchError, UsageError
from gog_edge.search.base import IMAGE, PAGE, TEXT, SearchProvider
from gog_edge.search.cache import ResultCache
from gog_edge.search.reading import ReadingProvider
from gog_edge.search.replay import FvqaReplay, JsonlReplay, Recorder
from gog_edge.search.resilience import CallLimits, Resilient
from gog_edge.search.web.address import AddressPolicy
from gog_edge.search.web.json_api import UPLOAD, ApiSpec, JsonApiProvider, Operation, fixed_host
from gog_edge.search.web.mcp import McpClient, McpProvider, ToolCall
from gog_edge.search.web.mcp_transport import HttpTransport, StdioTransport
from gog_edge.search.web.page import PageReader
from gog_edge.search.web.results import RESULT_NAMES
from gog_edge.search.web.template import Secrets

KINDS = ("http", "fetch", "mcp", "replay", "fvqa-cache")
_SHELL: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "preset": str,
    "name": str,
    "timeout": (int, float, str),
    "retries": int,
    "rate": (int, float),
    "concurrency": int,
    "failures": int,
    "cooldown": (int, float, str),
    "cache_hours": (int, float),
    "record": str,
    "early": bool,
    "read": int,
    "passage_chars": int,
    "embedder": str,
}
_OWN: dict[str, dict[str, type | tuple[type, ...]]] = {
    "http": {TEXT: dict, IMAGE: dict, PAGE: dict, UPLOAD: dict, "endpoint": str, "max_bytes": int, "image_side": int},
    "fetch": {"allow": list, "max_bytes": int},
    "mcp": {
        "command": list,
        "url": str,
        "allow": list,
        "env": dict,
        "headers": dict,
        TEXT: dict,
        IMAGE: dict,
        PAGE: dict,
    },
    "replay": {"path": str},
    "fvqa-cache": {"path": str},
}
_OPERATION: dict[str, type | tuple[type, ...]] = {
    "url": str,
    "method": str,
    "query": dict,
    "headers": dict,
    "json": (dict, list),
    "multipart": dict,
    "results": dict,
    "error": str,
    "empty": str,
}
_CALL: dict[str, type | tuple[type, ...]] = {"tool": str, "arguments": dict, "results": dict}


def load_providers(
    path: str | Path, *, cache_dir: Path | None = None, secrets: Secrets | None = None
) -> list[SearchProvider]:
    """The providers of a file, in the order in which they are asked.

    Args:
        cache_dir: where results are kept; without one nothing is kept.

    Raises:
        UsageError: the file is missing, not TOML, or an entry is wrong.
        SearchError: a recorded search file can't be read.
    """
    where = Path(path)
    document = read_toml(where)
    entries = document.get("provider")
    unknown = sorted(set(document) - {"provider"})
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; only [[provider]] tables are read")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{where}: no [[provider]] in it")
    built: list[tuple[dict[str, Any], SearchProvider]] = []
    for number, entry in enumerate(entries, start=1):
        label = f"{where}: provider {number}"
        if not isinstance(entry, dict):
            raise UsageError(f"{label}: a table is needed")
        entry = _with_preset(entry, label)
        provider = _provider(entry, label, where.parent, secrets or Secrets())
        built.append((entry, _shell(provider, entry, label, where.parent, cache_dir)))
    readers = [p for _, p in built if PAGE in p.kinds]
    return [_reading(provider, entry, readers, where.parent) for entry, provider in built]


def presets() -> list[str]:
    """Names of the descriptions that come with gog-edge."""
    folder = resources.files("gog_edge.search.web") / "presets"
    return sorted(f.name[: -len(".toml")] for f in folder.iterdir() if f.name.endswith(".toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML document.

    Raises:
        UsageError: missing or malformed.
    """
    try:
        return _parse_toml(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"{path}: can't be read ({e.strerror or e})") from e
    except ValueError as e:
        raise UsageError(f"{path}: not valid TOML ({' '.join(str(e).split())})") from e


def _parse_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return dict(tomllib.loads(text))


def _with_preset(entry: dict[str, Any], label: str) -> dict[str, Any]:
    """The entry over its preset: operations are merged key by key."""
    name = entry.get("preset")
    if name is None:
        return entry
    known = presets()
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"{label}: no preset {name!r} ({', '.join(known)}){hint}")
    text = (resources.files("gog_edge.search.web") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return {"name": name, "kind": "http", **_merge(_parse_toml(text), entry)}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _provider(entry: dict[str, Any], label: str, folder: Path, secrets: Secrets) -> SearchProvider:
    kind = entry.get("kind", "http")
    if kind not in KINDS:
        raise UsageError(f"{label}: kind {kind!r} is not one of {', '.join(KINDS)}")
    _check(entry, {**_SHELL, **_OWN[kind]}, label)
    name = str(entry.get("name", kind))
    try:
        if kind == "fetch":
            return PageReader(_allowed(entry), **_given(entry, "max_bytes"))
        if kind in ("replay", "fvqa-cache"):
            if "path" not in entry:
                raise UsageError(f"{label}: a {kind} needs `path`")
            return (JsonlReplay if kind == "replay" else FvqaReplay)(folder / entry["path"])
        if kind == "mcp":
            return _mcp(name, entry, label, secrets)
        operations = {
            which: _operation(entry[which], entry.get("endpoint", ""), f"{label}, [{which}]")
            for which in (TEXT, IMAGE, PAGE, UPLOAD)
            if which in entry
        }
        if not set(operations) & {TEXT, IMAGE, PAGE}:
            raise UsageError(f"{label}: describes no [provider.text], [provider.image] or [provider.page]")
        return JsonApiProvider(ApiSpec(name, operations, **_given(entry, "max_bytes", "image_side")), secrets=secrets)
    except SearchError as e:
        raise UsageError(f"{label}: {e}") from e


def _operation(fields: Any, endpoint: str, label: str) -> Operation:
    _check(fields, _OPERATION, label)
    if "url" not in fields:
        raise UsageError(f"{label}: needs `url`")
    method = str(fields.get("method", "GET")).upper()
    if method not in ("GET", "POST", "PUT"):
        raise UsageError(f"{label}: method {method!r} is not GET, POST or PUT")
    _check_results(fields, label)
    url = fields["url"]
    if endpoint:
        url = endpoint.rstrip("/") + "/" + url[len(fixed_host(url, label)) :]
    return Operation(**{**fields, "url": url, "method": method})


def _allowed(entry: dict[str, Any]) -> AddressPolicy:
    """Public addresses, and what the entry allows besides."""
    return AddressPolicy(frozenset(str(a) for a in entry.get("allow", [])))


def _mcp(name: str, entry: dict[str, Any], label: str, secrets: Secrets) -> McpProvider:
    if ("command" in entry) == ("url" in entry):
        raise UsageError(f"{label}: an MCP server has either `command` or `url`")
    calls: dict[str, ToolCall] = {}
    for which in (TEXT, IMAGE, PAGE):
        if which in entry:
            _check(entry[which], _CALL, f"{label}, [{which}]")
            _check_results(entry[which], f"{label}, [{which}]")
            if "tool" not in entry[which]:
                raise UsageError(f"{label}, [{which}]: needs `tool`")
            calls[which] = ToolCall(**entry[which])
    if not calls:
        raise UsageError(f"{label}: describes no [provider.text], [provider.image] or [provider.page]")
    transport = (
        HttpTransport(entry["url"], entry.get("headers"), secrets)
        if "url" in entry
        else StdioTransport([str(c) for c in entry["command"]], entry.get("env"), secrets)
    )
    return McpProvider(name, McpClient(transport, secrets), calls, secrets=secrets, policy=_allowed(entry))


def _shell(
    provider: SearchProvider, entry: dict[str, Any], label: str, folder: Path, cache_dir: Path | None
) -> SearchProvider:
    """Recording and limits around a provider; replays need neither."""
    if entry.get("kind") in ("replay", "fvqa-cache"):
        return provider
    if "record" in entry:
        provider = Recorder(provider, folder / entry["record"])
    own = _given(entry, "timeout", "retries", "rate", "concurrency", "failures", "cooldown")
    for key in ("timeout", "cooldown"):
        if isinstance(own.get(key), str):
            own[key] = seconds_of(own[key], f"{label}: a {key}")
    if entry.get("kind") == "fetch":
        own.setdefault("failures", 1 << 30)  # pages lie on many hosts: some dead ones say nothing about the others
    try:
        limits = CallLimits(**own)
    except SearchError as e:
        raise UsageError(f"{label}: {e}") from e
    hours = float(entry.get("cache_hours", 24.0))
    cache = ResultCache(cache_dir / "searches.db", hours * 3600) if cache_dir is not None and hours > 0 else None
    identity = hashlib.sha256(json.dumps(entry, sort_keys=True, default=str).encode()).hexdigest()[:16]
    early = bool(entry.get("early", True))
    return Resilient(provider, limits, cache=cache, identity=f"{provider.name}:{identity}", early=early)


def _reading(
    provider: SearchProvider, entry: dict[str, Any], readers: list[SearchProvider], folder: Path
) -> SearchProvider:
    pages = entry.get("read", 0)
    if not pages:
        return provider
    name = entry.get("name", entry.get("kind"))
    if TEXT not in provider.kinds:
        raise UsageError(f"provider {name!r}: `read` is for text searches")
    reader = next((r for r in readers if r is not provider), None) or (provider if PAGE in provider.kinds else None)
    if reader is None:
        raise UsageError(f'provider {name!r}: `read` needs a page reader: add one (kind = "fetch", or preset = "jina")')
    embedder = None
    if "embedder" in entry:
        from gog_edge.search.text_encoder import OnnxTextEncoder

        try:
            embedder = OnnxTextEncoder(folder / entry["embedder"])
        except EngineError as e:
            raise UsageError(f"provider {name!r}: embedder: {e}") from e
    chars = int(entry.get("passage_chars", 1200))
    return ReadingProvider(provider, reader, pages=pages, chars=chars, embedder=embedder)


def _check(fields: Any, known: Mapping[str, type | tuple[type, ...]], label: str) -> None:
    if not isinstance(fields, dict):
        raise UsageError(f"{label}: a table is needed")
    for key, value in fields.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(sorted(known))})"
            raise UsageError(f"{label}: unknown key {key!r}{hint}")
        if not isinstance(value, known[key]) or (isinstance(value, bool) and known[key] is not bool):
            raise UsageError(f"{label}: {key} = {value!r} has the wrong type")


def _check_results(fields: Mapping[str, Any], label: str) -> None:
    results = fields.get("results", {})
    for key, value in results.items():
        if key not in RESULT_NAMES or not isinstance(value, str):
            raise UsageError(f"{label}: results.{key}: a path under one of {', '.join(sorted(RESULT_NAMES))} is needed")


def _given(entry: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: entry[name] for name in names if name in entry}
