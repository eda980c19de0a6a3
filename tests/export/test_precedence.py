"""Which files, tensors and values are the policy: docs/checkpoints.md row by row, against transformers and peft.

The expected side is always what `from_pretrained` makes of the same folder; where it can't load one, or would fill it
with random numbers, the export must refuse in one line.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gog_edge import families
from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.pipeline import check_checkpoint
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.families.weights import shapes as shapes_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

EMBED, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
NORM = "model.language_model.norm.weight"
TIED = {"qwen3_vl": "tiny-qwen3-vl", "qwen2_5_vl": "tiny-qwen2.5-vl-tied"}
Names = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("bases")
    made = {}
    for family, name in TIED.items():
        for spelling in ("published", "v5"):
            folder = root / f"{family}-{spelling}"
            made[family, spelling] = make_checkpoint(name, folder, 7, "float32", spelling=spelling)  # type: ignore[arg-type]
    return made


@pytest.fixture(params=[(family, spelling) for family in TIED for spelling in ("published", "v5")], ids="-".join)
def base(request: pytest.FixtureRequest, bases: dict[tuple[str, str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bases[request.param], tmp_path / "c"))


def tensors(root: Path, edit: Callable[[Names], None], file: str = "model.safetensors") -> None:
    values = load_file(root / file)
    edit(values)
    save_file({k: np.ascontiguousarray(v) for k, v in values.items()}, root / file, metadata={"format": "pt"})


def embed_key(values: Names) -> str:
    return next(name for name in values if name.endswith("embed_tokens.weight"))


def settings(root: Path, edit: Callable[[dict[str, Any]], None], file: str = "config.json") -> None:
    data = json.loads((root / file).read_text())
    edit(data)
    (root / file).write_text(json.dumps(data))


def from_transformers(root: Path) -> tuple[Names, set[str], Any]:
    """(all weights under their full names, those that were filled at random, the model)."""
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        root, dtype=torch.float32, output_loading_info=True
    )
    weights = {name: p.detach().numpy() for name, p in model.named_parameters(remove_duplicate=False)}
    return weights, set(info["missing_keys"]), model


def assert_same(root: Path) -> None:
    """What we would export is what transformers loads, tensor by tensor."""
    expected, missing, model = from_transformers(root)
    assert not missing
    checkpoint = Checkpoint.open(root)
    config = check_checkpoint(checkpoint)
    family = families.find(checkpoint.config)
    shapes = {**shapes_of(family, config), HEAD: (0, 0)}
    assert set(shapes) == set(expected)
    for name, values in expected.items():
        got = checkpoint.read(checkpoint.head if name == HEAD else name)
        np.testing.assert_array_equal(got, values, err_msg=name)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert config.decoder.tied == tied


# -- head and embedding ----------------------------------------------------------------------------------------------


def store_head(kind: str) -> Callable[[Names], None]:
    def edit(values: Names) -> None:
        key = embed_key(values)
        if kind == "equal":
            values[HEAD] = values[key].copy()
        elif kind == "other":
            values[HEAD] = values[key][::-1].copy()
        elif kind == "alone":
            values[HEAD] = values.pop(key)

    return edit


@pytest.mark.parametrize("stored", ["absent", "equal", "other", "alone"])
@pytest.mark.parametrize(
    ("root_flag", "text_flag"), [(None, None), (True, None), (True, False), (False, True), (None, True)]
)
def test_head(base: Path, stored: str, root_flag: bool | None, text_flag: bool | None) -> None:
    def flags(config: dict[str, Any]) -> None:
        for section, flag in ((config.get("text_config", {}), text_flag), (config, root_flag)):
            section.pop("tie_word_embeddings", None)
            if flag is not None:
                section["tie_word_embeddings"] = flag

    settings(base, flags)
    tensors(base, store_head(stored))
    if from_transformers(base)[1]:  # random numbers in transformers
        with pytest.raises(CheckpointError, match=r"has no tensor") as caught:
            check_checkpoint(Checkpoint.open(base))
        assert "\n" not in str(caught.value)
    else:
        assert_same(base)


# -- files -----------------------------------------------------------------------------------------------------------


def shard(root: Path, count: int = 2, scale: float = 1.0) -> None:
    """The weights of model.safetensors, times `scale`, as shards with an index beside it."""
    values = load_file(root / "model.safetensors")
    names = sorted(values)
    weight_map = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        save_file({n: values[n] * np.float32(scale) for n in names[i::count]}, root / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names[i::count], file))
    (root / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_one_file_comes_before_an_index(base: Path) -> None:
    shard(base, scale=2.0)
    assert_same(base)
    (base / "model.safetensors").unlink()
    assert_same(base)


def test_a_shard_may_hold_more_than_the_index_says(base: Path) -> None:
    """A head in a shard that the index forgot: transformers reads it."""
    shard(base)
    (base / "model.safetensors").unlink()
    values = load_file(base / "model-00001-of-00002.safetensors")
    whole = {**values, **load_file(base / "model-00002-of-00002.safetensors")}
    tensors(base, lambda v: v.update({HEAD: whole[embed_key(whole)][::-1]}), "model-00002-of-00002.safetensors")
    assert_same(base)
    assert not check_checkpoint(Checkpoint.open(base)).decoder.tied
    tensors(base, lambda v: v.update({HEAD: whole[embed_key(whole)]}), "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="twice"):
        Checkpoint.open(base)


@pytest.mark.parametrize("file", ["other.safetensors", "other.safetensors.index.json"])
def test_config_may_name_the_file(base: Path, file: str) -> None:
    shard(base, scale=3.0)
    (base / "model.safetensors.index.json").rename(base / "other.safetensors.index.json")
    shutil.copy(base / "model.safetensors", base / "other.safetensors")
    tensors(base, lambda v: v.update({embed_key(v): v[embed_key(v)] + 1}), "other.safetensors")
    settings(base, lambda c: c.update(transformers_weights=file))
    assert_same(base)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "weights.safetensors", "adapter_model.safetensors"])
def test_files_that_transformers_does_not_take_are_refused(base: Path, name: str) -> None:
    (base / "model.safetensors").rename(base / name)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        from_transformers(base)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors|no model weights"):
        Checkpoint.open(base)


def test_safetensors_come_before_pickles(base: Path) -> None:
    torch.save({"lm_head.weight": torch.zeros(2, 2)}, base / "pytorch_model.bin")
    assert_same(base)


def test_embedded_adapters_are_named(base: Path) -> None:
    (base / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds an adapter beside the weights.*--lora"):
        check_checkpoint(Checkpoint.open(base))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda root: (root / "model.safetensors").rename(root / "policy-q4.gguf"), r"GGUF weights \(llama\.cpp"),
        (lambda root: settings(root, lambda c: c.update(quantization={"bits": 4})), "quantised for MLX"),
        (
            lambda root: save_file(
                load_file(root / "model.safetensors"), root / "model.safetensors", metadata={"format": "mlx"}
            ),
            "is an MLX conversion",
        ),
        (lambda root: settings(root, lambda c: c.update(transformers_weights="../x.safetensors")), "outside of"),
        (lambda root: settings(root, lambda c: c.update(transformers_weights="x.bin")), "not a safetensors file"),
        (lambda root: settings(root, lambda c: c.update(transformers_weights="x.safetensors")), "lacks x"),
    ],
)
def test_other_formats_are_named(base: Path, change: Callable[[Path], object], line: str) -> None:
    change(base)
    with pytest.raises(CheckpointError, match=line) as caught:
        Checkpoint.open(base)
    assert "\n" not in str(caught.value)


def test_a_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "policy.gguf").write_bytes(b"GGUF")
    for given in (tmp_path / "policy.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="GGUF"):
            Checkpoint.open(given)


# -- shapes and ids --------------------------------------------------------------------------------------------------


def test_every_tensor_of_a_wrong_shape_is_refused(base: Path) -> None:
    """Norms, biases and parts of stacked matrices, too; none is skipped."""

    class Wrong:
        """The checkpoint's tensors, one with a row too many, or missing."""

        def __init__(self, name: str, missing: bool) -> None:
            self.name, self.missing = name, missing

        def names(self) -> set[str]:
            return good.source.names() - ({self.name} if self.missing else set())

        def shape(self, name: str) -> tuple[int, ...]:
            first, *rest = good.source.shape(name)
            return (first + (name == self.name), *rest)

        def rows(self, name: str, start: int, stop: int) -> np.ndarray:
            raise AssertionError("shapes are checked before anything is read")

    good = Checkpoint.open(base)
    assert check_checkpoint(good).decoder.tied
    for name in sorted(good.names()):
        for missing, line in ((False, "has shape"), (True, "has no tensor")):
            with pytest.raises(CheckpointError, match=line) as caught:
                check_checkpoint(dataclasses.replace(good, source=Wrong(name, missing)))
            assert name in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "eos_token_id"]
)
def test_ids_beyond_the_vocabulary_are_refused(base: Path, key: str) -> None:
    settings(base, lambda c: c.update({key: [3, 9999] if key == "eos_token_id" else 9999}))
    with pytest.raises(CheckpointError, match=rf"{key} = 9999 is beyond the vocabulary of 691"):
        check_checkpoint(Checkpoint.open(base))


