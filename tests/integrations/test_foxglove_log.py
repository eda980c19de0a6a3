"""`--mcap`: files are read back with MCAP's own reader, and `--foxglove`: a client of its WebSocket hears the same."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("foxglove", reason="needs the extra foxglove")

from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory
from PIL import Image

from gog_edge.cli.common.timelines import open_logs
from gog_edge.cli.main import run
from gog_edge.errors import UsageError
from gog_edge.image.frame import Frame
from gog_edge.types import BoxEvent, Region, TokenEvent
from tests.cli.asking import ANSWER, GAZE, TEXT, Play, ask
from tests.cli.conftest import play, site
from tests.cli.test_watch import film
from tests.search.server import WebServer

__all__ = ["film", "play", "site"]  # fixtures

SCHEMAS = {
    "/pictures/0": "foxglove.CompressedImage",
    "/pictures/0/crop": "foxglove.CompressedImage",
    "/pictures/0/boxes": "foxglove.ImageAnnotations",
    "/tokens": "foxglove.Log",
    "/steps": "foxglove.Log",
    "/answer": "gog_edge.Answer",
    "/timings": "gog_edge.Timings",
}


def read(path: Path) -> dict[str, list[tuple[int, Any]]]:
    """Topic to what was logged to it, with its log time; schemas are those that Foxglove knows."""
    found: dict[str, list[tuple[int, Any]]] = {}
    decoders = DecoderFactory()
    with path.open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        assert summary is not None
        schemas = {c.topic: summary.schemas[c.schema_id] for c in summary.channels.values()}
        assert {topic: schema.name for topic, schema in schemas.items()}.items() <= SCHEMAS.items()
        for schema, channel, message in reader.iter_messages():
            assert schema is not None
            if channel.message_encoding == "json":
                assert schema.encoding == "jsonschema" and json.loads(schema.data)["type"] == "object"
                content: Any = json.loads(message.data)
            else:
                assert (channel.message_encoding, schema.encoding) == ("protobuf", "protobuf")
                decode = decoders.decoder_for(channel.message_encoding, schema)
                assert decode is not None
                content = decode(message.data)
            found.setdefault(channel.topic, []).append((message.log_time, content))
    return found


def picture(message: Any) -> Image.Image:
    assert message.format == "jpeg"
    return Image.open(io.BytesIO(message.data))


def boxes(message: Any) -> list[list[tuple[float, float]]]:
    assert all(one.type == 2 for one in message.points)  # LINE_LOOP in foxglove.PointsAnnotation
    return [[(p.x, p.y) for p in one.points] for one in message.points]


BOX = [(0, 0), (80, 0), (80, 60), (0, 60)]


def test_a_question_is_a_file(tiny_bundle: Path, photo: Path, play: Play, site: WebServer, tmp_path: Path) -> None:
    play([GAZE, TEXT, ANSWER])
    out = tmp_path / "out.mcap"
    out.write_bytes(b"what was there before")
    assert ask(tiny_bundle, photo, "--search", "search.toml", "--mcap", str(out)) == 0
    found = read(out)
    assert set(found) == set(SCHEMAS)
    [(began, shown)] = found["/pictures/0"]
    assert picture(shown).size == (160, 120) and shown.frame_id == "pictures/0"
    drawn = [message for _, message in found["/pictures/0/boxes"]]
    assert all(boxes(one) == [BOX] for one in drawn)
    assert [text.text for text in drawn[-1].texts] == ["1 x"]
    [(_, crop)] = found["/pictures/0/crop"]
    assert picture(crop).size == (80, 60)
    assert "".join(m.message for _, m in found["/tokens"]).count("crop_search") == 1
    steps = [m.message for _, m in found["/steps"]]
    assert steps[0] == "question: When was it finished?"
    assert "1 gaze x [0, 0, 80, 60]" in steps and "1. Iron tower: Finished in 1889." in steps
    [(ended, answer)] = found["/answer"]
    assert (answer["text"], answer["stop"]) == ("1889", "answered")
    assert answer["evidence"][0]["title"] == "Iron tower" and "frame" not in answer
    [(_, spent)] = found["/timings"]
    assert len(spent["steps"]) == 3 and 0 < sum(spent["steps"]) <= spent["seconds"] <= (ended - began) / 1e9 + 1
    times = [time for rows in found.values() for time, _ in rows]
    assert min(times) == began and max(times) == ended
    assert all(a <= b for rows in found.values() for (a, _), (b, _) in pairwise(rows))


def test_a_film_is_a_file(film: Path, tiny_bundle: Path, play: Play, tmp_path: Path) -> None:
    play([GAZE, ANSWER])
    out = tmp_path / "film.mcap"
    words = ["watch", str(film), "When was it finished?", "--bundle", str(tiny_bundle), "--every", "--no-index"]
    assert run([*words, "--count", "3", "--mcap", str(out)]) == 0
    found = read(out)
    shown = found["/pictures/0"]
    assert [round(float(np.asarray(picture(m)).mean()), -1) for _, m in shown] == [0, 60, 120]
    assert [m["frame"] for _, m in found["/answer"]] == [0, 1, 2]
    taken = [m.timestamp.ToNanoseconds() for _, m in shown]
    assert taken == sorted(taken) and all(stamp <= time for stamp, (time, _) in zip(taken, shown))
    drawn = [m for _, m in found["/pictures/0/boxes"]]
    # each picture's own, and between them none: the boxes of the picture before are taken away
    assert [len(m.points) for m in drawn].count(0) == 2
    assert all(m["taken_to_answer"] > 0 for _, m in found["/timings"])


def test_a_viewer_hears_it_live() -> None:
    """A client of Foxglove's protocol: it subscribes to every topic and takes what comes."""
    connect = pytest.importorskip("websockets.asyncio.client", reason="needs websockets").connect
    heard: dict[str, list[bytes]] = {}

    async def listen(port: int, ready: threading.Event) -> None:
        async with connect(f"ws://127.0.0.1:{port}", subprotocols=["foxglove.sdk.v1"]) as socket:
            ready.set()
            topics: dict[int, str] = {}
            while "/tokens" not in heard or "/pictures/0/boxes" not in heard:
                message = await asyncio.wait_for(socket.recv(), 30)
                if isinstance(message, bytes):
                    kind, subscription, _ = struct.unpack_from("<BIQ", message)
                    if kind == 1:
                        heard.setdefault(topics[subscription], []).append(message[13:])
                    continue
                said = json.loads(message)
                if said["op"] == "advertise":
                    new = {channel["id"]: channel["topic"] for channel in said["channels"]}
                    topics.update(new)
                    wanted = [{"id": number, "channelId": number} for number in new]
                    await socket.send(json.dumps({"op": "subscribe", "subscriptions": wanted}))

    with open_logs(None, None, "0") as logs:
        [log] = logs._logs
        ready = threading.Event()
        port = log.port  # type: ignore[attr-defined]
        thread = threading.Thread(target=lambda: asyncio.run(listen(port, ready)))
        thread.start()
        assert ready.wait(30)
        frame = Frame(np.zeros((48, 64, 3), np.uint8))
        for number in range(200):  # a topic is announced with its first message; who asks for it gets the next ones
            logs.asked([frame], "q")
            events = [BoxEvent(0, Region(0, 0, 5 + number / 8, 8), 0), TokenEvent(0, f"word {number}")]
            list(logs.shown(iter(events)))
            thread.join(0.1)
            if not thread.is_alive():
                break
    assert {"/tokens", "/pictures/0/boxes"} <= set(heard)


def test_what_cannot_be_logged_to_is_one_line(
    tiny_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target, message in (("gone/a.mcap", "No such file or directory"), ("a.txt", "ends in .mcap")):
        assert ask(tiny_bundle, photo, "--mcap", str(tmp_path / target)) == 2
        err = capsys.readouterr().err.splitlines()
        assert err[-1].startswith("gog-edge: --mcap") and message in err[-1], err
        assert "Errno" not in err[-1] and err[-1].count(target) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["", "x", "127.0.0.1", "ws://127.0.0.1:8765", "70000", "-1", "1:2:"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match=r"--foxglove .* is no port"), open_logs(None, None, address):
        pass


def test_a_port_that_is_taken() -> None:
    with (
        open_logs(None, None, "0") as logs,
        pytest.raises(UsageError, match=r"--foxglove 127\.0\.0\.1:\d+: "),
        open_logs(None, None, str(logs._logs[0].port)),  # type: ignore[attr-defined]
    ):
        pass
