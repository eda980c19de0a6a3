"""The systems' own strings, written out by hand from their code: results, errors and prompts must contain them."""

# ruff: noqa: E501 - literal calls and replies

from __future__ import annotations

import pytest

from gog_edge import dialects
from gog_edge.types import Action, ActionKind, Control, Hit, Observation, Region, RegisteredImage
from tests.dialects.helpers import IMAGE_TEXT, PHOTO, plain
from tests.dialects.scenes import SECOND

USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
CROP = RegisteredImage(1, 1000, 800, 448, 352, Region(100, 80, 500, 400), 0)


def reply(name: str, text: str, hits=(), *, shown: bool = False, thumbnails=(), step: int = 1, **keys) -> str:
    """What the dialect appends after a turn with the text `text`."""
    dialect = dialects.load(name)
    turn = dialect.parse(text, [PHOTO])
    made = [
        Observation(action, tuple(hits), shown=1 if shown else None, thumbnails=tuple(thumbnails), **keys)
        for action in turn.actions
    ]
    return plain(dialect.observe(turn, made, question="Who?", step=step, images=[PHOTO, CROP]))


def test_mmsearch_r1() -> None:
    text = reply("mmsearch-r1", "<reason>a</reason><search><img></search>", [Hit("Tower", "x")], thumbnails=[1])
    assert text.startswith(
        "<|im_end|><|im_start|>user\nSearched results: <information>[Image Search Results] The result of the image "
        "search consists of web page information related to the image from the user's original question. Each result "
        "includes the main image from the web page and its title, ranked in descending order of search relevance, as "
        f"demonstrated below:\n1. image: {IMAGE_TEXT}\ntitle: Tower\n</information>\nOriginal user's question: Who?\n"
    )
    assert text.endswith(ASSISTANT)
    text = reply("mmsearch-r1", "<reason>a</reason><text_search>q</text_search>", [Hit("T", "Facts.", "http://u")])
    assert text.startswith(
        "<|im_end|><|im_start|>user\nSearched results: <information>[Text Search Results] Below are the text summaries "
        "of the most relevant webpages related to your query, ranked in descending order of relevance:\n"
        "1. (http://u) Facts.\n</information>\nOriginal user's question: Who?\n"
    )
    for call, kind in (("<search><img></search>", "Image"), ("<text_search>q</text_search>", "Text")):
        assert reply("mmsearch-r1", f"<reason>a</reason>{call}", error="down") == (
            f"<|im_end|><|im_start|>user\n[{kind} Search Results] There is an error encountered in performing search. "
            f"Please reason with your own capaibilities.{ASSISTANT}"
        )


def test_deepeyes() -> None:
    call = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [100, 80, 500, 400]}}\n</tool_call>'
    suffix = (
        "\nThink first, call **image_zoom_in_tool** if needed, then answer. Format strictly as:  <think>...</think>  "
        "<tool_call>...</tool_call> (if tools needed)  <answer>...</answer> "
    )
    assert reply("deepeyes", call, shown=True) == (
        f"<|im_end|>\n{USER}<tool_response>{IMAGE_TEXT}{suffix}</tool_response>{ASSISTANT}"
    )
    assert plain(dialects.load("deepeyes").opening("Q", 1)).endswith(f"{IMAGE_TEXT}Q{suffix}{ASSISTANT}")
    assert reply("deepeyes", "<tool_call>\n{bad}\n</tool_call>") == (
        f"<|im_end|>\n{USER}Error: Invalid tool call format: {{bad}}. Error: Expecting property name enclosed in double "
        f"quotes: line 1 column 2 (char 1){ASSISTANT}"
    )
    small = call.replace("[100, 80, 500, 400]", "[100, 80, 120, 400]")
    assert f"{USER}Error: ZOOM IN ARGUMENTS ARE INVALID{ASSISTANT}" in reply("deepeyes", small)


