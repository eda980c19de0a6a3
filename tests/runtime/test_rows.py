"""Whole native decoders: a token's KV rows and logits have the same bits whatever ran beside it.

So guesses, reading ahead, forced tokens, chunks and resumed sessions change nothing but time. What is compared is
every logit and every byte of the KV cache, of both families in every precision, and of the policy that ships.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.engines.base import Engine, KvCache, PlacedImage
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.image.frame import Frame
from gog_edge.runtime.decoder import Rotary
from gog_edge.runtime.generate import TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.session_state import load_session, save_session
from gog_edge.runtime.speculation import Speculation
from gog_edge.sampling_options import Sampling
from gog_edge.types import Control, ImagePart, Region, Segment, Text
from tests.native.graphs import needs_ops

pytestmark = needs_ops

NANO = Path(__file__).parents[2] / "models" / "gog-nano"
_SMALL: dict[str, dict[str, Any]] = {
    "tiny-qwen3-vl": {
        "text_config": {
            "hidden_size": 256, "intermediate_size": 328, "head_dim": 64, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 3,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [12, 10, 10], "rope_type": "default"},
        },
        "vision_config": {"out_hidden_size": 256},
    },
    "tiny-qwen3-vl-moe": {
        "text_config": {
            "hidden_size": 128, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": 3, "decoder_sparse_step": 1, "moe_intermediate_size": 72, "num_experts": 12,
            "num_experts_per_tok": 3,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
        },
        "vision_config": {"out_hidden_size": 128},
    },
    "tiny-qwen2.5-vl": {  # seven heads a group, as in the 7B: five tokens are 35 queries
        "hidden_size": 448, "intermediate_size": 500, "num_attention_heads": 7, "num_key_value_heads": 1,
        "num_hidden_layers": 3, "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vision_config": {"out_hidden_size": 448},
    },
    "tiny-qwen3.5": {"text_config": {"linear_key_head_dim": 48, "linear_value_head_dim": 80}},
    "tiny-qwen3.5-moe": {"text_config": {"linear_key_head_dim": 48, "linear_value_head_dim": 80}},
}  # fmt: skip
CASES = {
    "qwen3 int8": ("tiny-qwen3-vl", {"precision": "int8"}),
    "qwen3 int4": ("tiny-qwen3-vl", {"precision": "int4"}),
    "qwen3 int5": ("tiny-qwen3-vl", {"precision": "int5"}),
    "qwen3.5 int5": ("tiny-qwen3.5", {"precision": "int5"}),
    "qwen3 int4, KV int8": ("tiny-qwen3-vl", {"precision": "int4", "kv_dtype": "int8"}),
    "qwen3 fp32": ("tiny-qwen3-vl", {"precision": "fp32"}),
    "qwen3 fp16": ("tiny-qwen3-vl", {"precision": "fp16"}),
    "qwen3 experts, fp32": ("tiny-qwen3-vl-moe", {"precision": "fp32"}),
    "qwen3 experts, int8": ("tiny-qwen3-vl-moe", {"precision": "int8"}),
    "qwen3 experts, int4": ("tiny-qwen3-vl-moe", {"precision": "int4"}),
    "qwen2.5 int8": ("tiny-qwen2.5-vl", {"precision": "int8"}),
    "qwen2.5 int4": ("tiny-qwen2.5-vl", {"precision": "int4"}),
    "qwen2.5 int4, exact": ("tiny-qwen2.5-vl", {"precision": "int4", "exact_int4": True}),
    "qwen3.5 int8": ("tiny-qwen3.5", {"precision": "int8"}),
    "qwen3.5 int4, KV int8": ("tiny-qwen3.5", {"precision": "int4", "kv_dtype": "int8"}),
    "qwen3.5 fp32": ("tiny-qwen3.5", {"precision": "fp32"}),
    "qwen3.5 experts, int4": ("tiny-qwen3.5-moe", {"precision": "int4"}),
    "gog-nano int8": ("gog-nano", {"precision": "int8"}),
    "gog-nano int4": ("gog-nano", {"precision": "int4"}),
}


@dataclass
class Loaded:
    """One bundle, opened with one, two and three threads."""

    bundle: Bundle
    engines: list[Engine]

    def model(self, threads: int, chunk: int = 512) -> Model:
        options = RunOptions(prefill_chunk=chunk, prefix_cache=False)
        return Model.assemble(self.bundle, self.engines[threads - 1], options)


@contextmanager
def loaded_case(case: str, folder: Path) -> Iterator[Loaded]:
    """The bundle of one of `CASES`, made in `folder`."""
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.pipeline import export_bundle
    from gog_edge.export.synthetic.checkpoint import make_checkpoint

    name, options = CASES[case]
    small = name in _SMALL
    checkpoint = make_checkpoint(name, folder / "checkpoint", overrides=_SMALL[name]) if small else NANO
    bundle = export_bundle(checkpoint, folder / "bundle", ExportOptions(backend="native", **options))
    engines = [create_engine("cpu", bundle, OrtOptions(threads=n, spin=False)) for n in (1, 2, 3)]
    yield Loaded(bundle, engines)
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module", params=CASES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    with loaded_case(request.param, tmp_path_factory.mktemp("rows")) as made:
        yield made


PROMPT: list[Segment] = [
    Control("<|im_start|>system\nyou are a tool of search<|im_end|>\n<|im_start|>user\n"),
    ImagePart(0),
    Text("what is it, and where does it live? " * 3),
    Control("<|im_end|>\n<|im_start|>assistant\n"),
]
REPLY: list[Segment] = [
    Control("<|im_end|>\n<|im_start|>user\n<tool_response>\n"),
    ImagePart(1),
    Text("\n1. heron: a bird of ponds and rivers. " * 3),
    Control("<|im_end|>\n<|im_start|>assistant\n"),
]


def begin(model: Model, frame: Frame) -> Session:
    """A prompt about `frame`, and a crop of it in the registry."""
    session = Session(model)
    session.add_image(frame)
    session.append(PROMPT)
    session.add_image(frame, Region(20, 10, 120, 101), source=0)
    return session


def talk(model: Model, frame: Frame) -> Session:
    """A conversation of given and written tokens by turns, nothing of it computed."""
    rng, session = np.random.default_rng(2), begin(model, frame)
    for count, segments in ((45, REPLY), (1, [Text("go on. " * 30)]), (2, [Text("and?")]), (60, [])):
        session.extend(int(i) for i in rng.integers(0, 300, count))
        session.append(segments)
    return session


def parts(written: NDArray[np.bool_], sizes: Iterator[int]) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Runs of the wanted sizes: (start, stop, which of its rows are read), given tokens of a run being neighbours."""
    at = 0
    while at < len(written):
        stop = min(at + next(sizes), len(written))
        given = np.flatnonzero(~written[at:stop])
        if given.size and given[-1] - given[0] >= given.size:  # a second stretch: the run ends before it
            stop = at + int(given[np.flatnonzero(np.diff(given) > 1)[0] + 1])
            given = np.flatnonzero(~written[at:stop])
        yield at, stop, (int(given[0]), int(given[-1]) + 1) if given.size else (0, 0)
        at = stop


