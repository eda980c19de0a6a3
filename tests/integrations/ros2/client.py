"""Another ROS 2 node: it does what $PLAN says and prints what it hears, a JSON line each. It knows nothing of gog-edge.

A plan is JSON lines:
    ["wait", topic or "", how many]      until so many of its messages have come ("": until the node is there)
    ["image", encoding, [red, green, blue], seconds, frame_id], ["file", format, colour, seconds, frame_id]
    ["sleep", seconds], ["until", seconds of the header of the newest answer]
    ["question", text], ["set", parameter, value], ["describe", parameter]
    ["goal", question, deadline, with a picture, feedbacks before it is cancelled (-1: not)]
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from typing import Any

import numpy as np
import rclpy
from gog_edge_msgs.action import Ask
from PIL import Image as Pillow
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from vision_msgs.msg import Detection2DArray
from visualization_msgs.msg import ImageMarker

WIDTH, HEIGHT = 160, 120
SECONDS = 60.0
HEARD = {"answer": String, "answer_json": String, "detections": Detection2DArray, "markers": ImageMarker}


def pixels(encoding: str, colour: list[int]) -> tuple[bytes, int]:
    """A picture in one colour, with eight bytes of padding a row; (data, step)."""
    picture = np.full((HEIGHT, WIDTH, 3), colour, np.uint8)
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    if encoding in ("bgr8", "bgra8"):
        picture = picture[:, :, ::-1]
    if encoding in ("rgba8", "bgra8"):
        picture = np.concatenate([picture, alpha], 2)
    if encoding == "mono8":
        picture = picture[:, :, :1]
    if encoding == "yuv422":
        import cv2

        yuv = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_UYVY)
        picture = yuv
    rows = np.ascontiguousarray(picture).reshape(HEIGHT, -1)
    return np.pad(rows, ((0, 0), (0, 8))).tobytes(), rows.shape[1] + 8


class Client(Node):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__("client")
        self.seen: dict[str, int] = {}
        self.stamp = -1
        for name, kind in HEARD.items():
            self.create_subscription(kind, f"/gog_edge/{name}", lambda m, n=name: self.heard(n, m), 10)
        if os.environ.get("ANNOTATED"):
            self.create_subscription(Image, "/gog_edge/annotated", lambda m: self.heard("annotated", m), 1)
        self.images = self.create_publisher(Image, "image", 1)
        self.files = self.create_publisher(CompressedImage, "image/compressed", 1)
        self.questions = self.create_publisher(String, "/gog_edge/question", 1)
        self.goals = ActionClient(self, Ask, "/gog_edge/ask")

    def heard(self, name: str, message: Any) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1
        if name == "answer_json":
            self.stamp = json.loads(message.data)["header"]["stamp"]["sec"]
        say(name, _content(message))

    def until(self, done: Any) -> None:
        end = time.monotonic() + SECONDS
        while not done():
            if time.monotonic() > end:
                sys.exit("client: waited for too long")
            rclpy.spin_once(self, timeout_sec=0.1)

    def result(self, future: Any) -> Any:
        self.until(future.done)
        return future.result()

    def header(self, message: Any, seconds: int, frame_id: str) -> Any:
        message.header.stamp.sec, message.header.stamp.nanosec = seconds, 5
        message.header.frame_id = frame_id
        return message

    def do(self, what: str, *args: Any) -> None:
        getattr(self, f"do_{what}")(*args)

    def do_wait(self, topic: str, count: int) -> None:
        if topic:
            self.until(lambda: self.seen.get(topic, 0) >= count)
            return
        self.until(self.goals.server_is_ready)
        publishers = (self.images, self.files, self.questions)
        self.until(lambda: all(p.get_subscription_count() for p in publishers))
        self.until(lambda: all(self.count_publishers(f"/gog_edge/{name}") for name in HEARD))

    def do_image(self, encoding: str, colour: list[int], seconds: int, frame_id: str) -> None:
        message = self.header(Image(width=WIDTH, height=HEIGHT, encoding=encoding), seconds, frame_id)
        message.data, message.step = pixels(encoding, colour)
        self.images.publish(message)

    def do_file(self, kind: str, colour: list[int], seconds: int, frame_id: str) -> None:
        self.files.publish(self.header(_file(kind, colour), seconds, frame_id))

    def do_sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end)

    def do_until(self, seconds: int) -> None:
        self.until(lambda: self.stamp == seconds)

    def do_question(self, text: str) -> None:
        self.questions.publish(String(data=text))

    def do_set(self, name: str, value: Any) -> None:
        client = self.create_client(SetParameters, "/gog_edge/set_parameters")
        self.until(client.service_is_ready)
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        [result] = self.result(client.call_async(request)).results
        say("set", [result.successful, result.reason])

    def do_describe(self, name: str) -> None:
        client = self.create_client(DescribeParameters, "/gog_edge/describe_parameters")
        self.until(client.service_is_ready)
        [found] = self.result(client.call_async(DescribeParameters.Request(names=[name]))).descriptors
        say("describe", [found.description, found.read_only])

    def do_goal(self, question: str, deadline: float, picture: bool, cancel: int) -> None:
        goal = Ask.Goal(question=question, deadline=float(deadline))
        if picture:
            goal.image = self.header(_file("png", [9, 9, 9]), 77, "goal")
        progress: list[Any] = []
        handle = self.result(self.goals.send_goal_async(goal, lambda m: progress.append(m.feedback)))
        result = handle.get_result_async()
        if cancel >= 0:
            self.until(lambda: len(progress) >= cancel)
            self.result(handle.cancel_goal_async())
        found = self.result(result)
        say("feedback", [[p.step, p.kind, p.text, [_box(b) for b in p.boxes]] for p in progress])
        said = found.result
        content = {"status": found.status, "answer": said.answer, "stop": said.stop, "error": said.error}
        content |= {"header": _header(said.header), "detections": _content(said.detections), "json": said.json}
        say("result", content)


def _file(kind: str, colour: list[int]) -> Any:
    out = io.BytesIO()
    name = "png" if "png" in kind else "jpeg"
    Pillow.fromarray(np.full((HEIGHT, WIDTH, 3), colour, np.uint8)).save(out, name)
    return CompressedImage(format=kind, data=b"damaged" if kind == "damaged" else out.getvalue())


def _header(header: Any) -> list[Any]:
    return [header.stamp.sec, header.stamp.nanosec, header.frame_id]


def _box(box: Any) -> list[float]:
    return [box.center.position.x, box.center.position.y, box.size_x, box.size_y]


def _content(message: Any) -> Any:
    if isinstance(message, String):
        return message.data
    if isinstance(message, Detection2DArray):
        found = []
        for one in message.detections:
            [result] = one.results
            what = result.hypothesis.class_id, result.hypothesis.score
            found.append({"box": _box(one.bbox), "id": one.id, "what": what, "header": _header(one.header)})
        return {"header": _header(message.header), "detections": found}
    if isinstance(message, ImageMarker):
        points = [[p.x, p.y] for p in message.points]
        return {"header": _header(message.header), "points": points, "action": message.action, "type": message.type}
    array = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
    corner, middle = array[1, 1].tolist(), array[100, 140].tolist()
    return {"header": _header(message.header), "size": array.shape[:2], "edge": corner, "outside": middle}


def say(kind: str, content: Any) -> None:
    print(json.dumps([kind, content]), flush=True)


def main() -> None:
    rclpy.init()
    node = Client()
    for line in os.environ["PLAN"].splitlines():
        node.do(*json.loads(line))
    rclpy.shutdown()


if __name__ == "__main__":
    main()
