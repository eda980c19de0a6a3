"""Sizes of pictures in the systems that scale them before the processor: token for token what their code makes.

The rules are written out here from the systems' own code (`process_image` of mm_rl_dataset.py, vrag_agent.py,
vllm_async_engine.py, agent_eval.py; `crop_image` of Mini-o3; `smart_resize` of Qwen2.5-VL's processor), so that
nothing of the runtime checks itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from gog_edge import dialects
from gog_edge.agent.options import RunOptions
from gog_edge.agent.picture_limits import crop_limits, image_limits
from gog_edge.crop import scale_between
from gog_edge.dialects.coordinates import CoordinateFrame
from gog_edge.errors import DialectError
from gog_edge.manifest import Preprocessing
from gog_edge.runtime.feature_cache import FeatureCache
from gog_edge.runtime.vision import VisionEncoder, VisionPlan
from gog_edge.types import ActionKind, PixelLimits, Region, RegisteredImage

OWN = (3136, 12_845_056)  # preprocessor_config.json of Qwen2.5-VL, which all four systems start from
QWEN = Preprocessing(14, 2, 2, *OWN, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# what the systems' code says: (least, largest area) of the step before the processor; None: there is no such step
IMAGES = {
    "mmsearch-r1": (512 * 512, 672 * 672 * 2),
    "vrag-rl": (256 * 28 * 28, 512 * 28 * 28),
    "mini-o3": (40_000, 2_000_000),
    "webwatcher": (256 * 28 * 28, 1024 * 28 * 28),
}
CROPS = ("vrag-rl", "mini-o3")
RESULTS = ("vrag-rl", "webwatcher")
LIMITS = {name: dialects.load(name, frame="shown").limits for name in IMAGES}
SIDES = st.integers(30, 6000)


def process_image(width: int, height: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The step before the processor, as all four write it."""
    if (width * height) > max_pixels:
        resize_factor = math.sqrt(max_pixels / (width * height))
        width, height = int(width * resize_factor), int(height * resize_factor)
    if (width * height) < min_pixels:
        resize_factor = math.sqrt(min_pixels / (width * height))
        width, height = int(width * resize_factor), int(height * resize_factor)
    return width, height


def not_thin(width: int, height: int) -> tuple[int, int]:
    """What Mini-o3 does to crops beyond that."""
    if width < 28 or height < 28:
        resize_factor = 28 / min(width, height)
        width, height = int(width * resize_factor + 1), int(height * resize_factor + 1)
    return width, height


def processor(width: int, height: int, factor: int = 28) -> tuple[int, int]:
    """Tokens (columns, rows) that Qwen2.5-VL's processor makes of a picture, within its own limits."""
    w, h = round(width / factor) * factor, round(height / factor) * factor
    if w * h > OWN[1]:
        beta = math.sqrt(width * height / OWN[1])
        w, h = math.floor(width / beta / factor) * factor, math.floor(height / beta / factor) * factor
    elif w * h < OWN[0]:
        beta = math.sqrt(OWN[0] / (width * height))
        w, h = math.ceil(width * beta / factor) * factor, math.ceil(height * beta / factor) * factor
    return max(w, factor) // factor, max(h, factor) // factor


def plan(width: int, height: int, limits: PixelLimits, region: Region | None = None, **runner: Any) -> VisionPlan:
    """The runtime's plan for a picture of that size, with Qwen2.5-VL's own limits."""
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(preprocessing=QWEN), vision_fingerprint="tower")
    frame: Any = SimpleNamespace(width=width, height=height, digest="picture")
    tower: Any = SimpleNamespace(**runner)
    return VisionEncoder(bundle, tower, FeatureCache(0)).plan(frame, region, limits)


def tokens(seen: VisionPlan) -> tuple[int, int]:
    return seen.columns, seen.rows