def computed(session: Session, model: Model, sizes: Iterator[int]) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
    """Logits [n, V] of a conversation run in pieces of `sizes`, and its KV cache."""
    length, logits = len(session), []
    cache = model.decoder.new_cache(length)
    for at, stop, read in parts(session.sequence.written, sizes):
        placed = []
        for span in session.sequence.spans_between(at, stop):
            first, last = max(span.start, at), min(span.stop, stop)
            plan = session.sequence.images[span.image].plan
            assert plan is not None
            placed.append(
                PlacedImage(first - at, first - span.start, last - first, session.model.vision.encode(plan)[0])
            )
        where = session.sequence.positions(at, stop)
        ids = session.tokens[at:stop]
        logits.append(model.decoder.forward(cache, at, ids, where, placed, last_k=stop - at, read=read).copy())
    return np.concatenate(logits), rows_of(cache, length)


def rows_of(cache: KvCache | None, length: int) -> list[NDArray[Any]]:
    assert cache is not None
    return [array.copy() for array in cache.read(0, length)]


def same(one: list[NDArray[Any]], other: list[NDArray[Any]]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other))


def _sizes(count: int, first: int) -> Iterator[int]:
    yield first
    while True:
        yield count


def test_every_row_is_the_same_however_it_is_run(loaded: Loaded, frame: Frame) -> None:
    session = talk(loaded.model(1), frame)
    assert session.model.rows_independent
    assert len(session) > 320  # beyond the first fixed cuts of keys, 128 and 256
    logits, rows = computed(session, loaded.model(1), _sizes(1, 1))
    rng = np.random.default_rng(4)
    for count in [*range(2, 41), 100, 200, 512]:
        first = int(rng.integers(1, count + 1))
        got, cache = computed(session, loaded.model(1 + count % 3), _sizes(count, first))
        differ = np.flatnonzero((got != logits).any(axis=1))
        assert not differ.size, f"runs of {count} after one of {first}: {differ.size} of {len(got)} rows differ"
        assert same(cache, rows), f"runs of {count} after one of {first}: other KV rows"


