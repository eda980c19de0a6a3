"""A whole family in one file: a tower without attention, a decoder with its own weight names, boxes as shares.

It is registered like a family of another package, exported, verified against the numpy below, run in a session and
asked through the loop. Nothing outside of this file knows it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gog_edge
from gog_edge import families
from gog_edge.agent.loader import bundle_dialect
from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.cli.main import run
from gog_edge.crop import crop_patches
from gog_edge.engines.registry import create_engine
from gog_edge.errors import BundleError, CheckpointError, ParityError
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.text import tokenizer_json
from gog_edge.families.base import DecoderDims, Family, ModelConfig, Processor, VisionDims
from gog_edge.families.layout import F32, I64, Inputs, inverse_frequencies, merge_order
from gog_edge.families.target import AttentionCache, LayerCache, Target
from gog_edge.families.weights import decoder_inputs, shapes, tensor_classes
from gog_edge.image.frame import Frame
from gog_edge.manifest import DecoderSpec, VisionSpec
from gog_edge.native.dispatch import available
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.serde import Section
from gog_edge.types import Control, ImagePart, Text
from tests.export.weights_helpers import write_checkpoint
from tests.versions import need_portable

ROWS = 64  # of the tower's table of learned positions
EPS = 1e-5

# -- the family ----------------------------------------------------------------------------------------------------


def parse(config: dict[str, Any]) -> ModelConfig:
    root = Section(config)
    width, heads, merge = root.integer("width"), root.integer("heads"), root.integer("merge", 2)
    head = width // heads
    tower = VisionSpec(root.integer("blocks"), root.integer("eye"), 1, root.integer("eye"), width)
    decoder = DecoderSpec(
        layers=root.integer("layers"),
        hidden=width,
        heads=heads,
        kv_heads=root.integer("kv_heads"),
        head_dim=head,
        vocab=root.integer("vocab"),
        rope_theta=100.0,
        mrope_section=(head // 2, 0, 0),
        mrope_interleaved=False,
        max_context=2048,
    )
    return ModelConfig(
        VisionDims(tower, 2 * tower.hidden, root.integer("patch"), merge, 1, "gelu", eps=EPS),
        DecoderDims(decoder, 2 * width, EPS, qkv_bias=True, out_bias=False, qk_norm=False, tied=False),
        *(root.integer(key) for key in ("picture", "picture_start", "picture_end")),
        root.ids("stop"),
        None,
    )


def build_vision(t: Target, dims: VisionDims) -> None:
    eye, inner, out = dims.spec.hidden, dims.intermediate, dims.spec.out_hidden
    patches = t.input("patches", "float32", ("n", dims.patch_values))
    index = t.input("row_index", "int64", (1, "n"))
    weight = t.input("row_weight", "float32", (1, "n"))
    x = t.linear(patches, t.matrix(("eye.patch.weight",), (eye,), dims.patch_values), (), role="patch_embed")
    x = t.add(x, t.weighted_rows(t.parameter("eye.rows", (ROWS, eye)), index, weight))
    for i in range(dims.spec.depth):
        name = f"eye.{i}"
        with t.scope(name):
            y, x = t.add_layer_norm(x, None, f"{name}.norm.weight", f"{name}.norm.bias", dims.eps)
            y = t.linear(y, t.matrix((f"{name}.up.weight",), (inner,), eye), (f"{name}.up.bias",), role="vision")
            y = t.linear(t.gelu(y, tanh=True), t.matrix((f"{name}.down.weight",), (eye,), inner), (), role="vision")
            x = t.add(x, y)
    wide = eye * dims.merge**2
    x = t.linear(t.reshape(x, (-1, wide)), t.matrix(("eye.merge.weight",), (out,), wide), (), role="merger")
    t.output(x, "features", "float32", ("m", out))


def build_decoder(t: Target, dims: DecoderDims, caches: tuple[LayerCache, ...]) -> None:
    spec, width, inner = dims.spec, dims.spec.hidden, dims.intermediate
    x = t.reshape(t.input("inputs_embeds", "float32", (1, "s", width)), (-1, width))
    cos = t.input("rope_cos", "float32", ("s", spec.head_dim // 2))
    sin = t.input("rope_sin", "float32", ("s", spec.head_dim // 2))
    last = t.input("last_k", "int64", (1,))
    cache = t.cache(spec, caches)
    qkv = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    for i in range(spec.layers):
        name = f"mind.{i}"
        with t.scope(name):
            y = t.rms_norm(x, f"{name}.look.weight", dims.eps)
            y = t.linear(y, t.matrix((f"{name}.qkv.weight",), (qkv,), width), (f"{name}.qkv.bias",), role="attention")
            y = t.cached_attention(cache, i, y, cos, sin, None, dims.eps)
            x = t.add(x, t.linear(y, t.matrix((f"{name}.out.weight",), (width,), width), (), role="attention"))
            y = t.rms_norm(x, f"{name}.think.weight", dims.eps)
            y = t.linear(y, t.matrix((f"{name}.up.weight",), (inner,), width), (), role="mlp")
            y = t.linear(
                t.gelu(y, tanh=True), t.matrix((f"{name}.down.weight",), (width,), inner), (), role="down_proj"
            )
            x = t.add(x, y)
    x = t.rms_norm(t.last_rows(x, last), "mind.end.weight", dims.eps)
    logits = t.linear(x, t.matrix(("mind.say.weight",), (spec.vocab,), width), (), role="head")
    t.output(t.reshape(logits, (1, -1, spec.vocab)), "logits", "float32", (1, "last_k", spec.vocab))
    cache.finish()


def vision_inputs(vision: VisionSpec, merge: int, rows: int, columns: int) -> Inputs:
    row, _ = merge_order(rows, columns, merge)
    return {"row_index": row[None] % ROWS, "row_weight": np.ones((1, len(row)), np.float32)}


def rotary(decoder: DecoderSpec) -> tuple[F32, I64]:
    frequencies = inverse_frequencies(decoder.head_dim, decoder.rope_theta)
    return frequencies, np.zeros(len(frequencies), np.int64)  # one axis: an image stands at one time


TOY = Family(
    name="toy_vl",
    parse=parse,
    build_vision=build_vision,
    build_decoder=build_decoder,
    embedding="mind.words.weight",
    head="mind.say.weight",
    tied=lambda config: False,
    processor=Processor(
        "ToyImageProcessor",
        image_mean=(0.4, 0.4, 0.4),
        image_std=(0.2, 0.3, 0.4),
        min_pixels=32 * 32,
        max_pixels=128 * 128,
        patch_size=8,
        merge_size=2,
        temporal_patch_size=1,
    ),
    box_frame="unit",
    vision_inputs=vision_inputs,
    rotary=rotary,
    caches=lambda decoder: (AttentionCache(decoder.kv_heads, decoder.head_dim),) * decoder.layers,
)

# -- the same in numpy ---------------------------------------------------------------------------------------------

CONFIG = {
    "model_type": "toy_vl",
    "width": 64,
    "heads": 4,
    "kv_heads": 2,
    "layers": 2,
    "eye": 32,
    "blocks": 2,
    "patch": 8,
    "vocab": 700,
    "picture": 652,
    "picture_start": 649,
    "picture_end": 650,
    "stop": [642],
}
Weights = dict[str, NDArray[np.float32]]


def rms(x: F32, weight: F32) -> F32:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight


def gelu(x: F32) -> F32:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def see(w: Weights, patches: F32, rows: int, columns: int) -> F32:
    """Features [m, width] of an image."""
    x = patches @ w["eye.patch.weight"].T + w["eye.rows"][merge_order(rows, columns, 2)[0]]
    for i in range(CONFIG["blocks"]):
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
        y = y * w[f"eye.{i}.norm.weight"] + w[f"eye.{i}.norm.bias"]
        x = x + gelu(y @ w[f"eye.{i}.up.weight"].T + w[f"eye.{i}.up.bias"]) @ w[f"eye.{i}.down.weight"].T
    return x.reshape(-1, 4 * x.shape[1]) @ w["eye.merge.weight"].T


def think(w: Weights, x: F32, times: NDArray[np.integer[Any]]) -> F32:
    """Logits [s, vocab] of embeddings [s, width] at `times` [s]."""
    heads, kv = CONFIG["heads"], CONFIG["kv_heads"]
    size = CONFIG["width"] // heads
    angles = times[:, None] * 100.0 ** -(np.arange(0, size, 2) / size)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def turn(a: F32) -> F32:
        low, high = a[..., : size // 2], a[..., size // 2 :]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    future = np.triu(np.full((len(x), len(x)), -np.inf), 1)
    for i in range(CONFIG["layers"]):
        name = f"mind.{i}"
        qkv = rms(x, w[f"{name}.look.weight"]) @ w[f"{name}.qkv.weight"].T + w[f"{name}.qkv.bias"]
        q, k, v = np.split(qkv.reshape(len(x), -1, size), [heads, heads + kv], axis=1)
        q, k, v = turn(q), np.repeat(turn(k), heads // kv, axis=1), np.repeat(v, heads // kv, axis=1)
        scores = np.einsum("shd,thd->hst", q, k) / np.sqrt(size) + future
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        seen = np.einsum("hst,thd->shd", scores / scores.sum(-1, keepdims=True), v).reshape(len(x), -1)
        x = x + seen @ w[f"{name}.out.weight"].T
        x = x + gelu(rms(x, w[f"{name}.think.weight"]) @ w[f"{name}.up.weight"].T) @ w[f"{name}.down.weight"].T
    return rms(x, w["mind.end.weight"]) @ w["mind.say.weight"].T


SAYS = ("Ċ", "<answer>", "4", "2", "</answer>")  # after a line break: each of these follows the one before it


def make_weights(vocab: dict[str, int]) -> Weights:
    """Random, but for the head: what a token is followed by outweighs everything else."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 0.0) -> F32:
        return (rng.standard_normal(shape) * (scale or shape[-1] ** -0.5)).astype(np.float32)

    width, eye, patch = CONFIG["width"], CONFIG["eye"], 3 * CONFIG["patch"] ** 2
    size = width // CONFIG["heads"]
    w = {
        "eye.patch.weight": normal(eye, patch),
        "eye.rows": normal(ROWS, eye, scale=0.5),
        "eye.merge.weight": normal(width, 4 * eye),
        "mind.words.weight": normal(CONFIG["vocab"], width, scale=1.0),
        "mind.end.weight": normal(width, scale=0.1) + 1,
        "mind.say.weight": normal(CONFIG["vocab"], width),
    }
    for i in range(CONFIG["blocks"]):
        w[f"eye.{i}.norm.weight"], w[f"eye.{i}.norm.bias"] = normal(eye, scale=0.1) + 1, normal(eye, scale=0.1)
        w[f"eye.{i}.up.weight"], w[f"eye.{i}.up.bias"] = normal(2 * eye, eye), normal(2 * eye, scale=0.1)
        w[f"eye.{i}.down.weight"] = normal(eye, 2 * eye)
    for i in range(CONFIG["layers"]):
        narrow = (CONFIG["heads"] + 2 * CONFIG["kv_heads"]) * size
        w[f"mind.{i}.look.weight"] = w[f"mind.{i}.think.weight"] = normal(width, scale=0.1) + 1
        w[f"mind.{i}.qkv.weight"], w[f"mind.{i}.qkv.bias"] = normal(narrow, width), normal(narrow, scale=0.1)
        w[f"mind.{i}.out.weight"] = 0.3 * normal(width, width)
        w[f"mind.{i}.up.weight"], w[f"mind.{i}.down.weight"] = normal(2 * width, width), 0.3 * normal(width, 2 * width)
    for before, after in itertools.pairwise(SAYS):
        w["mind.say.weight"][vocab[after]] = w["mind.words.weight"][vocab[before]]
    return w


