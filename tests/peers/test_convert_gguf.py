"""The wrapper round llama.cpp's converter: an unknown pre-tokenizer is taken for qwen2's, a known one is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gog_edge_peers import workers

WRAPPER = Path(workers.__file__).parent / "convert_gguf.py"
BASE = """
class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        if tokenizer == "known":
            return "llama-bpe"
        raise NotImplementedError("BPE pre-tokenizer was not recognized")
"""
SCRIPT = """
import sys
from conversion.base import TextModel
print(sys.argv[1], TextModel().get_vocab_base_pre(sys.argv[2]))
"""


@pytest.mark.parametrize(("vocabulary", "name"), [("known", "llama-bpe"), ("synthetic", "qwen2")])
def test_unknown_vocabularies_are_split_as_qwen2_does(tmp_path: Path, vocabulary: str, name: str) -> None:
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion/__init__.py").touch()
    (tmp_path / "conversion/base.py").write_text(BASE)
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, WRAPPER, script, "ckpt", vocabulary], capture_output=True, text=True)
    assert done.stdout.split() == ["ckpt", name], done.stderr


def test_an_older_converter_runs_as_it_is(tmp_path: Path) -> None:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("import sys; print(sys.argv[1])")
    done = subprocess.run([sys.executable, WRAPPER, script, "ckpt"], capture_output=True, text=True)
    assert done.stdout.split() == ["ckpt"] and "as it is" in done.stderr
