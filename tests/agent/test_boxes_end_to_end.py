"""A box that the policy writes is the crop that it gets: every dialect, on a photo much larger than what is shown.

The calls are written out here, in the frame that each system was trained on, so that nothing of the dialects checks
itself. The classic mistakes (pixels of the resized image taken for those of the original, or the other way round; a
crop of a crop placed in the whole image) move the crop off the square.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from gog_edge.agent.agent import Agent
from gog_edge.agent.loader import bundle_dialect
from gog_edge.agent.options import NO_PREFETCH, RunOptions
from gog_edge.bundle import Bundle
from gog_edge.image.frame import Frame
from gog_edge.runtime.model import Model
from gog_edge.runtime.telemetry import Trace
from gog_edge.types import ActionEvent, ActionKind, BoxEvent
from tests.runtime.fakes import FakeProvider, ScriptedEngine

WIDTH, HEIGHT = 4032, 3024
SQUARE = (1008, 756, 2016, 1512)  # a quarter to a half of both sides
# Scaled to 288 x 216 where the picture is scaled first: a quarter is a whole number of pixels there as well.
SMALL = {"image_min_pixels": 4096, "image_max_pixels": 62_300, "crop_min_pixels": 4096, "crop_max_pixels": 16384}


def tool(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


# dialect: (frame, call with places for the numbers, pixels of the original added on each side)
CALLS = {
    "gog": ("thousand", tool("crop_search", '{"bbox_2d": [BOX], "label": "x"}'), (0, 0)),
    "gog-mmsearch": ("thousand", "<reason>r</reason><search>[BOX] x</search>", (0, 0)),
    "deepmmsearch-r1": ("thousand", "<reason>r</reason><img_search>[BOX] x</img_search>", (0, 0)),
    "deepeyes": ("original", tool("image_zoom_in_tool", '{"bbox_2d": [BOX]}'), (0, 0)),
    "deepeyes-v2": ("original", "<code>\n```python\nplt.imshow(image_1.crop((BOX)))\n```\n</code>", (0, 0)),
    "qwen-agent": (
        "thousand",
        tool("image_zoom_in_tool", '{"bbox_2d": [BOX], "label": "x", "img_idx": 0}'),
        (0, 0),
    ),
    "qwen-agent-xml": (
        "thousand",
        "<tool_call>\n<function=image_zoom_in_tool>\n<parameter=bbox_2d>\n[BOX]\n</parameter>\n"
        "<parameter=label>\nx\n</parameter>\n<parameter=img_idx>\n0\n</parameter>\n</function>\n</tool_call>",
        (0, 0),
    ),
    "sensenova-mars": (
        "thousand",
        tool("image_zoom_in_tool", '{"bbox_2d": [BOX], "label": "x", "img_idx": 0}'),
        (0, 0),
    ),
    "vrag-rl": ("shown", "<think>t</think><bbox>[BOX]</bbox>", (56, 56)),
    "mini-o3": ("unit", '<grounding>{"bbox_2d": [BOX], "source": "original_image"}</grounding>', (0, 0)),
    "pixel-reasoner": (
        "unit",
        tool("crop_image_normalized", '{"bbox_2d": [BOX], "target_image": 1}'),
        (WIDTH / 10, HEIGHT / 10),
    ),
    "vision-deepresearch": (
        "thousand",
        tool("crop_and_search", '{"image_id": "1", "bbox": [[BOX]], "goal": "x"}'),
        (0, 0),
    ),
    "video-deepresearch": (
        "thousand",
        tool("select_crop_search", '{"image_idx": [0], "bbox": [[BOX]], "goal": "x"}'),
        (0, 0),
    ),
    "opensearch-vl": (
        "xywh",
        tool("crop", '{"image": "img_1", "x": X, "y": Y, "width": W, "height": H}'),
        (0, 0),
    ),
    "agile": ("unit", "<code>\nimage_1 = crop(raw_image, [BOX])\n</code>", (0, 0)),
}
AGAIN = {  # the same corner of the crop, by its own name
    "qwen-agent": tool("image_zoom_in_tool", '{"bbox_2d": [0, 0, 500, 500], "label": "x", "img_idx": 1}'),
    "sensenova-mars": tool("image_zoom_in_tool", '{"bbox_2d": [0, 0, 500, 500], "label": "x", "img_idx": 1}'),
    "mini-o3": '<grounding>{"bbox_2d": [0.0, 0.0, 0.5, 0.5], "source": "observation_1"}</grounding>',
}


@pytest.fixture(scope="module")
def photo() -> Frame:
    """Twelve million black pixels."""
    return Frame(np.zeros((HEIGHT, WIDTH, 3), np.uint8), "photo")


def written(call: str, frame: str, shown: tuple[int, int]) -> str:
    """The call with the numbers of a quarter to a half of the image, in a frame."""
    extent = {"unit": (1, 1), "thousand": (1000, 1000), "shown": shown}.get(frame, (WIDTH, HEIGHT))
    x0, y0, x1, y1 = (extent[0] / 4, extent[1] / 4, extent[0] / 2, extent[1] / 2)
    values = [v if frame == "unit" else int(v) for v in (x0, y0, x1, y1)]
    places = {"BOX": ", ".join(map(str, values)), "X": values[0], "Y": values[1], "W": values[0], "H": values[1]}
    return re.sub(r"\b(BOX|[XYWH])\b", lambda match: str(places[match.group()]), call)


def crops(bundle: Bundle, name: str, photo: Frame, frame: str, *calls: str) -> list[tuple[float, ...]]:
    """The boxes cut for some calls, one a turn, in pixels of the photo; each was known before its call ended."""
    options = RunOptions(grammar="off", prefix_cache=False, **SMALL)
    engine = ScriptedEngine(bundle, [""])
    with Agent(Model.assemble(bundle, engine, options), bundle_dialect(bundle, name), (), options) as agent:
        limits = agent.image_limits()
        plan = agent.model.vision.plan(photo, None, limits)
        shown = plan.registered(0, 0).shown_width, plan.registered(0, 0).shown_height
        assert max(shown) < 400 and shown[0] % 4 == shown[1] % 4 == 0
        assert not limits.scale_first or shown == (288, 216)
    script = [written(call, frame, shown) for call in calls]
    engine = ScriptedEngine(bundle, [*script, "<answer>no</answer>"])
    dialect = bundle_dialect(bundle, name)
    with Agent(Model.assemble(bundle, engine, options), dialect, [FakeProvider()], options) as agent:
        events = list(agent.stream(photo, "What is it?", max_turns=len(script) + 1))
    found = [e.action.region for e in events if isinstance(e, ActionEvent) and e.action.kind is not ActionKind.ANSWER]
    early = [e.region for e in events if isinstance(e, BoxEvent)]
    assert None not in found and set(found) <= set(early), [e for e in events if isinstance(e, ActionEvent)]
    return [region.as_tuple() for region in found if region is not None]


@pytest.mark.parametrize("name", CALLS)
def test_the_box_is_the_square(bundle: Bundle, photo: Frame, name: str) -> None:
    frame, call, (px, py) = CALLS[name]
    (found,) = crops(bundle, name, photo, frame, call)
    x0, y0, x1, y1 = SQUARE
    assert found == pytest.approx((round(x0 - px), round(y0 - py), round(x1 + px), round(y1 + py)), abs=0.01)


@pytest.mark.parametrize("name", ["gog", "gog-mmsearch", "deepmmsearch-r1"])
def test_qwen2_5_writes_pixels_of_what_it_was_shown(bundle25: Bundle, photo: Frame, name: str) -> None:
    (found,) = crops(bundle25, name, photo, "shown", CALLS[name][1])
    assert found == pytest.approx(SQUARE, abs=0.01)


@pytest.mark.parametrize("name", AGAIN)
def test_a_crop_of_a_crop_lies_in_the_crop(bundle: Bundle, photo: Frame, name: str) -> None:
    frame, call, _ = CALLS[name]
    _, found = crops(bundle, name, photo, frame, call, AGAIN[name])
    x0, y0, x1, y1 = SQUARE
    assert found == pytest.approx((x0, y0, (x0 + x1) / 2, (y0 + y1) / 2), abs=0.01)


def test_a_search_with_a_crop_is_a_search_with_its_region(bundle: Bundle, photo: Frame) -> None:
    """Qwen-Agent's image search names an image; a crop of a crop is searched as a region of the photo."""
    provider, trace = FakeProvider(), Trace()
    zoom = written(CALLS["qwen-agent"][1], "thousand", (0, 0))
    script = [zoom, AGAIN["qwen-agent"], tool("image_search", '{"img_idx": 2}'), "done"]
    options = RunOptions(grammar="off", prefix_cache=False, prefetch=NO_PREFETCH, **SMALL)
    model = Model.assemble(bundle, ScriptedEngine(bundle, script), options)
    with Agent(model, bundle_dialect(bundle, "qwen-agent"), [provider], options) as agent:
        agent.ask(photo, "What is it?", trace=trace)
    ((_, query),) = provider.asked
    assert query.frame is photo and query.region.as_tuple() == (1008, 756, 1512, 1134)
    assert [image.geometry.source for image in trace.images] == [0, 0, 0]
