"""What `gog-edge ask` takes: pictures from stdin and addresses, a question that was not given, and `--quiet`."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gog_edge import dialects
from gog_edge.cli.common import pictures
from gog_edge.cli.main import run
from gog_edge.errors import ImageError
from gog_edge.image.frame import DEFAULT_LIMITS
from tests.cli.asking import ANSWER, GAZE, TEXT, Play
from tests.search import server as web
from tests.search.server import WebServer


class Stdin(io.TextIOWrapper):
    """A standard input with this content; `terminal`: somebody types it."""

    def __init__(self, data: bytes, *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), "utf-8")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def asked(play: Play, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The start of a command whose policy answers at once."""
    play([ANSWER])
    monkeypatch.chdir(tmp_path)
    yield ["ask", "--grammar", "off", "--bundle", str(tiny_bundle)]


def question(path: str = "t.json") -> str:
    return str(json.loads(Path(path).read_text())["question"])


def test_a_picture_comes_from_stdin(asked: list[str], photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(photo.read_bytes()))
    assert run([*asked, "-", "When?", "--trace", "t.json"]) == 0
    assert question() == "When?"


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        (Stdin(b""), "standard input: the file is empty"),
        (Stdin(b"no picture"), "standard input is not an image"),
        (Stdin(b"", terminal=True), "nothing is piped into it"),
        (None, "nothing is piped into it"),
    ],
)
def test_what_stdin_cannot_be(
    asked: list[str],
    stdin: Stdin | None,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run([*asked, "-", "When?"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_picture_is_fetched_from_an_address(asked: list[str], site: WebServer, photo: Path) -> None:
    data = photo.read_bytes()
    site.routes["/a.jpg"] = web.answer(data, content_type="image/jpeg")
    assert run([*asked, f"{site.url}/a.jpg?key=1", "When?"]) == 0
    assert [(c.method, c.path) for c in site.calls] == [("GET", "/a.jpg")]


def test_limits_hold_for_fetched_pictures(
    asked: list[str], site: WebServer, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.routes["/a.jpg"] = web.answer(photo.read_bytes(), content_type="image/jpeg")
    assert run([*asked, f"{site.url}/a.jpg", "When?", "--image-pixels", "9"]) == 2
    assert "million pixels" in capsys.readouterr().err


def test_addresses_are_limited(
    asked: list[str], site: WebServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gog_edge.search.web.page.MAX_IMAGE_BYTES", 1000)
    site.routes["/page"] = web.answer("<html>", content_type="text/html")
    site.routes["/large"] = web.answer(b"x" * 1001, content_type="image/png")
    site.routes["/inside"] = web.answer(b"", status=302, location="http://127.0.0.1:80/admin")
    for path, says in {
        "page": "text/html, not a picture",
        "large": "larger than 1000 bytes",
        "inside": "not a public address",
        "gone": "HTTP 404",
    }.items():
        assert run([*asked, f"{site.url}/{path}", "When?"]) == 2
        err = capsys.readouterr().err
        assert "the picture can't be fetched: " in err
        assert says in err, err
        assert err.count("\n") == 1
    with pytest.raises(ImageError, match="credentials in it"):
        pictures.open_picture("http://me:secret@example.com/a.jpg", DEFAULT_LIMITS)


def test_without_a_question_the_dialects_own_is_asked(
    asked: list[str], photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b""))
    assert run([*asked, str(photo), "--trace", "t.json"]) == 0
    assert question() == "What is shown in this picture?"
    assert "question: What is shown in this picture?\n" in capsys.readouterr().err
    assert run([*asked, str(photo), "--trace", "t.json", "--dialect", "vrag-rl"]) in (0, 1)
    assert question() == "What is this page about?"


def test_at_a_terminal_the_user_is_asked(
    asked: list[str], photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for typed, meant in ((b"Which tower?\n", "Which tower?"), (b"\n", "What is shown in this picture?")):
        monkeypatch.setattr(sys, "stdin", Stdin(typed, terminal=True))
        assert run([*asked, str(photo), "--trace", "t.json"]) == 0
        shown = capsys.readouterr()
        assert question() == meant
        assert "question [What is shown in this picture?]: " in shown.err
        assert "question" not in shown.out


def test_every_dialect_but_the_one_for_puzzles_has_a_question() -> None:
    found = {name: dialects.load(name, frame="thousand").usual_question for name in dialects.names()}
    assert {name for name, usual in found.items() if not usual} == {"agile"}


def test_the_last_argument_is_a_picture_if_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan").write_text("")
    assert pictures.split(["a.jpg", "what?"]) == (["a.jpg"], "what?")
    assert pictures.split(["a.jpg", "b.png"]) == (["a.jpg", "b.png"], None)
    assert pictures.split(["a.jpg", "scan"]) == (["a.jpg", "scan"], None)
    assert pictures.split(["a.jpg", "what is in b.png"]) == (["a.jpg"], "what is in b.png")
    assert pictures.split(["-", "x" * 5000]) == (["-"], "x" * 5000)
    assert pictures.split(["https://a.example/x"]) == (["https://a.example/x"], None)


def test_quiet_prints_the_answer_and_nothing_else(
    asked: list[str], site: WebServer, play: Play, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play([TEXT, GAZE, ANSWER])
    assert run([*asked, str(photo), "--search", "search.toml", "--trace", "t.json", "--quiet"]) == 0
    assert capsys.readouterr() == ("1889\n", "")
    assert "Iron tower" in Path("t.json").read_text()  # there was evidence to print
