"""Search with the tower's pooled features: vectors of the index, and recall on rendered gazes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import cache, geometry, scenes, world
from .model import Vision


def index_picture(image: Image.Image) -> np.ndarray:
    """An index picture as the tower is shown it, uint8: resized like a gaze."""
    return cache.shrink(image, None, geometry.GAZE_PIXELS)


@torch.no_grad()
def index_vectors(net: Vision) -> tuple[list[world.Entity], Tensor]:
    """All picture entities and their vectors [N, H] float32."""
    found = list(world.entities())
    vectors: dict[int, Tensor] = {}
    groups: dict[tuple[int, ...], list[int]] = {}
    pictures = [index_picture(world.picture(e.id)) for e in found]
    for number, picture in enumerate(pictures):
        groups.setdefault(picture.shape, []).append(number)
    for members in groups.values():
        for at in range(0, len(members), 64):
            part = members[at : at + 64]
            out = net.embed(torch.from_numpy(np.stack([pictures[i] for i in part])))
            vectors |= dict(zip(part, out.float(), strict=True))
    return found, torch.stack([vectors[i] for i in range(len(found))])


@lru_cache(maxsize=2)
def _probes(held_out: bool, count: int) -> list[tuple[np.ndarray, str]]:
    """Gaze crops of scenes of unseen seeds, with the teacher's box, for every flag of the split in turn."""
    pool = [e.id for e in world.flags(held_out)]
    rng = np.random.default_rng(3)
    probes: list[tuple[np.ndarray, str]] = []
    seed = 50_000_000
    while len(probes) < count:
        seed += 1
        image, scene = scenes.render(scenes.plan(seed, [str(k) for k in rng.permutation(pool)[:4]], count=4))
        for item in scene.items:
            box = geometry.to_pixels(
                geometry.expert_box(item.box, image.width, image.height), image.width, image.height
            )
            probes.append((cache.shrink(image, box, geometry.GAZE_PIXELS), item.entity))
    return probes[:count]


@torch.no_grad()
def evaluate(net: Vision, held_out: bool, count: int = 200) -> dict[str, float]:
    """Recall at 1 and 3 over the WHOLE index, of gazes at flags of one split."""
    found, vectors = index_vectors(net)
    ids = [e.id for e in found]
    first = third = 0
    groups: dict[tuple[int, ...], list[tuple[np.ndarray, str]]] = {}
    for crop, key in _probes(held_out, count):
        groups.setdefault(crop.shape, []).append((crop, key))
    for members in groups.values():
        scores = net.embed(torch.from_numpy(np.stack([c for c, _ in members]))).float() @ vectors.T
        for (_, key), best in zip(members, scores.topk(3, 1).indices.tolist(), strict=True):
            first += ids[best[0]] == key
            third += key in [ids[b] for b in best]
    name = "held" if held_out else "seen"
    return {f"{name}_r1": first / count, f"{name}_r3": third / count}
