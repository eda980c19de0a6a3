"""Manifests, dialects, tokenizers and templates of bundles: values changed, and every hash made to fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from gog_edge.bundle import MANIFEST, Bundle, hash_file
from gog_edge.errors import GogEdgeError
from tests.faults.harness.core import Area, Attempt, one_line
from tests.faults.harness.mutate import mutated, mutated_text
from tests.faults.harness.policy import load, own_cache, photo, tiny


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    own_cache(folder)
    bundle = tiny(folder)
    manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
    del manifest["seal"]
    texts = {n: (bundle / n).read_bytes() for n in manifest["files"] if n.endswith((".json", ".jinja", ".toml"))}
    picture = photo()

    def put(name: str, data: bytes) -> None:
        fresh = folder / "fresh"
        fresh.write_bytes(data)
        fresh.replace(bundle / name)

    def attempt(rng: Random, number: int) -> str:
        data = json.loads(json.dumps(manifest))
        name = MANIFEST if number % 2 == 0 or not texts else rng.choice(sorted(texts))
        if name == MANIFEST:
            files = data.pop("files")
            _, data = mutated(data, rng)
            if isinstance(data, dict):
                data["files"] = files
        else:
            put(name, _changed(texts[name], name, rng))
            digest = hash_file(bundle / name)
            data["files"][name] = {"sha256": digest.sha256, "size": digest.size}
        put(MANIFEST, json.dumps(data).encode("utf-8", "surrogatepass"))
        try:
            try:
                list(Bundle.open(bundle).verify())
                agent = load(bundle, folder / "policy")
            except GogEdgeError as e:
                return one_line(e)
            with agent:
                try:
                    agent.ask(picture, "what is it?")
                except GogEdgeError as e:
                    return f"{one_line(e)} when asked"
        finally:
            if name in texts:
                put(name, texts[name])
        return "an answer"

    yield attempt


def _changed(data: bytes, name: str, rng: Random) -> bytes:
    text = data.decode()
    if name.endswith(".json") and rng.random() < 0.7:
        value: Any = json.loads(text)
        return json.dumps(mutated(value, rng)[1]).encode()
    return mutated_text(text, rng)[1].encode("utf-8", "surrogatepass")


AREA = Area("manifests", "one line at load or when asked, or an answer", _open)
