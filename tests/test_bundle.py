"""The bundle: written in one step or not at all, and every damage is named when it is opened."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gog_edge.bundle import Bundle, BundleWriter
from gog_edge.errors import BundleError
from gog_edge.manifest import (
    DecoderSpec,
    EmbeddingSpec,
    GraphSpec,
    Manifest,
    Preprocessing,
    SpecialTokens,
    TensorSpec,
    VisionSpec,
)

MANIFEST = Manifest(
    format="gog-edge-bundle",
    format_version=3,
    name="test",
    family="qwen3_vl",
    backend="ort",
    precision="fp32",
    preprocessing=Preprocessing(16, 2, 2, 1024, 65536, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    vision=VisionSpec(depth=2, hidden=32, heads=2, head_dim=16, out_hidden=48),
    decoder=DecoderSpec(2, 48, 4, 2, 12, 300, 1e6, (2, 2, 2), True, 1024),
    embedding=EmbeddingSpec("embedding.bin", "int8", 300, 48),
    tokens=SpecialTokens(image_pad=5, vision_start=6, vision_end=7, eos=(2,)),
    graphs={
        "vision": GraphSpec("vision.onnx", (TensorSpec("patches", "float32", ("n", 768)),), (), ("vision.onnx.data",))
    },
)


def write(target: Path, content: bytes = b"graph") -> Bundle:
    with BundleWriter(target) as writer:
        (writer.root / "vision.onnx").write_bytes(content)
        (writer.root / "vision.onnx.data").write_bytes(b"weights")
        (writer.root / "embedding.bin").write_bytes(b"rows")
        return writer.commit(MANIFEST)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b")
    opened = Bundle.open(tmp_path / "b")
    assert dataclasses.replace(opened.manifest, files={}) == MANIFEST
    assert opened.fingerprint == bundle.fingerprint
    assert [name for name, _ in opened.verify()] == ["embedding.bin", "vision.onnx", "vision.onnx.data"]
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a"), write(tmp_path / "b", b"another graph")
    assert one.fingerprint != two.fingerprint
    assert one.vision_fingerprint != two.vision_fingerprint
    assert write(tmp_path / "c").fingerprint == one.fingerprint


def test_an_exception_leaves_the_old_bundle(tmp_path: Path) -> None:
    old = write(tmp_path / "b")
    with pytest.raises(ValueError, match="broken"), BundleWriter(tmp_path / "b") as writer:
        (writer.root / "vision.onnx").write_bytes(b"half")
        raise ValueError("broken")
    assert Bundle.open(tmp_path / "b").fingerprint == old.fingerprint
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is full; nothing was changed"), BundleWriter(tmp_path / "b"):
        raise OSError(28, "No space left on device")
    assert not (tmp_path / "b").exists()


def test_a_killed_export_leaves_the_old_bundle_and_its_rest_is_cleared(tmp_path: Path) -> None:
    old = write(tmp_path / "b")
    code = """
        import sys, time
        from gog_edge.bundle import BundleWriter
        with BundleWriter(sys.argv[1]) as writer:
            (writer.root / "vision.onnx").write_bytes(b"half")
            print("ready", flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "b")], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert Bundle.open(tmp_path / "b").fingerprint == old.fingerprint
    assert len(list(tmp_path.iterdir())) == 2
    write(tmp_path / "b", b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]
    assert Bundle.open(tmp_path / "b").fingerprint != old.fingerprint


def test_a_foreign_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        write(tmp_path / "photos")
    assert (tmp_path / "photos" / "me.jpg").exists()


def damage_truncate(root: Path) -> None:
    os.truncate(root / "vision.onnx.data", 3)


def damage_remove(root: Path) -> None:
    (root / "embedding.bin").unlink()


def damage_json(root: Path) -> None:
    text = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(text[: len(text) // 2])


def damage_version(root: Path) -> None:
    data = json.loads((root / "manifest.json").read_text())
    del data["seal"]
    (root / "manifest.json").write_text(json.dumps({**data, "format_version": 99}))


def damage_key(root: Path) -> None:
    data = json.loads((root / "manifest.json").read_text())
    del data["seal"]
    del data["decoder"]["heads"]
    (root / "manifest.json").write_text(json.dumps(data))


def damage_escape(root: Path) -> None:
    data = json.loads((root / "manifest.json").read_text())
    del data["seal"]
    data["files"]["../secret"] = {"sha256": "0", "size": 1}
    (root.parent / "secret").write_bytes(b"x")
    (root / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "has 3 bytes instead of 7"),
        (damage_remove, "lacks embedding.bin"),
        (damage_json, "can't be read"),
        (damage_version, "has bundle format 99, this gog-edge reads 3"),
        (damage_key, "manifest.decoder.heads: missing"),
        (damage_escape, "lies outside of the bundle"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path: Path, damage: object, message: str) -> None:
    write(tmp_path / "b")
    assert callable(damage)
    damage(tmp_path / "b")
    with pytest.raises(BundleError) as caught:
        Bundle.open(tmp_path / "b")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_found_by_the_hashes(tmp_path: Path) -> None:
    write(tmp_path / "b")
    (tmp_path / "b" / "vision.onnx.data").write_bytes(b"weightz")
    with pytest.raises(BundleError, match="differs from its manifest"):
        list(Bundle.open(tmp_path / "b").verify())


def test_a_checkpoint_gets_the_right_hint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="run: gog-edge export"):
        Bundle.open(tmp_path)


def test_bundles_of_format_2_are_read(tmp_path: Path) -> None:
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    data = {**json.loads(path.read_text("utf-8")), "format_version": 2}
    del data["seal"]
    path.write_text(json.dumps(data), "utf-8")
    assert Bundle.open(tmp_path / "b").manifest.format_version == 3


@pytest.mark.parametrize(
    ("target", "flavour", "domain", "backend"),
    [
        ("cpu", "ort", "com.microsoft", "ort"),
        ("cpu", "ort", "ai.gog_edge", "native"),
        ("cpu", "standard", "", "portable"),
        ("cuda", "ort", "com.microsoft", "cuda"),
        ("tensorrt-rtx", "standard", "", "tensorrt-rtx"),
    ],
)
def test_bundles_of_format_1_are_read(tmp_path: Path, target: str, flavour: str, domain: str, backend: str) -> None:
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    data = json.loads(path.read_text("utf-8"))
    del data["backend"], data["seal"]
    data |= {"format_version": 1, "target": target, "flavour": flavour}
    data["graphs"]["vision"]["domains"] = {domain: 1}
    path.write_text(json.dumps(data), "utf-8")
    assert Bundle.open(tmp_path / "b").manifest.backend == backend
