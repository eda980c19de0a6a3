"""The page at `/` in headless Chromium, over a real socket: what is seen while a question runs, and who can use it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from gog_edge.agent.options import RunOptions
from gog_edge.agent.request import AskRequest
from gog_edge.types import (
    Action,
    ActionEvent,
    ActionKind,
    Answer,
    AnswerEvent,
    BoxEvent,
    Event,
    Hit,
    NoticeEvent,
    Observation,
    ObservationEvent,
    Region,
    StopReason,
    TextEvent,
    TokenEvent,
    Usage,
)
from tests.serve.over_http import Policy, serving

sync_api = pytest.importorskip("playwright.sync_api")

WIDTH, HEIGHT = 320, 200
WAIT = 90_000  # milliseconds: on a loaded machine
REGION = Region(80, 50, 160, 150)
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SIZES = pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed")
    sync_api.expect.set_options(timeout=WAIT)
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", *FAKE_CAMERA], timeout=WAIT)
        yield browser
        browser.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Grey, with a red rectangle where `REGION` is."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "grey")
    image.paste("red", (80, 50, 160, 150))
    image.save(tmp_path / "red <b>.png")
    return tmp_path / "red <b>.png"


class Looking(Policy):
    """Looks at the red rectangle, and answers once it is let go."""

    def events(self, request: AskRequest) -> Iterator[Event]:
        self.asked.append(request)
        gaze = Action(ActionKind.GAZE, region=REGION, label="box <i>")
        yield NoticeEvent("no index is set up")
        yield TokenEvent(0, "<think>I see")
        yield TokenEvent(0, " red</think>")
        yield BoxEvent(0, REGION, 0)
        assert request.budget is not None
        while not self.let_go.wait(0.01):
            if request.budget.cancelled:
                self.cancelled += 1
                yield AnswerEvent(Answer("", StopReason.CANCELLED))
                return
        yield ActionEvent(0, gaze)
        found = Hit("Red <script>", "A colour.", source="https://example.com/red", score=0.5)
        yield ObservationEvent(0, Observation(gaze, (found,), shown=1))
        yield TokenEvent(1, "<answer>red</answer>")
        yield ActionEvent(1, Action(ActionKind.ANSWER, text="red"))
        usage = Usage(prompt_tokens=7, reused_tokens=5, generated_tokens=3, searches=1)
        yield AnswerEvent(Answer("It is <red>", StopReason.ANSWERED, usage=usage, seconds=1.5))


def opened(browser: Any, port: int, **how: Any) -> Any:
    page = browser.new_page(**how)
    page.set_default_timeout(WAIT)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on(
        "request",
        lambda r: r.url.startswith((f"http://127.0.0.1:{port}/", "blob:", "data:")) or page.faults.append(r.url),
    )
    page.on("filechooser", lambda _: None)  # Chromium is told now, long before one is expected
    page.goto(f"http://127.0.0.1:{port}/")
    return page


def ask(page: Any, picture: Path | None, question: str = "Which colour?") -> None:
    if picture is not None:
        page.set_input_files("#file", picture)
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def says(page: Any, selector: str, text: str) -> None:
    sync_api.expect(page.locator(selector)).to_have_text(text)


@SIZES
def test_what_happens_is_seen_while_it_happens(browser: Any, picture: Path, width: int, dark: bool) -> None:
    policy = Looking()
    with serving(policy) as port:
        page = opened(browser, port, viewport={"width": width, "height": 844}, color_scheme="dark" if dark else "light")
        ask(page, picture)
        says(page, "#notices li", "no index is set up")
        says(page, "#steps pre >> nth=0", "<think>I see red</think>")
        box = page.locator("#boxes .box")
        sync_api.expect(box).to_have_count(1)
        assert page.locator("#boxes .box.sure").count() == 0  # nobody has called for it yet
        frame, shown = page.locator("#picture").bounding_box(), box.bounding_box()
        for side, start, pixels, whole in (("x", REGION.x0, "width", WIDTH), ("y", REGION.y0, "height", HEIGHT)):
            scale = frame[pixels] / whole
            assert shown[side] - frame[side] == pytest.approx(start * scale, abs=1.5)
        assert shown["width"] == pytest.approx(REGION.width * frame["width"] / WIDTH, abs=1.5)
        says(page, "#answer", "…")
        assert page.get_by_role("button", name="Ask", exact=True).is_disabled()
        policy.let_go.set()
        says(page, "#answer", "It is <red>")
        says(page, "#steps h3 >> nth=0", "1. gaze: box <i>")
        says(page, "#steps h3 >> nth=1", "2. answer: red")
        says(page, "#boxes .box.sure span", "1 box <i>")
        says(page, "#steps .seen a", "Red <script>")
        says(page, "#usage", "answered in 1.50 s: 7 tokens read, 5 not read again, 3 written, 1 searches")
        crop = page.get_by_role("img", name="The crop: box <i>")
        middle = "c => [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data]"
        assert crop.evaluate(middle) == [255, 0, 0, 255]
        assert page.locator("#line span").count() >= 2 and "writing" in page.inner_text("#times")
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        ground = page.locator("body").evaluate("b => getComputedStyle(b).backgroundColor")
        assert (sum(map(int, ground.strip("rgb()").split(","))) < 200) == dark
        assert page.faults == []
        page.close()


def test_boxes_fit_a_picture_that_lies_on_its_side(browser: Any, tmp_path: Path) -> None:
    """A photo of a phone: its pixels lie on their side, the boxes of answers are in the upright picture."""
    upright = Image.new("RGB", (WIDTH, HEIGHT), "grey")
    upright.paste("red", (80, 50, 160, 150))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.jpg", quality=95, exif=exif)
    policy = Looking()
    policy.let_go.set()
    with serving(policy) as port:
        page = opened(browser, port)
        ask(page, tmp_path / "phone.jpg")
        says(page, "#answer", "It is <red>")
        assert page.locator("#picture").evaluate("i => [i.naturalWidth, i.naturalHeight]") == [WIDTH, HEIGHT]
        crop = page.get_by_role("img", name="The crop: box <i>")
        corners = "c => [2, c.width - 3].map(x => [...c.getContext('2d').getImageData(x, c.height - 3, 1, 1).data])"
        for red, green, blue, _ in crop.evaluate(corners):
            assert red > 200 and green < 60 and blue < 60
        page.close()


def test_an_earlier_question_comes_back_as_it_was(browser: Any, picture: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 60), "blue").save(tmp_path / "blue.png")
    policy = Looking()
    policy.let_go.set()
    with serving(policy) as port:
        page = opened(browser, port)
        ask(page, picture, "First?")
        says(page, "#answer", "It is <red>")
        policy.instead = None
        page.set_input_files("#file", tmp_path / "blue.png")
        says(page, "#answer", "None yet.")
        assert page.locator("#boxes .box").count() == 0
        page.get_by_role("button", name="First?").click()
        says(page, "#answer", "It is <red>")
        says(page, "#boxes .box.sure span", "1 box <i>")
        assert page.get_by_label("Question").input_value() == "First?"
        assert page.locator("#picture").evaluate("i => i.naturalWidth") == WIDTH
        ask(page, None, "Second?")  # about the picture that came back
        sync_api.expect(page.locator("#history li")).to_have_count(2)
        page.close()
    assert [r.question for r in policy.asked] == ["First?", "Second?"]
    assert policy.asked[0].image == policy.asked[1].image == picture.read_bytes()


def test_the_answer_is_seen_while_it_is_written(browser: Any, picture: Path) -> None:
    policy = Policy()

    def writes(request: AskRequest) -> Iterator[Event]:
        yield TokenEvent(0, "<answer>It <b")
        yield TextEvent(0, "It ")
        yield TextEvent(0, "<b> is")
        policy.let_go.wait(WAIT / 1000)
        yield TextEvent(0, " red")
        yield AnswerEvent(Answer("It <b> is red", StopReason.ANSWERED))

    policy.instead = writes
    with serving(policy) as port:
        page = opened(browser, port)
        ask(page, picture)
        says(page, "#answer", "It <b> is")
        policy.let_go.set()
        says(page, "#answer", "It <b> is red")
        says(page, "#status", "Answered.")
        assert page.faults == []
        page.close()


def test_a_question_can_be_stopped(browser: Any, picture: Path) -> None:
    policy = Looking()
    with serving(policy) as port:
        page = opened(browser, port)
        ask(page, picture)
        sync_api.expect(page.locator("#boxes .box")).to_have_count(1)
        page.get_by_role("button", name="Stop").click()
        says(page, "#problem", "It was stopped.")
        says(page, "#history small", "no answer")
        assert page.get_by_role("button", name="Ask", exact=True).is_enabled()
        page.close()
    assert policy.cancelled == 1


def test_the_camera_gives_a_picture(browser: Any) -> None:
    policy = Looking()
    policy.let_go.set()
    with serving(policy) as port:
        page = opened(browser, port)
        page.get_by_role("button", name="Camera on").click()
        sync_api.expect(page.locator("#camera")).to_be_visible()
        page.locator("#camera").evaluate("v => v.videoWidth || new Promise(r => v.onloadeddata = r)")
        page.get_by_role("button", name="Take the picture").click()
        sync_api.expect(page.locator("#picture")).to_be_visible()
        assert page.locator("#camera").is_hidden()
        page.get_by_role("button", name="Camera on").click()  # and a question to what it sees now takes one by itself
        page.locator("#camera").evaluate("v => v.videoWidth || new Promise(r => v.onloadeddata = r)")
        ask(page, None)
        says(page, "#answer", "It is <red>")
        assert page.faults == []
        page.close()
    with Image.open(io.BytesIO(policy.asked[0].image)) as seen:  # type: ignore[arg-type]
        assert seen.format == "JPEG" and seen.width >= 320


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Any, picture: Path) -> None:
    policy = Looking()
    policy.let_go.set()
    with serving(policy, key="secret") as port:
        page = opened(browser, port)
        ask(page, picture)
        says(page, "#problem", "the API key is missing or wrong")
        assert page.evaluate("() => document.activeElement.id") == "key"
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        ask(page, None)
        says(page, "#answer", "It is <red>")
        page.reload()
        ask(page, picture)
        says(page, "#answer", "It is <red>")
        page.close()


def test_a_keyboard_is_enough_and_everything_has_a_name(browser: Any, picture: Path) -> None:
    policy = Looking()
    policy.let_go.set()
    with serving(policy) as port:
        page = opened(browser, port)
        unnamed = """() => [...document.querySelectorAll('button, input:not([hidden]), textarea, img, video, section')]
            .filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim() || e.alt))
            .map(e => e.id)"""
        assert page.evaluate(unnamed) == []
        visited = []
        while "question" not in visited:
            page.keyboard.press("Tab")
            visited.append(page.evaluate("() => document.activeElement.id"))
            assert len(visited) < 10
            if visited[-1] == "file":
                with page.expect_file_chooser() as chooser:
                    page.keyboard.press("Enter")
                chooser.value.set_files(picture)
        assert {"file", "camera-switch"} <= set(visited)
        page.keyboard.type("Which colour?")
        page.keyboard.press("Enter")
        says(page, "#answer", "It is <red>")
        assert page.locator("#status").get_attribute("role") == "status"
        page.close()


@pytest.mark.parametrize(
    ("made", "says_so"),
    [("none", "Choose a picture first."), ("text", "is no picture."), ("broken", "image"), ("deadline", "deadline")],
)
def test_what_is_wrong_is_said(
    browser: Any, tiny_bundle: Path, picture: Path, tmp_path: Path, made: str, says_so: str
) -> None:
    import gog_edge

    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "a.png").write_bytes(b"no picture")
    file = {"none": None, "text": tmp_path / "a.txt", "broken": tmp_path / "a.png", "deadline": picture}[made]
    with gog_edge.load(tiny_bundle) as agent, serving(agent) as port:  # type: ignore[arg-type]
        page = opened(browser, port)
        if made == "deadline":
            page.locator("#form").evaluate("f => { f.noValidate = true }")
            page.get_by_label("Seconds at most").fill("-1")
        if made == "text":
            page.set_input_files("#file", file)
        else:
            ask(page, file)
        sync_api.expect(page.locator("#problem")).to_contain_text(says_so)
        page.close()


def test_a_real_policy_is_watched_to_its_end(browser: Any, tiny_bundle: Path, photo: Path) -> None:
    import gog_edge

    options = RunOptions(turn_tokens=12, total_tokens=24, max_turns=1, grammar="off")
    with gog_edge.load(tiny_bundle, options=options) as agent, serving(agent) as port:  # type: ignore[arg-type]
        page = opened(browser, port)
        ask(page, photo)
        says(page, "#status", "Answered.")
        assert "no image search" in page.inner_text("#notices")
        assert page.inner_text("#answer") and page.inner_text("#steps pre >> nth=0")
        assert "tokens read" in page.inner_text("#usage")
        assert page.faults == []
        page.close()
