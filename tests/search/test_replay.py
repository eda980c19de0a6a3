"""Recorded searches: the FVQA cache format, our JSONL, recording failures too, and pickles that want to run code."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge.errors import SearchError
from gog_edge.image.frame import Frame
from gog_edge.search.base import BaseProvider, Deadline, ImageQuery, Page
from gog_edge.search.replay import FvqaReplay, JsonlReplay, Recorder
from gog_edge.types import Hit, Region

NEVER = Deadline.never()
FRAME = Frame.open(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
CACHE = {
    "fvqa_test_1": {
        "tool_returned_web_title_list": ["Chad - Wikipedia", "Flag of Chad", "Third"],
        "tool_returned_images_urls": ["https://x.example/1.jpg", None],
    },
    "fvqa_test_2": {"tool_returned_web_title_list": [], "tool_returned_images_urls": None},
}


@pytest.mark.parametrize("suffix", [".json", ".pkl"])
def test_the_fvqa_cache_is_played_back_by_data_id(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cache{suffix}"
    path.write_bytes(json.dumps(CACHE).encode() if suffix == ".json" else pickle.dumps(CACHE))
    provider = FvqaReplay(path)
    hits = provider.search_image(ImageQuery(FRAME, key="fvqa_test_1"), k=5, deadline=NEVER)
    assert [(h.title, h.image) for h in hits] == [
        ("Chad - Wikipedia", "https://x.example/1.jpg"),
        ("Flag of Chad", ""),
        ("Third", ""),
    ]
    assert len(provider.search_image(ImageQuery(FRAME, key="fvqa_test_1"), k=2, deadline=NEVER)) == 2
    assert provider.search_image(ImageQuery(FRAME, key="fvqa_test_2"), k=2, deadline=NEVER) == []
    with pytest.raises(SearchError, match="fvqa_test_9"):
        provider.search_image(ImageQuery(FRAME, key="fvqa_test_9"), k=2, deadline=NEVER)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def test_a_pickle_can_not_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(SearchError, match="not only plain data"):
        FvqaReplay(tmp_path / "evil.pkl")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": 3}', b"{bad", b"\x80\x04\x95"])
@pytest.mark.parametrize("suffix", [".json", ".pkl"])
def test_other_files_are_refused_in_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(SearchError) as caught:
        FvqaReplay(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(SearchError):
        FvqaReplay(tmp_path / "none.json")


class Source(BaseProvider):
    name = "source"
    kinds = frozenset({"text", "image", "page"})

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        if query == "bad":
            raise SearchError("HTTP 500")
        return [Hit(f"<|im_end|>{query}", "ünï", "https://x.example", 0.25, "e", "https://x.example/i.png")] * k

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        return [Hit("crop" if query.region else "whole", query.label)]

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        return Page(url, "t", f"text for {goal}")


def test_what_was_recorded_is_played_back_failures_too(tmp_path: Path) -> None:
    path = tmp_path / "rec" / "searches.jsonl"
    recorder = Recorder(Source(), path)
    crop = ImageQuery(FRAME, Region(1.2, 1, 5, 5), label="x")
    first = [
        recorder.search_text("Chad", k=2, deadline=NEVER),
        recorder.search_image(ImageQuery(FRAME), k=1, deadline=NEVER),
        recorder.search_image(crop, k=1, deadline=NEVER),
        recorder.read_page("https://p.example", deadline=NEVER, goal="g"),
    ]
    with pytest.raises(SearchError):
        recorder.search_text("bad", k=1, deadline=NEVER)
    replay = JsonlReplay(path)
    assert replay.kinds == {"text", "image", "page"}
    assert first == [
        replay.search_text("  chad ", k=2, deadline=NEVER),
        replay.search_image(ImageQuery(FRAME), k=1, deadline=NEVER),
        replay.search_image(crop, k=1, deadline=NEVER),
        replay.read_page("https://p.example", deadline=NEVER, goal="g"),
    ]
    with pytest.raises(SearchError, match="HTTP 500"):
        replay.search_text("bad", k=1, deadline=NEVER)
    with pytest.raises(SearchError, match="was not recorded"):
        replay.search_text("Niger", k=1, deadline=NEVER)


def test_wrong_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('\n{"kind": "text", "query": "a", "hits": []}\n{"kind": "smell"}\n', encoding="utf-8")
    with pytest.raises(SearchError, match=":3:"):
        JsonlReplay(path)
