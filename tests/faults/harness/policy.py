"""A tiny policy for the areas that need a real one: exported in a second, loaded in a tenth of one."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import gog_edge
from gog_edge.agent.options import RunOptions
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.runtime.session import Session
from gog_edge.types import Control, ImagePart, Text
from tests.runtime.conftest import picture
from tests.runtime.fakes import make_bundle

ONE_THREAD = OrtOptions(threads=1, spin=False)


def own_cache(folder: Path) -> None:
    """Caches in a folder of their own; compiled kernels stay where they are."""
    from gog_edge.native.build import cache_directory

    shared, cache = cache_directory(), folder / "cache"
    shared.mkdir(parents=True, exist_ok=True)
    cache.mkdir()
    (cache / "native").symlink_to(shared, target_is_directory=True)
    os.environ["GOG_EDGE_CACHE"] = str(cache)
    os.environ["GOG_EDGE_LIBRARY"] = str(folder / "library")
    os.environ.pop("GOG_EDGE_BUNDLE", None)


def tiny(folder: Path, backend: str = "native") -> Path:
    """A bundle of random weights in fp32."""
    return make_bundle(folder, backend=backend).root


def photo(seed: int = 0) -> bytes:
    """A small PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, 87, 63).pixels).save(buffer, "PNG")
    return buffer.getvalue()


def load(bundle: Path, cache: Path, **options: Any) -> gog_edge.Agent:
    """An agent that writes a few tokens to each question."""
    given = {"turn_tokens": 4, "total_tokens": 8, "max_turns": 1, "grammar": "off", "cache_dir": cache, **options}
    return gog_edge.load(bundle, options=RunOptions(**given), engine_options=ONE_THREAD)


def said(agent: gog_edge.Agent, frame: Any = None) -> Any:
    """The logits of a question with a picture: every weight and number of the manifest counts in them."""
    session = Session(agent.model)
    session.add_image(frame or picture(1, 87, 63))
    session.append([Control("<|im_start|>user\n"), ImagePart(0), Text("what"), Control("<|im_end|>\n")])
    return np.array(session.run())