def test_deepeyes_v2() -> None:
    hits = [Hit("Tower", "It is high.", "http://u")]
    text = reply("deepeyes-v2", '<tool_call>\n{"name": "search", "arguments": {"query": "q"}}\n</tool_call>', hits)
    assert text == (
        f"<|im_end|>\n{USER}<tool_response>\nA Google search for 'q' found 1 results:\n\n## Web Results\n"
        f"1. [Tower](http://u)\n\nIt is high.\n</tool_response>{ASSISTANT}<think>"
    )
    text = reply("deepeyes-v2", '<tool_call>\n{"name": "image_search"}\n</tool_call>', hits, thumbnails=[1])
    assert text == (
        f"<|im_end|>\n{USER}<tool_response>\nA Google image search for the image found 1 results:\n\n## Web Results\n"
        f"1. {IMAGE_TEXT}\n[Tower] \n\n</tool_response>{ASSISTANT}<think>"
    )
    code = "<code>\n```python\nplt.imshow(image_1.crop((100, 80, 500, 400)))\nplt.show()\n```\n</code>"
    assert reply("deepeyes-v2", code, shown=True) == (
        f"<|im_end|>\n{USER}Code execution result:\nstdout:\n```\n\n```\n\nstderr:\n```\n\n```\n\nImages:\n"
        f"{IMAGE_TEXT}{ASSISTANT}<think>"
    )
    call = '{"name": "image_search", "arguments": {}}'
    assert reply("deepeyes-v2", f"<tool_call>\n{call}\n</tool_call>") == (
        f"<|im_end|>\n{USER}Error: Invalid tool call parameters for image search: {call}.{ASSISTANT}<think>"
    )
    assert dialects.load("deepeyes-v2").write(Action(ActionKind.GLANCE), [PHOTO]) == (
        '<tool_call>\n{"name": "image_search"}\n</tool_call>'
    )
    text = reply("deepeyes-v2", "<code>\n```python\nimport os\nos.system('ls')\n```\n</code>")
    assert "Code execution result:\nstdout:\n```\n\n```\n\nstderr:\n```\nImport is not allowed\n```" in text


def test_qwen_agent() -> None:
    call = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 500, 500], "label": "a", "img_idx": 0}}\n</tool_call>'
    one = f"<tool_response>\n{IMAGE_TEXT}\n</tool_response>"
    assert reply("qwen-agent", f"{call}\n{call}", shown=True) == f"<|im_end|>\n{USER}{one}\n{one}{ASSISTANT}"
    search = '<tool_call>\n{"name": "image_search", "arguments": {"img_idx": 7}}\n</tool_call>'
    text = reply("qwen-agent", search, [Hit("Tower", "High.", image="http://i/1.jpg")], thumbnails=[1])
    assert f'<tool_response>\n[1] "http://i/1.jpg" Tower\nHigh.{IMAGE_TEXT}\n</tool_response>' in text
    assert f"<tool_response>\n\n</tool_response>{ASSISTANT}" in reply("qwen-agent", search, error="down")
    text = reply("qwen-agent", '<tool_call>\n{"name": "image_search", "arguments": {"img\n</tool_call>')
    assert "An error occurred when calling tool `image_search`:\nValueError: Parameters must be formatted" in text
    text = reply("qwen-agent", call.replace('"label": "a", ', ""))
    assert "An error occurred when calling tool `image_zoom_in_tool`:\nValidationError: 'label' is a required" in text
    assert "Error: Invalid input image " in reply("qwen-agent", call.replace('"img_idx": 0', '"img_idx": 7'))
    assert "Tool other does not exists." in reply("qwen-agent", '<tool_call>\n{"name": "other"}\n</tool_call>')


