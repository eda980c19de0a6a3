"""How well an index finds its own entries again when pictures and words are distorted: recall at 1 and 5.

A check that needs no questions: every entry's picture is searched with after a distortion that cameras make, and
every title with a spelling mistake. Distortions are seeded by the entry's id, so figures can be repeated.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gog_edge.disk.paths import is_address
from gog_edge.errors import ImageError
from gog_edge.image.frame import Frame
from gog_edge.search.base import Embedder
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.record import Entity
from gog_edge.search.local.text import tokens
from gog_edge.types import Hit, Region

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_RELATED = 64  # neighbours of one entry that are asked for
Distortion = Callable[["Image", np.random.Generator], "tuple[Image, Region | None]"]


@dataclass
class Recall:
    """Counts of one distortion."""

    tried: int = 0
    first: int = 0
    fifth: int = 0
    shown: int = 0  # results that the dynamic number gave, in all
    kept: int = 0  # searches with a right one among those

    def add(self, hits: Sequence[Hit], accepted: set[str], shown: Sequence[Hit]) -> None:
        """Count one search: the best five, and those that the dynamic number leaves; `accepted`: ids that are right."""
        self.tried += 1
        self.shown += len(shown)
        self.kept += any(h.entity in accepted for h in shown)
        self.first += any(h.entity in accepted for h in hits[:1])
        self.fifth += any(h.entity in accepted for h in hits[:5])

    def as_json(self) -> dict[str, float | int]:
        n = max(self.tried, 1)
        return {
            "n": self.tried,
            "recall@1": round(self.first / n, 4),
            "recall@5": round(self.fifth / n, 4),
            "recall@shown": round(self.kept / n, 4),
            "results shown": round(self.shown / n, 2),
        }


def measure_pictures(
    index: LocalIndex,
    embedder: Embedder,
    *,
    names: Sequence[str] = (),
    limit: int = 0,
    labels: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Recall]:
    """Recall of distorted pictures by distortion. Entries that share a picture are all right answers for it.

    Args:
        names: distortions; all by default.
        limit: at most this many entries, evenly spread; 0 takes all.
        labels: search also with words beside the picture, see `LABELS`, and with the words alone.

    Raises:
        SearchIndexError: another encoder, or no vectors.
    """
    entities = [e for e in index.entities() if any(not is_address(i) for i in e.images)]
    entities = _spread(entities, limit)
    same = _twins(entities)
    names = names or tuple(DISTORTIONS)
    found = {_row(name, label): Recall() for label in ("", *(LABELS if labels else ())) for name in names}
    if labels:
        found |= {label: Recall() for label in LABELS}
    for done, entity in enumerate(entities, start=1):
        path = next(i for i in entity.images if not is_address(i))
        try:
            picture = Frame.open(Path(path)).image()
        except ImageError:
            continue  # it has gone since; `index build` reports such files
        words = _labels(entity, entities) if labels else {}
        for name in names:
            changed, region = DISTORTIONS[name](picture, _rng(entity.id, name))
            frame = Frame.open(np.asarray(changed.convert("RGB")))
            vector = embedder.embed(frame, region)
            for label, text in {"": "", **words}.items():
                _count(found[_row(name, label)], index, text, vector, same[path])
        for label, text in words.items():
            _count(found[label], index, text, None, same[path])
        if progress is not None:
            progress(done, len(entities))
    return found


def measure_titles(index: LocalIndex, *, limit: int = 0) -> dict[str, Recall]:
    """Recall of titles: as they are, in another order, with one spelling mistake in the longest word."""
    changes: dict[str, Callable[[str, np.random.Generator], str]] = {
        "as is": lambda title, rng: title,
        "shuffled": lambda title, rng: " ".join(rng.permutation(title.split()).tolist()),
        "misspelt": misspell,
    }
    entities = [e for e in index.entities() if e.title.strip()]
    titles: dict[str, set[str]] = {}
    for e in entities:
        titles.setdefault(e.title.casefold(), set()).add(e.id)
    found = {name: Recall() for name in changes}
    for entity in _spread(entities, limit):
        for name, recall in found.items():
            query = changes[name](entity.title, _rng(entity.id, name))
            _count(recall, index, query, None, titles[entity.title.casefold()])
    return found


def measure_expansion(
    index: LocalIndex, embedder: Embedder, *, limit: int = 0, counts: Sequence[int] = (0, 1, 3)
) -> dict[str, Recall]:
    """Whether a gaze brings along what is related to its picture: recall of a neighbour by the number of `expand`.

    For every entry with a picture and each of its neighbours with a title of its own: the picture, distorted as a
    "scene", is searched with the words of the neighbour's title that the entry's own lacks ("capital") as the label.
    """
    entities = _spread([e for e in index.entities() if any(not is_address(i) for i in e.images)], limit)
    found = {f"related, expand {n}": Recall() for n in counts}
    for entity in entities:
        path = next(i for i in entity.images if not is_address(i))
        rows = [row for _, row in index.store.neighbours(entity.row, MAX_RELATED)]
        try:
            picture = Frame.open(Path(path)).image()
        except ImageError:
            continue
        changed, region = _scene(picture, _rng(entity.id, "scene"))
        vector = embedder.embed(Frame.open(np.asarray(changed.convert("RGB"))), region)
        own = set(tokens(entity.title))
        for other in index.store.entities(rows).values():
            label = " ".join(t for t in tokens(other.title) if t not in own)
            if not label:
                continue
            for n, recall in zip(counts, found.values()):
                shown = index.search(label, vector, k=5, expand=n)
                recall.add(shown, {other.id}, shown)
    return found


# Words beside the picture of a gaze: what the policy takes the thing for.
LABELS = ("misspelt title", "title of another")


def _labels(entity: Entity, entities: Sequence[Entity]) -> dict[str, str]:
    """A good guess with a spelling mistake, and a wrong one."""
    rng = _rng(entity.id, "label")
    others = [e.title for e in entities if e.title.strip() and e.title != entity.title] or [""]
    titles = (misspell(entity.title, rng) if entity.title.strip() else "", others[int(rng.integers(len(others)))])
    return {label: title for label, title in zip(LABELS, titles) if title}


def _row(distortion: str, label: str) -> str:
    return f"{distortion} + {label}" if label else distortion


def _count(
    recall: Recall, index: LocalIndex, text: str, vector: NDArray[np.float32] | None, accepted: set[str]
) -> None:
    hits = index.search(text, vector, k=5, cut="none")
    recall.add(hits, accepted, index.search(text, vector, k=5))


def misspell(title: str, rng: np.random.Generator) -> str:
    """One letter of the longest word dropped, doubled, swapped with the next, or replaced; never the first."""
    words = title.split()
    at = max(range(len(words)), key=lambda i: len(words[i]))
    word = words[at]
    if len(word) < 4:
        return title
    i = int(rng.integers(1, len(word) - 1))
    letter = "abcdefghijklmnopqrstuvwxyz"[int(rng.integers(26))]
    words[at] = [
        word[:i] + word[i + 1 :],
        word[:i] + word[i] + word[i:],
        word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        word[:i] + letter + word[i + 1 :],
    ][int(rng.integers(4))]
    return " ".join(words)


def _none(image: Image, rng: np.random.Generator) -> tuple[Image, Region | None]:
    return image, None


def _small(image: Image, rng: np.random.Generator) -> tuple[Image, Region | None]:
    """The longer side 64 pixels."""
    small = image.copy()
    small.thumbnail((64, 64))
    return small, None


def _jpeg(image: Image, rng: np.random.Generator) -> tuple[Image, Region | None]:
    """JPEG of quality 15."""
    from PIL import Image as Pillow

    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=15)
    return Pillow.open(io.BytesIO(stream.getvalue())), None


def _light(image: Image, rng: np.random.Generator) -> tuple[Image, Region | None]:
    """Gain 0.6 to 1.4 and a shift of up to 30, the same for all pixels, then a colour cast of up to 15 %."""
    pixels = np.asarray(image.convert("RGB"), np.float64)
    changed = pixels * rng.uniform(0.6, 1.4) + rng.uniform(-30, 30)
    return _image(changed * rng.uniform(0.85, 1.15, 3)), None


def _blur(image: Image, rng: np.random.Generator) -> tuple[Image, Region | None]:
    """Gaussian blur of 1 % of the longer side."""
    from PIL import ImageFilter

    return image.convert("RGB").filter(ImageFilter.GaussianBlur(max(image.size) * 0.01)), None


def _rotate(image: Image, rng: np.random.Generator) -> tuple[Image, Region | None]:
    """Turned by up to 12 degrees, corners grey."""
    from PIL import Image as Pillow

    angle = float(rng.uniform(-12, 12))
    return image.convert("RGB").rotate(angle, Pillow.Resampling.BICUBIC, expand=True, fillcolor=(128, 128, 128)), None


def _perspective(image: Image, rng: np.random.Generator) -> tuple[Image, Region | None]:
    """Corners moved inwards by up to 15 % of the sides: seen from an angle, the rest grey."""
    from PIL import Image as Pillow

    w, h = image.size
    moved = np.array([[0, 0], [w, 0], [w, h], [0, h]]) + rng.uniform(0, 0.15, (4, 2)) * [w, h] * [
        [1, 1],
        [-1, 1],
        [-1, -1],
        [1, -1],
    ]
    coefficients = _homography(moved, np.array([[0, 0], [w, 0], [w, h], [0, h]], float))
    bicubic, grey = Pillow.Resampling.BICUBIC, (128, 128, 128)
    changed = image.convert("RGB").transform(
        (w, h), Pillow.Transform.PERSPECTIVE, coefficients, bicubic, fillcolor=grey
    )
    return changed, None


def _scene(image: Image, rng: np.random.Generator) -> tuple[Image, Region | None]:
    """A third of the side of a blotchy scene, searched with a box that is up to 12 % off on every side (a gaze)."""
    from PIL import Image as Pillow

    side = 480
    blotches = rng.integers(0, 256, (6, 6, 3), np.uint8)
    scene = Pillow.fromarray(blotches).resize((side, side), Pillow.Resampling.BICUBIC)
    small = image.convert("RGB")
    small.thumbnail((side // 3, side // 3))
    x = int(rng.integers(20, side - small.width - 20))
    y = int(rng.integers(20, side - small.height - 20))
    scene.paste(small, (x, y))
    off = rng.uniform(-0.12, 0.12, 4) * [small.width, small.height, small.width, small.height]
    return scene, Region(x + off[0], y + off[1], x + small.width + off[2], y + small.height + off[3]).clamp(side, side)


DISTORTIONS: dict[str, Distortion] = {
    "none": _none,
    "small": _small,
    "jpeg": _jpeg,
    "light": _light,
    "blur": _blur,
    "rotate": _rotate,
    "perspective": _perspective,
    "scene": _scene,
}


def _image(values: NDArray[np.float64]) -> Image:
    from PIL import Image as Pillow

    return Pillow.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _homography(source: NDArray[np.float64], target: NDArray[np.float64]) -> list[float]:
    """The eight coefficients that take `source` corners to `target` corners, as Pillow wants them."""
    rows = []
    for (x, y), (u, v) in zip(source, target):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    solved = np.linalg.solve(np.array(rows), target.reshape(-1))
    return [float(v) for v in solved]


def _spread(entities: list[Entity], limit: int) -> list[Entity]:
    if not limit or limit >= len(entities):
        return entities
    return [entities[i * len(entities) // limit] for i in range(limit)]


def _twins(entities: Sequence[Entity]) -> dict[str, set[str]]:
    """Picture -> ids of the entries that have a picture with the same content."""
    by_content: dict[bytes, set[str]] = {}
    content: dict[str, bytes] = {}
    for entity in entities:
        for image in entity.images:
            path = Path(image)
            if is_address(image) or not path.is_file():
                continue
            content[image] = hashlib.sha256(path.read_bytes()).digest()
            by_content.setdefault(content[image], set()).add(entity.id)
    return {image: by_content[digest] for image, digest in content.items()}


def _rng(identity: str, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{identity}\0{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
