"""A bundle that is replaced, cut off or damaged around its loading: one whole bundle or one clear line, no mixture."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gog_edge
from gog_edge.agent import loader
from gog_edge.bundle import Bundle, BundleWriter, hash_file, load_whole
from gog_edge.cli.main import run
from gog_edge.disk import leftovers
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.errors import BundleError, GogEdgeError
from gog_edge.runtime.session import Session
from gog_edge.types import Control
from tests.faults import damage
from tests.runtime.fakes import make_bundle

ONE_THREAD = OrtOptions(threads=1, spin=False)
WEIGHTS = ("embedding.bin", "decoder.onnx.data", "vision.onnx.data")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOG_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # no test pulls the plug, and disks are slow


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two bundles of the same sizes that differ in every weight."""
    first = make_bundle(tmp_path_factory.mktemp("two")).root
    second = first.with_name("second")
    shutil.copytree(first, second)
    for name in WEIGHTS:
        data = np.fromfile(second / name, np.float32)
        (data * np.float32(0.5)).tofile(second / name)
    data = json.loads((second / "manifest.json").read_text())
    data["name"] = "second"
    del data["seal"]
    for name in WEIGHTS:
        data["files"][name]["sha256"] = hash_file(second / name).sha256
    (second / "manifest.json").write_text(json.dumps(data))
    return {Bundle.open(root).fingerprint: root for root in (first, second)}


def put(source: Path, target: Path) -> None:
    """What an export does, without its work."""
    manifest = Bundle.open(source).manifest
    with BundleWriter(target) as writer:
        for name in manifest.files:
            shutil.copy(source / name, writer.root / name)
        writer.commit(manifest)


def says(agent: gog_edge.Agent) -> Any:
    """What tells a policy from a mixture: its logits, which every weight of the decoder and the embedding reaches."""
    session = Session(agent.model)
    session.append([Control("<|im_start|>user\n"), Control("<|im_end|>")])
    return session.run().copy()


def expected(two: dict[str, Path]) -> dict[str, Any]:
    found = {}
    for fingerprint, root in two.items():
        with gog_edge.load(root, engine_options=ONE_THREAD) as agent:
            found[fingerprint] = says(agent)
    first, second = found.values()
    assert not np.array_equal(first, second)
    return found


