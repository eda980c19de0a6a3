"""Answers as ROS messages. Boxes are in pixels of the upright picture; headers are those of the picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import Point
from sensor_msgs.msg import Image
from std_msgs.msg import ColorRGBA
from vision_msgs.msg import BoundingBox2D, Detection2D, Detection2DArray, ObjectHypothesisWithPose
from visualization_msgs.msg import ImageMarker

from gog_edge.integrations.plain import Looked, boxed, rgb_of_step
from gog_edge.types import Region


def bounding_box(box: Region) -> BoundingBox2D:
    """Centre and size."""
    found = BoundingBox2D()
    found.center.position.x, found.center.position.y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    found.size_x, found.size_y = box.x1 - box.x0, box.y1 - box.y0
    return found


def detections(header: Any, looked: Sequence[Looked]) -> Detection2DArray:
    """One detection a box: `id` is its step, the class what it was looked at for. Policies give no score: it is 1."""
    found = Detection2DArray(header=header)
    for one in looked:
        result = ObjectHypothesisWithPose()
        result.hypothesis.class_id, result.hypothesis.score = one.label or one.kind.value, 1.0
        box = Detection2D(header=header, bbox=bounding_box(one.box), results=[result], id=str(one.step))
        found.detections.append(box)
    return found


def outlines(header: Any, looked: Sequence[Looked]) -> ImageMarker:
    """The edges of all boxes as one list of lines; one that has none removes the lines of the picture before."""
    marker = ImageMarker(header=header, ns="gog_edge", type=ImageMarker.LINE_LIST, scale=2.0)
    marker.action = ImageMarker.ADD if looked else ImageMarker.REMOVE
    for one in looked:
        x0, y0, x1, y1 = one.box.as_tuple()
        corners = [Point(x=x, y=y) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
        red, green, blue = (value / 255 for value in rgb_of_step(one.step - 1))
        colour = ColorRGBA(r=red, g=green, b=blue, a=1.0)
        for i in range(4):
            marker.points += [corners[i], corners[(i + 1) % 4]]
            marker.outline_colors.append(colour)
    return marker


def annotated(header: Any, frame: Any, looked: Sequence[Looked]) -> Image:
    """The picture with its boxes, rgb8."""
    pixels = np.asarray(boxed(frame, looked))
    height, width, _ = pixels.shape
    image = Image(header=header, height=height, width=width, encoding="rgb8", step=3 * width)
    image.data = pixels.tobytes()
    return image


def as_json(header: Any, said: dict[str, Any]) -> str:
    """What was said, and the picture's header."""
    stamp = {"sec": header.stamp.sec, "nanosec": header.stamp.nanosec}
    return json.dumps({"header": {"stamp": stamp, "frame_id": header.frame_id}, **said})
