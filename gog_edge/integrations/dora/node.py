"""The node: pictures and questions in, answers and boxes out, about the newest picture again and again."""

from __future__ import annotations

import functools
import json
import logging
import threading
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from dora import Node

from gog_edge.deadline import Budget
from gog_edge.errors import UsageError
from gog_edge.image.frame import Frame
from gog_edge.integrations.asking import Said, answers
from gog_edge.integrations.inbox import Inbox
from gog_edge.integrations.pixels import frame_of_message
from gog_edge.integrations.plain import looked_at
from gog_edge.types import Answer

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

    def ask(frame: Frame, words: str, seconds: float | None) -> Answer:
        return agent.ask(frame, words, deadline=seconds, budget=budget)

    for said in answers(inbox, ask, deadline):
        _send(node, said)


def _read(node: Any, inbox: Inbox, budget: Budget) -> None:
    """Sort what comes, until the dataflow stops this node. The end of the inputs lets the last picture be answered,
    everything else cancels it."""
    try:
        while (event := node.next()) is not None:
            kind, name = event["type"], event.get("id")
            if kind == "INPUT" and name == IMAGE:
                pixels = event["value"].to_numpy(zero_copy_only=False)
                inbox.picture(functools.partial(frame_of_message, pixels, dict(event["metadata"])))
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


def _send(node: Any, said: Said) -> None:
    """`answer`, JSON in an array of one text; and `boxes` as dora's other nodes send and show them."""
    node.send_output(ANSWER, pa.array([json.dumps(said.plain())]), {"primitive": "text"})
    if said.frame is None or said.answer is None:
        log.warning("frame %d: %s", said.asking.frame, said.error)
        return
    looked = list(looked_at(said.answer))
    boxes = {
        "bbox": pa.array([v for one in looked for v in one.box.as_tuple()], pa.float32()),
        "conf": pa.array([1.0] * len(looked), pa.float32()),
        "labels": pa.array([one.label or one.kind.value for one in looked], pa.string()),
    }
    about = {"primitive": "boxes2d", "format": "xyxy", "width": said.frame.width, "height": said.frame.height}
    lists = {name: pa.ListArray.from_arrays([0, len(values)], values) for name, values in boxes.items()}
    node.send_output(
        BOXES, pa.StructArray.from_arrays(list(lists.values()), list(lists)), {**about, "frame": said.asking.frame}
    )