def test_sensenova_mars() -> None:
    call = '<thinking>a</thinking>\n<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 500, 500], "label": "a", "img_idx": 0}}\n</tool_call>'
    start, end = f"<|im_end|>{USER}<tool_response>\n", f"\n</tool_response>{ASSISTANT}"  # no line break in the rollout
    assert reply("sensenova-mars", call, shown=True) == f"{start}Here is the zoomed image:{IMAGE_TEXT}{end}"
    search = '<tool_call>\n{"name": "image_search_tool", "arguments": {}}\n</tool_call>'
    assert reply("sensenova-mars", search, [Hit("Tower", "x"), Hit("Hall", "")], thumbnails=[1]) == (
        f"{start}Reverse Image Search Results:\n\nTitle 1: Tower\nThumbnail 1: {IMAGE_TEXT}\n\nTitle 2: Hall\nThumbnail 2: {end}"
    )
    assert reply("sensenova-mars", search) == f"{start}No matching images were found.{end}"
    text = '<tool_call>\n{"name": "text_search_tool", "arguments": {"query": "q"}}\n</tool_call>'
    assert reply("sensenova-mars", text, [Hit("T", "Facts.")]).startswith(
        f"{start}Final summary generated for query: q\n"
    )
    assert reply("sensenova-mars", text) == f"{start}No search results found for query: q{end}"
    assert reply("sensenova-mars", text, error="down") == f"{start}Error: Search not available.{end}"
    for wrong, words in (
        (call.replace('"bbox_2d"', '"box"'), "bbox parameter is missing or not a list of 4 numbers."),
        (call.replace("[0, 0, 500, 500]", "[1, 2, 3]"), "bbox parameter is missing or not a list of 4 numbers."),
        (call.replace("500, 500", '"x", 5'), "Bbox coordinates must be numeric: [0, 0, 'x', 5]"),
        (
            call.replace("500, 500", "5, 1001"),
            "In relative mode, coordinates must be in [0, 1000.0]. Got: [0, 0, 5, 1001]",
        ),
        (
            call.replace("500, 500", "0, 5"),
            "Invalid bbox coordinates: x1 must be < x2, y1 must be < y2. Got: [0, 0, 0, 5]",
        ),
        (call.replace('"img_idx": 0', '"img_idx": 7'), "Image at index 7 not found. Available images: 1"),
        (text.replace('{"query": "q"}', "{}"), "query parameter is required and must be a string."),
        (text.replace("text_search_tool", "other"), "Unknown tool 'other'"),
    ):
        assert reply("sensenova-mars", wrong) == f"{start}Error: {words}{end}"


def test_sensenova_mars_reads_as_its_rollout_does() -> None:
    """The older names of the arguments, none but the box, the first call of a turn; an answer beside a call is none."""
    read = dialects.load("sensenova-mars").parse
    call = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"%s": [0, 0, 500, 500]%s}}\n</tool_call>'
    images = [PHOTO, CROP]
    for text, image in ((call % ("bbox", ""), 0), (call % ("bbox_2d", ', "image_index": 1'), 1)):
        for turn in (
            text,
            f"{text}\n{call % ('bbox', '')}",
            f"<answer>no</answer>{text}",
            f"<thinking>{text}</thinking>",
        ):
            (action,) = read(turn, images, user_images=1).actions
            assert (action.kind, action.image) == (ActionKind.ZOOM, image)
    (action,) = read("<thinking>a</thinking>\nIt is 1889.", images).actions
    assert action == Action(ActionKind.ANSWER, "It is 1889.")


def test_qwen_agent_xml() -> None:
    """The tools block is Qwen3.5's own: a template with tools renders it from the same entries."""
    from gog_edge.dialects.templates import Message

    dialect = dialects.load("qwen-agent-xml")
    prompt = plain(dialect.opening("Q", 1))
    assert prompt.startswith(
        '<|im_start|>system\n# Tools\n\nYou have access to the following functions:\n\n<tools>\n{"type": "function"'
    )
    assert (
        "</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
        in prompt
    )
    assert prompt.endswith(
        f"do not tell the user about function calls\n</IMPORTANT><|im_end|>\n{USER}{IMAGE_TEXT}Q{ASSISTANT}"
    )
    entries = plain(dialect.template.render([Message("user", (Control("Q"),))], dialect.tools))
    assert (
        prompt.partition("<tools>\n{")[2].partition("</tools>")[0]
        == entries.partition("<tools>\n{")[2].partition("</tools>")[0]
    )
    text = reply("qwen-agent-xml", '<tool_call>\n{"name": "image_search", "arguments": {"img_idx": 0}}\n</tool_call>')
    assert "ValueError: Write <function=NAME>, then each <parameter=KEY>, then </function>!\n" in text


