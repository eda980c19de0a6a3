"""Batches of encoded conversations: made in a thread, sorted by length so that little is padding."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .samples import Encoded


@dataclass
class Batch:
    """``ids``, ``labels`` [B, s]; ``positions`` [3, B, s]; ``slots``: for each picture its flat position of the first
    token, which example of the batch it belongs to, its box (None: the glance) and its merged grid; ``hard`` [B, s]: see
    ``hard_copies``."""

    ids: Tensor
    labels: Tensor
    hard: Tensor
    positions: Tensor
    slots: list[tuple[int, int, tuple[int, int, int, int] | None, int, int]]
    rows: list[int]


def hard_copies(ids: list[int]) -> np.ndarray:
    """Where the word before was followed by another word when it last stood there, bool [s]: going on as then would be
    wrong ("Moldova is Moldova is Moldova…"), so these tokens are what copying has to learn."""
    out = np.zeros(len(ids), bool)
    then: dict[int, int] = {}
    for at in range(1, len(ids)):
        out[at] = then.get(ids[at - 1], ids[at]) != ids[at]
        then[ids[at - 1]] = ids[at]
    return out


def positions_of(example: Encoded, length: int) -> np.ndarray:
    """M-RoPE positions [3, length]: text counts on; a picture's tokens share a time and spread over rows, columns."""
    out = np.zeros((3, length), np.int64)
    at = now = 0
    for first, _, rows, columns in [*example.images, (length, None, 0, 0)]:
        out[:, at:first] = now + np.arange(first - at)
        now += first - at
        if rows:
            size = rows * columns
            out[0, first : first + size] = now
            out[1, first : first + size] = now + np.repeat(np.arange(rows), columns)
            out[2, first : first + size] = now + np.tile(np.arange(columns), rows)
            now += max(rows, columns)
            at = first + size
    return out


def collate(examples: list[tuple[int, Encoded]], pad: int) -> Batch:
    length = max(len(e.ids) for _, e in examples)
    ids = np.full((len(examples), length), pad, np.int64)
    labels = np.full((len(examples), length), -100, np.int64)
    hard = np.zeros((len(examples), length), bool)
    positions = np.zeros((3, len(examples), length), np.int64)
    slots = []
    for number, (_, example) in enumerate(examples):
        n = len(example.ids)
        ids[number, :n], labels[number, :n] = example.ids, example.labels
        hard[number, :n] = hard_copies(example.ids)
        positions[:, number] = positions_of(example, length)
        slots += [(number * length + first, number, crop, r, c) for first, crop, r, c in example.images]
    arrays = (torch.from_numpy(a) for a in (ids, labels, hard, positions))
    return Batch(*arrays, slots, [row for row, _ in examples])


class Feeder(threading.Thread):
    """Calls ``make(number)`` for numbers rank, rank + ranks, … and queues batches of about ``tokens`` tokens."""

    def __init__(
        self, make: Callable[[int], tuple[int, Encoded]], start: int, stride: int, tokens: int, pad: int, pool: int = 96
    ) -> None:
        super().__init__(daemon=True)
        self.make, self.next, self.stride = make, start, stride
        self.tokens, self.pad, self.pool = tokens, pad, pool
        self.queue: queue.Queue[Batch | BaseException] = queue.Queue(8)

    def get(self) -> Batch:
        found = self.queue.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def run(self) -> None:
        try:
            while True:
                self._fill()
        except BaseException as error:  # noqa: BLE001 (handed to the trainer, which stops on it)
            self.queue.put(error)

    def _fill(self) -> None:
        examples = []
        for _ in range(self.pool):
            examples.append(self.make(self.next))
            self.next += self.stride
        examples = [e for e in examples if len(e[1].ids) <= 1100]
        examples.sort(key=lambda e: len(e[1].ids))
        groups: list[list[tuple[int, Encoded]]] = [[]]
        for example in examples:
            if groups[-1] and (len(groups[-1]) + 1) * len(example[1].ids) > self.tokens:
                groups.append([])
            groups[-1].append(example)
        for order in np.random.default_rng(self.next).permutation(len(groups)):
            self.queue.put(collate(groups[order], self.pad))
