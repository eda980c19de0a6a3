"""`convert_gguf.py SCRIPT ARGUMENT…`: llama.cpp's own convert_hf_to_gguf.py, for vocabularies that it has no name for.

It identifies a pre-tokenizer by a hash of its output for a text. Synthetic checkpoints, and fine-tuned ones with more
tokens, give another hash, though both families of ours split text as "qwen2" does: an unknown one is taken for that.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

PRE_TOKENIZER = "qwen2"


def main() -> None:
    """Run the script with its own arguments."""
    script = Path(sys.argv[1]).resolve()
    sys.argv = sys.argv[1:]
    sys.path[:1] = [str(script.parent / "gguf-py"), str(script.parent)]
    try:
        model: Any = importlib.import_module("conversion.base").TextModel
    except ImportError:
        print("this llama.cpp keeps its converter elsewhere: it runs as it is", file=sys.stderr)
    else:
        known = model.get_vocab_base_pre

        def pre_tokenizer(self: Any, tokenizer: Any) -> Any:
            try:
                return known(self, tokenizer)
            except NotImplementedError:
                print(f"unknown pre-tokenizer: taken for {PRE_TOKENIZER}", file=sys.stderr)
                return PRE_TOKENIZER

        model.get_vocab_base_pre = pre_tokenizer
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
