"""The world's data, scenes from seeds, and the gaze geometry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")


def test_entities_and_documents_agree() -> None:
    from recipe import world

    ids = {d["id"] for d in world.documents()}
    for entity in world.entities():
        assert entity.document in ids
        for attribute, value in entity.facts.items():
            document = next(
                d for d in world.documents() if d["id"] == f"fact/{entity.id}/{attribute.replace(' ', '-')}"
            )
            assert value in document["text"] and document["title"] == f"{entity.name}: {attribute}"
    pictures = [d for d in world.documents() if d["image"]]
    assert len(pictures) == len(world.entities())
    for document in pictures:
        assert (world.WORLD / document["image"]).is_file()
    assert 45 <= len(world.flags(True)) <= 55 and len(world.flags(False)) > 150


def test_a_seed_gives_the_same_scene() -> None:
    from recipe import scenes, world

    pool = [e.id for e in world.flags(False)]
    one, planned = scenes.render(scenes.plan(12, pool))
    two, again = scenes.render(scenes.plan(12, pool))
    assert planned == again and np.array_equal(np.asarray(one), np.asarray(two))
    assert one.size == (scenes.WIDTH, scenes.HEIGHT)
    for item in planned.items:
        assert 0 <= item.box[0] < item.box[2] <= scenes.WIDTH and 0 <= item.box[1] < item.box[3] <= scenes.HEIGHT


@given(st.floats(0, 1100), st.floats(0, 800), st.floats(120, 360), st.floats(90, 250))
def test_the_teachers_box_is_a_hit(x: float, y: float, w: float, h: float) -> None:
    from recipe import geometry

    box = (x, y, min(1280.0, x + w), min(960.0, y + h))
    if box[2] - box[0] < 115 or box[3] - box[1] < 80:
        return
    grid = geometry.expert_box(box, 1280, 960)
    assert all(v % geometry.STEP == 0 and 0 <= v <= 1000 for v in grid)
    assert geometry.is_hit(geometry.to_pixels(grid, 1280, 960), box)


@given(st.floats(40, 3000), st.floats(40, 3000))
def test_smart_resize_equals_transformers(w: float, h: float) -> None:
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    from recipe import geometry

    if max(w, h) / min(w, h) > 100:
        return
    height, width = module.smart_resize(int(h), int(w), 32, *geometry.GAZE_PIXELS)
    assert geometry.smart_resize(int(w), int(h), geometry.GAZE_PIXELS) == (width, height)
