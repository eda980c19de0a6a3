"""Several conversations in one run of an operator: each gets the bits, in y and in its caches, that it gets alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.native.graphs import needs_ops, session
from tests.native.test_gated_delta import Conv, Delta, part
from tests.native.test_rows import DECODERS, MOST, Cached

pytestmark = needs_ops
Array = NDArray[Any]
COUNTS = ([1], [1, 1], [1] * 8, [3, 1, 5], [9, 1, 1, 2], [16, 1, 17, 6], [40, 1], [1, 40, 1])


def table(caches: list[Array], capacity: int, rows: list[int], totals: list[int], like: Array) -> Array:
    """What stands in an input of the kind `like` for the caches of several conversations."""
    words = np.array([[c.ctypes.data, capacity, n, t] for c, n, t in zip(caches, rows, totals)], np.int64)
    width = int(np.prod(like.shape[1:])) // like.shape[2] if like.ndim > 2 else 0
    shape = (*like.shape[:2], -(-words.nbytes // (width * like.itemsize)), *like.shape[3:]) if width else like.shape
    made = np.zeros(shape, like.dtype)
    made.reshape(-1).view(np.uint8)[: words.nbytes] = words.reshape(-1).view(np.uint8)
    return made


@pytest.mark.parametrize("int8", [False, True], ids=["f16", "i8"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoder_attention(name: str, int8: bool) -> None:
    rng = np.random.default_rng(3)
    layer = Cached(**DECODERS[name], int8=int8)  # type: ignore[arg-type]
    sessions = {threads: layer.open(threads) for threads in (1, 2, 3)}
    for number, counts in enumerate(COUNTS * 3):
        pasts = [int(p) for p in rng.choice([0, 1, 15, 63, 127, 128, 255, 257, 511, 760], len(counts))]
        firsts = [int(rng.integers(0, MOST - count + 1)) for count in counts]
        a, b = sorted(int(i) for i in rng.integers(0, sum(counts) + 1, 2))
        begins = np.cumsum([0, *counts])
        reads = [(max(a - at, 0), min(b - at, n)) for at, n in zip(begins, counts)]
        reads = [r if r[0] < r[1] else (0, 0) for r in reads]
        want, kept = [], []
        for past, first, count, read in zip(pasts, firsts, counts, reads):
            layer.fresh()
            want.append(layer.run(sessions[1], past, first, count, read))
            kept.append([layer.keys, layer.values, layer.key_scale, layer.value_scale])
        own: list[list[Array | None]] = []
        for _ in counts:
            layer.fresh()
            own.append([layer.keys, layer.values, layer.key_scale, layer.value_scale])
        totals = [past + first + count for past, first, count in zip(pasts, firsts, counts)]
        rows = np.concatenate([np.arange(first, first + count) for first, count in zip(firsts, counts)])
        feeds = {
            "qkv": layer.qkv[rows], "cos": layer.cos[rows], "sin": layer.sin[rows],
            "length": np.array([-len(counts)], np.int32), "prefill_rows": np.array([a, b], np.int32),
        }  # fmt: skip
        for i, kind in enumerate(("keys", "values", "key_scale", "value_scale")):
            if (like := own[0][i]) is not None:
                arrays = [array for c in own if (array := c[i]) is not None]
                feeds[kind] = table(arrays, layer.keys.shape[2], counts, totals, like)
        feeds |= {n: v for n, v in (("q_norm", layer.norms[0]), ("k_norm", layer.norms[1])) if v is not None}
        got = np.asarray(sessions[1 + number % 3].run(None, feeds)[0])
        assert np.array_equal(got, np.concatenate(want)), (counts, pasts, firsts, (a, b))
        for mine, alone in zip(own, kept):
            for x, y in zip(mine, alone):
                assert (x is None and y is None) or np.array_equal(x, y), (counts, pasts)  # type: ignore[arg-type]


def test_linear_attention() -> None:
    """Convolution and delta rule, on both sides of a border of 64 tokens."""
    rng = np.random.default_rng(3)
    for number, counts in enumerate(COUNTS):
        pasts = [int(p) for p in rng.choice([0, 1, 30, 60, 63, 64, 65, 127, 200], len(counts))]
        layers = [Delta(2, 4, 32, 32, slots=2, fused=bool(number % 2)) for _ in counts]
        convs = [Conv(48, 4, 12) for _ in counts]
        totals = [past + count for past, count in zip(pasts, counts)]
        tokens = [layer.tokens(total, i) for i, (layer, total) in enumerate(zip(layers, totals))]
        x = [rng.standard_normal((total, 48)).astype(np.float32) for total in totals]
        begun = []
        for layer, conv, given, rows, past in zip(layers, convs, tokens, x, pasts):
            if past:
                layer.run(part(given, 0, past), past)
                conv.run(rows[:past], past)
            begun.append((layer.state.copy(), conv.history.copy()))
        news = [part(given, past, total) for given, past, total in zip(tokens, pasts, totals)]
        want = [np.concatenate([layer.run(new, total) for layer, new, total in zip(layers, news, totals)]),
                np.concatenate([c.run(r[p:], t) for c, r, p, t in zip(convs, x, pasts, totals)])]  # fmt: skip
        kept = [(layer.state.copy(), conv.history.copy()) for layer, conv in zip(layers, convs)]
        for layer, conv, (state, history) in zip(layers, convs, begun):
            layer.state[:], conv.history[:] = state, history
        together = {name: np.concatenate([new[name] for new in news]) for name in news[0]}
        lead, first = layers[0], convs[0]
        length = np.array([-len(counts)], np.int32)
        feeds: dict[str, Array | None] = {"length": length}
        feeds |= {n: together[n] for n in ("qkv", "a", "b")}
        feeds |= {"state": table([layer.state for layer in layers], 0, counts, totals, lead.state)}
        feeds |= {"rate": lead.rate, "bias": lead.bias, "gate": together.get("gate"), "norm": lead.norm}
        threads = 1 + number % 3
        lead.run(news[0], totals[0], threads)  # makes the session
        lead.state[:] = begun[0][0]
        made = lead.sessions[threads].run(None, {n: v for n, v in feeds.items() if v is not None})
        assert np.array_equal(made[0], want[0]), (counts, pasts)
        many: dict[str, Array] = {
            "x": np.concatenate([rows[past:] for rows, past in zip(x, pasts)]),
            "weight": first.weight,
        }
        many |= {"length": length, "history": table([c.history for c in convs], 0, counts, totals, first.history)}
        made = first.sessions[1].run(None, many)
        assert np.array_equal(made[0], want[1]), (counts, pasts)
        for layer, conv, (state, history) in zip(layers, convs, kept):
            assert np.array_equal(layer.state, state, equal_nan=True)
            assert np.array_equal(conv.history, history, equal_nan=True)


def _short(words: Array) -> None:
    words[1, 2] = 2


def _nowhere(words: Array) -> None:
    words[1, 0] = 0


def _full(words: Array) -> None:
    words[1, 3] = words[1, 1] + 1


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (_short, "do not add up"),
        (_nowhere, "address, rows or total is wrong"),
        (_full, "between s and the cache's capacity"),
    ],
)
def test_a_wrong_table_is_refused(damage: Callable[[Array], None], line: str) -> None:
    layer = Cached(4, 2, 32, False)
    made = layer.open(1)
    words = np.array([[layer.keys.ctypes.data, 832, 1, 5], [layer.keys.ctypes.data, 832, 1, 5]], np.int64)
    damage(words)
    caches = {}
    for name in ("keys", "values"):
        caches[name] = np.zeros((1, 2, 1, 32), np.float16)
        caches[name].reshape(-1).view(np.int64)[:8] = words.reshape(-1)
    feeds = {name: value for name, value in layer.inputs(0, 0, 2, (0, 0)) if value is not None} | caches
    with pytest.raises(Exception, match=line):
        made.run(None, feeds | {"length": np.array([-2], np.int32)})


def test_more_conversations_than_a_table_holds_are_refused() -> None:
    layer = Cached(4, 2, 32, False)
    made = session(layer.name, [*_fresh(layer)], 1, heads=4, kv_heads=2)
    for count, line in ((65, "below minus the most"), (20, "too small for the table")):
        feeds = {name: value for name, value in layer.inputs(0, 0, 30, (0, 0)) if value is not None}
        feeds |= {name: np.zeros((1, 2, 1, 32), np.float16) for name in ("keys", "values")}
        with pytest.raises(Exception, match=line):
            made.run(None, feeds | {"length": np.array([-count], np.int32)})


def _fresh(layer: Cached) -> list[tuple[str, Array | None]]:
    layer.fresh()
    return layer.inputs(0, 0, 1, (0, 0))