# -- rope ------------------------------------------------------------------------------------------------------------

PLAIN = {"rope_type": "default", "mrope_section": None}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048, "mrope_section": None}
ROPES: dict[str, dict[str, Any]] = {
    "new alone": {"rope_parameters": {**PLAIN, "rope_theta": 777.0}},
    "old alone": {"rope_scaling": PLAIN, "rope_theta": 777.0},
    "old beats new": {"rope_scaling": {**PLAIN, "rope_theta": 5e5}, "rope_parameters": {**PLAIN, "rope_theta": 777.0}},
    "theta of the loser does not count": {"rope_scaling": PLAIN, "rope_parameters": {**PLAIN, "rope_theta": 777.0}},
    "empty old": {"rope_scaling": {}, "rope_parameters": {**PLAIN, "rope_theta": 777.0}},
    "theta inside beats beside": {"rope_parameters": {**PLAIN, "rope_theta": 777.0}, "rope_theta": 9.0},
    "no theta": {"rope_parameters": PLAIN},
    "nothing": {},
    "type default beside rope_type": {"rope_scaling": {**PLAIN, "type": "yarn"}, "rope_theta": 777.0},
    "mrope": {"rope_scaling": {"type": "mrope", "mrope_section": None}, "rope_theta": 777.0},
    "old yarn beside new plain": {"rope_scaling": YARN, "rope_parameters": PLAIN, "rope_theta": 777.0},
    "new yarn beside old plain": {"rope_scaling": PLAIN, "rope_parameters": YARN, "rope_theta": 777.0},
    "type yarn": {"rope_scaling": {**YARN, "rope_type": None, "type": "yarn"}, "rope_theta": 777.0},
    "linear": {"rope_parameters": {**PLAIN, "rope_type": "linear", "factor": 2.0}, "rope_theta": 777.0},
    "dynamic": {"rope_scaling": {**PLAIN, "rope_type": "dynamic", "factor": 2.0}, "rope_theta": 777.0},
    "unknown": {"rope_scaling": {**PLAIN, "rope_type": "twisted"}, "rope_theta": 777.0},
}
ODD = [case for case, config in ROPES.items() if "yarn" in str(config)] + ["linear", "dynamic", "mrope", "unknown"]


