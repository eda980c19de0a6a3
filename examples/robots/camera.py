"""A node that sends pictures: a camera's frames ($CAMERA, a number), or one picture again and again ($PICTURE)."""

import os

import numpy as np
import pyarrow as pa
from dora import Node
from PIL import Image


def main() -> None:
    camera = None
    if "CAMERA" in os.environ:
        import cv2

        camera = cv2.VideoCapture(int(os.environ["CAMERA"]))
    frames = int(os.environ.get("FRAMES", "0"))
    node, sent = Node(), 0
    for event in node:
        if event["type"] != "INPUT":
            continue
        if camera is not None:
            ok, pixels = camera.read()
            encoding = "bgr8"
        else:
            ok, pixels, encoding = True, np.asarray(Image.open(os.environ["PICTURE"]).convert("RGB")), "rgb8"
        if ok:
            size = {"width": pixels.shape[1], "height": pixels.shape[0], "encoding": encoding, "primitive": "image"}
            node.send_output("image", pa.array(pixels.reshape(-1)), size)
            sent += 1
        if sent == frames:
            break


if __name__ == "__main__":
    main()