@pytest.mark.parametrize("stage", ["_stamp", "check", "bundle_dialect", "create_engine", "Model"])
def test_a_swap_at_any_stage_ends_in_one_whole_bundle(
    two: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    want = expected(two)
    first, second = two.values()
    put(first, tmp_path / "b")
    left = [None]

    def swapping(call: Callable[..., Any]) -> Callable[..., Any]:
        def swapped(*a: Any, **k: Any) -> Any:
            done = call(*a, **k)
            if left:
                left.pop()
                put(second, tmp_path / "b")
            return done

        return swapped

    if stage == "_stamp":  # the manifest's, before it is read
        monkeypatch.setattr("gog_edge.bundle._stamp", swapping(gog_edge.bundle._stamp))
    elif stage == "check":
        monkeypatch.setattr(Bundle, "check", swapping(Bundle.check))
    elif stage == "Model":
        monkeypatch.setattr(loader.Model, "assemble", swapping(loader.Model.assemble))
    else:
        monkeypatch.setattr(loader, stage, swapping(getattr(loader, stage)))
    with gog_edge.load(tmp_path / "b", engine_options=ONE_THREAD) as agent:
        assert not left
        assert agent.model.bundle.fingerprint == list(two)[1]
        assert np.array_equal(says(agent), want[agent.model.bundle.fingerprint])


def test_loads_beside_a_process_that_swaps_are_never_mixed(two: dict[str, Path], tmp_path: Path) -> None:
    want = expected(two)
    put(next(iter(two.values())), tmp_path / "b")
    seen = set()

    left = 24

    def swap() -> None:
        nonlocal left
        for root in two.values():
            time.sleep(0.1)
            if left:  # a machine under load could not load anything between swaps without end
                put(root, tmp_path / "b")
                left -= 1

    with damage.beside(swap):
        for _ in range(20):
            try:
                agent = gog_edge.load(tmp_path / "b", engine_options=ONE_THREAD)
            except BundleError as e:
                assert "replaced" in str(e)  # more often than it can be loaded: said, not guessed
                continue
            with agent:
                seen.add(agent.model.bundle.fingerprint)
                assert np.array_equal(says(agent), want[agent.model.bundle.fingerprint])
    assert seen


def test_an_opened_bundle_that_was_replaced_is_one_clear_line(two: dict[str, Path], tmp_path: Path) -> None:
    first, second = two.values()
    put(first, tmp_path / "b")
    opened = Bundle.open(tmp_path / "b")
    assert not opened.changed()
    put(second, tmp_path / "b")
    assert opened.changed()
    with pytest.raises(BundleError, match="was replaced while it was loaded; open it again"):
        gog_edge.load(opened, engine_options=ONE_THREAD)


def test_what_goes_wrong_with_a_bundle_that_stays_is_said_as_it_is(two: dict[str, Path]) -> None:
    def fails(bundle: Bundle) -> None:
        raise GogEdgeError("something else")

    with pytest.raises(GogEdgeError, match="something else"):
        load_whole(next(iter(two.values())), fails, lambda nothing: None)


@pytest.mark.parametrize("exchange", [True, False])
def test_an_export_killed_at_any_step_leaves_the_old_bundle_or_the_new_one(
    two: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:  # a file system whose names can't be exchanged
        monkeypatch.setattr(leftovers, "_exchange", lambda a, b: False)
    (first, old), (second, new) = two.items()
    folder = tmp_path / "home"
    put(old, folder / "b")
    met = set()
    for step in damage.deaths(lambda: put(new, folder / "b")):
        leftovers._swept.clear()  # as in a process that starts now
        opened = Bundle.open(folder / "b")
        assert opened.fingerprint in (first, second), step
        list(opened.verify())
        met.add(opened.fingerprint)
        put(old, folder / "b")
        assert [p.name for p in folder.iterdir()] == ["b"], step
    assert met == {first, second}


def test_damaged_files_are_refused_at_load(two: dict[str, Path], tmp_path: Path) -> None:
    """A copy on another machine, with damage that keeps every size: 13 of such were silent wrong answers."""
    source = next(iter(two.values()))
    shutil.copytree(source, tmp_path / "b")
    tried = 0
    for name in Bundle.open(source).manifest.files:
        data = (source / name).read_bytes()
        for what, bad in damage.damages(data, 8, seed=len(name)):
            (tmp_path / "b" / name).write_bytes(bad)
            with pytest.raises(BundleError, match=r"differs from its manifest|bytes instead of") as e:
                gog_edge.load(tmp_path / "b", engine_options=ONE_THREAD)
            assert name in str(e.value), what
            tried += 1
        (tmp_path / "b" / name).write_bytes(data)
    assert tried > 30
    gog_edge.load(tmp_path / "b", engine_options=ONE_THREAD).close()


def test_hashes_are_taken_once(two: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(iter(two.values()))
    shutil.copytree(source, tmp_path / "b")
    hashed: list[str] = []
    real = Bundle._hash
    monkeypatch.setattr(Bundle, "_hash", lambda self, name, digest: (hashed.append(name), real(self, name, digest))[1])

    def load() -> set[str]:
        hashed.clear()
        gog_edge.load(tmp_path / "b", engine_options=ONE_THREAD).close()
        return set(hashed)

    files = set(Bundle.open(source).manifest.files)
    assert load() == files
    assert load() == set()
    name = "decoder.onnx.data"
    (tmp_path / "b" / name).write_bytes((source / name).read_bytes())  # written to: who knows what it is now
    os.utime(tmp_path / "b" / name, ns=(1, 1))
    assert load() == {name}
    (tmp_path / "cache" / "checked").rename(tmp_path / "cache" / "gone")
    (tmp_path / "cache" / "checked").write_text("in the way")
    assert load() == files  # no cache: at every start
    put(source, tmp_path / "new")
    (tmp_path / "cache" / "checked").unlink()
    put(source, tmp_path / "b")
    assert load() == set()  # an export knows what it wrote


def test_verify_reads_whatever_is_remembered_and_forgets_what_is_damaged(
    two: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(next(iter(two.values())), tmp_path / "b")
    opened = Bundle.open(tmp_path / "b")
    opened.check(opened.manifest.files)
    real = gog_edge.bundle.hash_of
    # a disk that gives back other bytes: no stamp shows it
    monkeypatch.setattr(gog_edge.bundle, "hash_of", lambda p: (real(p)[0], "0" * 64))
    opened.check(opened.manifest.files)
    with pytest.raises(BundleError, match="differs from its manifest"):
        list(opened.verify())
    with pytest.raises(BundleError, match="differs from its manifest"):
        opened.check(opened.manifest.files)


def test_doctor_names_damaged_bundles(
    two: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GOG_EDGE_LIBRARY", str(tmp_path / "library"))
    monkeypatch.delenv("GOG_EDGE_BUNDLE", raising=False)
    monkeypatch.setenv("GOG_EDGE_NO_NATIVE", "1")  # a new cache, and nothing to be compiled into it
    for name, source in zip(("good", "bad"), two.values()):
        put(source, tmp_path / "library" / name)
    weights = tmp_path / "library" / "bad" / "decoder.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert run(["doctor", "--json"]) == 0
    checks = {c["name"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["bundle good"]["ok"] is True
    assert checks["bundle bad"]["ok"] is False and "decoder.onnx.data differs" in checks["bundle bad"]["mend"]


def test_a_link_stays_a_link(two: dict[str, Path], tmp_path: Path) -> None:
    (first, old), (second, new) = two.items()
    put(old, tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    put(new, tmp_path / "current")
    assert (tmp_path / "current").readlink() == Path("v1")
    assert Bundle.open(tmp_path / "v1").fingerprint == second
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    (tmp_path / "later").symlink_to("v2")  # leads nowhere yet
    put(old, tmp_path / "later")
    assert Bundle.open(tmp_path / "v2").fingerprint == first


def test_a_running_policy_keeps_its_files(two: dict[str, Path], tmp_path: Path) -> None:
    """An export never truncates in place: what runs has the old files open, to the last byte."""
    want = expected(two)
    (first, old), (_, new) = two.items()
    put(old, tmp_path / "b")
    with gog_edge.load(tmp_path / "b", engine_options=ONE_THREAD) as agent:
        for root in (new, old, new):
            put(root, tmp_path / "b")
        assert np.array_equal(says(agent), want[first])
