"""`ros2 run gog_edge_ros2 node`: pictures, questions and goals in; answers, detections and markers out.

Asked about is the newest picture, again and again; those that come while a question runs are dropped, and the deadline
counts from a picture's arrival. Goals of the action come first, one at a time.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rclpy
from gog_edge_msgs.action import Ask
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor, SetParametersResult
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header, String
from vision_msgs.msg import Detection2DArray
from visualization_msgs.msg import ImageMarker

import gog_edge
from gog_edge import library
from gog_edge.deadline import Budget, DeadlineReached
from gog_edge.errors import CancelledError, GogEdgeError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.integrations.asking import Said, answers
from gog_edge.integrations.inbox import Asking, Inbox
from gog_edge.integrations.plain import looked_at
from gog_edge.integrations.ros2 import Gate, Progress, Turns, frame_of_file, frame_of_image, gathered, progress
from gog_edge.types import Answer, AnswerEvent, Event, StopReason
from gog_edge_ros2 import messages

_POSITIVE = [FloatingPointRange(from_value=0.0, to_value=1e9)]
PARAMETERS = {
    "bundle": ("", "The exported policy: its folder, or its name in the library. Empty: the one used last."),
    "index": ("", "Folder of a local index to search. Empty: the one last named with this bundle."),
    "search": ("", "A TOML file of web search providers. Empty: none."),
    "engine": ("", "cpu, cuda, tensorrt, … Empty: what the bundle was exported for."),
    "deadline": (0.0, "Seconds from a picture's arrival to its answer. 0: none."),
    "question": ("", "Asked about the newest picture, again and again. Empty: wait for one. May be set at any time."),
    "rate": (0.0, "Questions a second at most. 0: as fast as they are answered. May be set at any time."),
}
CHANGING = ("question", "rate")


class PolicyNode(Node):  # type: ignore[misc]
    """The node around one agent. `close` it before the executor shuts down."""

    def __init__(self) -> None:
        super().__init__("gog_edge")
        for name, (default, text) in PARAMETERS.items():
            numbers = _POSITIVE if isinstance(default, float) else []
            about = ParameterDescriptor(description=text, read_only=name not in CHANGING, floating_point_range=numbers)
            self.declare_parameter(name, default, about)
        bundle = _bundle(self._text("bundle"))
        self._agent = gog_edge.load(
            bundle,
            engine=self._text("engine") or None,
            index=self._text("index") or library.index_of(bundle),
            search=self._text("search") or None,
        )
        self._agent.warm_up()
        self._budget, self._turns = Budget(), Turns()
        self._inbox = Inbox(self._text("question").strip())
        self._gate = Gate(self._inbox, self._turns)
        self._gate.rate = self.get_parameter("rate").value
        self._goals: dict[bytes, Budget] = {}
        self._told, self.failed = "", False
        self._connect()
        self.add_on_set_parameters_callback(self._changed)
        self._thread = threading.Thread(target=self._work, name="gog-ros2", daemon=True)
        self._thread.start()
        self.get_logger().info("the policy is loaded and warm")

    def _text(self, name: str) -> str:
        return str(self.get_parameter(name).value)

    def _connect(self) -> None:
        newest = QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability)
        both = ReentrantCallbackGroup()
        settable = QoSOverridingOptions.with_default_policies()  # parameters qos_overrides./image.subscription.…
        for kind, topic, opened in (
            (Image, "image", frame_of_image),
            (CompressedImage, "image/compressed", frame_of_file),
        ):
            take = functools.partial(self._picture, opened)
            self.create_subscription(kind, topic, take, newest, qos_overriding_options=settable)
        self.create_subscription(String, "~/question", self._question, 10)
        self._answer = self.create_publisher(String, "~/answer", 10)
        self._json = self.create_publisher(String, "~/answer_json", 10)
        self._detections = self.create_publisher(Detection2DArray, "~/detections", 10)
        self._markers = self.create_publisher(ImageMarker, "~/markers", 10)
        self._annotated = self.create_publisher(Image, "~/annotated", 1)
        self._server = ActionServer(
            self, Ask, "~/ask", self._goal, cancel_callback=self._cancel, callback_group=both, result_timeout=60
        )

    def _picture(self, opened: Any, message: Any) -> None:
        self._inbox.picture(functools.partial(opened, message), message.header)

    def _question(self, message: Any) -> None:
        if message.data.strip():
            self._inbox.question(message.data.strip())
        else:
            self.get_logger().warning("a question must not be empty: it is left out")

    def _changed(self, parameters: list[Any]) -> Any:
        for one in parameters:
            if one.name == "question":
                self._inbox.question(str(one.value).strip())
            elif one.name == "rate":
                self._gate.rate = float(one.value)
        return SetParametersResult(successful=True)

    # -- the camera's pictures ---------------------------------------------------------------------------------

    def _work(self) -> None:
        deadline = self.get_parameter("deadline").value or None
        try:
            for said in answers(self._gate, self._ask, deadline):
                self._publish(said)
        except CancelledError:
            pass
        except GogEdgeError as e:
            self.get_logger().fatal(" ".join(str(e).split()))
        finally:
            if not self._budget.cancelled:  # a node that answers no more must not look as if it did
                self.failed = True
                self.context.try_shutdown()

    def _ask(self, frame: Frame, question: str, seconds: float | None) -> Answer:
        with self._turns.taken(self._budget, goal=False):
            return self._agent.ask(frame, question, deadline=seconds, budget=self._budget)

    def _publish(self, said: Said) -> None:
        header = said.asking.header
        self._json.publish(String(data=messages.as_json(header, said.plain())))
        if said.frame is None or said.answer is None:
            if said.error != self._told:
                self.get_logger().warning(f"{said.error}; like pictures are passed over without a word")
            self._told = said.error
            return
        self._told = ""
        looked = list(looked_at(said.answer))
        self._answer.publish(String(data=said.answer.text))
        self._detections.publish(messages.detections(header, looked))
        self._markers.publish(messages.outlines(header, looked))
        if self._annotated.get_subscription_count():
            self._annotated.publish(messages.annotated(header, said.frame, looked))

    # -- goals -------------------------------------------------------------------------------------------------

    def _cancel(self, handle: Any) -> Any:
        budget = self._goals.get(bytes(handle.goal_id.uuid))
        if budget is not None:
            budget.cancel()
        return CancelResponse.ACCEPT

    def _goal(self, handle: Any) -> Any:
        """Answer a goal, in a thread of the executor."""
        key, request = bytes(handle.goal_id.uuid), handle.request
        seconds = request.deadline if request.deadline > 0 else None
        with Budget(seconds, parent=self._budget) as budget:
            self._goals[key] = budget
            try:
                if handle.is_cancel_requested:
                    budget.cancel()
                return self._answered(handle, self._wanted(request), budget)
            except (CancelledError, DeadlineReached) as e:
                stop = StopReason.CANCELLED if isinstance(e, CancelledError) else StopReason.DEADLINE
                return _ended(handle, Ask.Result(stop=stop.value))
            except GogEdgeError as e:
                handle.abort()
                return Ask.Result(error=" ".join(str(e).split()))
            finally:
                del self._goals[key]

    def _wanted(self, request: Any) -> Asking:
        """What a goal asks, about which picture."""
        latest = self._inbox.latest()
        question = request.question.strip() or self._text("question").strip() or self._agent.dialect.usual_question
        if request.image.data:
            return Asking(0, functools.partial(frame_of_file, request.image), question, request.image.header)
        if latest is None:
            raise GogEdgeError("no picture has come yet, and the goal has none")
        return Asking(latest.frame, latest.open, question, latest.header)

    def _answered(self, handle: Any, asking: Asking, budget: Budget) -> Any:
        began = time.monotonic()
        frame = asking.open()
        answer: Answer | None = None

        def told(events: Iterator[Event]) -> Iterator[Progress]:
            nonlocal answer
            for event in events:
                if isinstance(event, AnswerEvent):
                    answer = event.answer
                elif (step := progress(event, frame)) is not None:
                    yield step

        with self._turns.taken(budget, goal=True):
            for step in gathered(told(self._agent.stream(frame, asking.question, budget=budget)), time.monotonic):
                boxes = [] if step.box is None else [messages.bounding_box(step.box)]
                handle.publish_feedback(Ask.Feedback(step=step.step, kind=step.kind, text=step.text, boxes=boxes))
        assert answer is not None
        looked = list(looked_at(answer))
        said = Said(asking, frame, answer, "", time.monotonic() - began, 0)
        result = Ask.Result(header=asking.header or Header(), answer=answer.text, stop=answer.stop.value)
        result.seconds, result.json = answer.seconds, messages.as_json(result.header, said.plain())
        result.detections = messages.detections(result.header, looked)
        return _ended(handle, result)

    def close(self) -> None:
        """Cancel what runs, and let the policy go."""
        self._budget.cancel()
        self._gate.end()
        self._thread.join(10.0)
        self._agent.close()


def _bundle(given: str) -> Path:
    found = library.find(given) if given else library.default()
    if found is None:
        raise UsageError("there is no bundle yet: name one in the parameter bundle (gog-edge export makes them)")
    return found


def _ended(handle: Any, result: Any) -> Any:
    if result.stop == StopReason.CANCELLED.value and handle.is_cancel_requested:
        handle.canceled()
    elif result.stop == StopReason.CANCELLED.value:
        handle.abort()
    else:
        handle.succeed()
    return result


def main() -> int:
    """Run the node until it is interrupted. A policy that can't be loaded is one line and exit code 2."""
    rclpy.init()
    executor = MultiThreadedExecutor(num_threads=4)
    try:
        node = PolicyNode()
    except GogEdgeError as e:
        print(f"gog_edge: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    try:
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 1 if node.failed else 0


if __name__ == "__main__":
    sys.exit(main())
