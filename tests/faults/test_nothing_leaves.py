"""Nothing leaves the device by itself: no name is looked up and nothing is written to the home folder.

The child runs in a network namespace of its own whose name server is ours, so that a look-up is seen and not guessed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Inside of the namespace: loopback up, our name server in resolv.conf, one child; prints how many questions came.
GUARD = """
import fcntl, socket, struct, subprocess, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as names:
    names.bind(("127.0.0.1", 53))
    names.settimeout(0.1)
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
    seen = 0
    while True:
        over = child.poll() is not None
        try:
            names.recv(4096)
            seen += 1
        except TimeoutError:
            if over:
                break
print(seen)
sys.exit(child.returncode)
"""
LOOK_UP = "import socket\ntry: socket.getaddrinfo('example.invalid', 80)\nexcept OSError: pass"
SESSION = """
import gog_edge.engines.ort.options, onnx, onnxruntime, time
from onnx import TensorProto as T, helper as h
value = h.make_tensor_value_info("x", T.FLOAT, [1]), h.make_tensor_value_info("y", T.FLOAT, [1])
graph = h.make_graph([h.make_node("Abs", ["x"], ["y"])], "g", [value[0]], [value[1]])
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
assert session.run(None, {"x": [-1.0]})[0] == 1
time.sleep(1)
"""


def guarded(code: str, home: Path, tmp_path: Path, **env: str) -> int:
    """How many names `code` looked up, run with `home` as HOME; skips where namespaces are not allowed."""
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    allowed = subprocess.run(
        ["unshare", "-n", "-m", "mount", "--bind", str(resolver), "/etc/resolv.conf"], capture_output=True, check=False
    )
    if allowed.returncode != 0:
        pytest.skip("network namespaces are not allowed here")
    # CI silences ONNX Runtime as well, and would hide what we look for
    quiet = ("CI", "ORT_", "HF_", "XDG_CACHE_HOME", "GITHUB_", "TF_BUILD")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(quiet)}
    script = f'mount --bind "{resolver}" /etc/resolv.conf && exec "$@"'
    command = ["unshare", "-n", "-m", "sh", "-c", script, "sh", sys.executable, "-c", GUARD, code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**kept, "HOME": str(home), **env}
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def written(home: Path) -> list[str]:
    return [str(p.relative_to(home)) for p in home.rglob("*")]


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_the_guard_sees_a_look_up(home: Path, tmp_path: Path) -> None:
    assert guarded(LOOK_UP, home, tmp_path) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_an_engine_writes_nothing_home_and_looks_nothing_up(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    assert guarded(SESSION, home, tmp_path) == 0
    assert written(home) == []


def test_who_sets_the_switch_keeps_it() -> None:
    code = "import gog_edge, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, seen in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        env = {k: v for k, v in os.environ.items() if not k.startswith("ORT_")} | given
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert done.stdout.strip() == seen
