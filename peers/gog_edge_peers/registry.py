"""The peers that the suite knows: what each needs, and how `--compare` names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from gog_edge.errors import UsageError


@dataclass(frozen=True)
class Peer:
    """One program to compare with.

    `worker`: module in `workers`. `packages`: what its environment needs to run; `converter`: and to convert.
    `variants`: options of the worker by what follows the colon in its name. `served`: runs in a server; its model
    is the address of one that the user started. `starter`: module that starts the server itself, on a folder.
    `checkpoint`: reads a checkpoint folder as it is.
    """

    name: str
    about: str
    worker: str
    packages: tuple[str, ...] = ()
    converter: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    served: bool = False
    starter: str = ""
    checkpoint: bool = False


_CONVERT_TORCH = ("torch>=2.6", "transformers>=4.57", "safetensors")
PEERS: dict[str, Peer] = {
    p.name: p
    for p in (
        Peer(
            "transformers",
            "the reference: the checkpoint in its own precision, past_key_values kept",
            "run_transformers",
            ("torch>=2.6", "torchvision", "transformers>=5.0", "pillow", "accelerate"),
            checkpoint=True,
        ),
        Peer(
            "openvino-genai",
            "VLMPipeline in chat mode; openvino-genai:sdpa for the other attention backend",
            "run_openvino_genai",
            ("openvino-genai>=2025.4", "numpy"),
            # its exporter of these families refuses transformers above 5.0
            ("optimum-intel[openvino]>=1.27", "transformers>=4.57,<5.1", "nncf", "torchvision"),
            {"": {}, "pa": {"backend": "PA"}, "sdpa": {"backend": "SDPA"}},
        ),
        Peer(
            "onnxruntime-genai",
            "the decoder only: scenarios with pictures stay blank",
            "run_onnxruntime_genai",
            ("onnxruntime-genai>=0.10", "numpy"),
            (*_CONVERT_TORCH, "onnx", "onnx-ir", "tqdm"),
        ),
        Peer(
            "llama.cpp",
            "llama-server, started on a folder of GGUF files; llama.cpp:http://127.0.0.1:8080/v1 runs already",
            "run_openai",
            converter=(*_CONVERT_TORCH, "gguf", "sentencepiece"),
            served=True,
            starter="run_llama_cpp",
        ),
        Peer("openai", "any OpenAI-compatible server: openai:http://host:port/v1[,model=M]", "run_openai", served=True),
    )
}


@dataclass(frozen=True)
class Wanted:
    """A peer as asked for. `label`: its subject name in the report; `model`: folder or address, if given with it."""

    peer: Peer
    label: str
    options: Mapping[str, Any]
    model: str = ""


def find(name: str) -> Peer:
    """The peer of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PEERS:
        raise UsageError(f"there is no peer {name!r}: one of {', '.join(PEERS)}")
    return PEERS[name]


def parse(text: str) -> list[Wanted]:
    """`openvino-genai:sdpa,openai:http://host:8000/v1,model=NAME` as a list; `model=` belongs to the address before it.

    Raises:
        UsageError: an unknown peer or variant, an invalid address, or a peer named twice.
    """
    wanted: list[Wanted] = []
    for piece in filter(None, (p.strip() for p in text.split(","))):
        if piece.startswith("model="):
            if not wanted or not wanted[-1].peer.served:
                raise UsageError(f"{piece!r} follows no address: openai:http://host:port/v1,model=NAME")
            last = wanted.pop()
            wanted.append(Wanted(last.peer, last.label, {**last.options, "model": piece[6:]}, last.model))
            continue
        wanted.append(_one(piece))
    if not wanted:
        raise UsageError("--compare names no peer: see gog-edge bench peers list")
    labels = [w.label for w in wanted]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"--compare names {label} twice")
    return wanted


def _one(piece: str) -> Wanted:
    name, _, detail = piece.partition(":")
    peer = find(name)
    if peer.served:
        if detail:
            check_address(detail)
        return Wanted(peer, _served_label(peer, detail), {}, detail)
    if detail not in peer.variants and detail:
        known = ", ".join(f"{name}:{v}" for v in peer.variants if v) or "none"
        raise UsageError(f"peer {name} has no variant {detail!r} (known: {known})")
    return Wanted(peer, piece, dict(peer.variants.get(detail, {})))


def _served_label(peer: Peer, address: str) -> str:
    """llama.cpp by its name, others with host and port: there may be several."""
    return peer.name if peer.name == "llama.cpp" or not address else f"{peer.name}:{urlsplit(address).netloc}"


def check_address(text: str) -> None:
    """Refuse what is not an http address.

    Raises:
        UsageError: it is not one, or it contains a password.
    """
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"{text!r} is no address of a server: http://host:port/v1 is needed")
    if url.username or url.password:
        raise UsageError("an address must not carry a name or password: it would end up in the report")
