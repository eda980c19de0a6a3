"""Synthetic checkpoints: transformers loads them, seeds decide, failures leave nothing behind."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from gog_edge.errors import UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.synthetic.checkpoint import _tensors, make_checkpoint
from gog_edge.export.synthetic.configs import NAMES, TINY, first_special, model_config
from gog_edge.export.synthetic.text import SPECIALS
from gog_edge.shapes import SHAPES


def _digest(root: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.iterdir())}


@pytest.mark.parity
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("spelling", ["published", "v5"])
def test_transformers_loads_every_tensor(tmp_path: Path, name: str, spelling: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    root = make_checkpoint(name, tmp_path / "c", 3, "float32", shard_bytes=200_000, spelling=spelling)  # type: ignore[arg-type]
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        root, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    checkpoint = Checkpoint.open(root)
    state = model.state_dict()
    for weight in checkpoint.names():
        if not weight.startswith("mtp."):  # transformers leaves that head out
            np.testing.assert_array_equal(checkpoint.read(weight), state[weight].numpy())
    assert set(state) - checkpoint.names() == ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    with torch.no_grad():
        logits = model.eval()(torch.arange(30, 80)[None]).logits[0]
    assert torch.isfinite(logits).all()
    assert 1 < logits.std() < 10  # spread enough for greedy decoding to mean something


@pytest.mark.parity
@pytest.mark.parametrize("hidden", [256, 1024])
def test_logits_of_wide_tied_models_keep_their_spread(tmp_path: Path, hidden: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    overrides = {
        "text_config": {"hidden_size": hidden, "num_hidden_layers": 2},
        "vision_config": {"out_hidden_size": hidden},
    }
    root = make_checkpoint("tiny-qwen3-vl", tmp_path / "c", 3, "float32", overrides=overrides)
    model = transformers.AutoModelForImageTextToText.from_pretrained(root, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.arange(30, 80)[None]).logits[0]
    assert 3 < logits.std() < 6


@pytest.mark.parity
def test_transformers_reads_the_text_files(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    root = make_checkpoint("tiny-qwen3-vl", tmp_path / "c")
    tokenizer = transformers.AutoTokenizer.from_pretrained(root)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it? é 😀"}]},
        {"role": "assistant", "content": '<tool_call>\n{"name": "image_search"}\n</tool_call>'},
        {"role": "tool", "content": [{"type": "text", "text": "a dog"}, {"type": "image"}]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it? é 😀<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "image_search"}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\na dog<|vision_start|><|image_pad|><|vision_end|>\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids == Tokenizer.from_file(str(root / "tokenizer.json")).encode(text).ids
    assert ids.count(first_special(model_config("tiny-qwen3-vl")) + 12) == 2
    with_tools = tokenizer.apply_chat_template(messages, tools=[{"name": "t"}], tokenize=False)
    assert '<tools>\n{"name": "t"}\n</tools>' in with_tools
    assert transformers.AutoImageProcessor.from_pretrained(root, backend="pil").patch_size == 16


def test_special_tokens_are_where_the_configuration_says(tmp_path: Path) -> None:
    for name in TINY:
        root = make_checkpoint(name, tmp_path / name)
        config = json.loads((root / "config.json").read_text())
        tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
        for key, token in (
            ("image_token_id", "<|image_pad|>"),
            ("video_token_id", "<|video_pad|>"),
            ("vision_start_token_id", "<|vision_start|>"),
            ("vision_end_token_id", "<|vision_end|>"),
        ):
            assert tokenizer.token_to_id(token) == config[key]
        eos = json.loads((root / "generation_config.json").read_text())["eos_token_id"]
        assert [tokenizer.id_to_token(i) for i in eos] == ["<|im_end|>", "<|endoftext|>"]
        assert tokenizer.token_to_id(SPECIALS[-1][0]) < (config.get("text_config") or config)["vocab_size"]


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first = make_checkpoint("tiny-qwen2.5-vl", tmp_path / "a", 1, shard_bytes=100_000)
    again = make_checkpoint("tiny-qwen2.5-vl", tmp_path / "b", 1, shard_bytes=100_000)
    other = make_checkpoint("tiny-qwen2.5-vl", tmp_path / "c", 2, shard_bytes=100_000)
    assert _digest(first) == _digest(again)
    assert _digest(first) != _digest(other)
    one_file = make_checkpoint("tiny-qwen2.5-vl", tmp_path / "d", 1)
    a, d = Checkpoint.open(first), Checkpoint.open(one_file)
    assert a.names() == d.names()
    for name in a.names():  # values do not depend on the sharding
        np.testing.assert_array_equal(a.read(name), d.read(name))


def test_types_agree(tmp_path: Path) -> None:
    full = Checkpoint.open(make_checkpoint("tiny-qwen3-vl", tmp_path / "f", dtype="float32"))
    for dtype, tolerance in (("bfloat16", 2**-8), ("float16", 2**-10)):
        half = Checkpoint.open(make_checkpoint("tiny-qwen3-vl", tmp_path / dtype, dtype=dtype))
        for name in full.names():
            np.testing.assert_allclose(half.read(name), full.read(name), rtol=tolerance, atol=1e-6)


# Parameters in millions; the hub shows 2.13B, 4.44B, 8.77B, 33.4B, 3.75B, 8.29B and 33.5B for these checkpoints, and
# 0.87B, 2.27B, 4.66B, 9.65B and 27.8B for those of Qwen3.5, with the head that predicts several tokens. Those of
# mixtures of experts are what transformers' own models of these shapes have (next test).
PARAMETERS = {
    "qwen3-vl-2b": 2128,
    "qwen3-vl-4b": 4438,
    "qwen3-vl-8b": 8767,
    "qwen3-vl-32b": 33357,
    "qwen3-vl-30b-a3b": 31071,
    "qwen3-vl-235b-a22b": 235670,
    "qwen2.5-vl-3b": 3755,
    "qwen2.5-vl-7b": 8292,
    "qwen2.5-vl-32b": 33453,
    "qwen3.5-0.8b": 873,
    "qwen3.5-2b": 2274,
    "qwen3.5-4b": 4660,
    "qwen3.5-9b": 9653,
    "qwen3.5-27b": 27781,
    "qwen3.5-35b-a3b": 35952,
}


@pytest.mark.parametrize("name", SHAPES)
def test_full_sizes_have_the_published_parameter_counts(name: str) -> None:
    config = model_config(name)
    count = sum(math.prod(t.shape) for t in _tensors(config))
    assert round(count / 1e6) == PARAMETERS[name]


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_full_sizes_have_the_shapes_transformers_expects(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = model_config(name)
    made = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(made)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del expected["lm_head.weight"]
    assert {t.name: t.shape for t in _tensors(config, "v5") if not t.name.startswith("mtp.")} == expected


def test_overrides_and_progress(tmp_path: Path) -> None:
    seen = []
    root = make_checkpoint(
        "tiny-qwen3-vl",
        tmp_path / "c",
        overrides={"text_config": {"num_hidden_layers": 1}},
        progress=lambda done, total: seen.append((done, total)),
    )
    checkpoint = Checkpoint.open(root)
    assert not any("layers.1." in n for n in checkpoint.names())
    assert checkpoint.config["text_config"]["head_dim"] == 24
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)


def test_failures_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="did you mean qwen3-vl-2b"):
        make_checkpoint("qwen3vl-2b", tmp_path / "c")
    with pytest.raises(UsageError, match="dtype 'int8'"):
        make_checkpoint("tiny-qwen3-vl", tmp_path / "c", dtype="int8")
    make_checkpoint("tiny-qwen3-vl", tmp_path / "c")
    with pytest.raises(UsageError, match="exists already"):
        make_checkpoint("tiny-qwen3-vl", tmp_path / "c")

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_checkpoint("tiny-qwen3-vl", tmp_path / "d", progress=interrupt)

    class Full:
        free = 0

    monkeypatch.setattr("shutil.disk_usage", lambda path: Full)
    with pytest.raises(UsageError, match=r"needs 0\.0 GB"):
        make_checkpoint("tiny-qwen3-vl", tmp_path / "e")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]
    assert len(NAMES) == len(set(NAMES))
