"""Processes that share out a list of work: quiet when interrupted, and one line when one is killed.

A worker loads libraries for seconds before any of our code runs in it. It therefore inherits a mask
without SIGINT: Ctrl-C, which a terminal sends to every process at once, is the parent's to handle.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

from oncofed_common.errors import SystemRefusal

Job = TypeVar("Job")
Result = TypeVar("Result")


def each(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    prepare: Callable[[], None] | None = None,
) -> Iterator[tuple[Job, Result]]:
    """Each job with its result, as they end; ``work`` runs in processes of its own.

    Whoever stops before the end, by an error, an interrupt or death, leaves no process behind.

    Args:
        workers: processes; 1 works in this one.
        prepare: what every other process does once, before its first job.

    Raises:
        SystemRefusal: code ``worker_ended``, when a process is killed.
    """
    if workers == 1 or not jobs:
        yield from ((job, work(job)) for job in jobs)
        return
    with begun(work, jobs, workers=workers, prepare=prepare) as waiting:
        for done in as_completed(waiting):
            yield waiting[done], done.result()


@contextmanager
def begun(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Mapping[Future[Result], Job]]:
    """Every job's future, begun in the order of ``jobs`` in processes of their own, also for one worker.

    At the end of the block, however it ends, what is not done yet is given up.

    Raises:
        SystemRefusal: code ``worker_ended``, when a process is killed.
    """
    pool = ProcessPoolExecutor(
        max(1, min(workers, len(jobs))),
        mp_context=get_context("spawn"),
        initializer=_begin,
        initargs=(prepare,),
    )
    waiting: dict[Future[Result], Job] = {}
    try:
        with _interrupts_held():
            for job in jobs:
                waiting[pool.submit(work, job)] = job
        yield waiting
    except BrokenProcessPool:
        raise SystemRefusal(
            "a worker process that was ended from outside",
            allowed="processes that run to their end",
            next="see whether memory ran out, and use fewer workers",
            code="worker_ended",
        ) from None
    finally:
        whole = len(waiting) == len(jobs) and all(future.done() for future in waiting)
        left: dict[int, Any] = {} if whole else dict(pool._processes or {})
        for process in left.values():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(prepare: Callable[[], None] | None) -> None:
    """The parent's death is ours too."""
    parent = parent_process()
    assert parent is not None, "a worker is started by the pool"

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """SIGINT waits until the end of this block, and in every process begun in it for ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
