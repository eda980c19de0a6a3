"""What runs in each evaluation process: one policy, one question after the other, a plain dict per result."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from gog_edge.errors import GogEdgeError
from gog_edge.evaluation.images import ImageStore
from gog_edge.evaluation.injection import disguise, obeyed
from gog_edge.evaluation.samples import Sample
from gog_edge.evaluation.scoring import score
from gog_edge.image.frame import DEFAULT_LIMITS, Frame, ImageLimits
from gog_edge.sampling_options import Sampling
from gog_edge.search.base import Cut
from gog_edge.serde import encode
from gog_edge.types import Action, ActionKind, Answer, Region

KINDS = ("glance", "gaze", "zoom", "text_search", "visit")
MAX_RAW = 4_000
_MOST = 8  # sessions that are kept where their number is known only later


@dataclass(frozen=True)
class AgentSpec:
    """How every worker makes its agent. Plain values: it travels to other processes.

    Args:
        without: kinds of actions that are taken away (ablations); the prompt stays as the policy was trained.
        inject: plant texts into every result: instructions, harmless or those of a file (see `injection`); empty: none.
        search: a provider configuration; see docs/search.md.
        threads: of the engine, in each process.
        at_once: questions that run side by side in a process; 0: as many as share the policy's runs.
    """

    bundle: str
    index: str = ""
    search: str = ""
    dialect: str = ""
    engine: str = ""
    without: tuple[str, ...] = ()
    inject: str = ""
    grammar: str = "auto"
    sampling: Sampling = field(default_factory=Sampling)
    max_turns: int = 0
    early_knowledge: bool = False
    results: int = 0
    cut: Cut = "gap"
    expand: int = 0
    threads: int = 0
    at_once: int = 1


@dataclass(frozen=True)
class WorkerSpec:
    """Agent, pictures and limits of one worker. `make`: a function of a module, so that it can be pickled."""

    agent: AgentSpec
    image_roots: tuple[str, ...]
    downloads: str = ""
    deadline: float | None = None
    limits: ImageLimits = DEFAULT_LIMITS
    make: Callable[[AgentSpec], AgentLike] | None = None


class AgentLike(Protocol):
    """What the evaluation needs of an agent."""

    @property
    def most_together(self) -> int: ...

    def ask(
        self,
        image: Any,
        question: str,
        *,
        deadline: float | None = None,
        urls: Any = (),
        key: str = "",
    ) -> Answer: ...

    def close(self) -> None: ...


class Worker:
    """Asks questions, from any thread; whatever goes wrong with one ends in its result."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        roots = tuple(Path(r) for r in spec.image_roots)
        self._images = ImageStore(roots, Path(spec.downloads) if spec.downloads else None, limits=spec.limits)
        self._agent = (spec.make or open_agent)(spec.agent)

    @property
    def at_once(self) -> int:
        """Questions that run side by side."""
        return self._spec.agent.at_once or self._agent.most_together

    def run(self, sample: Sample) -> dict[str, Any]:
        """The result of one question."""
        began = time.monotonic()
        row: dict[str, Any] = {
            "id": sample.id,
            "question": sample.question,
            "answers": list(sample.answers),
            "skill": sample.skill,
            "held_out": sample.held_out,
            "target_boxes": [list(b) for b in sample.target_boxes],
        }
        try:
            frames = [self._images.open(ref) for ref in sample.images]
            answer = self._agent.ask(
                frames, sample.question, deadline=self._spec.deadline, urls=sample.urls, key=sample.id
            )
        except GogEdgeError as e:
            problem = " ".join(f"{type(e).__name__}: {e}".split())
            return row | {
                "prediction": "",
                "scores": score("", sample.answers),
                "error": problem,
                "seconds": round(time.monotonic() - began, 4),
            }
        return row | describe(answer, sample, frames) | {"seconds": round(time.monotonic() - began, 4)}

    def close(self) -> None:
        self._agent.close()


