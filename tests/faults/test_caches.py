"""Caches that can't be read or written are absent ones: whatever is wrong with them, the answer is the same."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge.agent.options import RunOptions
from gog_edge.disk import leftovers, paths
from gog_edge.disk.tensorfile import read_tensors, write_tensors
from gog_edge.engines.base import Features
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.errors import SessionError
from gog_edge.evaluation.images import ImageStore
from gog_edge.evaluation.samples import ImageRef
from gog_edge.image.frame import Frame
from gog_edge.runtime.feature_cache import DiskFeatures, FeatureKey
from gog_edge.runtime.model import Model
from gog_edge.runtime.prefix_cache import PrefixCache
from gog_edge.runtime.session import Session
from gog_edge.runtime.session_state import load_session, save_session
from gog_edge.search.cache import ResultCache
from gog_edge.types import Control, ImagePart, Text
from tests.faults import damage
from tests.runtime.conftest import picture
from tests.runtime.fakes import make_bundle

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SYSTEM = "<|im_start|>system\n" + "You look, and you say what you see. " * 4 + "<|im_end|>\n"
WORDS = [Control(SYSTEM), Control("<|im_start|>user\n"), ImagePart(0), Text("what"), Control("<|im_end|>\n")]


class World:
    """One engine, and models with caches in different places around it."""

    def __init__(self, folder: Path) -> None:
        self.bundle = make_bundle(folder)
        self.engine = create_engine("cpu", self.bundle, OrtOptions(threads=1, spin=False))

    def model(self, cache: Path) -> Model:
        options = RunOptions(cache_dir=cache, feature_cache_disk=1 << 24)
        return Model.assemble(self.bundle, self.engine, options)

    def answer(self, cache: Path) -> Any:
        """The logits of a question with a picture, in a process that starts now."""
        leftovers._swept.clear()
        session = Session(self.model(cache))
        session.add_image(picture(1))
        session.append(WORDS)
        return session.run().copy()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("caches"))
    yield made
    made.engine.close()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user reaches."""
    folder = Path(tempfile.mkdtemp(prefix="gog-edge-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def files(cache: Path) -> list[Path]:
    return sorted(p for p in cache.rglob("*.gogt"))


def in_child(work: Any) -> None:
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_caches_are_used_and_any_damage_to_them_changes_nothing(world: World, tmp_path: Path) -> None:
    want = world.answer(tmp_path / "none")
    assert np.array_equal(world.answer(tmp_path / "c"), want)
    good = {path: path.read_bytes() for path in files(tmp_path / "c")}
    assert {path.parent.parent.name for path in good} == {"c", "features"}
    assert np.array_equal(world.answer(tmp_path / "c"), want)
    for path, data in good.items():
        for what, bad in damage.damages(data, 16):
            path.write_bytes(bad)
            assert np.array_equal(world.answer(tmp_path / "c"), want), what
        path.unlink()
        path.mkdir()  # a folder in its place
        assert np.array_equal(world.answer(tmp_path / "c"), want)
        path.rmdir()
        path.symlink_to(path.name)
        assert np.array_equal(world.answer(tmp_path / "c"), want)
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("place", ["file", "loop", "/proc/gog", "full"])
def test_a_question_needs_no_cache(world: World, tmp_path: Path, place: str) -> None:
    want = world.answer(tmp_path / "none")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "loop").symlink_to("loop")
    where = Path(place) if place.startswith("/") else tmp_path / place

    def ask() -> bool:
        if place == "full":  # every write beyond 100 bytes fails, so what is said must not go to pytest's file
            sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        return np.array_equal(world.answer(where), want) and np.array_equal(world.answer(where), want)

    in_child(ask)
    if place == "full":
        assert [p for p in where.rglob("*") if p.is_file()] == []


def test_what_a_folder_allows_to_read_is_read_and_what_it_refuses_is_absent(open_folder: Path) -> None:
    """Somebody else's cache, seen by a user without rights: `touch` and `unlink` in handlers ended questions."""
    ids, key = np.arange(32, dtype=np.int32), FeatureKey("d", (0, 0, 4, 4), (2, 2))
    PrefixCache(open_folder / "prefixes", "f").save(ids, [np.zeros((2, 32, 4), np.float32)])
    DiskFeatures(open_folder / "features", "f", 1 << 20).save(key, Features(np.zeros((4, 4), np.float32), None))
    entries = files(open_folder)
    assert len(entries) == 2
    folders = [open_folder, *(p for p in open_folder.rglob("*") if p.is_dir())]

    def look() -> str:
        prefixes, features = PrefixCache(open_folder / "prefixes", "f"), DiskFeatures(open_folder / "features", "f", 1)
        found = f"{prefixes.load(ids) is not None} {features.load(key) is not None}"
        prefixes.save(ids + 1, [np.zeros((2, 32, 4), np.float32)])
        features.save(key, Features(np.zeros((4, 4), np.float32), None))
        return found

    def seen() -> str:
        for folder in folders:
            folder.chmod(0o555)
        try:
            return damage.as_nobody(look)
        finally:
            for folder in folders:
                folder.chmod(0o755)

    assert seen() == "True True"
    for path in entries:
        path.write_bytes(path.read_bytes()[:-1])
    assert seen() == "False False"
    for path in entries:
        path.chmod(0)
    assert seen() == "False False"
    (open_folder / "prefixes").chmod(0)
    try:
        assert damage.as_nobody(look) == "False False"
    finally:
        (open_folder / "prefixes").chmod(0o755)


def test_search_results_are_kept_or_not_and_no_more(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "r.db", 100.0)
    cache.put("key", "value")
    assert cache.get("key") == "value"
    cache.close()
    good = (tmp_path / "r.db").read_bytes()
    for what, bad in damage.damages(good, 60):
        for path in tmp_path.glob("r.db*"):
            path.unlink()
        (tmp_path / "r.db").write_bytes(bad)
        hurt = ResultCache(tmp_path / "r.db", 100.0)
        assert hurt.get("key") in (None, "value"), what
        hurt.put("key", "value")
        hurt.get("key")
        hurt.close()
        after = ResultCache(tmp_path / "r.db", 100.0)  # a file that is no database was removed
        after.put("key", "value")
        assert after.get("key") == "value", what
        after.close()
    for place in (tmp_path / "r.db" / "under", Path("/proc/gog/r.db")):
        none = ResultCache(place, 100.0)
        none.put("key", "value")
        assert none.get("key") is None
        none.close()


def test_without_any_place_for_files_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*a: Any, **k: Any) -> str:
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(paths.tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(paths.tempfile, "mkdtemp", nowhere)
    paths._homeless.cache_clear()
    try:
        folder = paths._homeless()
    finally:
        paths._homeless.cache_clear()
    cache = PrefixCache(folder / "prefixes", "f")
    cache.save(np.arange(32, dtype=np.int32), [np.zeros((2, 32, 4), np.float32)])
    assert PrefixCache(folder / "prefixes", "f").load(np.arange(32, dtype=np.int32)) is None


def test_fetched_pictures_are_fetched_again_when_damaged_and_need_no_folder(tmp_path: Path) -> None:
    frame = picture(3)

    class Reader:
        calls = 0

        def read_image(self, url: str, *, deadline: Any) -> Frame:
            Reader.calls += 1
            return frame

    def store(folder: Path) -> ImageStore:
        return ImageStore((), folder, Reader())  # type: ignore[arg-type]

    ref = ImageRef("url", "https://example.org/a.png")
    assert store(tmp_path / "d").open(ref) == frame == store(tmp_path / "d").open(ref)
    assert Reader.calls == 1
    (kept,) = (tmp_path / "d").iterdir()
    kept.write_bytes(kept.read_bytes()[:40])
    assert store(tmp_path / "d").open(ref) == frame == store(tmp_path / "d").open(ref)
    assert Reader.calls == 2
    assert store(kept / "under").open(ref) == frame


def resumable(world: World, tmp_path: Path) -> Path:
    session = Session(world.model(tmp_path / "none"))
    session.add_image(picture(1))
    session.append(WORDS)
    session.run()
    return save_session(session, tmp_path / "s.gogs", kv=False)


def test_features_of_a_session_stay_with_it(world: World, tmp_path: Path) -> None:
    """A forged file, whole by every checksum: it may be wrong itself, and no other question after it."""
    path = resumable(world, tmp_path)
    want = world.answer(tmp_path / "none")
    header, arrays = read_tensors(path)
    forged = {name: np.array(array) for name, array in arrays.items()}
    forged["features.0"] = forged["features.0"] * 0 + 1
    write_tensors(path, header, forged)
    model = world.model(tmp_path / "mine")
    resumed, _ = load_session(path, model)
    resumed.run()
    later = Session(model)
    later.add_image(picture(1))
    later.append(WORDS)
    assert np.array_equal(later.run(), want)
    assert np.array_equal(world.answer(tmp_path / "mine"), want)  # nor one of another process


def test_a_frame_is_the_one_whose_digest_it_carries(world: World, tmp_path: Path) -> None:
    path = resumable(world, tmp_path)
    header, arrays = read_tensors(path)
    forged = {name: np.array(array) for name, array in arrays.items()}
    (name,) = [name for name in forged if name.startswith("frame.")]
    forged[name] = 255 - forged[name]
    write_tensors(path, header, forged)
    with pytest.raises(SessionError, match="a picture is not the one that it says"):
        load_session(path, world.model(tmp_path / "none"))


def test_permissions_are_those_of_the_user(tmp_path: Path) -> None:
    """A file that appears whole is as readable as one that is simply written."""
    (tmp_path / "plain").write_text("x")
    write_tensors(tmp_path / "whole", {}, {"a": np.zeros(3, np.float32)})
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "whole")]
    assert modes[0] == modes[1]
