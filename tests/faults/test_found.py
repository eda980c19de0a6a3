"""What the fault harness found, each kept as a test of its own."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge import dialects, serde
from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle, BundleWriter
from gog_edge.disk import files
from gog_edge.disk.stamps import sealed
from gog_edge.disk.tensorfile import read_tensors, write_tensors
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.errors import (
    BundleError,
    DialectError,
    EngineError,
    SearchError,
    SearchIndexError,
    SessionError,
    UsageError,
)
from gog_edge.runtime.decoder import check_rotary
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.runtime.snapshots import unpack
from gog_edge.search.base import Deadline
from gog_edge.search.config import load_providers
from gog_edge.search.local.database import beyond
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.web.mcp import McpClient
from gog_edge.types import Control, Text
from tests.runtime.fakes import make_bundle
from tests.test_bundle import MANIFEST as SMALL
from tests.test_bundle import write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("found"))


def test_any_other_digit_in_a_manifest_is_noticed(tmp_path: Path) -> None:
    """One flipped bit made 5000000 of 4000000: another answer without a word."""
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    text = path.read_text("utf-8")
    places = [m.start() for m in re.finditer(r"\d", text)]
    assert len(places) > 100
    for at in places:
        path.write_text(text[:at] + str(int(text[at]) ^ 1) + text[at + 1 :], "utf-8")
        with pytest.raises(BundleError, match="export"):
            Bundle.open(tmp_path / "b")
    data = json.loads(text)
    del data["seal"]
    path.write_text(json.dumps({**data, "name": "by hand"}))  # what is changed on purpose has none
    assert Bundle.open(tmp_path / "b").manifest.name == "by hand"


def test_a_manifest_that_is_nested_without_end_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="can't be read"):
        Bundle.open(tmp_path / "b")


def test_every_file_of_a_graph_has_its_hash(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer, pytest.raises(BundleError, match="has no hash of"):
        writer.commit(SMALL)  # nothing was written


def test_settings_that_nothing_can_have_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text('extends = "a\\u0000b.toml"\n')
    with pytest.raises(DialectError, match="can't be read"):
        dialects.load(tmp_path / "e.toml")
    (tmp_path / "f.toml").write_text('extends = "gog"\ncoordinates.decimals = 99999999999\n')
    with pytest.raises(DialectError, match=r"coordinates\.decimals"):
        dialects.load(tmp_path / "f.toml")
    (tmp_path / "s.toml").write_text('[[provider]]\nkind = "replay"\npath = "a\\u0000b"\n')
    with pytest.raises((SearchError, UsageError), match="null"):
        load_providers(tmp_path / "s.toml")


def test_rotary_angles_are_those_of_the_graph(bundle: Bundle) -> None:
    from dataclasses import replace

    spec = bundle.manifest.decoder
    for odd in ({"rotary": 1 << 31}, {"head_dim": spec.head_dim + 2}, {"mrope_section": (-1, 1, 1 << 30)}):
        with pytest.raises(BundleError, match="rotary"):
            check_rotary(replace(bundle.manifest, decoder=replace(spec, **odd)))


def test_a_named_size_where_the_graph_has_a_number_is_refused(bundle: Bundle) -> None:
    from dataclasses import replace

    graph = bundle.manifest.graphs["decoder"]
    inputs = tuple(replace(t, shape=(*t.shape[:-1], "../x")) if t.name == "inputs_embeds" else t for t in graph.inputs)
    graphs = {**bundle.manifest.graphs, "decoder": replace(graph, inputs=inputs)}
    odd = Bundle(bundle.root, replace(bundle.manifest, graphs=graphs), bundle.stamps)
    with pytest.raises(BundleError, match="inputs_embeds"):
        create_engine("cpu", odd, OrtOptions(threads=1, spin=False))


def test_rows_of_another_shape_are_no_kv_cache(bundle: Bundle) -> None:
    engine = create_engine("cpu", bundle, OrtOptions(threads=1, spin=False))
    cache = engine.decoder.new_cache(8)
    good = [np.array(array) for array in cache.read(0, 4)]
    unpack(cache, 4, good, 0)
    for odd in (good[0][:0], good[0][:, :3], good[0].reshape(-1), np.repeat(good[0], 2, -1), np.float32(1)):
        with pytest.raises(EngineError, match="KV cache"):
            unpack(cache, 4, [np.array(odd), *good[1:]], 0)
    engine.close()


def test_a_log_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question ended because `2> log` was on a full disk."""
    from gog_edge.cli import main

    def full(text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(main, "_say", full)
    main._Lines().handle(logging.LogRecord("gog_edge", logging.WARNING, "", 0, "a line", (), None))


def test_a_prompt_of_a_hybrid_policy_is_found_on_the_disk_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its states are not rows, and were taken for damage: the file was thrown away at every start, with a warning."""
    hybrid = make_bundle(tmp_path, "tiny-qwen3.5", "native")
    engine = create_engine("cpu", hybrid, OrtOptions(threads=1, spin=False))
    words = [Control("<|im_start|>system\n" + "You look. " * 12 + "<|im_end|>\n"), Text("what"), Control("<|im_end|>")]
    computed, logits = [], []
    for _ in range(2):
        session = Session(Model.assemble(hybrid, engine, RunOptions(cache_dir=tmp_path / "cache")))
        session.append(words)
        computed.append(session.computed)
        logits.append(np.array(session.run()))
    assert computed[0] == 0 < computed[1] and np.array_equal(*logits) and caplog.text == ""
    (kept,) = (tmp_path / "cache").rglob("*.gogt")
    header, arrays = read_tensors(kept)
    write_tensors(kept, header, {name: array if name == "ids" else array[:0] for name, array in arrays.items()})
    session = Session(Model.assemble(hybrid, engine, RunOptions(cache_dir=tmp_path / "cache")))
    session.append(words)  # whole by its checksums, and yet of another policy: left out
    assert session.computed == 0 and np.array_equal(session.run(), logits[0])
    engine.close()


def test_errors_are_one_line_whatever_they_quote() -> None:
    error = SessionError("a parser said: Token `\n` is\r\nodd\u2028here")
    assert str(error) == "a parser said: Token ` ` is odd here"
    assert len(serde.shown("x" * 5000)) < 200 and len(str(SessionError("x" * 5000))) < 1500


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400])
def test_a_number_beyond_floats_is_named(number: str) -> None:
    with pytest.raises(serde.SerdeError, match="too large"):
        serde.decode(float, json.loads(number), "x")


def test_a_seal_that_is_no_text_is_none_at_all(tmp_path: Path) -> None:
    """It ended every start."""
    path = tmp_path / "kernel.so"
    path.write_bytes(b"code")
    files.seal(path)
    assert sealed(path) and files.trusted(path)
    (seal,) = (p for p in tmp_path.iterdir() if p != path)
    seal.write_bytes(b"\xff" + seal.read_bytes()[1:])
    assert not sealed(path) and not files.trusted(path)


def test_half_a_character_in_a_header_is_kept(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"said": "\ud800"}, {})
    assert read_tensors(tmp_path / "t")[0] == {"said": "\ud800"}


def test_a_database_with_bytes_that_are_no_text_is_one_line(tmp_path: Path) -> None:
    with LocalIndex(tmp_path / "i", create=True) as index:
        with index.database.use() as connection:
            connection.execute("INSERT INTO meta VALUES ('x', CAST(x'ff' AS TEXT))")
        with pytest.raises(SearchIndexError):
            index.database.meta("x")
        with pytest.raises(SearchIndexError), index.database.use():
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "in a message of SQLite's")


def test_answers_of_a_server_that_are_nested_without_end_are_one_line() -> None:
    class Deep:
        def exchange(self, message: Any, deadline: Deadline) -> dict[str, Any]:
            value: Any = {}
            for _ in range(2000):
                value = [value]
            return {"id": message.get("id"), "result": {"content": value}}

        def reset(self) -> None: ...

        def close(self) -> None: ...

    with pytest.raises(SearchError, match="nested too deeply"):
        McpClient(Deep()).call("search", {}, Deadline.after(5))


def test_rows_that_go_in_a_circle_end() -> None:
    """A damaged tree gave the same rows for ever: listing an index never ended, and grew."""
    assert beyond(7, 3) == 7
    for last in (3, 2, None, "7"):
        with pytest.raises(SearchIndexError, match="in a circle"):
            beyond(last, 3)
