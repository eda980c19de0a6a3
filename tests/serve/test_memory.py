"""What small requests may cost a running server: nine of them whose images claim 88 million pixels in a few bytes."""

from __future__ import annotations

import base64
import json
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from tests.image.test_memory import small_webp
from tests.serve.test_command import healthy, served


def ask(port: int, width: int) -> str:
    image = base64.b64encode(small_webp(width, 5_500)).decode()
    body = json.dumps({"image": image, "question": "What is this?"}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/ask", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=120)
    assert refused.value.code == 400
    return str(json.loads(refused.value.read())["error"])


@pytest.mark.skipif(sys.platform != "linux", reason="this system has no VmHWM")
def test_small_requests_do_not_take_gigabytes(tiny_bundle: Path) -> None:
    with served(tiny_bundle) as (process, port):
        assert healthy(port) == tiny_bundle.name

        def peak() -> int:
            status = Path(f"/proc/{process.pid}/status").read_text("ascii")
            return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) << 10

        before = peak()
        with ThreadPoolExecutor(9) as pool:
            said = list(pool.map(lambda n: ask(port, 16_000 - n), range(9)))
        assert all("of memory, 1024 are allowed" in line for line in said)
        assert peak() < before + (100 << 20)  # 5.2 GB when they were decoded
