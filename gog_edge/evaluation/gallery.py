"""Failures to look at: one HTML file with the picture, the boxes, the steps and what came back. Nothing is loaded."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gog_edge.disk.files import write_text
from gog_edge.errors import GogEdgeError
from gog_edge.image.frame import Frame
from gog_edge.sanitize import escape_html as _e

SIDE = 480  # pixels of the longer side of a shown picture
_COLOURS = ("#e8590c", "#1971c2", "#2f9e44", "#9c36b5", "#e03131")
_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem;max-width:1200px;background:#fff;color:#222}
article{display:flex;gap:1rem;border-top:1px solid #ccc;padding:1rem 0}
figure{margin:0;flex:0 0 auto}svg{display:block;max-width:100%}
.said{color:#c92a2a}.gold{color:#2b8a3e}.dim{color:#777}ol{padding-left:1.2rem;margin:.4rem 0}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0;font-size:12px;color:#555}
@media(prefers-color-scheme:dark){body{background:#16181d;color:#ddd}pre{color:#aaa}article{border-color:#444}}
"""


def failures(rows: Sequence[Mapping[str, Any]], verdicts: Mapping[str, bool] | None = None) -> list[Mapping[str, Any]]:
    """Results that are wrong: by the judge where it spoke, else by substring match."""

    def right(row: Mapping[str, Any]) -> bool:
        verdict = (verdicts or {}).get(str(row["id"]))
        return bool(row.get("scores", {}).get("subem", 0.0) >= 1.0) if verdict is None else verdict

    return [r for r in rows if not right(r)]


def write_gallery(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    picture: Callable[[str], Frame],
    *,
    title: str,
    limit: int = 100,
) -> int:
    """Write the page; returns how many results are in it.

    Args:
        picture: opens the first picture of a question by id.
    """
    parts: list[str] = []
    for row in rows:
        if len(parts) == limit:
            break
        parts.append(_article(row, picture))
    head = f'<!doctype html><meta charset="utf-8"><title>{_e(title)}</title><style>{_STYLE}</style>'
    body = f"<h1>{_e(title)}</h1><p>{len(parts)} shown</p>{''.join(parts)}"
    write_text(path, head + body)
    return len(parts)


def _article(row: Mapping[str, Any], picture: Callable[[str], Frame]) -> str:
    try:
        figure = _figure(picture(str(row["id"])), row)
    except GogEdgeError as e:
        figure = f'<figure class="dim">{_e(str(e))}</figure>'
    error = f'<p class="said">{_e(str(row["error"]))}</p>' if row.get("error") else ""
    gold = " | ".join(str(a) for a in row.get("answers", ()))
    note = f"{row.get('skill', '')} · {row.get('stop', '')} · {row.get('seconds', 0)} s"
    steps = "".join(f"<li>{_step(s)}</li>" for s in row.get("steps") or ())
    return (
        f'<article>{figure}<div><b>{_e(str(row["question"]))}</b> <span class="dim">{_e(str(row["id"]))}</span>'
        f'<p><span class="said">{_e(str(row.get("prediction", ""))) or "(no answer)"}</span> '
        f'&larr; <span class="gold">{_e(gold)}</span></p>{error}<p class="dim">{_e(note)}</p>'
        f"<ol>{steps}</ol></div></article>"
    )


def _figure(frame: Frame, row: Mapping[str, Any]) -> str:
    image = frame.image()
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    data = base64.b64encode(stream.getvalue()).decode()
    sx, sy = image.width / frame.width, image.height / frame.height
    shapes: list[str] = []
    for target in row.get("target_boxes") or ():
        shapes.append(_rect(target, sx, sy, "#fff", 'stroke-dasharray="6 4"', "target"))
    for number, step in enumerate(row.get("steps") or ()):
        for action in step.get("actions", ()):
            # Boxes on later images are in pixels of those.
            if action.get("box") and not action.get("image"):
                colour = _COLOURS[number % len(_COLOURS)]
                shapes.append(_rect(action["box"], sx, sy, colour, "", f"{number + 1} {action.get('label', '')}"))
    size = f'width="{image.width}" height="{image.height}"'
    return (
        f'<figure><svg {size} viewBox="0 0 {image.width} {image.height}">'
        f'<image href="data:image/jpeg;base64,{data}" {size}/>{"".join(shapes)}</svg></figure>'
    )


def _rect(box: Sequence[float], sx: float, sy: float, colour: str, more: str, label: str) -> str:
    x0, y0, x1, y1 = (float(v) for v in box)
    return (
        f'<rect x="{x0 * sx:.1f}" y="{y0 * sy:.1f}" width="{(x1 - x0) * sx:.1f}" height="{(y1 - y0) * sy:.1f}" '
        f'fill="none" stroke="{colour}" stroke-width="2" {more}/>'
        f'<text x="{x0 * sx + 3:.1f}" y="{y0 * sy + 13:.1f}" font-size="12" fill="{colour}">{_e(label)}</text>'
    )


def _step(step: Mapping[str, Any]) -> str:
    lines = [f"<pre>{_e(str(step.get('thought', '')))}</pre>"] if step.get("thought") else []
    observations = list(step.get("observations") or ())
    for number, action in enumerate(step.get("actions", ())):
        words = " ".join(str(action[k]) for k in ("label", "text") if action.get(k))
        box = f" {action['box']}" if action.get("box") else ""
        lines.append(f"<div><b>{_e(str(action.get('kind')))}</b>{_e(box)} {_e(words)}</div>")
        if number < len(observations):
            seen = observations[number]
            found = "; ".join(str(h.get("title", "")) for h in seen.get("hits", ()))
            lines.append(f'<div class="dim">{_e(str(seen.get("error") or found or "nothing found"))}</div>')
    return "".join(lines)
