"""Running a data set: skip what is done, spread the rest over processes, write every result as it comes."""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from gog_edge.allowance import usable_threads
from gog_edge.errors import GogEdgeError
from gog_edge.evaluation import worker as worker_module
from gog_edge.evaluation.results import ResultsFile
from gog_edge.evaluation.samples import Sample
from gog_edge.evaluation.scoring import score
from gog_edge.evaluation.worker import Worker, WorkerSpec


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
        workers: processes, each of which runs one question at a time; 1: this one runs as many as the spec says.
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
            _side_by_side(todo, own, keep)
        finally:
            own.close()
        return
    _in_processes(todo, spec, workers, keep)


def _side_by_side(todo: deque[Sample], worker: Worker, keep: Callable[[dict[str, Any]], None]) -> None:
    """Process `todo` in threads, whose questions share what is computed. Neighbours about the same images stay one
    behind the other: the images are then read once."""
    if worker.at_once == 1:
        while todo:
            keep(worker.run(todo.popleft()))
        return
    results: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()
    lanes: queue.SimpleQueue[list[Sample]] = queue.SimpleQueue()
    for _, group in itertools.groupby(todo, key=lambda sample: sample.images):
        lanes.put(list(group))
    stopped = threading.Event()

    def work() -> None:
        try:
            while not lanes.empty() and not stopped.is_set():
                for sample in _next(lanes):
                    if not stopped.is_set():
                        results.put(worker.run(sample))
            results.put(None)
        except BaseException as e:  # noqa: BLE001 - raised by whoever waits for the results
            results.put(e)

    threads = [threading.Thread(target=work, name=f"gog-eval-{n}") for n in range(min(worker.at_once, lanes.qsize()))]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            row = results.get()
            if isinstance(row, BaseException):
                raise row
            if row is None:
                running -= 1
            else:
                keep(row)
    finally:
        stopped.set()
        if running:
            worker.close()  # what runs is cancelled
        for thread in threads:
            thread.join()


def _next(lanes: queue.SimpleQueue[list[Sample]]) -> list[Sample]:
    try:
        return lanes.get_nowait()
    except queue.Empty:  # another thread was faster
        return []


def _in_processes(todo: deque[Sample], spec: WorkerSpec, workers: int, keep: Callable[[dict[str, Any]], None]) -> None:
    while todo:
        suspects = _until_a_death(todo, spec, workers, keep)
        if suspects:
            _try_start(spec)
        # One of them killed its process; alone, each one answers for itself.
        for sample in suspects:
            alone = deque([sample])
            if _until_a_death(alone, spec, 1, keep) or alone:
                keep(given_up(sample))


def _until_a_death(
    todo: deque[Sample], spec: WorkerSpec, workers: int, keep: Callable[[dict[str, Any]], None]
) -> list[Sample]:
    """Process `todo`. Returns the questions that were running when a process died, or nothing at the end."""
    running: dict[Future[dict[str, Any]], Sample] = {}
    count = min(workers, len(todo))
    try:
        with _pool(count, spec) as pool:
            try:
                while todo or running:
                    # One question per process, so that a death tells which ones were running.
                    while todo and len(running) < count:
                        running[pool.submit(worker_module.run, todo[0])] = todo[0]
                        todo.popleft()  # only now: a pool that is broken already takes nothing
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        row = future.result()
                        del running[future]
                        keep(row)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool:
        return list(running.values())
    return []


def _try_start(spec: WorkerSpec) -> None:
    """Make an agent in a process of its own: a pool whose processes can't start only says that it is broken.

    Raises:
        GogEdgeError: why it can't be made.
    """
    try:
        with _pool(1, None) as pool:
            pool.submit(worker_module.start_once, spec).result()
    except BrokenProcessPool as e:
        raise GogEdgeError("an evaluation process dies while it loads the policy (out of memory?)") from e


def _pool(count: int, spec: WorkerSpec | None) -> ProcessPoolExecutor:
    # spawn: engines have threads, and a forked process would inherit their locks.
    context = multiprocessing.get_context("spawn")
    if spec is None:
        return ProcessPoolExecutor(count, context)
    return ProcessPoolExecutor(count, context, worker_module.start, (spec,))


def given_up(sample: Sample) -> dict[str, Any]:
    """The result of a question that ends its process. `retry`: asked again when the run is resumed."""
    return {
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


def default_threads(workers: int) -> int:
    """Engine threads of each process: those that this one may have, shared."""
    return max(1, usable_threads() // max(workers, 1))
