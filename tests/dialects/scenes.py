"""What the golden transcripts hold beside one straight conversation: calls that can't be used, in each dialect's own
syntax; several images and crops that are named again; the turns of a thinking checkpoint.
"""

from __future__ import annotations

from gog_edge import dialects
from gog_edge.dialects import Dialect
from gog_edge.families import named
from gog_edge.types import Action, ActionKind, Control, Observation, Region, RegisteredImage, Segment, Turn

Part = tuple[str, list[Segment]]
PHOTO = RegisteredImage(0, 1000, 800, 1024, 832, None, 0)
SECOND = RegisteredImage(1, 640, 480, 640, 480, None, 1)
FAR = Region(160, 120, 480, 360)

# The shape of Qwen3-VL-Thinking's template: tools, trimmed content, an opened think tag.
THINKING = (
    "{% macro body(c) %}{% if c is string %}{{ c }}{% else %}{% for p in c %}{% if p.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ body(messages[0].content) }}"
    "\n\n{% endif %}# Tools{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if not (tools and m.role == 'system') %}<|im_start|>{{ m.role }}\n"
    "{{ body(m.content) | trim }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def _call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def _function(name: str, **arguments: str) -> str:
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


_UNREADABLE = '<tool_call>\n{"name": "\n</tool_call>'
_CODE = "<code>\n```python\n{}\n```\n</code>"
# What goes wrong: the turn. Every reply that a dialect has words for is met at least once.
FAULTS: dict[str, dict[str, str]] = {
    "agile": {
        "no box": "<code>image_1 = crop(raw_image, [0.1, 0.2, 0.3])</code>",
        "an empty box": "<code>image_1 = crop(raw_image, [0.5, 0.5, 0.5, 0.9])</code>",
        "a box outside": "<code>image_1 = crop(raw_image, [1.5, 0.1, 1.8, 0.5])</code>",
        "no such image": "<code>image_1 = crop(image_list[7], [0.1, 0.1, 0.5, 0.5])</code>",
        "other code": "<code>import os\nos.remove('x')</code>",
    },
    "deepeyes": {
        "unreadable": _UNREADABLE,
        "no box": _call("image_zoom_in_tool", "{}"),
        "a box too small": _call("image_zoom_in_tool", '{"bbox_2d": [100, 80, 120, 400]}'),
        "a box turned round": _call("image_zoom_in_tool", '{"bbox_2d": [500, 400, 100, 80]}'),
    },
    "deepeyes-v2": {
        "unreadable": _UNREADABLE,
        "arguments where none belong": _call("image_search", "{}"),
        "no query": _call("search", "{}"),
        "other code": _CODE.format("print(1)"),
        "an empty box": _CODE.format("plt.imshow(image_1.crop((5, 5, 5, 9)))"),
        "a box too small": _CODE.format("plt.imshow(image_1.crop((5, 5, 5.5, 9)))"),
        "no such image": _CODE.format("plt.imshow(image_9.crop((0, 0, 50, 90)))"),
    },
    "deepmmsearch-r1": {
        "nothing": "<reason>I wonder.</reason>",
        "words without a box": "<img_search>the red car</img_search>",
        "an empty box": "<img_search>[5, 5, 5, 9] the red car</img_search>",
    },
    "direct": {},
    "gog": {
        "nothing": "I wonder.",
        "unreadable": _UNREADABLE,
        "no query": _call("text_search", "{}"),
        "three numbers": _call("crop_search", '{"bbox_2d": [1, 2, 3]}'),
        "an empty box": _call("crop_search", '{"bbox_2d": [5, 5, 5, 9]}'),
        "no such image": _call("crop_search", '{"bbox_2d": [1, 2, 300, 400], "image": 9}'),
        "two calls, one bad": _call("image_search", "{}") + "\n" + _call("text_search", '{"query": 5.5}'),
    },
    "gog-mmsearch": {
        "words without a box": "<reason>r</reason><search>the red car</search>",
        "an empty box": "<reason>r</reason><search>[5, 5, 5, 9] the red car</search>",
        "no query": "<reason>r</reason><text_search> </text_search>",
    },
    "mini-o3": {
        "unreadable": '<grounding>{"bbox_2d": </grounding>',
        "no source": '<grounding>{"bbox_2d": [0.1, 0.1, 0.5, 0.5]}</grounding>',
        "an empty box": '<grounding>{"bbox_2d": [0.5, 0.5, 0.5, 0.9], "source": "original_image"}</grounding>',
        "no such observation": '<grounding>{"bbox_2d": [0.1, 0.1, 0.5, 0.5], "source": "observation_7"}</grounding>',
    },
    "mmsearch-r1": {"no query": "<reason>r</reason><text_search> </text_search>"},
    "opensearch-vl": {
        "unreadable": _UNREADABLE,
        "no query": _call("text_search", "{}"),
        "no width": _call("crop", '{"image": "img_1", "x": 1, "y": 2, "height": 4}'),
        "an empty box": _call("crop", '{"image": "img_1", "x": 1, "y": 2, "width": 0, "height": 4}'),
        "no such image": _call("crop", '{"image": "img_7", "x": 1, "y": 2, "width": 30, "height": 40}'),
        "a refused tool": _call("sharpen", '{"image": "img_1"}'),
    },
    "pixel-reasoner": {
        "unreadable": _UNREADABLE,
        "no target": _call("crop_image_normalized", '{"bbox_2d": [0.1, 0.1, 0.5, 0.5]}'),
        "a box turned round": _call("crop_image_normalized", '{"bbox_2d": [0.5, 0.5, 0.2, 0.9], "target_image": 1}'),
        "no such image": _call("crop_image_normalized", '{"bbox_2d": [0.1, 0.1, 0.5, 0.5], "target_image": 7}'),
    },
    "qwen-agent": {
        "unreadable": _UNREADABLE,
        "no label": _call("image_zoom_in_tool", '{"bbox_2d": [0, 0, 500, 500], "img_idx": 0}'),
        "an empty box": _call("image_zoom_in_tool", '{"bbox_2d": [5, 5, 5, 9], "label": "a", "img_idx": 0}'),
        "no such image": _call("image_zoom_in_tool", '{"bbox_2d": [0, 0, 500, 500], "label": "a", "img_idx": 7}'),
    },
    "qwen-agent-xml": {
        "unreadable": "<tool_call>\n<function=image_search\n</tool_call>",
        "a function without an end": "<tool_call>\n<function=image_search>\n<parameter=img_idx>\n0\n</tool_call>",
        "an unknown tool": _function("no_such_tool", img_idx="0"),
        "no label": _function("image_zoom_in_tool", bbox_2d="[0, 0, 500, 500]", img_idx="0"),
        "an empty box": _function("image_zoom_in_tool", bbox_2d="[5, 5, 5, 9]", label="a", img_idx="0"),
        "no such image": _function("image_zoom_in_tool", bbox_2d="[0, 0, 500, 500]", label="a", img_idx="7"),
        "two calls": _function("image_search", img_idx="0") + "\n" + _function("image_search", img_idx="7"),
    },
    "sensenova-mars": {
        "unreadable": _UNREADABLE,
        "no query": _call("text_search_tool", "{}"),
        "no box": _call("image_zoom_in_tool", '{"label": "a", "img_idx": 0}'),
        "words for a box": _call("image_zoom_in_tool", '{"bbox_2d": [1, 2, "a", 4], "label": "a", "img_idx": 0}'),
        "a box outside": _call("image_zoom_in_tool", '{"bbox_2d": [0, 0, 500, 1200], "label": "a", "img_idx": 0}'),
        "a box turned round": _call("image_zoom_in_tool", '{"bbox_2d": [500, 0, 5, 9], "label": "a", "img_idx": 0}'),
        "no such image": _call("image_zoom_in_tool", '{"bbox_2d": [0, 0, 500, 500], "label": "a", "img_idx": 7}'),
        "reasoning that does not end": "<thinking>I wonder.",
        "two calls": _call("image_search_tool", "{}") + "\n" + _call("text_search_tool", '{"query": "a"}'),
    },
    "video-deepresearch": {
        "nothing": "I wonder.",
        "unreadable": _UNREADABLE,
        "no query": _call("search", "{}"),
        "no image": _call("select_crop_search", '{"bbox": [[0, 0, 500, 500]], "goal": "a"}'),
        "no box": _call("select_crop_search", '{"image_idx": [0], "goal": "a"}'),
        "words for an image": _call("select_crop_search", '{"image_idx": ["x"], "bbox": [[0, 0, 9, 9]], "goal": "a"}'),
        "no such image": _call("select_crop_search", '{"image_idx": [0, 7], "bbox": [[0, 0, 9, 9]], "goal": "a"}'),
        "one box too few": _call("select_crop_search", '{"image_idx": [0, 0], "bbox": [[0, 0, 9, 9]], "goal": "a"}'),
        "an empty box": _call("select_crop_search", '{"image_idx": [0], "bbox": [[5, 5, 5, 9]], "goal": "a"}'),
        "two boxes": _call(
            "select_crop_search", '{"image_idx": [0, 0], "bbox": [[0, 0, 500, 500], [10, 10, 500, 500]], "goal": "a"}'
        ),
    },
    "vision-deepresearch": {
        "nothing": "I wonder.",
        "unreadable": _UNREADABLE,
        "no query": _call("search", "{}"),
        "an empty box": _call("crop_and_search", '{"image_id": "1", "bbox": [[5, 5, 5, 9]], "goal": "a"}'),
        "one box of two is bad": _call("crop_and_search", '{"bbox": [[5, 5, 5, 9], [10, 10, 500, 500]], "goal": "a"}'),
        "a refused tool": _call("PythonInterpreter", "{}"),
    },
    "vrag-rl": {
        "nothing": "<think>I wonder.</think>",
        "three numbers": "<bbox>[1, 2, 3]</bbox>",
        "a box turned round": "<bbox>[500, 400, 100, 80]</bbox>",
    },
    "webwatcher": {
        "nothing": "I wonder.",
        "unreadable": _UNREADABLE,
        "no query": _call("web_search", "{}"),
        "a refused tool": _call("code_interpreter", '{"code": "print(1)"}'),
    },
}


def faults(dialect: Dialect) -> list[Part]:
    """Every call that can't be used, how it was read, and the reply."""
    out: list[Part] = []
    for what, text in FAULTS[dialect.name].items():
        turn = dialect.parse(text, [PHOTO])
        seen = [Observation(action) for action in turn.actions]
        out += [(f"policy: {what}", [Control(text)]), read(turn)]
        out.append((f"result: {what}", dialect.observe(turn, seen, question="Who?", step=2, images=[PHOTO])))
    return out


def several_images(dialect: Dialect) -> list[Part]:
    """Two images of the user; the second one is named, then the crop of it, where the dialect has names for them."""
    registry = [PHOTO, SECOND]
    out: list[Part] = [("prompt: two images", dialect.opening("Which is older?", 2, registry))]
    form = next((a for a in dialect.spec.actions if a.kind in ("zoom", "gaze")), None)
    if form is None or not ("image" in form.args or dialect.spec.images.default == "last"):
        return out  # it has no word for the second one
    kind = ActionKind(form.kind)
    for number, region in ((1, FAR), (2, Region(200, 150, 400, 300))):
        if number == len(registry):
            break
        text = dialect.write(Action(kind, "the tower", region, number, "the tower"), registry)
        turn = dialect.parse(text, registry, user_images=2)
        out += [(f"policy: image {number}", [Control(text)]), read(turn)]
        shown = None
        if dialect.shows_crop(kind) and turn.actions[0].region is not None:
            shown = len(registry)
            registry.append(RegisteredImage(shown, 640, 480, 320, 256, turn.actions[0].region, 1))
        seen = [Observation(turn.actions[0], shown=shown)]
        out.append((f"result: image {number}", dialect.observe(turn, seen, step=number, images=registry)))
    return out


def thinking(name: str) -> list[Part]:
    """The same dialect on a thinking checkpoint: how each kind of assistant turn begins, and a turn read without its
    opening tag."""
    dialect = dialects.load(name, chat_template=THINKING)
    spec = dialect.spec
    out: list[Part] = [("thinking: first turn", _end(dialect.opening("Who?", 1, [PHOTO])))]
    kind = next((k for k in ActionKind if k is not ActionKind.ANSWER and k.value in _kinds(dialect)), ActionKind.ANSWER)
    region = FAR if kind in (ActionKind.GAZE, ActionKind.ZOOM) else None
    text = f"I need to look.\n</think>\n\n{dialect.write(Action(kind, 'tower', region, 0, 'tower'), [PHOTO])}"
    turn = dialect.parse(text, [PHOTO])
    out += [("policy: thinking", [Control(text)]), read(turn)]
    if kind is not ActionKind.ANSWER:
        out.append(("thinking: next turn", _end(dialect.observe(turn, [Observation(turn.actions[0])]))))
    out.append(("thinking: forced turn", _end(dialect.forced_answer("Who?"))))
    closed = next((a.close for a in spec.actions if a.kind == "answer" and a.via == "tag"), "")
    out.append(("thinking: forced answer", [read(dialect.parse(f"1889{closed}", [PHOTO], forced=True))[1][0]]))
    return out


def families(name: str) -> list[Part]:
    """The same box written for both families, where the family decides on the frame."""
    out: list[Part] = []
    for family in ("qwen3_vl", "qwen2_5_vl"):
        dialect = dialects.load(name, frame=named(family).box_frame)
        if dialect.spec.coordinates.frame == "family" and "gaze" in _kinds(dialect):
            text = dialect.write(Action(ActionKind.GAZE, "", Region(100, 80, 500, 400), 0, "the tower"), [PHOTO])
            out += [(f"policy: {family}", [Control(text)]), read(dialect.parse(text, [PHOTO]))]
    return out


def read(turn: Turn) -> Part:
    """How the turn was understood: boxes in pixels of the original image."""
    lines = [f"thought: {turn.thought}"] if turn.thought else []
    for action in turn.actions:
        line = action.kind.value + (f" image {action.image}" if action.image else "")
        if action.region is not None:
            line += f" [{', '.join(f'{v:.2f}' for v in action.region.as_tuple())}]"
        line += f" label {action.label!r}" if action.label else ""
        lines.append(line + (f" {action.text!r}" if action.text else ""))
    return "read", [Control("\n".join(lines))]


def _kinds(dialect: Dialect) -> set[str]:
    return {action.kind for action in dialect.spec.actions}


def _end(segments: list[Segment]) -> list[Segment]:
    """From the last turn marker on."""
    text = "".join(s.text for s in segments if isinstance(s, Control))
    return [Control(text[text.rindex("<|im_end|>") :])]
