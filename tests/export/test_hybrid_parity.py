"""Qwen3.5 against transformers: odd shapes, both spellings, images, turns, prompts of all lengths, in fp32.

transformers reads a whole conversation at once; its choice at every place is what greedy decoding there would write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.crop import crop_patches
from gog_edge.engines.registry import create_engine
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.image.frame import Frame
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.types import Control, ImagePart, Segment, Text
from tests.native.graphs import needs_ops
from tests.versions import need_hybrid

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity
from gog_edge.export.parity.reference import Reference, ReferenceImage  # noqa: E402

_ROPE = {"mrope_interleaved": True, "rope_type": "default", "rope_theta": 10000}
# Beyond the tiny checkpoint's own shape (layer types given, 6 value heads on 2 key heads, a convolution of 3 tokens,
# half of a head turning, a tied head):
CASES: dict[str, dict[str, Any]] = {
    "given": {},
    "derived": {
        "tie_word_embeddings": False,
        "text_config": {
            "tie_word_embeddings": False,
            "layer_types": None,
            "full_attention_interval": 2,
            "num_hidden_layers": 4,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_conv_kernel_dim": 4,
            "rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1, 0], "partial_rotary_factor": 0.25},
        },
    },
    "old-spelling": {
        "text_config": {
            "layer_types": None,
            "full_attention_interval": 3,
            "linear_num_value_heads": 4,
            "linear_conv_kernel_dim": 2,
            "head_dim": 24,
            "num_key_value_heads": 1,
            "rope_parameters": None,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 6], "type": "default"},
            "rope_theta": 5000,
            "partial_rotary_factor": 1.0,
        },
    },
    "long-section": {  # no published one, but transformers takes it: what a section says beyond the pairs is cut off
        "text_config": {
            "linear_conv_kernel_dim": 5,
            "rope_parameters": {**_ROPE, "mrope_section": [1, 9, 9], "partial_rotary_factor": 0.5},
        },
    },
    "tied-flag-against-a-head": {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": False}},
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    root = tmp_path_factory.mktemp("hybrid") / "c"
    make_checkpoint("tiny-qwen3.5", root, 11, "float32", overrides=CASES[request.param])
    if request.param == "tied-flag-against-a-head":
        config = json.loads((root / "config.json").read_text())
        (root / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return root, Reference(Checkpoint.open(root))


@pytest.fixture(scope="module")
def bundles(case: tuple[Path, Reference]) -> Callable[..., Bundle]:
    """(backend, precision) -> a bundle of this case's checkpoint; each is made once."""
    made: dict[tuple[str, str], Bundle] = {}

    def get(backend: Any, precision: Any = "fp32") -> Bundle:
        need_hybrid(backend)
        if (backend, precision) not in made:
            options = ExportOptions(precision=precision, backend=backend)
            made[backend, precision] = export_bundle(case[0], case[0].parent / f"{backend}-{precision}", options)
        return made[backend, precision]

    return get


@contextmanager
def running(bundle: Bundle, chunk: int = 512) -> Iterator[Model]:
    engine = create_engine("cpu", bundle)
    try:
        yield Model.assemble(bundle, engine, RunOptions(prefix_cache=False, prefill_chunk=chunk))
    finally:
        engine.close()


def picture(seed: int, width: int, height: int) -> Frame:
    return Frame(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8), f"picture {seed}")


def shown(model: Model, session: Session) -> list[ReferenceImage]:
    """The session's images as transformers takes them."""
    images = []
    for span in session.sequence.spans:
        plan = session.sequence.images[span.image].planned_view()
        patches = crop_patches(plan.frame, None, plan.grid, model.manifest.preprocessing)
        images.append(ReferenceImage(np.asarray(patches), plan.grid.rows, plan.grid.columns, span.start))
    return images


