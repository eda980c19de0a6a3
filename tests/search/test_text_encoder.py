"""A sentence encoder for passages: a hand-made graph that looks vectors up, and a tokenizer of a few words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from gog_edge.errors import EngineError, UsageError
from gog_edge.search.config import load_providers
from gog_edge.search.passages import best_passages
from gog_edge.search.text_encoder import OnnxTextEncoder

WORDS = ["[UNK]", "cat", "feline", "dog", "sleeps", "where", "is", "the", "a"]
#         animals alike: cat and feline share a direction
TABLE = np.array([[0, 0, 1], [1, 0, 0], [1, 0.1, 0], [0, 1, 0], *([[0, 0, 0.1]] * 5)], np.float32)


def make(folder: Path, *, inputs: tuple[str, ...] = ("input_ids", "attention_mask")) -> Path:
    """model.onnx and tokenizer.json in `folder`."""
    folder.mkdir(exist_ok=True)
    nodes = [helper.make_node("Gather", ["table", inputs[0]], ["y"])]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"]) for n in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "s", 3])],
        [numpy_helper.from_array(TABLE, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, str(folder / "model.onnx"))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "model.onnx"


def test_vectors_are_masked_means_whatever_the_batch(tmp_path: Path) -> None:
    encoder = OnnxTextEncoder(make(tmp_path / "m"))
    texts = ["cat", "cat dog", "", "dog " * 50, "the cat"] * 20
    vectors = encoder.embed_texts(texts)
    assert vectors.shape == (100, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(vectors[0], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(vectors[1], [2**-0.5, 2**-0.5, 0], atol=1e-6)
    np.testing.assert_allclose(vectors[:5], vectors[95:], atol=1e-6)


def test_meaning_finds_what_words_do_not(tmp_path: Path) -> None:
    encoder = OnnxTextEncoder(make(tmp_path / "m"))
    text = "\n".join(["the dog sleeps " * 12, "a feline sleeps " * 12, "the dog is a dog " * 12])
    query = "where is the cat"
    assert "feline" not in best_passages(text, query, chars=200)
    assert "feline" in best_passages(text, query, chars=200, embedder=encoder)


def test_wrong_encoders_end_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        OnnxTextEncoder(tmp_path / "none.onnx")
    path = make(tmp_path / "m", inputs=("pixel_values", "other"))
    with pytest.raises(EngineError, match="pixel_values"):
        OnnxTextEncoder(path)
    path.write_bytes(b"garbage")
    with pytest.raises(EngineError, match="can't be loaded"):
        OnnxTextEncoder(path)
    config = tmp_path / "s.toml"
    config.write_text(
        "[[provider]]\npreset = 'serper'\nread = 1\nembedder = 'm/model.onnx'\n[[provider]]\nkind = 'fetch'"
    )
    with pytest.raises(UsageError, match="embedder"):
        load_providers(config)
    make(tmp_path / "m")
    assert len(load_providers(config)) == 2