def test_vrag_rl() -> None:
    assert reply("vrag-rl", "<think>a</think><search> q </search>", [Hit("p", "", image="p.png")], thumbnails=[1]) == (
        f"<|im_end|>\n{USER}{IMAGE_TEXT}{ASSISTANT}"
    )
    dialect = dialects.load("vrag-rl")
    turn = dialect.parse("<bbox>[0, 0, 96, 96]</bbox>", [PHOTO])
    out = dialect.observe(turn, [Observation(turn.actions[0], shown=1)], images=[PHOTO, CROP], last=True)
    assert plain(out).endswith(
        f"{IMAGE_TEXT}please answer the question now with answer in <answer> ... </answer>{ASSISTANT}"
    )


def test_mini_o3() -> None:
    call = '<grounding>{"bbox_2d": [0.1, 0.1, 0.5, 0.5], "source": "original_image"}</grounding>'
    assert reply("mini-o3", call, shown=True, step=2) == (
        f"<|im_end|>\n{USER}After the above Action 1, here is the the zoom-in image (Observation 2):\n{IMAGE_TEXT}.\n"
        "Continue your reasoning process inside <think> and </think>. If needed, you can continue to zoom in on the "
        "original image or any of the observations, by outputting <grounding> and </grounding> as before. If the final "
        f"answer is confirmed, put your final answer inside <answer> and </answer>.{ASSISTANT}"
    )
    text = reply("mini-o3", call.replace("original_image", "observation_4"))
    assert text.startswith(f"<|im_end|>\n{USER}ERROR occurs during grounding. Error Information: ")
    assert text.endswith(
        ".\nPlease analyze the error information obtained from the function tool and adjust your response. Countinue "
        f"your reasoning process inside <think> and </think>.{ASSISTANT}"
    )


def test_pixel_reasoner() -> None:
    call = '<tool_call>\n{"name": "crop_image_normalized", "arguments": {"bbox_2d": [0.2, 0.2, 0.4, 0.4], "target_image": 1}}\n</tool_call>'
    assert f"{USER}\nHere is the cropped image (Image Size: 448x352):{IMAGE_TEXT}{ASSISTANT}" in reply(
        "pixel-reasoner", call, shown=True
    )
    assert f"{USER}\nExecution error:\n" in reply(
        "pixel-reasoner", call.replace('"target_image": 1', '"target_image": 5')
    )


def test_webwatcher() -> None:
    call = '<tool_call>\n{"name": "VLSearchImage", "arguments": {"image_urls": ["x.jpg"]}}\n</tool_call>'
    hits = [Hit("Tower", "", "http://u", image="1.jpg"), Hit("Arch", "", "http://v", image="2.jpg")]
    assert reply("webwatcher", call, hits, thumbnails=[1, 1]) == (
        f"<|im_end|>\n{USER}<tool_response>{IMAGE_TEXT}{IMAGE_TEXT}```\nImage: 1.jpg, Text: Tower, Webpage Url: http://u"
        f"\n\nImage: 2.jpg, Text: Arch, Webpage Url: http://v\n```</tool_response>{ASSISTANT}"
    )
    code = '<tool_call>\n{"name": "code_interpreter", "arguments": {"code": "1"}}\n</tool_call>'
    assert f"{USER}please use valid tool or answer the question.{ASSISTANT}" in reply("webwatcher", code)


