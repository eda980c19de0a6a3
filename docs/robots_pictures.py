"""Draws the pictures of docs/robots.md from what the integrations really put out, about the demo's question.

python docs/robots_pictures.py [foxglove] [rerun] [ros2] [opencv]

foxglove, rerun: read back from a file that `gog-edge ask` logged to. ros2: the topic annotated of the node (`make ros2`
first). opencv: a frame of the video of examples/opencv_camera.py. The demo's bundle is needed: `gog-edge demo`.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SCENE = ROOT / "models" / "gog-nano" / "examples" / "scene.jpg"
QUESTION = "What is the capital of the country of the second flag from the left?"
NODE = ROOT / "integrations" / "ros2" / "gog_edge_ros2"


@dataclass
class Read:
    """What a file held. Boxes are x0, y0, x1, y1; steps have seconds since the first."""

    picture: Image.Image | None = None
    crop: Image.Image | None = None
    boxes: list[tuple[tuple[float, ...], str, tuple[int, ...]]] = field(default_factory=list)
    steps: list[tuple[float, str]] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    answer: str = ""


def main() -> None:
    for name in sys.argv[1:] or ["foxglove", "rerun", "ros2", "opencv"]:
        picture = {"foxglove": foxglove, "rerun": rerun, "ros2": ros2, "opencv": opencv}[name]()
        picture.convert("RGB").save(IMAGES / f"{name}.jpg", quality=85, optimize=True)
        print(IMAGES / f"{name}.jpg")


def index() -> Path:
    from gog_edge import library

    return library.directory() / ".demo" / "world.index"


def asked(option: str, path: Path) -> None:
    command = [sys.executable, "-m", "gog_edge", "ask", str(SCENE), QUESTION, "--bundle", "gog-nano", "--quiet"]
    subprocess.run([*command, "--index", str(index()), option, str(path)], check=True)


def foxglove() -> Image.Image:
    from mcap.reader import make_reader
    from mcap_protobuf.decoder import DecoderFactory

    found, began = Read(), None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.mcap"
        asked("--mcap", path)
        with path.open("rb") as file:
            decoders = DecoderFactory()
            for schema, channel, message in make_reader(file).iter_messages():
                began = began or message.log_time
                if channel.message_encoding == "json":
                    said = json.loads(message.data)
                    found.answer = said.get("text", found.answer)
                    found.spent = said.get("steps", found.spent)
                    continue
                decode = decoders.decoder_for(channel.message_encoding, schema)
                assert decode is not None
                content: Any = decode(message.data)
                if channel.topic == "/pictures/0":
                    found.picture = Image.open(io.BytesIO(content.data))
                elif channel.topic == "/pictures/0/crop":
                    found.crop = Image.open(io.BytesIO(content.data))
                elif channel.topic == "/pictures/0/boxes":
                    found.boxes = [_box(loop, text) for loop, text in zip(content.points, content.texts)]
                elif channel.topic == "/steps":
                    found.steps.append(((message.log_time - began) / 1e9, content.message))
    return drawn(found)


def _box(loop: Any, text: Any) -> tuple[tuple[float, ...], str, tuple[int, ...]]:
    colour = tuple(round(255 * getattr(loop.outline_color, c)) for c in "rgb")
    return (loop.points[0].x, loop.points[0].y, loop.points[2].x, loop.points[2].y), text.text, colour


def rerun() -> Image.Image:
    from rerun.chunk import RrdReader

    found = Read()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.rrd"
        asked("--rerun", path)
        for chunk in RrdReader(path).stream().to_chunks():
            batch = chunk.to_record_batch()
            columns = {n: batch.column(n) for n in batch.schema.names}
            for i in range(batch.num_rows):
                row = {n: column[i].as_py() for n, column in columns.items() if n not in ("time", "log_time")}
                at = batch.column("time").cast("int64")[i].as_py() / 1e9 if "time" in columns else 0.0
                _take(found, chunk.entity_path, row, at)
    found.steps.sort(key=lambda step: step[0])
    return drawn(found)


def _take(found: Read, entity: str, row: dict[str, Any], at: float) -> None:
    if blob := row.get("EncodedImage:blob"):
        picture = Image.open(io.BytesIO(bytes(blob[0])))
        if entity == "/pictures/0":
            found.picture = picture
        else:
            found.crop = picture
    if centres := row.get("Boxes2D:centers"):
        halves, labels, colours = row["Boxes2D:half_sizes"], row["Boxes2D:labels"], row["Boxes2D:colors"]
        corners = [(x - w, y - h, x + w, y + h) for (x, y), (w, h) in zip(centres, halves)]
        found.boxes = [(c, text, tuple(v.to_bytes(4, "big")[:3])) for c, text, v in zip(corners, labels, colours)]
    if entity == "/steps" and row.get("TextLog:text"):
        found.steps.append((at, row["TextLog:text"][0]))
    if row.get("TextDocument:text"):
        found.answer = row["TextDocument:text"][0].partition("\n")[0]


def drawn(found: Read) -> Image.Image:
    """The picture with its boxes, the crop, the steps with their times, and the answer."""
    assert found.picture is not None
    font, small, width = ImageFont.load_default(15), ImageFont.load_default(13), 980
    picture = found.picture.convert("RGB")
    scale = 560 / picture.width
    picture = picture.resize((560, round(picture.height * scale)), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    for box, text, colour in found.boxes:
        x0, y0, x1, y1 = (v * scale for v in box)
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=3)
        draw.rectangle((x0, y0 - 20, x0 + draw.textlength(text, font=font) + 8, y0), fill=colour)
        draw.text((x0 + 4, y0 - 19), text, fill="white", font=font)
    height = max(picture.height, 300) + 40 + 20 * len(found.steps)
    page = Image.new("RGB", (width, height), "white")
    page.paste(picture, (12, 12))
    draw = ImageDraw.Draw(page)
    if found.crop is not None:
        crop = found.crop.convert("RGB")
        crop.thumbnail((width - 610, 220))
        page.paste(crop, (592, 12))
    draw.text((592, 244), f"answer: {found.answer}", fill="#1f2933", font=ImageFont.load_default(20))
    left = 592
    for number, seconds in enumerate(found.spent):  # a bar a step
        wide = max(2, round((width - 610) * seconds / sum(found.spent)))
        colour = ("#e8590c", "#5f3dc4", "#0b7285")[number % 3]
        draw.rectangle((left, 278, left + wide, 294), fill=colour)
        if wide > 60:
            draw.text((left + 4, 279), f"{1000 * seconds:.0f} ms", fill="white", font=small)
        left += wide
    for row, (at, text) in enumerate(found.steps):
        y = max(picture.height, 300) + 24 + 20 * row
        draw.text((12, y), f"{at:7.3f} s", fill="#616e7c", font=font)
        draw.text((100, y), text if len(text) < 110 else f"{text[:107]}…", fill="#1f2933", font=font)
    return page


def ros2() -> Image.Image:
    from gog_edge import library

    sys.path.insert(0, str(ROOT))
    from tests.tools import ros2 as built

    found = built.environment()
    assert found is not None, "make ros2 first"
    path = os.pathsep.join([str(NODE), str(ROOT), found["PYTHONPATH"]])
    env = {
        **os.environ,
        **found,
        "PYTHONPATH": path,
        "ROS_DOMAIN_ID": "99",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    words = [f"bundle:={library.find('gog-nano')}", f"index:={index()}", f"question:={QUESTION}"]
    options = [word for one in words for word in ("-p", one)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "annotated.png"
        node = subprocess.Popen([found["PYTHON"], "-m", "gog_edge_ros2.node", "--ros-args", *options], env=env)
        try:
            subprocess.run([found["PYTHON"], "-c", _CLIENT, str(SCENE), str(out)], env=env, check=True, timeout=120)
        finally:
            node.kill()
        picture = Image.open(out).convert("RGB")
    picture.thumbnail((980, 980))
    return picture


_CLIENT = """
import sys, rclpy
import numpy as np
from PIL import Image
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image as Raw
rclpy.init()
node, seen = Node("picture"), []
node.create_subscription(Raw, "/gog_edge/annotated", seen.append, 1)
publisher = node.create_publisher(CompressedImage, "image/compressed", 1)
data = open(sys.argv[1], "rb").read()
node.create_timer(1.0, lambda: publisher.publish(CompressedImage(format="jpeg", data=data)))
while not seen:
    rclpy.spin_once(node, timeout_sec=0.5)
pixels = np.frombuffer(seen[0].data, np.uint8).reshape(seen[0].height, seen[0].width, 3)
Image.fromarray(pixels).save(sys.argv[2])
"""


def opencv() -> Image.Image:
    import cv2

    scene = cv2.imread(str(SCENE))
    with tempfile.TemporaryDirectory() as folder:
        clip, out = Path(folder) / "clip.avi", Path(folder) / "seen.mp4"
        film = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (scene.shape[1], scene.shape[0]))
        for _ in range(3):
            film.write(scene)
        film.release()
        command = [sys.executable, str(ROOT / "examples" / "opencv_camera.py"), "--source", str(clip)]
        subprocess.run([*command, "--out", str(out)], check=True)
        _, frame = cv2.VideoCapture(str(out)).read()
    picture = Image.fromarray(frame[:, :, ::-1])
    picture.thumbnail((980, 980))
    return picture


if __name__ == "__main__":
    main()
