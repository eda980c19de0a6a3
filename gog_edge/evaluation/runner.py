"""Running a data set: skip what is done, spread the rest over processes, write every result as it comes."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from gog_edge.errors import GogEdgeError
from gog_edge.evaluation import worker as worker_module
from gog_edge.evaluation.results import ResultsFile
from gog_edge.evaluation.samples import Sample
from gog_edge.evaluation.scoring import score
from gog_edge.evaluation.worker import Worker, WorkerSpec

MAX_DEATHS = 2  # a question that ends its process twice is given up


def run_samples(
    samples: Sequence[Sample],
    spec: WorkerSpec,
    results: ResultsFile,
    *,
    workers: int = 1,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Ask every question that `results` does not have yet.

    Args:
        workers: processes; 1 runs in this one.
        progress: called with each new result.

    Raises:
        GogEdgeError: the agent can't be made, in any process.
    """
    todo = deque(s for s in samples if s.id not in results.done)

    def keep(row: dict[str, Any]) -> None:
        results.append(row)
        if progress is not None:
            progress(row)

    if not todo:
        return
    if workers <= 1:
        own = Worker(spec)
        try:
            while todo:
                keep(own.run(todo.popleft()))
        finally:
            own.close()
        return
    _in_processes(todo, spec, workers, keep)


def _in_processes(todo: deque[Sample], spec: WorkerSpec, workers: int, keep: Callable[[dict[str, Any]], None]) -> None:
    deaths: dict[str, int] = {}
    while todo:
        running: dict[Future[dict[str, Any]], Sample] = {}
        # spawn: engines have threads, and a forked process would inherit their locks.
        context = multiprocessing.get_context("spawn")
        count = min(workers, len(todo))
        try:
            with ProcessPoolExecutor(count, context, worker_module.start, (spec,)) as pool:
                try:
                    while todo or running:
                        # One question a process, so that a death tells which ones were running.
                        while todo and len(running) < count:
                            sample = todo.popleft()
                            running[pool.submit(worker_module.run, sample)] = sample
                        finished, _ = wait(running, return_when=FIRST_COMPLETED)
                        for future in finished:
                            row = future.result()
                            del running[future]
                            keep(row)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        except BrokenProcessPool as e:
            lost = list(running.values())
            if not deaths and not lost:
                raise GogEdgeError("the evaluation processes could not start") from e
            if all(s.id not in deaths for s in lost):
                _probe(spec)  # a process that can't be made dies without a word: here it says why
            _requeue(lost, todo, deaths, keep)


def _probe(spec: WorkerSpec) -> None:
    """Make an agent here once, so that a wrong option is reported as what it is."""
    Worker(spec).close()


def _requeue(
    lost: list[Sample], todo: deque[Sample], deaths: dict[str, int], keep: Callable[[dict[str, Any]], None]
) -> None:
    for sample in lost:
        deaths[sample.id] = deaths.get(sample.id, 0) + 1
        if deaths[sample.id] < MAX_DEATHS:
            todo.append(sample)
            continue
        keep(
            {
                "id": sample.id,
                "question": sample.question,
                "answers": list(sample.answers),
                "skill": sample.skill,
                "held_out": sample.held_out,
                "prediction": "",
                "scores": score("", sample.answers),
                "error": "the process that answered it died twice (out of memory?)",
                "retry": True,
            }
        )


def default_threads(workers: int) -> int:
    """Engine threads of each process: the cores, shared."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(workers, 1))