def test_vision_deepresearch() -> None:
    call = '<tool_call>\n{"name": "crop_and_search", "arguments": {"image_id": "a", "bbox": [[0, 0, 500, 500], [1, 1, 9, 9]], "goal": "g"}}\n</tool_call>'
    text = reply("vision-deepresearch", call, [Hit("Tower", "High.", "http://u")])
    one = (
        "The search results for bbox {} are as follows:\n[1] The useful information in [Tower](http://u) are:\n\n"
        "Evidence in page:\nHigh.\n\nSummary:\nTower\n\n"
    )
    body = one.format("[0, 0, 500, 500]") + "\n\n=======\n\n" + one.format("[1, 1, 9, 9]")
    assert text == f"<|im_end|>\n{USER}<tool_response>\n{body}\n</tool_response>{ASSISTANT}"
    nothing = "Error: Invalid content format. Content must contain <tool_call> or <answer> tags. Let's try again."
    assert reply("vision-deepresearch", "hm") == f"<|im_end|>\n{USER}{nothing}{ASSISTANT}"
    assert plain(dialects.load("vision-deepresearch").forced_answer()).endswith(
        f"{USER}You have reached the maximum number of reasoning rounds (50). Based on all the information gathered so "
        "far, please provide your best final answer now in the format: <think>your final thinking</think>\n"
        f"<answer>your answer</answer>{ASSISTANT}"
    )
    broken = "<tool_response>\n[Json Parse Error]: Tool call is not a valid JSON.\n</tool_response>"
    assert broken in reply("vision-deepresearch", "<tool_call>{oops</tool_call>")


def test_video_deepresearch() -> None:
    start, end = f"<|im_end|>\n{USER}<tool_response>\n", f"\n</tool_response>{ASSISTANT}"
    call = '<tool_call>\n{"name": "select_crop_search", "arguments": {"image_idx": %s, "bbox": %s, "goal": "g"}}\n</tool_call>'
    one = (
        "[Image index {} | path: image_0 | bbox: {}]\nThe search results for bbox {} are as follows:\n"
        "[1] The useful information in [Tower](http://u) are:\n\nEvidence in page:\nHigh.\n\nSummary:\nTower\n\n"
    )
    boxes = "[0, 0, 500, 500]", "[1, 1, 9, 9]"
    pairs = "\n\n=======\n\n".join(one.format(place, box, box) for place, box in enumerate(boxes))
    assert reply(
        "video-deepresearch", call % ("[0, 0]", f"[{', '.join(boxes)}]"), [Hit("Tower", "High.", "http://u")]
    ) == (f"{start}Tool `select_crop_search` returned:\n{pairs}{end}")
    searches = '<tool_call>\n{"name": "search", "arguments": {"query": ["a", "b"]}}\n</tool_call>'
    nothing = "No search results found for 'a'\n=======\nNo search results found for 'b'"
    assert reply("video-deepresearch", searches) == f"{start}Tool `search` returned:\n{nothing}{end}"
    for images, box, words in (
        ("[]", "[[0, 0, 5, 5]]", "select_crop_search requires 'image_idx' argument."),
        ("[0]", "[]", "select_crop_search requires 'bbox' argument."),
        ('["x"]', "[[0, 0, 5, 5]]", "image_idx values must be integers, got 'x'."),
        ("[0, 1]", "[[0, 0, 5, 5]]", "image_idx 1 is out of range. Available indices: [0]."),
        ("[0, 0]", "[[0, 0, 5, 5]]", "bbox and image_idx must have the same length (got 1 bboxes for 2 images)."),
    ):
        assert (
            reply("video-deepresearch", call % (images, box))
            == f"{start}Tool `select_crop_search` returned:\n{words}{end}"
        )
    assert f"{start}Tool `search` returned:\nsearch tool requires 'query' argument{end}" in reply(
        "video-deepresearch", searches.replace('"query": ["a", "b"]', "")
    )
    said = (
        "No <tool_call> or <answer> detected. Available tools: search, visit, select_crop_search. If you have gathered enough "
        "information, provide your answer in <answer></answer> tags. Otherwise call a tool via "
        '<tool_call>{"name": "<name>", "arguments": {...}}</tool_call>.'
    )
    for text in ("hm", "<tool_call>{oops</tool_call>"):
        assert reply("video-deepresearch", text) == f"{start}{said}{end}"
    pair = call % ("[1, 0]", "[[0, 0, 500, 500], [0, 0, 100, 100]]")
    read = dialects.load("video-deepresearch").parse(pair, [PHOTO, SECOND], user_images=2).actions
    assert [(a.image, a.region) for a in read] == [(1, Region(0, 0, 320, 240)), (0, Region(0, 0, 100, 80))]