@pytest.mark.parametrize("where", ["text", "root"])
@pytest.mark.parametrize("case", ROPES)
def test_rope(base: Path, case: str, where: str) -> None:
    """What stands in the root counts in a flat configuration alone."""
    section = [5, 4, 3] if "qwen3" in (base / "config.json").read_text() else [2, 5, 5]

    def edit(config: dict[str, Any]) -> None:
        text = config.get("text_config", config)
        for key in ("rope_scaling", "rope_parameters", "rope_theta"):
            text.pop(key, None)
        target = config if where == "root" else text
        for key, value in ROPES[case].items():
            if isinstance(value, dict):
                value = {k: section if k == "mrope_section" else v for k, v in value.items() if v or "section" in k}
            target[key] = value
        if where == "root" and target is not text:
            text["rope_scaling"] = {"rope_type": "default", "mrope_section": section}

    settings(base, edit)
    try:
        text = transformers.AutoConfig.from_pretrained(base).get_text_config()
        rope = dict(text.rope_parameters)
        class_of = transformers.AutoModelForImageTextToText
        with torch.device("meta"):
            class_of.from_config(transformers.AutoConfig.from_pretrained(base))
    except (KeyError, ValueError, AttributeError):
        rope = {"rope_type": "none"}
    got = {}
    try:
        spec = check_checkpoint(Checkpoint.open(base)).decoder.spec
        got = {"rope_theta": spec.rope_theta, "mrope_section": list(spec.mrope_section)}
    except CheckpointError as e:
        assert "\n" not in str(e)
        beside = where == "root" and "text_config" in (base / "config.json").read_text()
        assert rope["rope_type"] != "default" or case == "nothing" or (beside and case in ODD), e
        return
    assert rope["rope_type"] == "default"
    assert got == {key: rope[key] for key in got}


@pytest.mark.parametrize("spelled", [{"rope_theta": 55.0}, {"rope_scaling": {"rope_theta": 55.0}}])
def test_theta_of_the_tower(base: Path, spelled: dict[str, Any]) -> None:
    settings(base, lambda c: c["vision_config"].update(spelled))
    expected = transformers.AutoConfig.from_pretrained(base).vision_config.rope_parameters["rope_theta"]
    assert check_checkpoint(Checkpoint.open(base)).vision.spec.rope_theta == expected == 55.0


# -- families --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "what"),
    [
        ("qwen3_next", "a language model"),
        ("qwen3_6", "a language model"),
        ("glm4v_moe", "a mixture of experts"),
        ("qwen4_exp", "hyper-connections"),
        ("qwen2_vl", "Qwen2-VL"),
        ("qwen2_5_omni", "audio"),
        ("qwen3", "a language model"),
        ("qwen2", "a language model"),
        ("llama", "a language model"),
        ("gemma3", "a Gemma model"),
        ("gemma4", "a Gemma model"),
        ("paligemma", "a Gemma model"),
        ("internvl", "an InternVL model"),
        ("llava_onevision", "a LLaVA model"),
        ("minicpmv", "another family"),
        ("frobnicator", "not supported"),
    ],
)
def test_families_that_are_not_exported_are_named(model_type: str, what: str) -> None:
    with pytest.raises(CheckpointError, match=what) as caught:
        families.find({"model_type": model_type})
    line = str(caught.value)
    assert "did you mean" not in line
    assert "\n" not in line
    assert all(name in line for name in families.FAMILIES.names())
