"""Running a data set on a Ray cluster: one actor a worker, wherever Ray has room; results come back as they are made.

Bundle, index and a search file are read by every node under the paths that were given here (a shared folder, copies);
pictures travel with their questions.
"""

from __future__ import annotations

import base64
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gog_edge.errors import GogEdgeError, UsageError
from gog_edge.evaluation.images import ImageStore
from gog_edge.evaluation.results import ResultsFile
from gog_edge.evaluation.runner import given_up
from gog_edge.evaluation.samples import ImageRef, Sample
from gog_edge.evaluation.worker import Worker, WorkerSpec

_TRIES = 2  # of a question whose actor dies


def run_on_ray(
    samples: Sequence[Sample],
    spec: WorkerSpec,
    results: ResultsFile,
    *,
    address: str,
    workers: int = 0,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Ask every question that `results` does not have yet.

    Args:
        address: of the cluster: host:6379, ray://host:10001, or "auto".
        workers: actors; 0: as many as the cluster has room for. Each asks for the CPUs of `spec.agent.threads`.
        progress: called with each new result.

    Raises:
        UsageError: Ray is missing. GogEdgeError: no cluster there, or the agent can't be made on it.
    """
    todo = deque(s for s in samples if s.id not in results.done)
    if not todo:
        return
    try:
        import ray
    except ImportError as e:
        raise UsageError("--ray needs Ray: pip install 'gog-edge[ray]', on every node") from e
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, OSError) as e:
        raise GogEdgeError(f"no Ray cluster at {address} ({' '.join(str(e).split())[:200]})") from e
    try:
        cpus = max(spec.agent.threads, 1)
        room = int(ray.cluster_resources().get("CPU", 0)) // cpus
        if room < 1:
            raise GogEdgeError(f"the Ray cluster at {address} has no {cpus} CPUs for a worker: lower --threads")
        _Run(ray, spec, cpus, results, progress).all(todo, min(workers or room, room, len(todo)))
    finally:
        ray.shutdown()


class _Run:
    """One run on a connected cluster."""

    def __init__(
        self,
        ray: Any,
        spec: WorkerSpec,
        cpus: int,
        results: ResultsFile,
        progress: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._ray, self._spec, self._results, self._progress = ray, spec, results, progress
        self._actor = ray.remote(num_cpus=cpus)(_Actor)
        self._store = ImageStore(tuple(Path(r) for r in spec.image_roots))

    def all(self, todo: deque[Sample], count: int) -> None:
        """Every question, over `count` actors; one that dies is replaced, its question asked once more."""
        idle = [self._start() for _ in range(count)]
        running: dict[Any, tuple[Sample, Any]] = {}
        tries: dict[str, int] = {}
        while todo or running:
            while todo and idle:
                sample, actor = todo.popleft(), idle.pop()
                running[actor.run.remote(_packed(sample, self._store))] = sample, actor
            finished, _ = self._ray.wait(list(running), num_returns=1)
            sample, actor = running.pop(finished[0])
            try:
                row = self._ray.get(finished[0])
            except self._ray.exceptions.RayActorError:
                tries[sample.id] = tries.get(sample.id, 0) + 1
                if tries[sample.id] < _TRIES:
                    todo.append(sample)
                else:
                    self._keep(given_up(sample))
                if todo:
                    idle.append(self._start())
                continue
            except self._ray.exceptions.RayError as e:
                raise GogEdgeError(f"Ray failed: {' '.join(str(e).split())[-300:]}") from e
            self._keep(row)
            idle.append(actor)

    def _start(self) -> Any:
        actor = self._actor.remote()
        try:
            problem = self._ray.get(actor.start.remote(self._spec))
        except self._ray.exceptions.RayError as e:
            raise GogEdgeError(f"a Ray worker can't start: {' '.join(str(e).split())[-300:]}") from e
        if problem:
            raise GogEdgeError(f"a Ray worker can't load the policy: {problem}")
        return actor

    def _keep(self, row: dict[str, Any]) -> None:
        self._results.append(row)
        if self._progress is not None:
            self._progress(row)


class _Actor:
    """A worker in a process of the cluster."""

    def start(self, spec: WorkerSpec) -> str:
        """Make the agent; why that can't be done, empty if it was."""
        try:
            self._worker = Worker(spec)
        except GogEdgeError as e:
            return f"{type(e).__name__}: {e}"
        return ""

    def run(self, sample: Sample) -> dict[str, Any]:
        """The result of one question."""
        return self._worker.run(sample)


def _packed(sample: Sample, store: ImageStore) -> Sample:
    """The sample with its picture files inside; what can't be read stays a name, and the worker says so."""
    images = []
    for ref in sample.images:
        try:
            data = store.path(ref.value).read_bytes() if ref.kind == "file" else b""
        except (GogEdgeError, OSError):
            data = b""
        images.append(ImageRef("base64", base64.b64encode(data).decode()) if data else ref)
    return replace(sample, images=tuple(images))
