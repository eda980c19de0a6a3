"""Saved sessions meet real life: truncation, flipped bits, foreign bundles, full disks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gog_edge.agent.options import RunOptions
from gog_edge.disk import tensorfile
from gog_edge.disk.tensorfile import read_tensors, write_tensors
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.errors import SessionError
from gog_edge.image.frame import Frame
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.runtime.session_state import load_session, save_session
from gog_edge.types import Control, ImagePart, Text
from tests.runtime.conftest import picture
from tests.runtime.fakes import make_bundle

ONE_THREAD = OrtOptions(threads=1, spin=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    bundle = make_bundle(tmp_path_factory.mktemp("faults"))
    engine = create_engine("cpu", bundle, ONE_THREAD)
    yield Model.assemble(bundle, engine, RunOptions(prefix_cache=False))
    engine.close()


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    session = Session(model)
    session.add_image(picture(1))
    session.append([Control("<|im_start|>user\n"), ImagePart(0), Text("what"), Control("<|im_start|>assistant\n")])
    session.run()
    return save_session(session, tmp_path / "s.gogs")


def test_every_truncation_is_refused(saved: Path, model: Model) -> None:
    data = saved.read_bytes()
    for size in [0, 1, 7, 12, 16, 200, len(data) // 2, len(data) - 9, len(data) - 1]:
        saved.write_bytes(data[:size])
        with pytest.raises(SessionError, match=r"s\.gogs"):
            load_session(saved, model)
    saved.write_bytes(data + b"x")
    with pytest.raises(SessionError, match="truncated"):
        load_session(saved, model)
    saved.write_bytes(data)
    load_session(saved, model)


def test_a_flipped_bit_anywhere_is_refused_or_harmless(saved: Path, model: Model) -> None:
    """In arrays the checksum tells; in the header either the parser does, or the meaning is checked."""
    original = saved.read_bytes()
    session, _ = load_session(saved, model)
    tokens, logits = session.tokens.tolist(), session.run().copy()
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(original), 120, replace=False):
        data = bytearray(original)
        data[at] ^= 1 << int(rng.integers(8))
        saved.write_bytes(data)
        try:
            again, _ = load_session(saved, model)
            assert again.tokens.tolist() == tokens
            assert (again.run() == logits).all()
        except SessionError:
            refused += 1
    assert refused > 100  # the others hit padding


def test_missing_and_foreign_files(saved: Path, model: Model, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="can't read"):
        load_session(tmp_path / "none.gogs", model)
    with pytest.raises(SessionError, match="can't read"):
        load_session(tmp_path, model)
    (tmp_path / "text").write_text("hello, this is not a session file at all")
    with pytest.raises(SessionError, match="not a gog-edge tensor file"):
        load_session(tmp_path / "text", model)
    write_tensors(tmp_path / "prefix", {"kind": "prefix"}, {"ids": np.zeros(3, np.int32)})
    with pytest.raises(SessionError, match="not a session"):
        load_session(tmp_path / "prefix", model)


def test_a_session_of_another_bundle_is_refused(saved: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", "tiny-qwen2.5-vl")
    engine = create_engine("cpu", other, ONE_THREAD)
    with pytest.raises(SessionError, match="another bundle"):
        load_session(saved, Model.assemble(other, engine, RunOptions(prefix_cache=False)))


def test_a_cache_of_another_engine_is_refused(saved: Path, model: Model) -> None:
    header, arrays = read_tensors(saved)
    write_tensors(saved, {**header, "engine": "tensorrt"}, {k: np.array(v) for k, v in arrays.items()})
    with pytest.raises(SessionError, match=r"engine 'tensorrt'.*save without kv"):
        load_session(saved, model)


def test_headers_that_lie_are_refused(saved: Path, model: Model) -> None:
    header, arrays = read_tensors(saved)
    arrays = {k: np.array(v) for k, v in arrays.items()}
    lies = [
        {"computed": 10**6},
        {"kv_arrays": 99},
        {"delta": -999},
        {"spans": [{"start": 5, "rows": 900, "columns": 900, "image": 0}]},
        {"spans": [{"start": 5, "rows": 4, "columns": 6, "image": 7}]},
        {"images": []},
        {"version": 1},
        {"version": 3},
        {"surprise": 1},
    ]
    for lie in lies:
        write_tensors(saved, {**header, **lie}, arrays)
        with pytest.raises(SessionError):
            load_session(saved, model)
    for written in (arrays["written"][:-1], np.ones_like(arrays["written"]), None):
        rest = {name: array for name, array in arrays.items() if name != "written"}
        write_tensors(saved, header, rest if written is None else {**rest, "written": written})
        with pytest.raises(SessionError, match=r"written|who wrote it|wrote an image"):
            load_session(saved, model)


class FullDisk:
    """A file that takes some bytes and then says ENOSPC."""

    def __init__(self, real: object, room: int) -> None:
        self.real, self.room = real, room

    def write(self, piece: bytes) -> int:
        self.room -= len(piece)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.real.write(piece)  # type: ignore[attr-defined, no-any-return]

    def __enter__(self) -> FullDisk:
        self.real.__enter__()  # type: ignore[attr-defined]
        return self

    def __exit__(self, *details: object) -> None:
        self.real.__exit__(*details)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


@pytest.mark.parametrize("room", [0, 100, 5000])
def test_a_full_disk_leaves_the_old_file(saved: Path, model: Model, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    before = saved.read_bytes()
    session, _ = load_session(saved, model)
    session.append([Text("more text")])
    session.run()
    real_open = Path.open

    def full(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        file = real_open(self, mode, *args, **kwargs)  # type: ignore[call-overload]
        return FullDisk(file, room) if "w" in mode else file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(SessionError, match="No space left"):
        save_session(session, saved)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert not list(saved.parent.glob(".*partial"))
    save_session(session, saved)
    assert len(load_session(saved, model)[0]) == len(session)


def test_an_unwritable_folder_is_one_clear_line(saved: Path, model: Model, tmp_path: Path) -> None:
    session, _ = load_session(saved, model)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SessionError, match="can't write"):
        save_session(session, tmp_path / "file" / "s.gogs")


def test_killed_while_saving_leaves_the_old_file(saved: Path) -> None:
    """The process dies in the middle of the write (os._exit inside fsync): the old file is what a reader sees."""
    before = saved.read_bytes()
    code = f"""
