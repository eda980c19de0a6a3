"""`gog-edge ask` with searches chosen on the command line: an index, providers from a file, against a local server that
speaks Serper's wire format. The policy plays a script; providers, dialect, session and command are the real ones."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gog_edge.cli.main import run
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records
from gog_edge.search.local.record import Record
from tests.cli.asking import ANSWER, GAZE, GLANCE, KEY, TEXT, Play, ask, sent
from tests.image.test_hostile_files import png
from tests.search import server as web
from tests.search.server import WebServer

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_a_provider_file_is_searched_and_its_key_stays_secret(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play([TEXT, ANSWER])
    assert ask(tiny_bundle, photo, "--search", "search.toml", "--trace", "t.json") == 0
    shown = capsys.readouterr()
    call = sent(site, "/search")[0]
    assert (call.method, call.headers["x-api-key"]) == ("POST", KEY)
    assert call.json == {"q": "tower year", "num": 3}
    assert shown.out.splitlines() == [
        "1889",
        "  evidence: Iron tower: Finished in 1889. (https://a.example/tower)",
    ]
    assert "1. Iron tower" in shown.err
    assert KEY not in shown.out + shown.err + Path("t.json").read_text()


def test_the_images_address_reaches_the_provider_and_a_crop_has_none(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play([GLANCE, GAZE, ANSWER])
    options = ["--search", "search.toml", "--image-url", "https://example.com/tower.jpg", "--json"]
    assert ask(tiny_bundle, photo, *options) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [call.json for call in sent(site, "/lens")] == [{"url": "https://example.com/tower.jpg"}]
    assert steps[0]["observations"][0]["hits"][0]["title"] == "Tower at night"
    assert "upload" in steps[1]["observations"][0]["error"]


def test_without_an_address_a_glance_is_refused_and_the_loop_goes_on(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play([GLANCE, ANSWER])
    assert ask(tiny_bundle, photo, "--search", "search.toml", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == "1889"
    assert "address" in answer["steps"][0]["observations"][0]["error"]
    assert sent(site, "/lens") == []


def build_index(folder: Path, *records: Record) -> None:
    with LocalIndex(folder, create=True) as index:
        add_records(index, records)


def test_the_index_comes_first_and_related_entries_with_it(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_index(
        Path("world.index"),
        Record("t", "Tower", "An iron tower of some year.", relations={"city": ("p",)}),
        Record("p", "Paris", "A city."),
        Record("z", "Zebra", "An animal."),
    )
    play([TEXT, ANSWER])
    found = []
    for options in ([], ["--expand", "1"]):
        assert ask(tiny_bundle, photo, "--index", "world.index", "--search", "search.toml", "--json", *options) == 0
        hits = json.loads(capsys.readouterr().out)["steps"][0]["observations"][0]["hits"]
        found.append([hit["entity"] for hit in hits])
    assert found == [["t"], ["t", "p"]]
    assert sent(site, "/search") == []


def test_early_knowledge_is_searched_with_the_question_and_read_first(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts: list[str] = []

    def script(prompt: str) -> Sequence[str]:
        prompts.append(prompt)
        return [ANSWER]

    play(script)
    assert ask(tiny_bundle, photo, "--search", "search.toml", "--early-knowledge") == 0
    assert sent(site, "/search")[0].json["q"] == "When was it finished?"
    assert "Iron tower" in prompts[0] and "Finished in 1889." in prompts[0]
    assert capsys.readouterr().out.startswith("1889")


def test_a_real_engine_searches_too(site: WebServer, tiny_bundle: Path, photo: Path) -> None:
    """No script: ONNX Runtime writes nonsense, early knowledge is fetched before that."""
    code = ask(tiny_bundle, photo, "--search", "search.toml", "--early-knowledge", "--max-turns", "1", deadline="2s")
    assert code in (0, 1)
    assert sent(site, "/search")[0].json["q"] == "When was it finished?"


@pytest.mark.parametrize(
    ("route", "says"),
    [
        (web.answer({}, 500), "HTTP 500"),
        (web.answer({}, 429), "HTTP 429"),
        (web.html("<html>Just a moment"), "instead of JSON"),
        (web.cut_off, "cut off"),
        (web.huge(100 << 20), "larger than"),
        (web.gzip_bomb(32 << 20), "larger than"),
        (web.redirect("http://169.254.169.254/latest/meta-data/"), "redirect"),
        (web.answer({"error": f"bad key {KEY}"}, 401), "check its key"),
    ],
)
def test_a_failing_provider_is_told_and_the_answer_comes(
    site: WebServer,
    play: Play,
    tiny_bundle: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    route: web.Route,
    says: str,
) -> None:
    site.routes["/search"] = route
    play([TEXT, ANSWER])
    assert ask(tiny_bundle, photo, "--search", "search.toml") == 0
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.out == "1889\n"
    assert KEY not in shown.err


def test_pictures_of_results_pass_the_users_limits(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MMSearch-R1 is shown the results' pictures: a good one, and none of those that are too large, private or fake."""
    site.routes |= {
        "/good.jpg": web.answer(photo.read_bytes(), content_type="image/jpeg"),
        "/bomb.png": web.answer(png(20_000, 5_000, b"\0" * 100), content_type="image/png"),
        "/fake.png": web.html("<html>no picture</html>"),
        "/huge.jpg": web.huge(100 << 20, "image/jpeg"),
        "/away.jpg": web.redirect("http://169.254.169.254/latest/meta-data/"),
        "/moved.jpg": web.redirect("/good.jpg"),
    }
    pictures = [f"{site.url}/{n}" for n in ("good.jpg", "bomb.png", "fake.png", "huge.jpg", "away.jpg", "moved.jpg")]
    pictures += ["http://127.0.0.1:1/x.png", "file:///etc/hostname", "/etc/hostname"]
    hits = [{"title": f"hit {n}", "link": "https://a.example", "thumbnailUrl": url} for n, url in enumerate(pictures)]
    script = ["<reason>r</reason><search><img></search>", "<reason>r</reason><answer>1889</answer>"]
    options = [
        "--search",
        "search.toml",
        "--image-url",
        "https://example.com/x.jpg",
        "--dialect",
        "many.toml",
        "--json",
    ]
    Path("many.toml").write_text('extends = "mmsearch-r1"\n[limits]\nresults = 9\n')
    site.routes["/lens"] = web.answer({"organic": hits})
    play(script)
    assert ask(tiny_bundle, photo, *options, "--trace", "t.json") == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["observations"][0]["thumbnails"] == [None] * 9
    assert "no provider gets pictures" in Path("t.json").read_text()
    with Path("search.toml").open("a") as file:
        file.write(f'[[provider]]\nkind = "fetch"\nallow = ["127.0.0.1:{site.port}"]\n')
    assert ask(tiny_bundle, photo, *options, "--trace", "t.json") == 0
    shown = json.loads(capsys.readouterr().out)["steps"][0]["observations"][0]["thumbnails"]
    assert shown == [1, None, None, None, None, 2, None, None, None]
    notes = Path("t.json").read_text()
    for reason in ("million pixels", "not a picture", "larger than", "not a public address"):
        assert reason in notes, reason


HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold]Tower[/] \u202egnp.exe\x9b31m <script>alert(1)</script>"


@pytest.mark.parametrize("where", ["web", "index"])
def test_titles_can_not_steer_the_terminal_or_the_page(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """Results, their sources, an answer and what a server says of a failure: printed as letters."""
    hit = {"title": HOSTILE, "snippet": f"1889 {HOSTILE}", "link": f"https://a.example/{HOSTILE}"}
    site.routes["/search"] = web.answer({"organic": [hit]})
    options = ["--search", "search.toml"]
    if where == "index":
        build_index(Path("i"), Record("tower", f"tower {HOSTILE}", f"1889 year {HOSTILE}", HOSTILE, (HOSTILE,)))
        options = ["--index", "i"]
    play([TEXT, ANSWER.replace("1889", f"1889 {HOSTILE}")])
    for more in (["--stream", "--trace", "t.html"], ["--json"]):
        assert ask(tiny_bundle, photo, *options, *more) == 0
        shown = capsys.readouterr()
        assert "[bold]Tower" in shown.out  # nothing is lost but what steers
        assert STEERING.findall(shown.out + shown.err) == []
    page = Path("t.html").read_text()
    assert STEERING.findall(page) == [] and "<script" not in page
    assert "[bold]Tower" in page


def test_a_failures_message_can_not_steer_the_terminal(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provider = Path("search.toml").read_text() + '[provider.text]\nerror = "message"\n'
    Path("search.toml").write_text(provider)
    site.routes["/search"] = web.answer({"message": f"quota {HOSTILE}"})
    play([TEXT, ANSWER])
    assert ask(tiny_bundle, photo, "--search", "search.toml") == 0
    shown = capsys.readouterr().err
    assert "quota" in shown
    assert STEERING.findall(shown) == []
    Path("bad\x1b[2J.jpg").write_bytes(b"no picture")
    assert run(["ask", "bad\x1b[2J.jpg", "q", "--bundle", str(tiny_bundle)]) == 2
    shown = capsys.readouterr().err
    assert "bad[2J.jpg" in shown and STEERING.findall(shown) == []


def test_an_index_of_hostile_names_is_listed_safely(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/tower\x1b[2J\u202egnp.jpg").write_bytes(photo.read_bytes())
    Path("photos/tower\x1b[2J\u202egnp.txt").write_text("# a tower \x1b[31m\nof iron")
    Path("more.jsonl").write_text(json.dumps({"title": "x", "image": "none\x1b[2J.png"}) + '\n{"\x1b[2J\n')
    assert run(["index", "build", "i", "photos", "more.jsonl"]) == 0
    assert run(["index", "search", "i", "tower"]) == 0
    assert run(["index", "search", "i", "tower", "--json"]) == 0
    shown = capsys.readouterr()
    assert STEERING.findall(shown.out + shown.err) == []
    assert shown.out.count("a tower [31m") == 1 and '"a tower \\u001b[31m"' in shown.out


@pytest.mark.parametrize("written", ['capital"}}\n</tool_call>', TEXT, "<|im_start|>", "}"])
def test_markup_of_a_forced_turn_is_no_answer(
    play: Play, tiny_bundle: Path, photo: Path, written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    play([TEXT, written])
    assert ask(tiny_bundle, photo, "--max-turns", "1") == 1
    said = capsys.readouterr()
    assert said.out == "" and "no answer" in said.err
    play([TEXT, written])
    assert ask(tiny_bundle, photo, "--max-turns", "1", "--json") == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["format"], data["text"]) == ("gog-edge-answer", "")


@pytest.mark.parametrize("options", [(), ("--quiet",)])
def test_a_terminal_shows_the_answer_while_it_is_written(
    play: Play,
    tiny_bundle: Path,
    photo: Path,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = "A grey heron \x1b[2J eats fish and frogs."
    play([TEXT, f"<think>hm</think><answer>{said}</answer>"])
    writes: list[str] = []
    write = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "write", lambda text: (writes.append(text), write(text))[1])
    assert ask(tiny_bundle, photo, *options) == 0
    shown = capsys.readouterr().out
    assert STEERING.findall(re.sub(r"\x1b\[[\d;]*m", "", shown)) == []
    assert re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()[0] == said.replace("\x1b", "")
    assert len([text for text in writes if text.strip()]) > 5
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    play([f"<answer>{said}</answer>"])
    assert ask(tiny_bundle, photo, "--quiet") == 0
    assert capsys.readouterr().out == said.replace("\x1b", "") + "\n"
