"""A trace for Perfetto (https://ui.perfetto.dev) and chrome://tracing: the JSON of Chrome's Trace Event Format.

A track for each thread of ours, one for the policy's steps and one for its tokens. Times are microseconds since the
trace began. Spans of one track nest or follow each other; work of equally named threads that overlaps gets tracks of
its own, because the format has no other way to show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gog_edge.runtime.telemetry import Trace

_PROCESS = 1
_MICRO = 1e6


def perfetto_events(trace: Trace) -> dict[str, Any]:
    """The whole document, for `json.dump`; without secrets, as `Trace.to_json`."""
    data = trace.to_json()
    tracks = _Tracks()
    events = [*_steps(data, tracks), *_tokens(data, tracks), *_spans(data["spans"], tracks), *_notes(data)]
    named = [_named("process_name", 0, f"gog-edge: {data['question']}"), *tracks.names()]
    return {
        "traceEvents": [*named, *sorted(events, key=lambda e: (e["ts"], -e.get("dur", 0.0)))],
        "displayTimeUnit": "ms",
        "otherData": {"format": "gog-edge-trace", "started_at": data["started_at"], **_flat(data["meta"])},
    }


class _Tracks:
    """Numbers of tracks, and where each one is free."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, int], int] = {}
        self._open: dict[int, list[float]] = {}  # ends of the spans that are open on a track, outermost first

    def of(self, name: str, start: float, end: float) -> int:
        """The first track of this name on which a span nests or follows; spans come in order of their start."""
        for lane in range(len(self._ids) + 1):
            track = self._ids.setdefault((name, lane), len(self._ids) + 1)
            ends = self._open.setdefault(track, [])
            while ends and ends[-1] <= start:
                ends.pop()
            if not ends or end <= ends[-1]:
                ends.append(end)
                return track
        raise AssertionError("a new track is always free")

    def names(self) -> Iterator[dict[str, Any]]:
        for (name, lane), track in self._ids.items():
            yield _named("thread_name", track, name if lane == 0 else f"{name} {lane + 1}")
            yield {**_named("thread_sort_index", track, ""), "args": {"sort_index": track}}


def _named(what: str, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": track, "args": {"name": name}}


def _whole(name: str, start: float, end: float, track: int, args: Mapping[str, Any]) -> dict[str, Any]:
    times = {"ts": start * _MICRO, "dur": max(end - start, 0.0) * _MICRO}
    return {"ph": "X", "name": name, "cat": "gog-edge", "pid": _PROCESS, "tid": track, **times, "args": dict(args)}


def _steps(data: Mapping[str, Any], tracks: _Tracks) -> Iterator[dict[str, Any]]:
    """Every step from its first to its last span or token."""
    for step in data["steps"]:
        times = [(s["start"], s["end"]) for s in data["spans"] if s["step"] == step["index"]]
        times += [(t["at"], t["at"]) for t in data["tokens"] if t["step"] == step["index"]]
        if not times:
            continue
        start, end = min(a for a, _ in times), max(b for _, b in times)
        actions = [a["kind"] for a in step["turn"]["actions"]]
        told = {"actions": ", ".join(actions), "thought": step["turn"]["thought"], "written": step["turn"]["raw"]}
        track = tracks.of("steps", start, end)
        yield _whole(f"{step['index'] + 1} {' + '.join(actions)}", start, end, track, told)


def _tokens(data: Mapping[str, Any], tracks: _Tracks) -> Iterator[dict[str, Any]]:
    track = tracks.of("tokens", 0.0, 0.0) if data["tokens"] else 0
    for token in data["tokens"]:
        kind = "forced" if token["forced"] else "guessed" if token["guessed"] else "written"
        args = {"step": token["step"] + 1, "ids": token["ids"], "kind": kind}
        yield _instant(token["text"], token["at"], track, "t", args)


def _spans(spans: Iterable[Mapping[str, Any]], tracks: _Tracks) -> Iterator[dict[str, Any]]:
    for span in sorted(spans, key=lambda s: (s["start"], -s["end"])):
        track = tracks.of(span["thread"], span["start"], span["end"])
        yield _whole(span["stage"], span["start"], span["end"], track, {"step": span["step"] + 1, **span["fields"]})


def _notes(data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for note in data["notes"]:
        yield _instant(note["text"], note["at"], 0, "p", {})


def _instant(name: str, at: float, track: int, scope: str, args: Mapping[str, Any]) -> dict[str, Any]:
    event = {"ph": "i", "name": name, "cat": "gog-edge", "pid": _PROCESS, "tid": track, "s": scope, "ts": at * _MICRO}
    return {**event, "args": dict(args)}


def _flat(meta: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in meta.items()}
