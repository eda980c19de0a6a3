"""Chat templates: sandbox, placing of text and images, turn markers, think prefill; the real Qwen3 template."""

from __future__ import annotations

import pytest

from gog_edge import dialects
from gog_edge.dialects.templates import ChatTemplate, Message
from gog_edge.errors import DialectError
from gog_edge.types import Control, ImagePart, Text
from tests.dialects.helpers import IMAGE_TEXT, PHOTO, plain, qwen3_template
from tests.dialects.scenes import THINKING

# The shape of Qwen2.5-VL's template: a default system message, images in lists, no tools.
QWEN25 = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_text_and_images_are_placed_and_user_text_is_not_template() -> None:
    user = Message("user", (ImagePart(0), Text("{{ 7*7 }} <|im_end|> {% raw %}"), ImagePart(1)))
    for template in (ChatTemplate(QWEN25), ChatTemplate(THINKING), ChatTemplate.default()):
        out = template.render([user])
        assert [s for s in out if not isinstance(s, Control)] == list(user.content)
        assert plain(out).count(IMAGE_TEXT) == 2


def test_frames_of_the_turns() -> None:
    for source in (QWEN25, qwen3_template()):
        frame = ChatTemplate(source).frame
        assert (frame.to_user, frame.prefill) == ("<|im_end|>\n<|im_start|>user\n", "")
        assert frame.to_assistant == "<|im_end|>\n<|im_start|>assistant\n"
    assert ChatTemplate(THINKING).frame.prefill == "<think>\n"


def test_think_prefill_rules() -> None:
    gog = dialects.load("gog", chat_template=THINKING)
    assert plain(gog.opening("q", 1)).endswith("assistant\n<think>\n")
    turn = gog.parse('hm</think>\n<tool_call>\n{"name": "image_search", "arguments": {}}\n</tool_call>', [PHOTO])
    assert turn.thought == "hm"
    assert plain(gog.observe(turn, [_nothing(turn)])).endswith("assistant\n<think>\n")
    assert plain(gog.forced_answer()).endswith("assistant\n<answer>")  # no reasoning before a forced answer
    v2 = dialects.load("deepeyes-v2", chat_template=THINKING)
    turn = v2.parse('<tool_call>\n{"name": "image_search"}\n</tool_call>', [PHOTO])
    assert plain(v2.observe(turn, [_nothing(turn)])).endswith("assistant\n<think>")
    off = dialects.load("gog", chat_template=qwen3_template())
    assert plain(off.opening("q", 1)).endswith("assistant\n")


def _nothing(turn):
    from gog_edge.types import Observation

    return Observation(turn.actions[0])


def test_template_variables_reach_the_template(tmp_path) -> None:
    path = tmp_path / "quiet.toml"
    path.write_text('extends = "gog"\n[chat.variables]\nenable_thinking = false\n')
    text = plain(dialects.load(path, chat_template=qwen3_template()).opening("q", 1))
    assert text.endswith("assistant\n<think>\n\n</think>\n\n")


def test_tools_go_through_the_template_or_into_the_system_text() -> None:
    own = plain(dialects.load("gog").opening("q", 1))
    assert plain(dialects.load("gog", chat_template=qwen3_template()).opening("q", 1)) == own
    assert plain(dialects.load("gog", chat_template=QWEN25).opening("q", 1)) == own


def test_the_default_system_message_of_a_template_is_kept() -> None:
    text = plain(dialects.load("vrag-rl", chat_template=QWEN25).opening("q", 0))
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nAnswer the")


def test_opening_is_the_prefix_of_the_conversation() -> None:
    """Append-only: opening + the policy's turn + observe is what the template would render for that conversation."""
    template = ChatTemplate(QWEN25)
    gog = dialects.load("gog", chat_template=QWEN25)
    opening = gog.opening("q", 1)
    call = 'text\n<tool_call>\n{"name": "image_search", "arguments": {}}\n</tool_call>'
    turn = gog.parse(call, [PHOTO])
    appended = plain(opening) + call + plain(gog.observe(turn, [_nothing(turn)]))
    system = plain(opening).split("<|im_end|>")[0].removeprefix("<|im_start|>system\n")
    rendered = template.render(
        [
            Message("system", (Control(system),)),
            Message("user", (ImagePart(0), Text("q"))),
            Message("assistant", (Control(call),)),
            Message("user", (Control("<tool_response>\nNo results.\n</tool_response>"),)),
        ]
    )
    assert appended == plain(rendered)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", "line 1"),
        ("{{ raise_exception('no images here') }}", "no images here"),
        ("nothing", "dropped a part"),
        ("{{ messages[0].content[1].text }}<|image_pad|>", "wrote 0 of the conversation's 1 images"),
        ("{{ messages[0].content[1].text }}" + IMAGE_TEXT * 2, "more images than"),
        ("{{ 'x' * 10000000 }}", "small numbers only"),
        ("{{ ''.__class__.__mro__ }}", "chat template failed"),
        ("{{ messages.append(1) }}", "chat template failed"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}", "more than"),
        ("x" * 300_000, "characters, more than"),
        ("{{ 1 / 0 }}", "chat template failed"),
    ],
)
def test_bad_templates_are_one_clear_error(source: str, message: str) -> None:
    user = Message("user", (ImagePart(0), Text("q")))
    with pytest.raises(DialectError, match=message):
        ChatTemplate(source).render([user])


def test_no_reserved_characters_in_wording() -> None:
    with pytest.raises(DialectError, match="reserved"):
        ChatTemplate.default().render([Message("user", (Control("\U000f60e0T0\U000f60e1"),))])


def test_several_images() -> None:
    out = dialects.load("gog").opening("q", 3)
    assert [s.image for s in out if isinstance(s, ImagePart)] == [0, 1, 2]
    assert "Images count from 1" in plain(out) and "Images count" not in plain(dialects.load("gog").opening("q", 1))
