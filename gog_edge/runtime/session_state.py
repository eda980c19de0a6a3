"""A session on disk: tokens, images, KV cache; resumed in another process it continues with the same next token.

A file is bound to the bundle it was made with (fingerprint). With `kv` the cache is stored and nothing is computed
again; without, the file is small, holds the images' features, and the conversation is computed when it is next run:
what was given as given, what the policy wrote as written, so that native operators come to the same bits.
With `frames` the original pixels are stored, so that crops can be made later; without, hand the frames to `load`
or crops of them are refused. The image digests are stored and checked either way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.crop import Grid
from gog_edge.disk import leftovers
from gog_edge.disk.tensorfile import read_tensors, write_tensors
from gog_edge.engines.base import Features
from gog_edge.errors import EngineError, SessionError
from gog_edge.image.frame import Frame
from gog_edge.runtime.model import Model
from gog_edge.runtime.sequence import ImageSpan, SessionImage
from gog_edge.runtime.session import Session
from gog_edge.runtime.snapshots import pack, unpack
from gog_edge.runtime.telemetry import NO_TRACE, Trace
from gog_edge.serde import SerdeError, decode, encode
from gog_edge.types import RegisteredImage

VERSION = 2


@dataclasses.dataclass(frozen=True)
class _SavedImage:
    geometry: RegisteredImage
    rows: int
    columns: int
    digest: str


@dataclasses.dataclass(frozen=True)
class _Saved:
    """The header. `computed`: tokens whose KV is stored; `kv_arrays`: of keys, values and recurrent states."""

    kind: str
    version: int
    fingerprint: str
    engine: str
    spans: tuple[ImageSpan, ...]
    images: tuple[_SavedImage, ...]
    computed: int
    kv_arrays: int
    delta: int
    extra: dict[str, Any]


def save_session(
    session: Session, path: str | Path, *, kv: bool = True, frames: bool = True, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write the session; the old file stays if that fails.

    Args:
        kv: store the KV cache (large, resumes at once); else store features (small, resumes with a prefill).
        frames: store the original pixels of every image.
        extra: JSON data that `load_session` gives back.

    Raises:
        SessionError: the disk is full, the folder can't be written, or the policy runs on a server.
    """
    if not session.keeps_tokens:
        raise SessionError("the policy runs on a server: its conversations can't be saved here")
    target = Path(path)
    with session.lock:
        arrays: dict[str, NDArray[Any]] = {
            "tokens": session.tokens.copy(),
            "written": session.sequence.written.astype(np.uint8),
        }
        cache, recurrent = session._cache, session.model.state_arrays > 0
        session._computed = session._snapshots.begin(cache, session.computed)  # a state that saw guesses goes back
        computed = session.computed if kv and cache is not None else 0
        kv_arrays = pack(cache, computed, recurrent) if cache is not None and computed else []
        arrays |= {f"kv.{i}": a for i, a in enumerate(kv_arrays)}
        if session._rows is not None and computed == len(session) and session._rows_at == len(session) - 1:
            arrays["logits"] = session._rows[:1]
        for image in session.sequence.images:
            index = image.geometry.index
            if frames and image.plan is not None:
                arrays.setdefault(f"frame.{image.digest}", image.plan.frame.pixels)
            if not computed:
                features = _features_of(session, image)
                arrays[f"features.{index}"] = features.main
                if features.deepstack is not None:
                    arrays[f"deepstack.{index}"] = features.deepstack
        header = _Saved(
            kind="session",
            version=VERSION,
            fingerprint=session.model.bundle.fingerprint,
            engine=session.model.engine.describe().name,
            spans=tuple(session.sequence.spans),
            images=tuple(_SavedImage(i.geometry, i.rows, i.columns, i.digest) for i in session.sequence.images),
            computed=computed,
            kv_arrays=len(kv_arrays),
            delta=session.sequence.delta,
            extra=dict(extra or {}),
        )
        write_tensors(target, encode(header), arrays)
    return target


def load_session(
    path: str | Path, model: Model, *, frames: Sequence[Frame] = (), trace: Trace = NO_TRACE
) -> tuple[Session, dict[str, Any]]:
    """(the session, `extra`).

    Args:
        frames: original images, for a session that was saved without them; told apart by digest.

    Raises:
        SessionError: missing, damaged, of another version or made with another bundle.
    """
    file = Path(path)
    leftovers.sweep_once(file.parent)  # saves that were killed: half a gigabyte each
    data, arrays = read_tensors(file)
    if data.get("kind") != "session" or data.get("version") != VERSION:
        raise SessionError(f"{file} is not a session of this version ({data.get('kind')} {data.get('version')})")
    try:
        saved = decode(_Saved, data, "session")
    except SerdeError as e:
        raise SessionError(f"{file} is damaged ({e})") from e
    if saved.fingerprint != model.bundle.fingerprint:
        raise SessionError(
            f"{file} was made with another bundle ({saved.fingerprint[:12]}…, this one is "
            f"{model.bundle.fingerprint[:12]}…): a KV cache fits the weights that made it, start a new session"
        )
    engine = model.engine.describe().name
    if saved.computed and saved.engine != engine:
        raise SessionError(
            f"{file} holds the KV cache of engine {saved.engine!r}, this one is {engine!r}: save without kv"
        )
    session = Session(model, trace=trace)
    try:
        _restore(session, saved, arrays, {f.digest: f for f in frames})
    except KeyError as e:
        raise SessionError(f"{file} is damaged: it lacks the array {e}") from e
    except EngineError as e:
        raise SessionError(f"{file} is damaged: {e}") from e
    return session, saved.extra


