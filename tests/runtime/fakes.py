"""An engine that plays a script, providers that do as they are told, and tiny bundles: for tests of the runtime."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.bundle import Bundle
from gog_edge.deadline import SYSTEM, UNLIMITED, Budget, Clock
from gog_edge.engines.base import DecoderInputs, EngineInfo, Features
from gog_edge.errors import SearchError
from gog_edge.runtime.decoder import TokenEmbedding
from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.search.base import IMAGE, PAGE, TEXT, BaseProvider, Deadline, ImageQuery, Page
from gog_edge.types import Hit

IMAGE_VALUE = 777.0
Script = Sequence[str] | Callable[[str], Sequence[str]]


def make_bundle(folder: Path, name: str = "tiny-qwen3-vl", backend: str = "ort", **overrides: Any) -> Bundle:
    """A tiny seeded random checkpoint, exported in fp32."""
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.pipeline import export_bundle
    from gog_edge.export.synthetic.checkpoint import make_checkpoint

    checkpoint = make_checkpoint(name, folder / "checkpoint", dtype="float32", overrides=overrides or None)
    options = ExportOptions(precision="fp32", backend=backend)  # type: ignore[arg-type]
    return export_bundle(checkpoint, folder / "bundle", options)


class FakeCache:
    """Remembers token ids instead of keys and values."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    @property
    def capacity(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        return 4 * len(self.ids)

    def reserve(self, tokens: int, keep: int) -> None:
        del self.ids[keep:]

    def read(self, start: int, stop: int) -> list[NDArray[Any]]:
        return [np.array(self.ids[start:stop], np.int32).reshape(1, -1, 1)]

    def write(self, start: int, arrays: Sequence[NDArray[Any]]) -> None:
        self.ids[start:] = arrays[0].reshape(-1).tolist()


class ScriptedDecoder:
    """Writes turn number i of the script as the i-th assistant turn of the conversation, whatever it is asked.

    It recognises tokens by their embeddings, so a wrong embedding, a lost token or a stale cache row shows.
    """

    def __init__(self, bundle: Bundle, script: Script, step_s: float, row_s: float) -> None:
        self._tokenizer = Tokenizer.load(bundle.path("tokenizer.json"))
        manifest = bundle.manifest
        embedding = TokenEmbedding(bundle)
        rows = embedding.gather(np.arange(embedding.rows, dtype=np.int32))
        self._ids = {row.tobytes(): i for i, row in enumerate(rows)}
        self._pad, self._eos = manifest.tokens.image_pad, manifest.tokens.eos[0]
        self._vocab = manifest.decoder.vocab
        self._head = self._tokenizer.encode_control("<|im_start|>assistant\n")
        self._script, self._step_s, self._row_s = script, step_s, row_s
        self.runs: list[tuple[int, int]] = []  # (past, rows)
        self.entered = threading.Event()  # a run has begun
        self.fail: Exception | None = None

    rows_independent = True

    def new_cache(self, tokens: int) -> FakeCache:
        return FakeCache()

    def run(self, inputs: DecoderInputs, cache: Any, past: int, budget: Budget = UNLIMITED) -> NDArray[np.float32]:
        if self.fail is not None:
            raise self.fail
        rows = inputs.embeds.shape[0]
        assert inputs.rope_cos.shape[0] == rows
        self.entered.set()
        _take(self._step_s + self._row_s * rows, budget)
        self.runs.append((past, rows))
        assert past <= len(cache.ids), "a gap in the KV cache"
        del cache.ids[past:]
        cache.ids += [self._id(row) for row in inputs.embeds]
        logits = np.zeros((inputs.last_k, self._vocab), np.float32)
        for i in range(inputs.last_k):
            logits[i, self._next(cache.ids[: len(cache.ids) - inputs.last_k + 1 + i])] = 1.0
        return logits

    def _id(self, row: NDArray[np.float32]) -> int:
        return self._pad if row[0] == IMAGE_VALUE else self._ids[row.tobytes()]

    def _next(self, ids: list[int]) -> int:
        n = len(self._head)
        starts = [i + n for i in range(len(ids) - n + 1) if ids[i : i + n] == self._head]
        if not starts:
            return self._eos
        turns = self._script(self._tokenizer.decode(ids)) if callable(self._script) else self._script
        wanted = turns[min(len(starts), len(turns)) - 1]
        whole, own = self._tokenizer.encode_control(wanted), ids[starts[-1] :]
        if own == whole[: len(own)]:
            return whole[len(own)] if len(own) < len(whole) else self._eos
        written = self._tokenizer.decode(own)
        if not wanted.startswith(written):
            return self._eos  # a guess or a forced token left the script
        left = self._tokenizer.encode_control(wanted[len(written) :])
        return left[0] if left else self._eos


class ScriptedVision:
    """Features that the scripted decoder knows as image tokens; counts its runs."""

    def __init__(self, bundle: Bundle, encode_s: float) -> None:
        self._hidden = bundle.manifest.decoder.hidden
        self._merge = bundle.manifest.preprocessing.merge_size
        self._deepstack = bundle.manifest.vision.deepstack
        self._encode_s = encode_s
        self.runs = 0
        self.entered = threading.Event()  # a run has begun

    def run(self, inputs: Mapping[str, NDArray[Any]], budget: Budget = UNLIMITED) -> Features:
        self.runs += 1
        self.entered.set()
        _take(self._encode_s, budget)
        n = inputs["patches"].shape[0] // self._merge**2
        main = np.full((n, self._hidden), IMAGE_VALUE, np.float32)
        deep = np.zeros((self._deepstack, n, self._hidden), np.float32) if self._deepstack else None
        return Features(main, deep)


def _take(seconds: float, budget: Budget) -> None:
    """Work for `seconds` of the budget's clock, as long as the budget lasts."""
    stop = budget.clock.event()
    with budget.on_stop(stop.set):
        if seconds:
            stop.wait(seconds)
    budget.check()


class ScriptedEngine:
    """Plays a script. `step_s`, `row_s`: seconds of the question's clock that a decoder run and each of its rows take;
    `encode_s`: an image."""

    def __init__(
        self, bundle: Bundle, script: Script, *, step_s: float = 0.0, row_s: float = 0.0, encode_s: float = 0.0
    ) -> None:
        self.decoder = ScriptedDecoder(bundle, script, step_s, row_s)
        self.vision = ScriptedVision(bundle, encode_s)
        self.closed = False

    def describe(self) -> EngineInfo:
        return EngineInfo("scripted", "1", ())

    def close(self) -> None:
        self.closed = True


class FakeProvider(BaseProvider):
    """Answers from a table; waits (by `clock`), fails or raises rubbish on demand. Records what it was asked."""

    def __init__(
        self,
        hits: Sequence[Hit] = (),
        *,
        name: str = "fake",
        kinds: Sequence[str] = (TEXT, IMAGE, PAGE),
        wait_s: float = 0.0,
        clock: Clock = SYSTEM,
        error: BaseException | None = None,
        page: str = "",
        use_label: bool = True,
    ) -> None:
        self.name, self.kinds = name, frozenset(kinds)
        self._hits, self._error, self._page = list(hits), error, page
        self._wait_s, self._clock = wait_s, clock
        self.use_label = use_label
        self.asked: list[tuple[str, Any]] = []
        self.spans: list[tuple[float, float]] = []  # of the clock
        self.entered = threading.Event()  # a search has begun
        self.closed = 0

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        return self._reply("text", query)[:k]

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        return self._reply("image", query)[:k]

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        self._reply("page", url)
        if not self._page:
            raise SearchError(f"no page at {url}")
        return Page(url, "A page", self._page)

    def close(self) -> None:
        self.closed += 1

    def _reply(self, kind: str, what: Any) -> list[Hit]:
        self.asked.append((kind, what))
        self.entered.set()
        start = self._clock.now()
        if self._wait_s:
            self._clock.event().wait(self._wait_s)
        self.spans.append((start, self._clock.now()))
        if self._error is not None:
            raise self._error
        return list(self._hits)
