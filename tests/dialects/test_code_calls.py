"""Code of a closed list: read, never run."""

# ruff: noqa: E501 - literal calls and replies

from __future__ import annotations

import pytest

from gog_edge import dialects
from gog_edge.types import Action, ActionKind, Region, RegisteredImage
from tests.dialects.helpers import PHOTO

SECOND = RegisteredImage(1, 500, 500, 512, 512, None, 1)


def deepeyes(code: str) -> Action:
    dialect = dialects.load("deepeyes-v2")
    turn = dialect.parse(f"<think>a</think><code>\n```python\n{code}\n```\n</code>", [PHOTO, SECOND])
    assert len(turn.actions) == 1
    return turn.actions[0]


def agile(code: str) -> Action:
    turn = dialects.load("agile").parse(f"<code>{code}</code>", [PHOTO, SECOND])
    assert len(turn.actions) == 1
    return turn.actions[0]


@pytest.mark.parametrize(
    ("code", "image", "region"),
    [
        ("plt.imshow(image_1.crop((100, 80, 500, 400)))\nplt.show()", 0, (100, 80, 500, 400)),
        ("import matplotlib.pyplot as plt\nfrom PIL import Image\ncropped = image_1.crop((1, 2, 300, 400))\nplt.imshow(cropped)\nplt.axis('off')\nplt.show()", 0, (1, 2, 300, 400)),
        ("w, h = image_1.size\nc = image_1.crop((w // 2, 0, w, h))\nplt.imshow(c)\nplt.show()", 0, (500, 0, 1000, 800)),
        ("x0, y0, x1, y1 = 10, 20, 110, 220\nc = image_2.crop((x0, y0, x1, y1)).resize((800, 800))\nplt.figure(figsize=(10, 10))\nplt.imshow(c)\nplt.show()", 1, (10, 20, 110, 220)),
        ("a = image_1.crop((100, 100, 600, 600))\nb = a.crop((10, 10, 60, 60))\nplt.imshow(b)\nplt.show()", 0, (110, 110, 160, 160)),
        ("c = image_1.crop((0, 0, int(image_1.width * 0.5), min(900, image_1.height)))\nc.show()", 0, (0, 0, 500, 800)),
        ("fig, ax = plt.subplots()\nax.imshow(image_1.crop((0, 0, 50, 50)))\nplt.show()", 0, (0, 0, 50, 50)),
    ],
)  # fmt: skip
def test_crops_by_method(code: str, image: int, region: tuple[float, ...]) -> None:
    action = deepeyes(code)
    assert (action.kind, action.image) == (ActionKind.ZOOM, image), action
    assert action.region == Region(*region)


@pytest.mark.parametrize(
    ("code", "region", "label"),
    [
        ("image_1 = crop(raw_image, [0.1, 0.1, 0.5, 0.5])", (100, 80, 500, 400), "image_1"),
        ("box = [0.1, 0.1, 0.5, 0.5]\nimage_3 = crop(image_list[0], box)", (100, 80, 500, 400), "image_3"),
        ("a = crop(raw_image, [0.5, 0.5, 1, 1])\nimage_1 = crop(a, [0, 0, 0.5, 0.5])", (500, 400, 750, 600), "image_1"),
        ("image_1 = zoom(crop(raw_image, [0.1, 0.1, 0.5, 0.5]), 2)", (100, 80, 500, 400), "image_1"),
        ("image_1 = zoom(raw_image, 2.0)", (0, 0, 1000, 800), "image_1"),
    ],
)
def test_crops_by_function(code: str, region: tuple[float, ...], label: str) -> None:
    action = agile(code)
    assert (action.kind, action.region, action.label) == (ActionKind.ZOOM, Region(*region), label)


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "__import__('os').system('true')",
        "open('/etc/passwd').read()",
        "image_1.save('x.png')",
        "image_1.crop.__globals__",
        "for i in range(3):\n    plt.imshow(image_1)",
        "lambda: 0",
        "x = [i for i in (1, 2)]",
        "plt.imshow(image_9.crop((0, 0, 5, 5)))\nplt.show()",
        "plt.imshow(image_1.crop((0, 0, 5)))\nplt.show()",
        "plt.imshow(image_1.crop((9, 9, 5, 5)))\nplt.show()",
        "plt.imshow(image_1.crop((0, 0, 1/0, 5)))\nplt.show()",
        "plt.imshow(image_1.crop((0, 0, 9**9**9, 5)))\nplt.show()",
        "plt.imshow(image_1.crop((0, 0, 10**400, 5)))\nplt.show()",
        "print(image_1.size)",
        "plt.imshow(image_1.rotate(90))\nplt.show()",
        "plt.imshow(image_1)\nplt.imshow(image_2)\nplt.show()",
        "plt.show()",
        "x = 5",
        "",
        "def f():\n    pass",
        "image_1.crop(*[(0, 0, 5, 5)])",
        "plt.imshow(**{'X': image_1})",
        "exec('1')",
        "x = 'a' * 10",
    ],
)
def test_everything_else_is_refused(code: str) -> None:
    action = deepeyes(code)
    assert action.kind is ActionKind.INVALID, action
    assert action.text.startswith("Code execution result:\nstdout:\n```\n\n```\n\nstderr:\n```\n")


def test_agile_refuses_its_own_rules() -> None:
    assert agile("image_1 = crop(raw_image, [0.1, 0.1, 0.5, 1.5])").text == (
        "Error: crop_box must be 4 values between 0 and 1"
    )
    assert agile("image_1 = zoom(raw_image, 0)").text == "Error: The scaling factor must be greater than 0."
    assert agile("state = observation(['A', 'B', 'C', 'D'])").kind is ActionKind.INVALID


def test_plain_function_calls(tmp_path) -> None:
    path = tmp_path / "calls.toml"
    path.write_text(
        'schema = 1\nname = "calls"\n[prompt]\nuser = "{question}"\n[replies]\nmalformed = "no: {error}"\n'
        '[[actions]]\nkind = "text_search"\nvia = "code"\nname = "search"\nargs = { query = "query", limit = "k" }\n'
        'required = ["query"]\n[[actions]]\nkind = "answer"\nvia = "tag"\nopen = "<answer>"\nclose = "</answer>"\n'
    )
    dialect = dialects.load(path)
    turn = dialect.parse('<code>search("a b", k=2)\nsearch(query="c")</code>', [PHOTO])
    assert [(a.text, a.limit) for a in turn.actions] == [("a b", 2), ("c", None)]
    assert dialect.parse("<code>search(1 + x)</code>", [PHOTO]).actions[0].text == "no: name 'x' is not defined"
    assert dialect.parse("<code>search()</code>", [PHOTO]).actions[0].text == "no: 'query' is missing"
