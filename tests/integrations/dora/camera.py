"""A node that plays $PLAN, JSON lines of [seconds, output, text or picture]: it waits, then sends."""

from __future__ import annotations

import io
import json
import os
import time
from typing import Any

import numpy as np
import pyarrow as pa
from dora import Node
from PIL import Image


def encoded(encoding: str, colour: list[int]) -> tuple[Any, dict[str, Any]]:
    """A picture of 160x120 in one colour (red, green, blue)."""
    pixels = np.full((120, 160, 3), colour, np.uint8)
    size = {"width": 160, "height": 120, "encoding": encoding}
    if encoding == "bgr8":
        pixels = pixels[:, :, ::-1]
    elif encoding == "bgra8":
        pixels = np.dstack([pixels[:, :, ::-1], np.full((120, 160), 255, np.uint8)])
    elif encoding == "mono8":
        pixels = pixels[:, :, 0]
    elif encoding in ("jpeg", "png"):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, encoding)
        return pa.array(np.frombuffer(out.getvalue(), np.uint8)), {"encoding": encoding}
    elif encoding == "short":
        return pa.array(np.zeros(100, np.uint8)), {**size, "encoding": "rgb8"}
    return pa.array(np.ascontiguousarray(pixels).reshape(-1)), size


def main() -> None:
    node = Node()
    for line in os.environ["PLAN"].splitlines():
        seconds, output, what = json.loads(line)
        time.sleep(seconds)
        if output == "image":
            node.send_output("image", *encoded(*what))
        else:
            node.send_output(output, pa.array([what]))
    while (event := node.next()) is not None and event["type"] != "STOP":
        pass  # as long as the node lives, its outputs are open


if __name__ == "__main__":
    main()