def talk(session: Session, turns: int, tokens: int) -> list[int]:
    """`turns` questions, the first two with an image each, and what the policy answers; places of its tokens."""
    places = []
    for turn in range(turns):
        parts: list[Segment] = [
            Control("<|im_start|>user\n"),
            Text(f"Question {turn}: what is the title of page {turn}?"),
        ]
        if turn < 2:
            parts.insert(1, ImagePart(session.add_image(picture(turn, 150 + 60 * turn, 130)).index))
        session.append([*parts, Control("<|im_end|>\n<|im_start|>assistant\n")])
        for _ in range(tokens):
            places.append(len(session))
            session.extend([int(session.run()[0].argmax())])
        session.append([Control("<|im_end|>\n")])
    return places


@pytest.mark.parametrize("backend", ["ort", "portable"])
def test_three_turns_with_two_images_equal_transformers(
    case: tuple[Path, Reference], bundles: Callable[..., Bundle], backend: str
) -> None:
    reference = case[1]
    with running(bundles(backend), chunk=19) as model:
        session = Session(model)
        places = talk(session, 3, 22)
        last = session.run()[0].copy()
        logits = reference.logits(session.tokens, shown(model, session))
        written = session.tokens[places].tolist()
    assert len(written) == 66
    assert written == logits[[place - 1 for place in places]].argmax(1).tolist()
    assert np.abs(last - logits[-1]).max() < 2e-4 * np.abs(logits[-1]).max()


@pytest.mark.parametrize(("backend", "chunk"), [("ort", 64), ("ort", 7), ("portable", 64)])
def test_prompts_of_every_length(
    case: tuple[Path, Reference], bundles: Callable[..., Bundle], backend: str, chunk: int
) -> None:
    reference = case[1]
    ids = np.random.default_rng(3).integers(0, 600, 300)
    want = reference.logits(ids)
    with running(bundles(backend), chunk) as model:
        for length in (1, 2, 3, 5, 7, 8, 63, 64, 65, 127, 128, 129, 191, 192, 193, 300):
            session = Session(model)
            session.extend(ids[:length].tolist())
            got = session.run()[0]
            assert np.abs(got - want[length - 1]).max() < 2e-4 * np.abs(want).max(), length


@pytest.mark.parametrize("backend", ["ort", "portable"])
def test_the_state_after_a_prefill_is_that_after_single_steps(bundles: Callable[..., Bundle], backend: str) -> None:
    ids = np.random.default_rng(4).integers(0, 600, 150).tolist()
    states: list[list[NDArray[np.float32]]] = []
    for step in (150, 64, 1):
        with running(bundles(backend), step) as model:
            session = Session(model)
            session.extend(ids)
            session.run()
            cache: Any = session._cache
            assert cache.seen == 150
            states.append(cache.state())
    for whole, cut, single in zip(*states):
        scale = np.abs(single).max()
        assert np.abs(whole - single).max() <= 1e-5 * scale
        assert np.abs(cut - single).max() <= 1e-5 * scale


@pytest.mark.parametrize("case", ["given"], indirect=True)
@pytest.mark.parametrize(
    ("precision", "backend", "least"),
    [
        ("fp16", "ort", 0.9999),
        ("int8", "ort", 0.99),
        ("int8", "portable", 0.99),
        ("int4", "ort", 0.9),
        ("int4", "portable", 0.9),
        pytest.param("fp32", "native", 0.9999, marks=needs_ops),
        pytest.param("int8", "native", 0.99, marks=needs_ops),
        pytest.param("int4", "native", 0.9, marks=needs_ops),
    ],
)
def test_quantised_layers_stay_near(
    case: tuple[Path, Reference], bundles: Callable[..., Bundle], precision: str, backend: str, least: float
) -> None:
    reference = case[1]
    with running(bundles(backend, precision)) as model:
        session = Session(model)
        talk(session, 2, 8)
        got = session.run()[0]
        want = reference.logits(session.tokens, shown(model, session))[-1]
    assert float(got @ want) / float(np.linalg.norm(got) * np.linalg.norm(want)) > least