def _restore(session: Session, saved: _Saved, arrays: Mapping[str, NDArray[Any]], given: dict[str, Frame]) -> None:
    tokens, written = np.array(arrays["tokens"], np.int32), np.array(arrays["written"], np.bool_)
    if written.shape != tokens.shape:
        raise SessionError("the saved session is damaged: it does not say of every token who wrote it")
    limit = session.model.max_context
    if len(tokens) > limit:
        raise SessionError(f"the saved session has {len(tokens)} tokens, the context is {limit}: raise max_context")
    stored_kv = saved.computed > 0
    images = [_image(session.model, image, arrays, given, stored_kv=stored_kv) for image in saved.images]
    # for this session alone: nobody can tell whether they are what the tower makes of these pixels
    session.brought = {i.plan.key: i.features for i in images if i.plan is not None and i.features is not None}
    sequence = session.sequence
    sequence.images = images
    for span in saved.spans:
        known = saved.images[span.image : span.image + 1] if span.image >= 0 else ()
        if span.start < sequence.length or [(k.rows, k.columns) for k in known] != [(span.rows, span.columns)]:
            raise SessionError("the saved session is damaged: its images do not fit its tokens")
        part = slice(sequence.length, span.start)
        sequence.append_ids(tokens[part].tolist(), written=written[part])
        sequence.append_image(span.rows, span.columns, span.image)
    if sequence.length > len(tokens) or not 0 <= saved.computed <= len(tokens):
        raise SessionError("the saved session is damaged: its images or its KV cache reach beyond its tokens")
    part = slice(sequence.length, len(tokens))
    sequence.append_ids(tokens[part].tolist(), written=written[part])
    if sequence.delta != saved.delta or not np.array_equal(sequence.ids, tokens):
        raise SessionError("the saved session is damaged: its positions do not fit its tokens")
    if not np.array_equal(sequence.written, written):
        raise SessionError("the saved session is damaged: it says that the policy wrote an image")
    if saved.computed:
        session._cache = session.model.decoder.new_cache(max(len(tokens), 1))
        kept = [arrays[f"kv.{i}"] for i in range(saved.kv_arrays)]
        unpack(session._cache, saved.computed, kept, session.model.state_arrays)
        session._computed = saved.computed
        session._snapshots.ran(session._cache, saved.computed, None, True)
    if "logits" in arrays:
        session._rows, session._rows_at = np.array(arrays["logits"], np.float32), len(tokens) - 1


def _image(
    model: Model, saved: _SavedImage, arrays: Mapping[str, NDArray[Any]], given: dict[str, Frame], *, stored_kv: bool
) -> SessionImage:
    frame = given.get(saved.digest)
    pixels = arrays.get(f"frame.{saved.digest}")
    if frame is None and pixels is not None:
        frame = Frame(np.array(pixels), "saved session")
        if frame.digest != saved.digest:  # what is computed of it would be kept under the name of another picture
            raise SessionError("the saved session is damaged: a picture is not the one that it says")
        given[saved.digest] = frame
    plan = None
    if frame is not None:
        merge = model.manifest.preprocessing.merge_size
        geometry, grid = saved.geometry, Grid(saved.rows * merge, saved.columns * merge)
        shown = geometry.shown_width, geometry.shown_height
        plan = model.vision.plan_grid(frame, geometry.region, grid, shown)
    features = None
    name = f"features.{saved.geometry.index}"
    if not stored_kv:
        deepstack = arrays.get(f"deepstack.{saved.geometry.index}")
        main, spec = arrays[name], model.manifest.decoder
        wanted = saved.rows * saved.columns, spec.hidden
        if main.shape != wanted or (deepstack is not None and deepstack.shape != (spec.deepstack, *wanted)):
            raise SessionError("the saved session is damaged: features do not fit their image")
        features = Features(np.array(main, np.float32), None if deepstack is None else np.array(deepstack, np.float32))
    return SessionImage(saved.geometry, saved.rows, saved.columns, saved.digest, plan, features)


def _features_of(session: Session, image: SessionImage) -> Features:
    if image.features is not None:
        return image.features
    if image.plan is None:
        session.frame(image.geometry.index)
        raise SessionError(f"image {image.geometry.index} has no features to save")
    return session.model.vision.encode(image.plan)[0]
