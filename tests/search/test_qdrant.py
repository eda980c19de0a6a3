"""The index in Qdrant gives what the built-in one gives: against Qdrant's own client, which keeps a folder itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gog_edge.errors import SearchError, SearchIndexError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.search.base import Deadline, ImageQuery
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records
from gog_edge.search.local.provider import LocalProvider
from gog_edge.search.local.readers import read_source
from gog_edge.types import Region

pytest.importorskip("qdrant_client")
WORLD = Path(__file__).resolve().parents[2] / "models" / "gog-nano" / "world" / "documents.jsonl"
LATER = Deadline.after(36_000)


class Shades:
    """The vector is the mean colour of a coarse grid: alike pictures have alike vectors."""

    fingerprint = "shades-1"

    def embed(self, frame: Frame, region: Region | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
        box = (region or frame.region).clamp(frame.width, frame.height)
        cut = frame.pixels[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)].astype(np.float32)
        cells = [c.mean(axis=(0, 1)) for row in np.array_split(cut, 3) for c in np.array_split(row, 3, axis=1)]
        vector = np.concatenate(cells) - 96
        return (vector / np.linalg.norm(vector)).astype(np.float32)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalProvider, Any]]:
    """A part of gog-nano's world: the flags of 40 countries with all that is said of them, in both indexes."""
    from gog_edge.search.qdrant.collection import push
    from gog_edge.search.qdrant.provider import QdrantProvider

    folder = tmp_path_factory.mktemp("qdrant")
    everything = list(read_source(WORLD))
    flags = [r.id.split("/")[1] for r in everything if r.id.startswith("flag/")][:40]
    records = [r for r in everything if r.id.split("/")[1] in flags]
    with LocalIndex(folder / "index", create=True) as index:
        add_records(index, records, embedder=Shades())
        assert push(index, f"qdrant:{folder / 'db'}#world") == index.store.counts()["entries"] > 100
        local = LocalProvider(index, Shades(), expand=3)
        there = QdrantProvider(f"qdrant:{folder / 'db'}#world", lambda facts: Shades(), expand=3)
        yield local, there
        there.close()


def same(one: list[Any], other: list[Any]) -> None:
    assert [(h.entity, h.title, h.text, h.source, h.image) for h in one] == [
        (h.entity, h.title, h.text, h.source, h.image) for h in other
    ]
    assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-4)


def test_words_find_the_same_in_the_same_order(both: tuple[LocalProvider, Any]) -> None:
    local, there = both
    titles = [e.title for e in local.index.entities()]
    asked = [*titles[::7], "What is the capital of Andorra?", "population", "the", "", "currency of Chad <|x|>", "flag"]
    for text in asked:
        for k in (1, 3, 10):
            same(local.search_text(text, k=k, deadline=LATER), there.search_text(text, k=k, deadline=LATER))


def test_so_do_pictures_with_and_without_words(both: tuple[LocalProvider, Any]) -> None:
    local, there = both
    pictures = [e for e in local.index.entities() if e.images][::9]
    assert pictures
    for entity in pictures:
        frame = Frame.open(entity.images[0])
        for label in ("", entity.title, "flag", "capital of Angola"):
            query = ImageQuery(frame, Region(0, 0, frame.width * 0.9, frame.height * 0.9), label)
            one = local.search_image(query, k=3, deadline=LATER)
            assert one
            same(one, there.search_image(query, k=3, deadline=LATER))


def test_an_entry_is_read_whole(both: tuple[LocalProvider, Any]) -> None:
    local, there = both
    entity = next(local.index.entities())
    assert there.read_page(entity.id, deadline=LATER) == local.read_page(entity.id, deadline=LATER)
    with pytest.raises(SearchError, match="no entry"):
        there.read_page("nobody", deadline=LATER)


def test_it_is_pushed_by_one_command_and_asked_by_name(tmp_path: Path, tiny_bundle: Path, photo: Path) -> None:
    import gog_edge
    from gog_edge.cli.index import command

    (tmp_path / "docs.jsonl").write_text('{"id": "pe", "title": "Peru: capital", "text": "Lima"}\n')
    run = CliRunner().invoke
    index, address = str(tmp_path / "i"), f"qdrant:{tmp_path / 'db'}#docs"
    assert run(command, ["build", index, str(tmp_path / "docs.jsonl")]).exit_code == 0
    done = run(command, ["push", index, address])
    assert done.exit_code == 0 and "1 entries" in done.stdout.replace("\n", "")
    with pytest.raises(SearchIndexError, match="there is a collection"):
        run(command, ["push", index, address], catch_exceptions=False)
    with gog_edge.load(tiny_bundle, index=address) as agent:
        assert agent.providers[0].name == "qdrant"
        assert agent.providers[0].search_text("capital of Peru", k=3, deadline=LATER)[0].text == "Lima"


@pytest.mark.parametrize("address", ["qdrant:", "qdrant:db", "qdrant:#x", "qdrant:db#", "qdrant:db#a/b"])
def test_an_address_has_a_form(address: str) -> None:
    from gog_edge.search.qdrant.collection import connect

    with pytest.raises(UsageError, match="write qdrant:"):
        connect(address)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    from gog_edge.search.qdrant.provider import QdrantProvider

    for address in (f"qdrant:{tmp_path}#none", "qdrant:http:/127.0.0.1:9#none"):
        with pytest.raises(SearchIndexError, match="Qdrant fails"):
            QdrantProvider(address, lambda facts: None)