import os, numpy as np
from pathlib import Path
from gog_edge.disk.tensorfile import write_tensors
os.fsync = lambda fd: os._exit(9)
write_tensors(Path({str(saved)!r}), {{"kind": "x"}}, {{"a": np.zeros(1000, np.float32)}})
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 9
    assert saved.read_bytes() == before


def test_resumed_in_a_new_process_with_the_same_next_token(saved: Path, model: Model) -> None:
    session, _ = load_session(saved, model)
    expected = int(session.run()[0].argmax())
    code = f"""
from gog_edge.bundle import Bundle
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.runtime.model import Model
from gog_edge.agent.options import RunOptions
from gog_edge.runtime.session_state import load_session
bundle = Bundle.open({str(model.bundle.root)!r})
engine = create_engine("cpu", bundle, OrtOptions(threads=1, spin=False))
session, _ = load_session({str(saved)!r}, Model.assemble(bundle, engine, RunOptions(prefix_cache=False)))
session.cut(len(session))
session._rows = None
print(int(session.run()[0].argmax()), session.usage.encoded_images)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(expected), "0"]


def test_round_trip_of_every_dtype(tmp_path: Path) -> None:
    arrays = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "h": np.arange(5, dtype=np.float16),
        "i": np.array(7, np.int64),
        "empty": np.zeros((0, 4), np.int8),
        "strided": np.arange(20, dtype=np.int32).reshape(4, 5)[:, 1:3],
    }
    write_tensors(tmp_path / "t", {"é": [1, None]}, arrays)
    header, back = read_tensors(tmp_path / "t")
    assert header == {"é": [1, None]}
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name].reshape(array.shape), array)
    with pytest.raises(SessionError, match="complex64"):
        write_tensors(tmp_path / "t", {}, {"c": np.zeros(2, np.complex64)})
    assert json.dumps(read_tensors(tmp_path / "t")[0])
    assert tensorfile.read_tensors(tmp_path / "t", check=False)[0] == header


def test_a_frame_survives(saved: Path, model: Model) -> None:
    assert load_session(saved, model)[0].frame(0) == picture(1)
    assert isinstance(load_session(saved, model)[0].frame(0), Frame)