class Verify:
    """A parity gate: one conversation with an image, in pieces, against the numpy above."""

    def __init__(self, weights: Weights, tolerance: float) -> None:
        self.weights, self.tolerance = weights, tolerance

    def __call__(self, bundle: Bundle) -> dict[str, Any]:
        engine = create_engine("cpu", bundle)
        try:
            model = Model.assemble(bundle, engine, RunOptions(prefix_cache=False, prefill_chunk=7))
            session, frame = Session(model), Frame(np.random.default_rng(1).integers(0, 256, (75, 101, 3), np.uint8))
            session.append([Control("<|im_start|>user\n"), ImagePart(session.add_image(frame).index), Text("What?")])
            session.append([Control("<|im_end|>\n<|im_start|>assistant\n")])
            got = [session.run()[0].copy()]
            for _ in range(3):
                session.extend([int(got[-1].argmax())])
                got.append(session.run()[0].copy())
            ids = np.array(session.tokens)
            plan = model.vision.plan(frame)
            patches = crop_patches(frame, None, plan.grid, bundle.manifest.preprocessing)
            x = self.weights["mind.words.weight"][ids]
            x[ids == CONFIG["picture"]] = see(self.weights, patches, plan.grid.rows, plan.grid.columns)
            want = think(self.weights, x, session.sequence.positions(0, len(ids))[0])[-4:]
        finally:
            engine.close()
        error = float(np.abs(np.stack(got) - want).max() / np.abs(want).max())
        if error > self.tolerance:
            raise ParityError(f"the {bundle.manifest.precision} bundle differs from numpy by {error:.2g}")
        return {"verdict": "pass", "error": error}


