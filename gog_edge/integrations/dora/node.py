"""The node: pictures and questions in, answers and boxes out, about the newest picture again and again."""

from __future__ import annotations

import functools
import json
import logging
import math
import threading
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from dora import Node

from gog_edge.agent.camera.newest import Asked, Taken, cut_of, newest_answers
from gog_edge.deadline import SYSTEM, Budget
from gog_edge.errors import ImageError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.integrations.dora.inbox import Asking, Inbox, opened
from gog_edge.integrations.plain import looked_at, plain_answer
from gog_edge.sanitize import printable
from gog_edge.types import Answer, StopReason

if TYPE_CHECKING:
    from gog_edge.agent.agent import Agent

IMAGE, QUESTION = "image", "question"
ANSWER, BOXES = "answer", "boxes"
log = logging.getLogger("gog_edge.dora")


def run_node(agent: Agent, question: str, deadline: float | None) -> None:
    """Be a node of the dataflow that started this process, until it stops.

    Args:
        question: what is asked until an input brings another question; "": nothing.
        deadline: seconds from a picture's arrival to its answer.

    Raises:
        UsageError: no dataflow started this process. EngineError: the engine failed.
    """
    try:
        node = Node()
    except (RuntimeError, ValueError) as e:
        raise UsageError("this is no node of a dataflow: name it in one and start that with `dora run`") from e
    inbox, budget = Inbox(question), Budget()
    threading.Thread(target=_read, args=(node, inbox, budget), name="gog-dora", daemon=True).start()
    cut = math.inf if deadline is None else cut_of(deadline)

    def answer(taken: Taken[Asking], left: float) -> tuple[Frame, Answer] | str:
        try:
            frame = taken.content.open()
        except ImageError as e:
            return printable(" ".join(str(e).split()))
        seconds = None if math.isinf(left) else max(left, 1e-3)
        return frame, agent.ask(frame, taken.content.question, deadline=seconds, budget=budget)

    last = -1
    for asked in newest_answers(inbox, answer, cut, SYSTEM.now):
        number = asked.taken.content.frame
        if not isinstance(asked.result, str) and asked.result[1].stop is StopReason.CANCELLED:
            return
        _send(node, asked, max(number - last - 1, 0))
        last = number


def _read(node: Any, inbox: Inbox, budget: Budget) -> None:
    """Sort what comes, until the dataflow stops this node. The end of the inputs lets the last picture be answered,
    everything else cancels it."""
    try:
        while (event := node.next()) is not None:
            kind, name = event["type"], event.get("id")
            if kind == "INPUT" and name == IMAGE:
                pixels = event["value"].to_numpy(zero_copy_only=False)
                inbox.picture(functools.partial(opened, pixels, dict(event["metadata"])))
            elif kind == "INPUT" and name == QUESTION:
                _take_question(event["value"], inbox)
            elif kind == "STOP":
                if name != "ALL_INPUTS_CLOSED":
                    budget.cancel()
                return
            elif kind == "ERROR":
                log.warning("the dataflow: %s", str(event.get("error")).partition("\n")[0])
    except Exception:
        log.exception("the dataflow can't be read any more")
        budget.cancel()
    finally:
        inbox.end()


def _take_question(value: Any, inbox: Inbox) -> None:
    words = value.to_pylist()
    if len(words) != 1 or not isinstance(words[0], str) or not words[0].strip():
        log.warning("the input %s must be one text that is not empty: it is left out", QUESTION)
        return
    inbox.question(words[0])


def _send(node: Any, asked: Asked[Asking, Any], dropped: int) -> None:
    """`answer`, JSON in an array of one text; and `boxes` as dora's other nodes send and show them."""
    asking, result = asked.taken.content, asked.result
    said = {"question": asking.question, "frame": asking.frame, "age": round(asked.age, 3), "dropped": dropped}
    if isinstance(result, str):
        log.warning("frame %d: %s", asking.frame, result)
        node.send_output(ANSWER, pa.array([json.dumps({**said, "error": result})]), {"primitive": "text"})
        return
    frame, answer = result
    said |= {"width": frame.width, "height": frame.height, **plain_answer(answer)}
    looked = list(looked_at(answer))
    boxes = {
        "bbox": pa.array([v for one in looked for v in one.box.as_tuple()], pa.float32()),
        "conf": pa.array([1.0] * len(looked), pa.float32()),
        "labels": pa.array([one.label or one.kind.value for one in looked], pa.string()),
    }
    node.send_output(ANSWER, pa.array([json.dumps(said)]), {"primitive": "text"})
    about = {"primitive": "boxes2d", "format": "xyxy", "width": frame.width, "height": frame.height}
    lists = {name: pa.ListArray.from_arrays([0, len(values)], values) for name, values in boxes.items()}
    node.send_output(
        BOXES, pa.StructArray.from_arrays(list(lists.values()), list(lists)), {**about, "frame": asking.frame}
    )