def write(session: Session, count: int, guesses: int) -> list[int]:
    writer = TurnWriter(session, Sampler(Sampling()), Speculation(max_draft=guesses, adaptive=False, ngram_min=1))
    result = TurnResult()
    list(writer.turn(TurnOptions(count, ()), None, result))
    assert not guesses or writer.speculation.drafted > count // 4, "hardly anything was guessed"
    return result.ids


@pytest.mark.parametrize("way", ["guesses", "read ahead", "chunks", "forced", "resumed", "wrong guesses"])
def test_nothing_that_saves_time_leaves_a_trace(loaded: Loaded, frame: Frame, tmp_path: Path, way: str) -> None:
    """A turn, an observation, a turn; in the plain way and in one that computes the same in other runs."""
    plain = begin(loaded.model(1), frame)
    fast = begin(loaded.model(2, chunk=17 if way == "chunks" else 512), frame)
    guesses = 7 if way == "guesses" else 0
    assert write(plain, 70, 0) == write(fast, 70, guesses)
    if way == "read ahead":
        behind = len(fast)
        assert fast.anticipate([*REPLY[:2], Text("\n1. her")], [*REPLY[:2], Text("\n1. he is")], behind) > 0
        fast.run()
        fast.append(REPLY, behind=behind)
    else:
        fast.append(REPLY)
    plain.append(REPLY)
    forced = [5, 6, 7, 8, 9, 10, 11]
    for session in (plain, fast):
        if way == "forced" and session is fast:
            session.run()
        session.extend(forced[:3], forced=True)
        if way == "forced" and session is fast:
            session.run()
        session.extend(forced[3:], forced=True)
    if way == "resumed":
        plain.run()
        path = save_session(fast, tmp_path / "s.gogs", kv=False)
        fast, _ = load_session(path, loaded.model(3))
    rng = np.random.default_rng(1)
    for _ in range(24):
        row, drafts = plain.run(), rng.integers(0, 300, 6).tolist() if way == "wrong guesses" else []
        assert np.array_equal(fast.run(drafts)[:1], row)
        for session in (plain, fast):
            session.extend([int(row[0].argmax())])
    assert write(plain, 40, 0) == write(fast, 40, guesses)
    assert np.array_equal(plain.run(), fast.run())
    assert plain.tokens.tolist() == fast.tokens.tolist()
    assert same(rows_of(plain._cache, len(plain)), rows_of(fast._cache, len(fast)))


def test_rotary_angles_of_a_token_do_not_depend_on_the_others(loaded: Loaded) -> None:
    rotary = Rotary(loaded.bundle.manifest)  # which keeps the angles of written text from one call to the next
    anywhere = np.random.default_rng(0).integers(0, 60_000, (3, 60))
    text = np.tile(np.arange(4_000, 4_060), (3, 1))
    for positions in (anywhere, text, text + 230):
        whole = Rotary(loaded.bundle.manifest)(positions)
        for count in (1, 2, 3, 7, 16, 40):
            for at in range(60 - count):
                piece = rotary(positions[:, at : at + count])
                assert all(np.array_equal(a, b[at : at + count]) for a, b in zip(piece, whole))
