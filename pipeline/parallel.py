"""How calls are spread: over this machine's threads, ahead of their consumer, or over a cluster's workers.

The only module that imports dask and distributed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import dask.threaded

from pipeline.errors import InputError

AHEAD = 2  # calls made while the consumer works on another
PATIENCE = 30.0  # seconds to wait for a scheduler, and then for its first worker
T = TypeVar("T")
A = TypeVar("A")


def in_threads(function: Callable[[A], T], values: Sequence[A], workers: int) -> list[T | ValueError]:
    """Call a function per value in dask's threads; a ValueError stands in place of a result."""

    def attempt(value: A) -> T | ValueError:
        try:
            return function(value)
        except ValueError as error:
            return error

    # A graph written out: making one of delayed calls costs more than decoding a small image.
    calls = {f"call-{number}": (partial(attempt, value),) for number, value in enumerate(values)}
    return list(dask.threaded.get(calls, list(calls), num_workers=workers))


def ahead(calls: Iterable[Callable[[], T]]) -> Generator[T]:
    """Results of the calls in order, made in the background while the consumer works on those before."""
    waiting: deque[Future[T]] = deque()
    executor = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        for call in calls:
            waiting.append(executor.submit(call))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def on_cluster(scheduler: str, function: Callable[[A], T], values: Sequence[A]) -> Generator[T]:
    """Results of ``function`` for every value, in order, computed by the workers of an existing cluster.

    Two calls for each thread of the workers are under way at a time. What a worker had when it died is given
    to another. Raises InputError when the scheduler does not answer, has no workers, or when one call costs
    several workers their lives.
    """
    from distributed import Client, KilledWorker

    if not re.search(r":\d+(/|$)", scheduler):  # distributed would look for it in vain, and at length
        raise InputError(
            f"--scheduler {scheduler}: names no port; give the address that `dask scheduler` prints, such as "
            "tcp://192.0.2.1:8786"
        )
    try:
        client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--scheduler {scheduler}: no scheduler answers there ({error}); start one with `dask scheduler`"
        ) from error
    waiting: deque[Any] = deque()
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise InputError(
                f"--scheduler {scheduler}: has no workers; start one per GPU with `dask worker {scheduler}`"
            ) from error
        try:
            for value in values:
                waiting.append(client.submit(function, value, pure=False))
                if len(waiting) > 2 * max(1, sum(client.nthreads().values())):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except KilledWorker as error:
            raise InputError(
                f"--scheduler {scheduler}: several workers died of the same samples ({error.task}); "
                "see their logs, memory is the usual reason"
            ) from error
        finally:
            client.cancel(list(waiting))