# -- the tests -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families.FAMILIES, "_added", {})
    families.register(TOY)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    """A folder as a trainer of toys would leave it: only the class of its image processor is named."""
    tokenizer = tokenizer_json(640)
    for content in ("<answer>", "</answer>"):
        entry = {**tokenizer["added_tokens"][0], "id": 640 + len(tokenizer["added_tokens"]), "content": content}
        tokenizer["added_tokens"].append({**entry, "special": False})
        tokenizer["model"]["vocab"][content] = entry["id"]
    weights = make_weights(tokenizer["model"]["vocab"])
    root = write_checkpoint(tmp_path_factory.mktemp("toy") / "c", weights, CONFIG)
    (root / "tokenizer.json").write_text(json.dumps(tokenizer))
    (root / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ToyImageProcessor"}))
    return root, weights


@pytest.fixture(scope="module")
def bundle(checkpoint: tuple[Path, Weights], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families.FAMILIES, "_added", {TOY.name: TOY})
        yield export_bundle(checkpoint[0], tmp_path_factory.mktemp("toy") / "b", ExportOptions(precision="fp32"))


needs_compiler = pytest.mark.skipif(available() is not None, reason=str(available()))


@pytest.mark.parametrize(
    ("backend", "precision", "tolerance"),
    [
        ("ort", "fp32", 1e-5),
        ("ort", "fp16", 2e-3),
        ("ort", "int8", 0.05),
        ("ort", "int4", 0.3),
        ("portable", "fp32", 1e-5),
        ("portable", "int8", 0.05),
        pytest.param("native", "int8", 0.05, marks=needs_compiler),
        pytest.param("native", "int4", 0.3, marks=needs_compiler),
    ],
)
def test_it_is_exported_and_verified(
    checkpoint: tuple[Path, Weights], backend: Any, precision: Any, tolerance: float, tmp_path: Path
) -> None:
    if backend == "portable":
        need_portable()
    root, weights = checkpoint
    options = ExportOptions(precision=precision, backend=backend)
    bundle = export_bundle(root, tmp_path / "b", options, gate=Verify(weights, tolerance))
    assert json.loads(bundle.read_text("verify.json"))["verdict"] == "pass"
    assert bundle.manifest.family == "toy_vl"
    stored = bundle.manifest.preprocessing
    assert (stored.image_std, stored.min_pixels, stored.max_pixels) == ((0.2, 0.3, 0.4), 32 * 32, 128 * 128)


def test_a_wrong_export_is_refused(checkpoint: tuple[Path, Weights], tmp_path: Path) -> None:
    root, weights = checkpoint
    wrong = {**weights, "mind.0.out.weight": -weights["mind.0.out.weight"]}
    with pytest.raises(ParityError, match="differs from numpy"):
        export_bundle(root, tmp_path / "b", ExportOptions(precision="fp32"), gate=Verify(wrong, 1e-3))


def test_it_answers_through_the_loop(bundle: Bundle, photo: Path) -> None:
    with gog_edge.load(bundle) as agent:
        answer = agent.ask(photo, "How many?")
    assert answer.text == "42"
    assert len(answer.steps) == 1


def test_the_commands_take_it(
    checkpoint: tuple[Path, Weights], photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "b")
    assert run(["export", str(checkpoint[0]), "-o", out, "--precision", "int8", "--backend", "ort"]) == 0
    assert run(["inspect", out]) == 0
    assert "toy_vl, int8, backend ort" in capsys.readouterr().out
    assert run(["ask", str(photo), "How many?", "--bundle", out]) == 0
    assert capsys.readouterr().out.split() == ["42"]


def test_boxes_are_in_its_own_frame(bundle: Bundle) -> None:
    assert bundle_dialect(bundle).frame.frame == "unit"  # gog leaves it to the family
    assert bundle_dialect(bundle, "qwen-agent").frame.frame == "thousand"  # others do not


def test_shapes_and_roles_come_from_its_graphs(checkpoint: tuple[Path, Weights]) -> None:
    assert shapes(TOY, parse(CONFIG)) == {name: values.shape for name, values in checkpoint[1].items()}
    classes = tensor_classes(CONFIG)
    assert classes["mind.1.qkv.weight"] == "attention"
    assert classes["mind.0.down.weight"] == "down_proj"
    assert classes["eye.merge.weight"] == "merger"
    assert (classes["mind.words.weight"], classes["mind.say.weight"]) == ("embedding", "head")
    assert not classes.keys() & {"eye.patch.weight", "eye.rows", "mind.0.look.weight", "mind.end.weight"}
    assert decoder_inputs(CONFIG)[:2] == (("mind.0.qkv.weight",), ("mind.0.out.weight",))


def test_without_it_both_halves_say_so(
    bundle: Bundle, checkpoint: tuple[Path, Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families.FAMILIES, "_added", {})
    with pytest.raises(BundleError, match="of the family 'toy_vl', which is not known here: known: "):
        gog_edge.load(bundle)
    with pytest.raises(CheckpointError, match="model_type is 'toy_vl'"):
        export_bundle(checkpoint[0], tmp_path / "b")
