"""A trace as one HTML page: the image with the boxes drawn on it, what was decided and found, a time line.

No script and no outside reference; the page's own policy forbids both, so that a hostile title or page text stays text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

from gog_edge.answer_view import STEP_COLOURS
from gog_edge.runtime.telemetry import Trace, TracedImage, counted
from gog_edge.runtime.trace.timeline import stage_table, timeline
from gog_edge.sanitize import escape_html as escape
from gog_edge.types import Action, ActionKind, Answer, Hit, Observation, Region, Step, StopReason

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --panel: #f8f9fb;
  --accent: #0b7285; --found: #e6fcf5; --wrong: #c92a2a; --forced: #fff3bf; --guessed: #d3f9d8; --lift: 0%; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e4e7eb; --soft: #9aa5b1; --line: #323f4b;
  --panel: #1f262e; --accent: #66d9e8; --found: #123a30; --wrong: #ff8787; --forced: #5c4a00; --guessed: #1b4d2a;
  --lift: 45%; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 78rem; padding: 1.5rem; }
h1 { font-size: 1.35rem; margin: 0; } h2 { font-size: 1rem; margin: 1.8rem 0 .6rem; color: var(--soft); }
.answer { font-size: 1.9rem; font-weight: 600; color: var(--accent); margin: .3rem 0; overflow-wrap: anywhere; }
.facts, .soft { color: var(--soft); font-size: .9rem; }
.columns { margin-top: 1.2rem; display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1.5rem;
  align-items: start; }
@media (max-width: 60rem) { .columns { grid-template-columns: 1fr; } }
.picture { position: relative; } .picture img { width: 100%; display: block; border-radius: 6px; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.step { border-left: 4px solid var(--c, var(--line)); background: var(--panel); padding: .6rem .9rem; margin: 0 0 .8rem;
  border-radius: 0 6px 6px 0; }
.kind { color: color-mix(in srgb, var(--c), white var(--lift)); font-weight: 600; }
.thought { font-style: italic; color: var(--soft); }
.hits { margin: .4rem 0 0; padding-left: 1.4rem; } .hits li { margin: .15rem 0; overflow-wrap: anywhere; }
.evidence { background: var(--found); } .error { color: var(--wrong); }
.score { color: var(--soft); font-variant-numeric: tabular-nums; }
.crop { max-height: 110px; max-width: 220px; float: right; margin: 0 0 .4rem .8rem; border-radius: 4px;
  border: 2px solid var(--c); }
.wide { overflow-x: auto; }
.timeline { width: 100%; min-width: 60rem; height: auto; font: 11px system-ui, sans-serif; }
.timeline text { fill: var(--soft); } .timeline line { stroke: var(--line); }
@media (max-width: 30rem) { body { padding: .9rem; } .answer { font-size: 1.5rem; } .crop { max-width: 45%; } }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .1rem .8rem .1rem 0; text-align: left; font-weight: 400; } th { color: var(--soft); }
table.notes td { overflow-wrap: anywhere; } td.number { text-align: right; }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--soft); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; background: var(--panel); padding: .6rem; }
.forced { background: var(--forced); } .guessed { background: var(--guessed); }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STOPS = {
    StopReason.ANSWERED: "answered by itself",
    StopReason.FORCED: "made to answer: a limit was reached",
    StopReason.DEADLINE: "the deadline passed: best answer so far",
    StopReason.CANCELLED: "cancelled",
    StopReason.EXHAUSTED: "no answer within the limits",
}
_NAMES = {
    ActionKind.GLANCE: "glance: whole-image search",
    ActionKind.GAZE: "gaze: crop and search",
    ActionKind.ZOOM: "zoom: look at a crop",
    ActionKind.TEXT_SEARCH: "text search",
    ActionKind.VISIT: "read a page",
    ActionKind.ANSWER: "answer",
    ActionKind.INVALID: "not understood",
}


def page(trace: Trace) -> str:
    """The whole page."""
    steps = list(trace.answer.steps if trace.answer is not None else trace.steps)
    parts = [
        _head(trace),
        "<div class=columns><div>",
        *(_picture(trace, image, steps) for image in trace.images if image.geometry.region is None),
        "</div><div>",
        *(_step(trace, step) for step in steps),
        "</div></div>",
        f"<h2>time line</h2><div class=wide>{timeline(trace)}</div>{stage_table(trace)}",
        _tokens(trace),
        _meta(trace),
    ]
    policy = '<meta name=viewport content="width=device-width, initial-scale=1">'
    policy += f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">'
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>{policy}"
        f"<title>{escape(trace.question)}</title><style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def _head(trace: Trace) -> str:
    answer = trace.answer
    if answer is None:
        return f"<h1>{escape(trace.question)}</h1><div class=answer>unfinished</div>"
    usage = answer.usage
    facts = (
        f"{_STOPS[answer.stop]} &middot; {answer.seconds:.2f} s &middot; {counted(len(answer.steps), 'step')} &middot; "
        f"{counted(usage.prompt_tokens, 'token')} read, "
        f"{usage.generated_tokens} written ({usage.forced_tokens} forced), "
        f"{usage.reused_tokens} reused &middot; {counted(usage.encoded_images, 'image')} encoded, "
        f"{usage.cached_images} from cache &middot; {counted(usage.searches, 'search', 'searches')}"
    )
    shown = escape(answer.text) or "<span class=soft>no answer</span>"
    title = f"<h1>{escape(trace.question)}</h1>"
    return f"{title}<div class=answer>{shown}</div><div class=facts>{facts}</div>{_evidence(answer)}"


def _evidence(answer: Answer) -> str:
    if not answer.evidence:
        return ""
    return "<h2>evidence</h2><ul class=hits>" + "".join(_hit(h, answer) for h in answer.evidence) + "</ul>"


def _colour(index: int) -> str:
    return STEP_COLOURS[index % len(STEP_COLOURS)]


def _boxes(steps: list[Step], image: int) -> Iterator[tuple[int, Region]]:
    for step in steps:
        for action in step.turn.actions:
            if action.region is not None and action.image == image:
                yield step.index, action.region


def _picture(trace: Trace, image: TracedImage, steps: list[Step]) -> str:
    """The frame with every box of it, numbered by step; drawn in the frame's own pixels."""
    g = image.geometry
    jpeg = trace.thumbnail(g.index, side=1280)
    if jpeg is None:
        return f"<p class=soft>image {g.index} ({g.width}x{g.height}) was not kept</p>"
    unit = max(g.width, g.height) / 100
    shapes = []
    for index, box in _boxes(steps, g.index):
        colour, flag_y = _colour(index), max(box.y0 - 3 * unit, 0)
        shapes.append(
            f'<rect x="{box.x0:.1f}" y="{box.y0:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" fill="none" '
            f'stroke="{colour}" stroke-width="{unit * 0.4:.1f}"/>'
            f'<rect x="{box.x0:.1f}" y="{flag_y:.1f}" width="{2.4 * unit:.1f}" height="{3 * unit:.1f}" '
            f'fill="{colour}"/><text x="{box.x0 + 0.6 * unit:.1f}" y="{flag_y + 2.3 * unit:.1f}" '
            f'fill="white" font-size="{2.3 * unit:.1f}" font-family="sans-serif">{index + 1}</text>'
        )
    size = f"{g.width}x{g.height} px, seen at {g.shown_width}x{g.shown_height} ({image.tokens} tokens)"
    return (
        f'<div class=picture><img alt="the image asked about" src="{_data_url(jpeg)}">'
        f'<svg viewBox="0 0 {g.width} {g.height}">{"".join(shapes)}</svg></div><p class=soft>{size}</p>'
    )


