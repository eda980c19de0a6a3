"""Image files: every format that is read here, damaged."""

from __future__ import annotations

import io
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, features

from gog_edge.image.frame import Frame
from tests.faults.harness.core import Area, Attempt, Wrong
from tests.faults.harness.mutate import damaged

_MOST_BYTES = 1 << 30  # that one small file may take
_FORMS = (
    ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}),
    ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "P", {}), ("PNG", "1", {}), ("PNG", "I;16", {}), ("PNG", "LA", {}),
    ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("WEBP", "RGB", {"save_all": True, "animated": True}),
    ("GIF", "P", {}), ("GIF", "P", {"save_all": True, "animated": True}), ("BMP", "RGB", {}), ("BMP", "P", {}),
    ("TIFF", "RGB", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "L", {"compression": "packbits"}),
    ("TIFF", "RGBA", {"compression": "tiff_adobe_deflate"}), ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "RGB", {"compression": "jpeg"}), ("MPO", "RGB", {"save_all": True, "animated": True}),
    ("AVIF", "RGB", {}), ("HEIF", "RGB", {}),
)  # fmt: skip


def samples() -> dict[str, bytes]:
    """A small file of each form that this Pillow writes."""
    rng = np.random.default_rng(3)
    pixels = [Image.fromarray(rng.integers(0, 256, (41, 57, 3), np.uint8)).resize((114, 82)) for _ in range(2)]
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {}
    for form, mode, options in _FORMS:
        if form == "AVIF" and not features.check("avif"):
            continue
        if form == "HEIF":
            try:
                import pillow_heif
            except ImportError:
                continue
            pillow_heif.register_heif_opener()
        first, second = (p.convert("L").convert(mode) if mode == "I;16" else p.convert(mode) for p in pixels)
        more = {k: v for k, v in options.items() if k != "animated"}
        if "animated" in options:
            more["append_images"] = [second]
        if form in ("JPEG", "PNG", "WEBP", "TIFF"):
            more["exif"] = exif
        buffer = io.BytesIO()
        first.save(buffer, form, **more)
        found[f"{form} {mode} {'/'.join(map(str, options))}"] = buffer.getvalue()
    return found


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    warnings.simplefilter("ignore")
    files = samples()
    names = sorted(files)
    good = {name: Frame.open(data).pixels for name, data in files.items()}

    def attempt(rng: Random, number: int) -> str:
        name = names[number % len(names)]
        kind, bad = damaged(files[name], rng, files[rng.choice(names)])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        frame = Frame.open(bad)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        pixels = frame.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise Wrong(f"{name}, {kind}: pixels {pixels.dtype} {pixels.shape}")
        if grown > _MOST_BYTES:
            raise Wrong(f"{name}, {kind}: {grown >> 20} MiB for {len(bad)} bytes")
        same = pixels.shape == good[name].shape and np.array_equal(pixels, good[name])
        if kind == "cut" and not same:
            raise Wrong(f"{name}: {len(bad)} of {len(files[name])} bytes gave another picture")
        return "the same picture" if same else "a picture"

    yield attempt


AREA = Area("images", "a picture or one line; a cut file: the same picture or one line", _open, longest_s=60)
