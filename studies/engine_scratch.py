"""Working memory of TensorRT engines by sizes.

    python -m studies.engine_scratch SHAPE {vision,decoder}

Builds the tower or the decoder of a published shape with two layers and random weights for sm 89, with TensorRT-RTX and
without a GPU, and prints what its build log calls "Total Activation Memory".
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from gog_edge.engines.tensorrt.plan import import_library
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.export.synthetic.configs import model_config
from gog_edge.export.tensorrt.build import BuildOptions, build_graph
from gog_edge.shapes import SHAPES

Part = Literal["vision", "decoder"]
RUNS: dict[Part, tuple[BuildOptions, ...]] = {
    "vision": (BuildOptions(image_patches=16384), BuildOptions(image_patches=3072)),
    "decoder": (BuildOptions(), BuildOptions(capacity=8192), BuildOptions(chunk=128)),
}
_TEXT = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
         "rope_parameters", "rope_scaling", "rope_theta")  # fmt: skip


def narrowed(name: str, part: Part) -> tuple[str, dict[str, Any]]:
    """(a tiny shape, what to put over it): the part at its full width with two layers, the rest as small as it was."""
    old = SHAPES[name].family == "qwen2_5_vl"
    tiny = "tiny-qwen2.5-vl" if old else "tiny-qwen3-vl"
    full, small = model_config(name), model_config(tiny)
    if part == "vision":
        layers = {"fullatt_block_indexes": [1]} if old else {"deepstack_visual_indexes": [0, 1]}
        out = small["vision_config"]["out_hidden_size"]
        return tiny, {"vision_config": {**full["vision_config"], **layers, "depth": 2, "out_hidden_size": out}}
    text = full if old else full["text_config"]
    sizes = {key: text[key] for key in _TEXT if key in text} | {"num_hidden_layers": 2}
    return tiny, {
        "vision_config": {"out_hidden_size": text["hidden_size"]},
        **(sizes if old else {"text_config": sizes}),
    }


def main() -> None:
    """Print one line a build."""
    parser = argparse.ArgumentParser(prog="python -m studies.engine_scratch", description=__doc__)
    parser.add_argument("shape", choices=[n for n, s in SHAPES.items() if s.family in ("qwen2_5_vl", "qwen3_vl")])
    parser.add_argument("part", choices=get_args(Part))
    asked = parser.parse_args()
    name, part = asked.shape, cast(Part, asked.part)
    library = import_library("tensorrt-rtx")
    with tempfile.TemporaryDirectory() as folder:
        tiny, over = narrowed(name, part)
        checkpoint = make_checkpoint(tiny, Path(folder) / "c", overrides=over)
        bundle = export_bundle(checkpoint, Path(folder) / "b", ExportOptions(backend="tensorrt-rtx"))
        sight = bundle.manifest.preprocessing
        wide = replace(sight, max_pixels=sight.patch_size**2 * 16384)  # a tiny shape looks at small images only
        for options in RUNS[part]:
            spec = build_graph(
                library, bundle.root, replace(bundle.manifest, preprocessing=wide), part, ("89",), options
            )
            sizes = {"capacity": options.capacity, "chunk": options.chunk, "patches": options.image_patches}
            sys.stdout.write(f"{name} {part} {sizes}: {spec.report['scratch_bytes']}\n")


if __name__ == "__main__":
    main()