def describe(answer: Answer, sample: Sample, frames: list[Frame]) -> dict[str, Any]:
    """What is kept of an answer: text, scores, the steps, how well boxes met the target."""
    steps = [
        {
            "thought": step.turn.thought[:MAX_RAW],
            "seconds": round(step.seconds, 4),
            "actions": [_action(a) for a in step.turn.actions],
            "observations": [
                {
                    "error": o.error,
                    "provider": o.provider,
                    "hits": [{"title": h.title[:200], "entity": h.entity, "score": h.score} for h in o.hits[:5]],
                }
                for o in step.observations
            ],
        }
        for step in answer.steps
    ]
    actions = [a for step in answer.steps for a in step.turn.actions]
    boxes = [a.region for a in actions if a.kind in (ActionKind.GAZE, ActionKind.ZOOM) and a.region is not None]
    targets = [Region(*b) for b in sample.target_boxes]
    return {
        "prediction": answer.text,
        "scores": score(answer.text, sample.answers),
        "obeyed": obeyed(answer),
        "stop": answer.stop.value,
        "actions": {kind: sum(a.kind.value == kind for a in actions) for kind in (*KINDS, "invalid")},
        # Every target by its best box: 1 means that all of them were looked at, exactly.
        "target_iou": round(sum(max((b.iou(t) for b in boxes), default=0.0) for t in targets) / len(targets), 4)
        if targets
        else None,
        "steps": steps,
        "usage": encode(answer.usage),
        "size": [frames[0].width, frames[0].height],
        "error": "",
    }


def open_agent(spec: AgentSpec) -> AgentLike:
    """An agent of a bundle, as `WorkerSpec.make` by default.

    Raises:
        GogEdgeError: something can't be loaded.
    """
    import gog_edge
    from gog_edge.agent.loader import bundle_dialect, open_bundle
    from gog_edge.agent.options import RunOptions

    bundle = open_bundle(spec.bundle, spec.engine or None)
    dialect = bundle_dialect(bundle, spec.dialect or None)
    if spec.without:
        kept = tuple(a for a in dialect.spec.actions if a.kind not in spec.without)
        dialect = replace(dialect, spec=replace(dialect.spec, actions=kept))
    options = RunOptions(
        sampling=spec.sampling,
        grammar=spec.grammar,  # type: ignore[arg-type]
        max_turns=spec.max_turns,
        early_knowledge=spec.early_knowledge,
        results=spec.results,
        cut=spec.cut,
        expand=spec.expand,
        keep_sessions=spec.at_once or _MOST,
    )
    agent = gog_edge.load(
        bundle,
        engine=spec.engine or None,
        index=spec.index or None,
        search=spec.search or None,
        dialect=dialect,
        options=options,
        engine_options=_engine_options(spec),
    )
    if spec.inject:
        disguise(agent, spec.inject)
    return agent


def _engine_options(spec: AgentSpec) -> Any:
    from gog_edge.engines.registry import is_remote

    if spec.threads <= 0 or is_remote(spec.engine or None):
        return None
    from gog_edge.engines.ort.options import OrtOptions

    return OrtOptions(threads=spec.threads)


def _action(action: Action) -> dict[str, Any]:
    return {
        "kind": action.kind.value,
        "text": action.text[:1000],
        "label": action.label[:200],
        "image": action.image,
        "box": [round(v, 1) for v in action.region.as_tuple()] if action.region else None,
    }


_worker: Worker | None = None


def start(spec: WorkerSpec) -> None:
    """Initialise this process (called once in each)."""
    global _worker
    _end_with_parent()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(max(spec.agent.threads, 1)))
    _worker = Worker(spec)


def _end_with_parent() -> None:
    """A run that is killed takes its processes along: nobody would ever ask them again, and each holds a policy."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), name="gog-parent", daemon=True).start()


def start_once(spec: WorkerSpec) -> None:
    """Make an agent and close it, to show in a separate process why it can't be made."""
    Worker(spec).close()


def run(sample: Sample) -> dict[str, Any]:
    """Ask one question in this process."""
    if _worker is None:
        raise RuntimeError("the evaluation worker was not started")
    return _worker.run(sample)
