"""Turning a checkpoint into what a peer reads, by the tool and the command that the peer's makers document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gog_edge.errors import BenchError
from gog_edge_peers import environment
from gog_edge_peers.environment import Show
from gog_edge_peers.registry import Peer

_CONVERT_GGUF = Path(__file__).parent / "workers" / "convert_gguf.py"


@dataclass(frozen=True)
class Job:
    """One conversion. `tools`: folder of a llama.cpp that the user built; `group`: weights that share a scale."""

    python: Path
    checkpoint: Path
    out: Path
    group: int = 0
    tools: Path | None = None


def prepare(peer: Peer, job: Job, show: Show) -> None:
    """Convert; the tool's own progress is passed through. Int4 weights, as the peers are compared.

    Raises:
        BenchError: nothing to convert, no environment, something is missing, or the tool failed.
    """
    if peer.name not in _COMMANDS:
        hint = "it reads the checkpoint folder itself" if peer.checkpoint else "its server has a model already"
        raise BenchError(f"{peer.name} needs no conversion: {hint}")
    if not (job.checkpoint / "config.json").is_file():
        raise BenchError(f"{job.checkpoint} is no checkpoint: it holds no config.json")
    if job.out.exists() and any(job.out.iterdir()):
        raise BenchError(f"{job.out} exists already and is not empty: choose another folder")
    if not job.python.is_file():
        raise BenchError(
            f"{peer.name} has no environment to convert in: gog-edge bench peers install {peer.name} --converter"
        )
    steps = _COMMANDS[peer.name](job)
    job.out.mkdir(parents=True, exist_ok=True)
    for step in steps:
        environment.run(step, show)


def openvino(job: Job) -> list[list[str]]:
    """optimum-intel, weights of the language model in int4 (huggingface.co/docs/optimum/intel/openvino/export)."""
    command = environment.script(job.python, "optimum-cli")
    if not command.is_file():
        raise BenchError("optimum-cli is missing: gog-edge bench peers install openvino-genai --converter")
    options = ["--task", "image-text-to-text", "--weight-format", "int4", "--group-size", str(job.group or 128)]
    return [[str(command), "export", "openvino", "--model", str(job.checkpoint), *options, str(job.out)]]


def onnxruntime(job: Job) -> list[list[str]]:
    """onnxruntime-genai's model builder; accuracy level 4 lets the CPU multiply in int8 (its documentation)."""
    return [
        [
            str(job.python),
            "-m",
            "onnxruntime_genai.models.builder",
            *("-i", str(job.checkpoint), "-o", str(job.out), "-p", "int4", "-e", "cpu"),
            *("-c", str(job.out / ".cache")),
            *("--extra_options", "int4_accuracy_level=4", f"int4_block_size={job.group or 32}"),
        ]
    ]


def llama_cpp(job: Job) -> list[list[str]]:
    """llama.cpp's converter and quantiser: Q4_0 weights, the vision tower in f16 (its docs/multimodal.md)."""
    if job.tools is None:
        raise BenchError("llama.cpp's own tools are needed: give their folder with --llama-cpp DIR")
    convert = job.tools / "convert_hf_to_gguf.py"
    names = ("build/bin/llama-quantize", "bin/llama-quantize", "llama-quantize")
    quantise = next((job.tools / n for n in names if (job.tools / n).is_file()), None)
    if not convert.is_file() or quantise is None:
        missing = "convert_hf_to_gguf.py" if not convert.is_file() else "a built llama-quantize"
        raise BenchError(f"{job.tools} holds no {missing}: give the folder of a llama.cpp that was built there")
    whole, tower = job.out / "model-f16.gguf", job.out / "mmproj-f16.gguf"
    base = [str(job.python), str(_CONVERT_GGUF), str(convert), str(job.checkpoint), "--outtype", "f16"]
    return [
        [*base, "--outfile", str(whole)],
        [*base, "--mmproj", "--outfile", str(tower)],
        [str(quantise), str(whole), str(job.out / "model-q4_0.gguf"), "Q4_0"],
    ]


_COMMANDS: dict[str, Callable[[Job], list[list[str]]]] = {
    "openvino-genai": openvino,
    "onnxruntime-genai": onnxruntime,
    "llama.cpp": llama_cpp,
}


def after(peer: Peer, out: Path) -> str:
    """What to do with the result, in one line."""
    more = " --peer-program llama.cpp=PATH-OF-LLAMA-SERVER" if peer.starter else ""
    return f"gog-edge bench agent --compare {peer.name} --peer-model {peer.name}={out}{more}"
