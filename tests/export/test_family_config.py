"""config.json in every spelling: all published sizes, and wrong ones named by their key."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gog_edge import families
from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.synthetic.checkpoint import _spell_config, make_checkpoint
from gog_edge.export.synthetic.configs import NAMES, TINY, model_config
from gog_edge.families.base import ModelConfig
from gog_edge.families.weights import shapes
from gog_edge.shapes import SHAPES


def parse(config: dict[str, Any]) -> ModelConfig:
    return families.find(config).parse(config)


@pytest.mark.parametrize("name", NAMES)
def test_both_spellings_mean_the_same(name: str) -> None:
    config = model_config(name)
    published = parse(_spell_config(config, "published", "bfloat16"))
    assert published == parse(_spell_config(config, "v5", "bfloat16"))
    assert published.decoder.spec.heads % published.decoder.spec.kv_heads == 0


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "heads", "kv_heads", "tied", "tower"),
    [
        ("qwen2.5-vl-3b", 36, 2048, 16, 2, True, (32, 1280, 80)),
        ("qwen2.5-vl-7b", 28, 3584, 28, 4, False, (32, 1280, 80)),
        ("qwen2.5-vl-32b", 64, 5120, 40, 8, False, (32, 1280, 80)),
        ("qwen3-vl-2b", 28, 2048, 16, 8, True, (24, 1024, 64)),
        ("qwen3-vl-4b", 36, 2560, 32, 8, True, (24, 1024, 64)),
        ("qwen3-vl-8b", 36, 4096, 32, 8, False, (27, 1152, 72)),
        ("qwen3-vl-32b", 64, 5120, 64, 8, False, (27, 1152, 72)),
        ("qwen3-vl-30b-a3b", 48, 2048, 32, 4, False, (27, 1152, 72)),
        ("qwen3-vl-235b-a22b", 94, 4096, 64, 4, False, (27, 1152, 72)),
    ],
)
def test_published_sizes(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, tied: bool, tower: tuple[int, int, int]
) -> None:
    parsed = parse(model_config(name))
    spec, vision = parsed.decoder.spec, parsed.vision.spec
    assert (spec.layers, spec.hidden, spec.heads, spec.kv_heads) == (layers, hidden, heads, kv_heads)
    assert (spec.head_dim, parsed.decoder.tied) == (128, tied)
    assert (vision.depth, vision.hidden, vision.head_dim) == tower
    assert vision.out_hidden == hidden
    if name.startswith("qwen3"):
        assert (spec.mrope_section, spec.mrope_interleaved, spec.deepstack) == ((24, 20, 20), True, 3)
        assert (vision.position_side, vision.window, vision.deepstack) == (48, 0, 3)
        assert spec.rope_theta == 5e6
        assert (parsed.vision.patch, parsed.decoder.qk_norm, parsed.decoder.qkv_bias) == (16, True, False)
    else:
        assert (spec.mrope_section, spec.mrope_interleaved, spec.deepstack) == ((16, 24, 24), False, 0)
        assert (vision.position_side, vision.window, vision.full_layers) == (0, 4, (7, 15, 23, 31))
        assert (parsed.vision.patch, parsed.decoder.qk_norm, parsed.decoder.qkv_bias) == (14, False, True)


@pytest.mark.parametrize("name", TINY)
def test_shapes_are_read_off_the_graphs(name: str, tmp_path: Path) -> None:
    """The synthetic checkpoints are written by a table of their own."""
    checkpoint = Checkpoint.open(make_checkpoint(name, tmp_path / "c"))
    family = families.find(checkpoint.config)
    aside = [part.pattern for part in family.set_aside]
    exported = {name for name in checkpoint.names() if not any(re.match(pattern, name) for pattern in aside)}
    expected = {tensor: checkpoint.shape(tensor) for tensor in exported}
    assert shapes(family, family.parse(checkpoint.config)) == expected


def test_tying_may_be_said_in_either_place() -> None:
    config = _spell_config(model_config("qwen2.5-vl-3b"), "v5", "bfloat16")
    config["tie_word_embeddings"] = False
    assert not parse(config).decoder.tied
    config["text_config"]["tie_word_embeddings"] = True  # transformers 4 wrote it there
    assert parse(config).decoder.tied


def test_old_rope_type_and_missing_section() -> None:
    config = model_config("qwen2.5-vl-7b")
    config["rope_scaling"] = {"type": "mrope", "rope_type": "default"}
    assert parse(config).decoder.spec.mrope_section == (16, 24, 24)


def test_head_dim_given_or_derived() -> None:
    config = model_config("qwen2.5-vl-7b")
    assert "head_dim" not in config
    assert parse({**config, "head_dim": 128}) == parse(config)
    three = copy.deepcopy(model_config("qwen3-vl-2b"))
    del three["text_config"]["head_dim"]  # transformers' default is 128, not hidden/heads
    assert parse(three).decoder.spec.head_dim == 128


WRONG: list[tuple[str, str, Any, str]] = [
    ("qwen3-vl-2b", "text_config.hidden_size", None, "text_config.hidden_size is missing"),
    ("qwen3-vl-2b", "text_config.hidden_size", "2048", "text_config.hidden_size must be a whole number"),
    ("qwen3-vl-2b", "text_config.num_hidden_layers", 0, "text_config.num_hidden_layers must be at least 1"),
    ("qwen3-vl-2b", "text_config.num_key_value_heads", 5, "num_key_value_heads = 5 does not divide"),
    ("qwen3-vl-2b", "text_config.head_dim", 7, "head_dim = 7 must be even"),
    ("qwen3-vl-2b", "text_config.hidden_act", "gelu", "hidden_act is 'gelu'"),
    ("qwen3-vl-2b", "text_config.rms_norm_eps", -1, "rms_norm_eps must be a positive number"),
    ("qwen3-vl-2b", "text_config.rope_scaling.mrope_section", [24, 20], "mrope_section must be three numbers"),
    ("qwen3-vl-2b", "text_config.rope_scaling.rope_type", "yarn", "rope_type is 'yarn'"),
    ("qwen3-vl-2b", "text_config.rope_scaling", 3, "rope_scaling must be an object"),
    ("qwen3-vl-2b", "vision_config.num_position_embeddings", 2305, "num_position_embeddings = 2305 is not the square"),
    ("qwen3-vl-2b", "vision_config.deepstack_visual_indexes", [5, 5, 7], "must be different blocks"),
    ("qwen3-vl-2b", "vision_config.deepstack_visual_indexes", [5, 24], "must be different blocks below depth 24"),
    ("qwen3-vl-2b", "vision_config.out_hidden_size", 4096, "out_hidden_size = 4096 differs"),
    ("qwen3-vl-2b", "vision_config.patch_size", [16, 14], "patch_size must be square"),
    ("qwen3-vl-2b", "vision_config.num_heads", 3, "num_heads = 3 must divide"),
    ("qwen3-vl-2b", "tie_word_embeddings", "yes", "tie_word_embeddings must be true or false"),
    ("qwen3-vl-2b", "eos_token_id", [1, "x"], "eos_token_id must be a list of whole numbers"),
    ("qwen2.5-vl-7b", "use_sliding_window", True, "use_sliding_window is true"),
    ("qwen2.5-vl-7b", "num_attention_heads", 24, "head_dim is missing"),
    ("qwen2.5-vl-7b", "head_dim", 64, "head_dim = 64 times 28 heads"),
    ("qwen2.5-vl-7b", "vision_config.window_size", 20, "window_size = 20 is smaller"),
    ("qwen2.5-vl-7b", "vision_config.fullatt_block_indexes", 7, "fullatt_block_indexes must be a list"),
    ("qwen2.5-vl-7b", "vision_config.in_chans", 4, "in_channels must be 3"),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), WRONG)
def test_wrong_values_are_named(name: str, key: str, value: Any, message: str) -> None:
    config = copy.deepcopy(model_config(name))
    *path, last = key.split(".")
    inner = config
    for part in path:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    with pytest.raises(CheckpointError) as error:
        parse(config)
    assert message in str(error.value)
    assert str(error.value).startswith("config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        (None, "model_type is missing"),
        ("qwen3_v", "did you mean qwen3_vl"),
        ("llama", "a language model.*known: .*qwen2_5_vl, .*qwen3_vl"),
        ("qwen3_moe", r"\(a language model\), which is not supported yet"),
        ("qwen3_vl_moe_text", r"\(a language model\)"),
        ("qwen3_omni_moe", "an audio and speech model"),
        ("qwen2_vl", "the Qwen2-VL architecture"),
        ("qwen4_exp", "hyper-connections"),
        ("gemma3", "a Gemma model"),
        ("internvl", "an InternVL model"),
        ("deepseek_vl_v2", "a DeepSeek model"),
        ("glm4v_moe", "a mixture of experts of another family"),
        ("llava_onevision", "a LLaVA model"),
        ("mllama", "another family"),
    ],
)
def test_unknown_families(model_type: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        families.find({"model_type": model_type})


json_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5000),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=3),
)


@given(st.sampled_from(sorted(SHAPES)), st.data())
def test_any_single_wrong_value_parses_or_is_a_checkpoint_error(name: str, data: st.DataObject) -> None:
    config = copy.deepcopy(model_config(name))
    section = data.draw(st.sampled_from([config, *(v for v in config.values() if isinstance(v, dict))]))
    key = data.draw(st.sampled_from([k for k in section if k != "model_type"]))
    section[key] = data.draw(json_values)
    try:
        parse(config)
    except CheckpointError as error:
        assert "\n" not in str(error)
