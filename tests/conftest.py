"""Small seeded bundles that several areas share: exported once a session, in a fraction of a second each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tests import skips

_LIBRARIES = itertools.count()

# a loaded machine is no reason to fail: no example is timed
settings.register_profile("gog-edge", deadline=None)
settings.load_profile("gog-edge")


def pytest_configure(config: pytest.Config) -> None:
    skips.register(config)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefix and feature caches of the tests stay out of the user's; compiled kernels may be shared."""
    from gog_edge.native.build import cache_directory

    shared = cache_directory()
    folder = tmp_path_factory.mktemp("cache")
    shared.mkdir(parents=True, exist_ok=True)
    (folder / "native").symlink_to(shared, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOG_EDGE_CACHE", str(folder))
        yield


@pytest.fixture(autouse=True)
def private_library(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's bundles stay out of the tests, and what one test names is no default of the next. Not created."""
    folder = tmp_path_factory.getbasetemp() / f"library-{next(_LIBRARIES)}"
    monkeypatch.setenv("GOG_EDGE_LIBRARY", str(folder))
    monkeypatch.delenv("GOG_EDGE_BUNDLE", raising=False)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of random checkpoints of all families, odd shapes, by family."""
    from gog_edge.export.synthetic.checkpoint import make_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    names = {"qwen3_vl": "tiny-qwen3-vl", "qwen2_5_vl": "tiny-qwen2.5-vl", "qwen3_5": "tiny-qwen3.5"}
    return {family: make_checkpoint(name, root / name) for family, name in names.items()}


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL bundle in fp32; its policy writes nonsense."""
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(tiny_checkpoints["qwen3_vl"], out, ExportOptions(precision="fp32"))
    return out


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small JPEG of noise."""
    from PIL import Image

    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    pixels = np.random.default_rng(3).integers(0, 256, (120, 160, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path