def _step(trace: Trace, step: Step) -> str:
    rows = [f'<div class=step style="--c: {_colour(step.index)}">']
    rows += [_crop(trace, o) for o in step.observations if o.shown is not None]
    rows.append(f"<b>{step.index + 1}</b> <span class=soft>{step.seconds:.2f} s</span>")
    if step.turn.thought.strip():
        rows.append(f"<div class=thought>{escape(step.turn.thought.strip())}</div>")
    rows += [_action(a) for a in step.turn.actions]
    rows += [_observation(o, trace.answer) for o in step.observations]
    rows.append(f"<details><summary>as written</summary><pre>{escape(step.turn.raw)}</pre></details></div>")
    return "".join(rows)


def _action(action: Action) -> str:
    detail = escape(action.text or action.label)
    if action.region is not None:
        box = ", ".join(f"{v:.0f}" for v in action.region.as_tuple())
        detail = f"{escape(action.label)} <span class=soft>[{box}] px</span>"
    return f"<div><span class=kind>{_NAMES[action.kind]}</span> {detail}</div>"


def _observation(observation: Observation, answer: Answer | None) -> str:
    if observation.error:
        return f"<div class=error>{escape(observation.error)}</div>"
    page_text = (
        f"<details><summary>page</summary><pre>{escape(observation.text)}</pre></details>" if observation.text else ""
    )
    if not observation.hits:
        return page_text or "<div class=soft>no results</div>"
    return "<ol class=hits>" + "".join(_hit(h, answer) for h in observation.hits) + f"</ol>{page_text}"


def _hit(hit: Hit, answer: Answer | None) -> str:
    mark = " class=evidence" if answer is not None and hit in answer.evidence else ""
    score = "" if hit.score is None else f" <span class=score>{hit.score:.2f}</span>"
    source = f" <span class=soft>({escape(hit.source)})</span>" if hit.source else ""
    return f"<li{mark}>{escape(hit.title)}{score} <span class=soft>{escape(hit.text)}</span>{source}</li>"


def _crop(trace: Trace, observation: Observation) -> str:
    jpeg = trace.thumbnail(observation.shown, side=320) if observation.shown is not None else None
    return f'<img class=crop alt="the crop" src="{_data_url(jpeg)}">' if jpeg is not None else ""


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _tokens(trace: Trace) -> str:
    if not trace.tokens:
        return ""
    spans = []
    for token in trace.tokens:
        kind = " class=forced" if token.forced else " class=guessed" if token.guessed else ""
        spans.append(f'<span{kind} title="{token.at:.3f} s">{escape(token.text)}</span>')
    legend = "<span class=forced>forced by the grammar</span>, <span class=guessed>guessed and verified</span>"
    return f"<details><summary>every token</summary><p class=soft>{legend}</p><pre>{''.join(spans)}</pre></details>"


def _meta(trace: Trace) -> str:
    rows = [(str(k), str(v)) for k, v in trace.to_json()["meta"].items()]
    rows += [(f"{at:.2f} s", text) for at, text in trace.notes]
    body = "".join(f"<tr><th>{escape(k)}<td>{escape(v)}" for k, v in rows)
    return f"<details><summary>environment and notes</summary><table class=notes>{body}</table></details>"