def shown(seen: VisionPlan) -> tuple[int, int]:
    return seen.shown_width, seen.shown_height


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(IMAGES)), SIDES, SIDES)
@example("vrag-rl", 1700, 2200)
@example("mini-o3", 200, 200)
@example("mini-o3", 30, 30)
def test_images_take_two_steps(name: str, width: int, height: int) -> None:
    assume(max(width, height) / min(width, height) < 150)
    seen = plan(width, height, image_limits(LIMITS[name], RunOptions()))
    scaled = process_image(width, height, *IMAGES[name])
    assume(name != "mini-o3" or min(scaled) >= 28)  # its data set refuses such a picture
    assert shown(seen) == scaled
    assert tokens(seen) == processor(*scaled)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RESULTS), SIDES, SIDES)
def test_pictures_of_results_take_two_steps(name: str, width: int, height: int) -> None:
    assume(max(width, height) / min(width, height) < 150)
    seen = plan(width, height, LIMITS[name].thumbnail)
    scaled = process_image(width, height, *IMAGES[name])
    assert (shown(seen), tokens(seen)) == (scaled, processor(*scaled))


def test_pictures_of_mmsearch_r1s_results_are_left_to_the_processor() -> None:
    """SerpAPI's thumbnails lie within the demonstration's bound, which the processor keeps in one step."""
    limits = LIMITS["mmsearch-r1"].thumbnail
    assert tokens(plan(259, 194, limits)) == processor(259, 194)
    assert tokens(plan(2000, 1500, limits)) == (27, 20)  # floor(776.0 / 28), floor(582.0 / 28)


def test_one_step_and_two_are_not_the_same() -> None:
    """A page of 200 dpi in VRAG-RL: 556 x 720 to the processor, which rounds up; one step within the bound can't."""
    two = plan(1700, 2200, image_limits(LIMITS["vrag-rl"], RunOptions()))
    one = plan(1700, 2200, PixelLimits(*IMAGES["vrag-rl"]))
    assert (shown(two), tokens(two), two.tokens) == ((556, 720), (20, 26), 520)
    assert (shown(one), tokens(one), one.tokens) == ((532, 700), (19, 25), 475)
    assert two.key != one.key


def vrag_crop(box: list[int], pictures: list[Image.Image], inputs: list[tuple[int, int]]) -> None:
    """A step of demo/vrag_agent.py: the crop of the last picture, by a box in pixels of what the model was given."""
    input_w, input_h = inputs[-1]
    raw_w, raw_h = pictures[-1].size
    area = box[0] * raw_w / input_w, box[1] * raw_h / input_h, box[2] * raw_w / input_w, box[3] * raw_h / input_h
    pictures.append(
        pictures[-1].crop(
            (max(area[0] - 56, 0), max(area[1] - 56, 0), min(area[2] + 56, raw_w), min(area[3] + 56, raw_h))
        )
    )
    inputs.append(process_image(*pictures[-1].size, *IMAGES["vrag-rl"]))


def mini_o3_crop(box: list[float], pictures: list[Image.Image], inputs: list[tuple[int, int]]) -> None:
    """A step of Mini-o3: prepare_grounding_inputs_multi_turn, crop_image and process_image."""
    w, h = pictures[-1].size
    x0, y0, x1, y1 = int(box[0] * w), int(box[1] * h), int(box[2] * w), int(box[3] * h)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, w - 1), min(y1, h - 1)
    assume(x0 < x1 and y0 < y1 and max((x1 - x0) / (y1 - y0), (y1 - y0) / (x1 - x0)) < 150)
    pictures.append(pictures[-1].crop((x0, y0, x1, y1)))
    inputs.append(not_thin(*process_image(*pictures[-1].size, *IMAGES["mini-o3"])))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CROPS), st.integers(100, 1500), st.integers(100, 1500), st.data())
