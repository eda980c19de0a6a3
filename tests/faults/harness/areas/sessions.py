"""Saved sessions: damaged as files, and forged: whole by every checksum, with headers and arrays that lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.disk.tensorfile import read_tensors, write_tensors
from gog_edge.engines.registry import create_engine
from gog_edge.errors import GogEdgeError
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.runtime.session_state import load_session, save_session
from gog_edge.types import Control, ImagePart, Text
from tests.faults.harness.core import Area, Attempt, Wrong, one_line
from tests.faults.harness.mutate import damaged, mutated
from tests.faults.harness.policy import ONE_THREAD, own_cache, tiny
from tests.runtime.conftest import picture


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    own_cache(folder)
    bundle = Bundle.open(tiny(folder))
    engine = create_engine("cpu", bundle, ONE_THREAD)
    model = Model.assemble(bundle, engine, RunOptions(prefix_cache=False, cache_dir=folder / "policy"))
    files = {}
    for kv in (True, False):
        session = Session(model)
        session.add_image(picture(1, 87, 63))
        session.append([Control("<|im_start|>user\n"), ImagePart(0), Text("what"), Control("<|im_end|>\n")])
        want, tokens = np.array(session.run()), session.tokens.tolist()
        files[kv] = save_session(session, folder / f"{kv}.gogs", kv=kv)
    good = {kv: path.read_bytes() for kv, path in files.items()}
    path = folder / "bad.gogs"

    def attempt(rng: Random, number: int) -> str:
        kv = bool(number % 2)
        if number % 4 < 2:
            kind, bad = damaged(good[kv], rng, good[not kv])
            path.write_bytes(bad)
        else:
            kind = "forged"
            _forge(files[kv], path, rng)
        try:
            session, _ = load_session(path, model)
        except GogEdgeError as e:
            return one_line(e)
        try:
            logits = np.array(session.run())
            session.append([Text("and then"), Control("<|im_end|>\n")])
            session.run()
        except GogEdgeError as e:
            return f"{one_line(e)} when it goes on"
        same = session.tokens.tolist()[: len(tokens)] == tokens and np.array_equal(logits, want)
        if kind != "forged" and not same:
            raise Wrong(f"{kind}: another conversation without a word")
        return "the same" if same else "another conversation, forged"

    yield attempt
    engine.close()


def _forge(source: Path, target: Path, rng: Random) -> None:
    header, arrays = read_tensors(source)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    if rng.random() < 0.6:
        header = mutated(header, rng)[1]
    else:
        name = rng.choice(sorted(arrays))
        arrays = {**arrays, name: _lying(arrays[name], rng)}
        if rng.random() < 0.2:
            del arrays[name]
    write_tensors(target, header if isinstance(header, dict) else {"kind": header}, arrays)


def _lying(array: Any, rng: Random) -> Any:
    """The same values in another shape or type, or other values."""
    kind = rng.choice(("values", "type", "shorter", "longer", "flat", "empty", "scalar", "huge"))
    if kind == "values":
        changed = array.copy()
        flat = changed.reshape(-1).view(np.uint8)
        for _ in range(rng.randint(1, 8)):
            flat[rng.randrange(flat.size)] = rng.randrange(256)
        return changed
    if kind == "type":
        return array.astype(rng.choice(("float32", "float16", "int8", "uint8", "int32", "int64")))
    if kind == "huge":
        return np.full_like(array, np.iinfo(array.dtype).max if array.dtype.kind in "iu" else np.inf)
    made = {"shorter": array[:-1], "longer": np.concatenate([array, array]) if array.ndim else array}
    return {**made, "flat": array.reshape(-1), "empty": array[:0], "scalar": array.reshape(-1)[0]}[kind]


AREA = Area("sessions", "one line or the same conversation; a forged file: one line or its own conversation", _open)
