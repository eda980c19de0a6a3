"""Any server that speaks the OpenAI chat protocol, llama.cpp's above all. Standard library only.

The conversation grows by messages, and the server finds by itself what its prompt cache already holds
(`cache_prompt`). llama.cpp's `timings` tell prompt and decoding apart; for other servers the first token that
arrives does. Only the address that the user gave is ever connected to, and no proxy is used.
"""

from __future__ import annotations

import base64
import http.client
import json
import random
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from .wire import Image, Part, TurnTimes, WorkerError, clock, serve, text_of


class OpenAi:
    """One conversation with one server."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.length = 0  # tokens of the conversation so far, by the server's count
        self.prompt_seconds = 0.0  # of the last turn, pictures included

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        self._aim(model, float(options.get("timeout", 600)))
        start = clock()
        self.native = self._native()
        self.model = options.get("model") or self._first_model()
        self.messages = []
        self._ask([{"role": "user", "content": f"{random.random()}"}], 1)
        seconds = clock() - start
        what = f"llama.cpp {self.native}" if self.native else "an OpenAI-compatible server"
        # a server that runs already was loaded by somebody else: its time is unknown
        return {"seconds": None, "ready": seconds, "about": f"{what}, model {self.model}"}

    def _aim(self, address: str, timeout: float) -> None:
        url = urlsplit(address)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise WorkerError("model", f"{address!r} is no address of a server: http://host:port/v1 is needed")
        self.url, self.base, self.timeout = url, url.path.rstrip("/"), timeout

    def ready(self, address: str) -> bool:
        """Whether a server answers there, and has loaded its model (llama.cpp says 503 until then)."""
        self._aim(address, 10.0)
        try:
            self._json("GET", "/health")
        except WorkerError:
            return False
        return True

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        content: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, Image):
                content.append({"type": "image_url", "image_url": {"url": self._data(part)}})
            else:
                length = self._count if self.native else None
                content.append({"type": "text", "text": text_of(part.count, part.seed, length)})
        messages = [*self.messages, {"role": "user", "content": content}]
        start = clock()
        reply = self._ask(messages, tokens)
        total = clock() - start
        self.messages = [*messages, {"role": "assistant", "content": reply.text}]
        new = max(reply.prompt - self.length, 0)
        self.length = reply.prompt + reply.generated
        stages = reply.stages(start)
        self.prompt_seconds = stages.get("prefill", 0.0)
        if any(isinstance(p, Image) for p in parts):
            stages.pop("prefill", None)  # it holds the encoding of the pictures
        return TurnTimes(total, stages, new, reply.generated, reply.computed)

    def reset(self) -> None:
        self.messages, self.length = [], 0

    def close(self) -> None:
        self.reset()

    def _ask(self, messages: list[dict[str, Any]], tokens: int) -> Reply:
        """One completion of exactly `tokens` tokens."""
        request = {
            "model": self.model,
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,  # llama.cpp, vLLM and SGLang know it
        }
        if self.native:
            request |= {"cache_prompt": True, "n_predict": tokens}
        reply = Reply()
        for event in self._stream(f"{self.base}/chat/completions", request):
            reply.take(event)
        if not reply.generated:
            raise WorkerError("unsupported", "the server reports no usage: tokens can't be counted")
        if reply.generated < tokens:
            raise WorkerError(
                "unsupported",
                f"the server ended its turn after {reply.generated} of {tokens} tokens: it does not honour ignore_eos",
            )
        return reply

    def _stream(self, path: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed reply (server-sent events: `data: …` lines)."""
        connection, response = self._send("POST", path, request)
        try:
            for raw in response:
                line = raw.decode("utf-8", "replace").strip()
                if line.startswith("error:"):
                    raise WorkerError("failed", f"the server says: {line[6:].strip()}")
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise WorkerError("failed", f"the server says: {_message(event)}")
                yield event
        except (OSError, http.client.HTTPException) as e:
            raise WorkerError("failed", f"the server broke off: {e}") from e
        finally:
            connection.close()

    def _send(self, method: str, path: str, body: Any = None) -> tuple[Any, Any]:
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.url.hostname or "", self.url.port, timeout=self.timeout)
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as e:
            connection.close()
            where = f"{self.url.scheme}://{self.url.netloc}"
            raise WorkerError("model", f"no server answers at {where} ({e}): start it first") from e
        if response.status != 200:
            text = response.read(4000).decode("utf-8", "replace")
            connection.close()
            raise WorkerError("failed", f"{method} {path} gave {response.status}: {_message(text)}")
        return connection, response

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        connection, response = self._send(method, path, body)
        try:
            return json.loads(response.read())
        finally:
            connection.close()

    def _native(self) -> str:
        """llama.cpp's build, or nothing where the server is another one."""
        try:
            properties = self._json("GET", "/props")
        except WorkerError as e:
            if e.kind == "model":
                raise
            return ""
        except ValueError:
            return ""
        return str(properties.get("build_info", "")) if isinstance(properties, dict) else ""

    def _first_model(self) -> str:
        models = self._json("GET", f"{self.base}/models").get("data") or []
        if not models:
            raise WorkerError("model", "the server lists no model")
        return str(models[0]["id"])

    def _count(self, text: str) -> int:
        return len(self._json("POST", "/tokenize", {"content": text})["tokens"])

    def _data(self, image: Image) -> str:
        """The pixels without loss. BMP costs llama.cpp nothing to decode; other servers may know PNG only."""
        kind, data = ("bmp", bmp(image)) if self.native else ("png", png(image))
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class Reply:
    """What a streamed completion has told so far."""

    def __init__(self) -> None:
        self.text = ""
        self.prompt = self.generated = self.computed = 0
        self.timings: dict[str, Any] = {}
        self.stamps: list[float] = []

    def take(self, event: dict[str, Any]) -> None:
        """One event."""
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            piece = (delta.get("content") or "") + (delta.get("reasoning_content") or "")
            if piece:
                self.stamps.append(clock())
                self.text += piece
        if usage := event.get("usage"):
            self.prompt, self.generated = usage["prompt_tokens"], usage["completion_tokens"]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
            if cached is not None:
                self.computed = self.prompt - cached
        if timings := event.get("timings"):
            self.timings = timings
            self.computed = timings["prompt_n"]
            self.prompt = timings["prompt_n"] + timings.get("cache_n", self.prompt - timings["prompt_n"])
            self.generated = timings["predicted_n"]

    def stages(self, start: float) -> dict[str, float]:
        """Seconds by stage; the prompt's hold the encoding of its pictures."""
        if self.timings:
            prompt, decode = self.timings["prompt_ms"] / 1e3, self.timings["predicted_ms"] / 1e3
        elif self.stamps:
            prompt, decode = self.stamps[0] - start, self.stamps[-1] - self.stamps[0]
        else:
            return {}
        return {"prefill": prompt, "decode": decode} if self.generated > 1 else {"prefill": prompt}


def bmp(image: Image) -> bytes:
    """The pixels as an uncompressed 24-bit BMP: rows from the bottom up, blue first, padded to four bytes."""
    row = image.width * 3
    pad = b"\0" * (-row % 4)
    data = bytearray(image.data)
    data[0::3], data[2::3] = image.data[2::3], image.data[0::3]
    body = b"".join(bytes(data[y * row : (y + 1) * row]) + pad for y in reversed(range(image.height)))
    info = struct.pack("<IiiHHIIiiII", 40, image.width, image.height, 1, 24, 0, len(body), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + info + body


def png(image: Image) -> bytes:
    """The pixels as a PNG, hardly compressed."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = image.width * 3
    raw = b"".join(b"\0" + image.data[y * row : (y + 1) * row] for y in range(image.height))
    head = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")


def _message(answer: Any) -> str:
    """A server's own words about what is wrong."""
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except ValueError:
            return " ".join(answer.split())[:300]
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]


def main() -> None:
    """Serve."""
    serve(OpenAi())