def test_a_crop_and_a_crop_of_it_are_the_systems(name: str, width: int, height: int, data: st.DataObject) -> None:
    """From the numbers that the policy writes to the pixels that are cut and the tokens that come of them."""
    dialect = dialects.load(name, frame="shown")
    pictures, inputs = [Image.new("L", (width, height))], [process_image(width, height, *IMAGES[name])]
    seen = plan(width, height, image_limits(dialect.limits, RunOptions()))
    registry = [seen.registered(0, 0)]
    for step in (1, 2):
        extent = inputs[-1] if name == "vrag-rl" else (100, 100)
        x0, y0 = (data.draw(st.integers(0, side * 9 // 10)) for side in extent)
        x1, y1 = data.draw(st.integers(x0 + 1, extent[0])), data.draw(st.integers(y0 + 1, extent[1]))
        if name == "vrag-rl":
            vrag_crop([x0, y0, x1, y1], pictures, inputs)
            text = f"<think>t</think><bbox>[{x0}, {y0}, {x1}, {y1}]</bbox>"
        else:
            box = [x0 / 100, y0 / 100, x1 / 100, y1 / 100]
            mini_o3_crop(box, pictures, inputs)
            source = "original_image" if step == 1 else "observation_1"
            text = f'<think>t</think><grounding>{{"bbox_2d": {box}, "source": "{source}"}}</grounding>'
        (action,) = dialect.parse(text, registry, user_images=1).actions
        assert action.kind is ActionKind.ZOOM and action.region is not None, action
        cut = action.region
        assert (cut.width, cut.height) == pictures[-1].size and cut == Region(*map(int, cut.as_tuple()))
        seen = plan(width, height, crop_limits(dialect.limits, RunOptions()), cut)
        assert (shown(seen), tokens(seen)) == (inputs[-1], processor(*inputs[-1]))
        registry.append(seen.registered(step, 0))


def call(name: str, arguments: str) -> str:
    return f'<think>t</think><tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


# dialect: (units of a side, a call, an edge in pixels of the picture: its number, its side, what is added)
EDGES: dict[str, tuple[int, str, Callable[[float, int, int], float]]] = {
    "qwen-agent": (
        1000,
        call("image_zoom_in_tool", '{"bbox_2d": BOX, "label": "x", "img_idx": 0}'),
        lambda v, side, _: v / 1000.0 * side,
    ),
    "pixel-reasoner": (
        1,
        call("crop_image_normalized", '{"bbox_2d": BOX, "target_image": 1}'),
        lambda v, side, sign: min(max(0, v + sign * 0.1), 1) * side,
    ),
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(EDGES)), st.integers(100, 1500), st.integers(100, 1500), st.data())
def test_other_systems_cut_whole_pixels_as_well(name: str, width: int, height: int, data: st.DataObject) -> None:
    units, text, edge = EDGES[name]
    x0, y0 = data.draw(st.integers(0, 600)), data.draw(st.integers(0, 600))
    box = [x0, y0, data.draw(st.integers(x0 + 350, 999)), data.draw(st.integers(y0 + 350, 999))]
    numbers = [v * units / 1000 if units == 1 else v for v in box]
    wanted = [edge(v, (width, height)[i % 2], -1 if i < 2 else 1) for i, v in enumerate(numbers)]
    assume(all(abs(v % 1 - 0.5) > 1e-6 for v in wanted))  # a tie goes by the last bit of their arithmetic
    dialect = dialects.load(name, frame="shown")
    registry = [RegisteredImage(0, width, height, width, height, None, 0)]
    (action,) = dialect.parse(text.replace("BOX", str(numbers)), registry, user_images=1).actions
    assert action.region is not None, action
    picture = Image.new("1", (width, height)).crop(tuple(wanted))
    assert (action.region.width, action.region.height) == picture.size
    assert action.region.as_tuple() == tuple(map(round, wanted))


@settings(max_examples=150, deadline=None)
@given(st.integers(100, 3000), st.integers(100, 3000), st.data())
@example(100, 100, None)
def test_sensenova_mars_cuts_with_int(width: int, height: int, data: st.DataObject | None) -> None:
    """crop_image of its eval.py: the very pixels, also where a number lies on an edge; 57 of 100 is 0.57 * 100 < 57."""
    box = [0, 0, 570, 570]
    if data is not None:
        x0, y0 = data.draw(st.integers(0, 600)), data.draw(st.integers(0, 600))
        box = [x0, y0, data.draw(st.integers(x0 + 290, 1000)), data.draw(st.integers(y0 + 290, 1000))]
    wanted = [int(v / 1000.0 * (width, height)[i % 2]) for i, v in enumerate(box)]
    assume(min(wanted[2] - wanted[0], wanted[3] - wanted[1]) >= 28)  # a smaller one is stretched there
    dialect = dialects.load("sensenova-mars")
    registry = [RegisteredImage(0, width, height, width, height, None, 0)]
    text = call("image_zoom_in_tool", f'{{"bbox_2d": {box}, "label": "x", "img_idx": 0}}')
    (action,) = dialect.parse(text, registry, user_images=1).actions
    assert action.region is not None and action.region.as_tuple() == tuple(wanted)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.data())
def test_vrag_boxes_round_trip_in_the_scaled_picture(width: int, height: int, data: st.DataObject) -> None:
    """Whole numbers of the scaled picture come back exactly, and its far corner is that of the original."""
    assume(max(width, height) / min(width, height) < 150)
    dialect = dialects.load("vrag-rl")
    image: RegisteredImage = plan(width, height, image_limits(dialect.limits, RunOptions())).registered(0, 0)
    spec = dataclasses.replace(dialect.spec.coordinates, whole_pixels="outward")
    assert spec.frame == "shown"
    frame = CoordinateFrame(spec, "shown")
    w, h = process_image(width, height, *IMAGES["vrag-rl"])
    assert frame.to_region([0, 0, w, h], image) == Region(0, 0, width, height)
    x0, y0 = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    box = [x0, y0, data.draw(st.integers(x0 + 1, w)), data.draw(st.integers(y0 + 1, h))]
    assert frame.format_box(frame.to_region(box, image), image) == str(box)


def test_the_callers_bounds_take_the_place_of_the_systems() -> None:
    options = RunOptions(image_max_pixels=100_000, crop_min_pixels=50_000)
    image, crop = (f(LIMITS["mini-o3"], options) for f in (image_limits, crop_limits))
    assert (image.min_pixels, image.max_pixels, image.scale_first) == (40_000, 100_000, True)
    assert (crop.min_pixels, crop.max_pixels, crop.min_side) == (50_000, 2_000_000, 28)
    assert shown(plan(1000, 1000, image)) == (316, 316)
    assert shown(plan(1000, 1000, PixelLimits(10**6, 100_000, scale_first=True))) == (316, 316)  # the largest area wins
    assert shown(plan(100, 100, PixelLimits(upscale=2.0, scale_first=True))) == (200, 200)


def test_an_engine_of_one_size_bounds_the_second_step() -> None:
    limits = image_limits(LIMITS["vrag-rl"], RunOptions())
    small = plan(1700, 2200, limits, max_patches=400)
    assert small.grid.patches <= 400 and shown(small) == (556, 720)


def test_scaling_by_itself() -> None:
    assert scale_between(300, 200) == (300, 200)
    assert scale_between(300, 200, max_pixels=60_000, min_pixels=60_000) == (300, 200)
    assert scale_between(500_000, 1, max_pixels=100_000) == (223_606, 1)  # never without a side
    assert scale_between(1400, 10, min_pixels=40_000, min_side=28) == (4141, 29)  # 2366 x 16 before


def test_what_is_scaled_first_is_checked(tmp_path: Any) -> None:
    file = tmp_path / "mine.toml"
    for written, message in (
        ("image]\nscale_first = 3\n", "limits.image.scale_first: true or false is needed, not a whole number"),
        ("crop]\nupscale = 20\n", "limits.crop: upscale is 20.0: above 0, at most 16 is needed"),
        ("thumbnail]\nmin_pixels = -1\n", "limits.thumbnail.min_pixels: -1 is negative"),
        ("images]\nmax_pixels = 9\n", "limits.images: unknown key; did you mean 'image'"),
    ):
        file.write_text(f'extends = "gog"\nname = "mine"\n[limits.{written}')
        with pytest.raises(DialectError, match=message):
            dialects.load(file)