def test_opensearch_vl() -> None:
    call = '<tool_call>{"name": "crop", "arguments": {"image": "img_1", "x": 100, "y": 80, "width": 400, "height": 320}}</tool_call>'
    assert reply("opensearch-vl", call, shown=True) == (
        f"<|im_end|>\n{USER}<observation>\nImage cropped successfully. New image ID: img_2. Available at: img_2\n"
        f"</observation>{IMAGE_TEXT}{ASSISTANT}"
    )
    call = '<tool_call>{"name": "text_search", "arguments": {"query": "q", "top_k": 1}}</tool_call>'
    text = reply("opensearch-vl", call, [Hit("A", "Facts.", "http://u"), Hit("B", "x", "y")])
    assert "Tool execution result:\n[Passage 1]\nTitle: A\nURL: http://u\nSummary:\nFacts.\n</observation>" in text
    for name, arguments, error in (
        ("zap", "{}", "Unknown tool: 'zap'"),
        ("text_search", "{}", "'q' is required for text_search."),
        ("text_search", '{"q": ""}', "'q' is required for text_search."),
        ("crop", '{"x": 1, "y": 2, "width": 3, "height": 4}', "'image' is required for crop."),
        ("crop", '{"image": "img_1", "x": 1, "y": 2, "width": 0, "height": 4}', "width and height must be positive integers."),
        ("crop", '{"image": "img_7", "x": 1, "y": 2, "width": 3, "height": 4}', "Failed to load image 'img_7'."),
    ):  # fmt: skip
        text = reply("opensearch-vl", f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>')
        assert f"{USER}<observation>\nTool execution error:\n{error}\n</observation>{ASSISTANT}" in text
    call = '<tool_call>{"name": "image_search", "arguments": {"url": "img_1"}}</tool_call>'
    text = reply("opensearch-vl", call, [Hit('A "quoted" title', "", "s")])
    assert '[{"title": "A \\"quoted\\" title", "source": "s"}]' in text


def test_agile() -> None:
    text = reply("agile", "<code>\nimage_2 = crop(raw_image, [0.1, 0.1, 0.5, 0.5])\n</code>", shown=True)
    assert f"{USER}The code is executed successfully. `image_2` is{IMAGE_TEXT}{ASSISTANT}" in text
    wrong = reply("agile", "<code>\nimage_2 = crop(raw_image, [0.1, 0.1, 0.5, 1.5])\n</code>")
    assert f"{USER}Error: crop_box must be 4 values between 0 and 1{ASSISTANT}" in wrong


@pytest.mark.parametrize("name", dialects.names())
def test_forced_answers_are_answers(name: str) -> None:
    dialect = dialects.load(name)
    closing = next((a.close for a in dialect.spec.actions if a.kind == "answer" and a.via == "tag"), "")
    for text in (f"a cat{closing}", "a cat"):
        assert dialect.parse(text, [PHOTO], forced=True).actions == (Action(ActionKind.ANSWER, "a cat"),)
    whole = dialect.write(Action(ActionKind.ANSWER, "a cat"), [PHOTO])
    assert dialect.parse(whole, [PHOTO], forced=True).actions[0].text == "a cat"
