"""Latency under load: one actor call after the other, while something else keeps the machine busy.

Each row is a percentile of the calls of one run. The actor is called from the driver's main thread.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import framework as fw
from framework.benchmarks.model import SECONDS, Measure, Row, Settings, Workload

_FEWEST_CALLS = 100  # that a 99th percentile is taken of
_QUEUED = 100_000
_PUT_BYTES = 128 * 1024 * 1024
_LOAD_LIMIT = 300.0  # seconds: no load outlives a driver that died
_LOAD_STARTS_WITHIN = 30.0

Load = Callable[[Settings, str], AbstractContextManager[None]]


class _Server:
    def small_value(self) -> bytes:
        return b"ok"


def _open(gate: str) -> Callable[[], bool]:
    """Tells whether the load should go on: until the gate exists, or nobody can open it any more."""
    end = time.monotonic() + _LOAD_LIMIT
    return lambda: not os.path.exists(gate) and time.monotonic() < end


def _burn(gate: str) -> None:
    go_on = _open(gate)
    while go_on():
        sum(range(10_000))


def _hold(gate: str) -> None:
    go_on = _open(gate)
    Path(f"{gate}-{os.getpid()}").touch()
    while go_on():
        time.sleep(0.005)


def _put(gate: str, nbytes: int) -> None:
    go_on = _open(gate)
    array = np.ones(nbytes, dtype=np.uint8)
    while go_on():
        fw.put(array)
        Path(f"{gate}-{os.getpid()}").touch()


def _small_value() -> bytes:
    return b"ok"


def _await_files(gate: str, count: int) -> None:
    end = time.monotonic() + _LOAD_STARTS_WITHIN
    path = Path(gate)
    while len(list(path.parent.glob(f"{path.name}-*"))) < count:
        if time.monotonic() > end:
            raise RuntimeError("the load did not start")
        time.sleep(0.005)


@contextmanager
def _every_cpu(settings: Settings, gate: str) -> Iterator[None]:
    """A task runs on each CPU and never waits."""
    burn: Any = fw.remote(_burn)
    tasks = [burn.remote(gate) for _ in range(settings.cpus)]
    yield
    Path(gate).touch()
    fw.get(tasks)


@contextmanager
def _other_thread(settings: Settings, gate: str) -> Iterator[None]:
    """Another thread of the driver computes in Python, and holds the interpreter's lock when it can.

    It makes no system calls: CPython gives the lock to whoever waits 5 ms for it without a change of hands.
    A thread that lets go of it for a moment every 0.1 ms, and takes it again before the other has woken up,
    keeps that from happening for seconds.
    """
    going = [True]

    def compute() -> None:
        while going:
            sum(range(10_000))

    thread = threading.Thread(target=compute, name="computes")
    thread.start()
    try:
        yield
    finally:
        going.clear()
        thread.join()


@contextmanager
def _store_in_use(settings: Settings, gate: str) -> Iterator[None]:
    """A worker puts arrays of 128 MiB, one after the other."""
    put: Any = fw.remote(_put).options(num_cpus=0)
    task = put.remote(gate, settings.batch(_PUT_BYTES))
    _await_files(gate, 1)
    yield
    Path(gate).touch()
    fw.get(task)


@contextmanager
def _long_queue(settings: Settings, gate: str) -> Iterator[None]:
    """100,000 tasks wait in the driver for CPUs that others hold, and do not use."""
    hold: Any = fw.remote(_hold)
    small: Any = fw.remote(_small_value)
    fw.get(small.remote())
    holders = [hold.remote(gate) for _ in range(settings.cpus)]
    _await_files(gate, settings.cpus)
    queued = [small.remote() for _ in range(settings.batch(_QUEUED))]
    yield
    Path(gate).touch()
    fw.get(holders)
    fw.get(queued)


@contextmanager
def _draining(settings: Settings, gate: str) -> Iterator[None]:
    """Another thread of the driver has batches of 1,000 tasks run, one after the other."""
    small: Any = fw.remote(_small_value)
    failed: list[BaseException] = []
    go_on = _open(gate)

    def run() -> None:
        try:
            while go_on():
                fw.get([small.remote() for _ in range(1000)])
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="submits")
    thread.start()
    try:
        yield
    finally:
        Path(gate).touch()
        thread.join()
    if failed:
        raise failed[0]


def percentiles(call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """The 50th and the 99th percentile of the time of `call`, over `seconds` and at least a hundred calls."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _FEWEST_CALLS or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100]


def _calls_under(load: Load) -> Callable[[Settings], AbstractContextManager[Measure]]:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        actor: Any = fw.remote(_Server)
        handle = actor.options(num_cpus=0).remote()
        fw.get(handle.small_value.remote())

        def measure(seconds: float) -> Sequence[float]:
            return percentiles(lambda: fw.get(handle.small_value.remote()), seconds)

        with tempfile.TemporaryDirectory() as directory, load(settings, os.path.join(directory, "over")):
            yield measure

    return prepare


@contextmanager
def _nothing(settings: Settings, gate: str) -> Iterator[None]:
    yield


def _workload(load: Load, name: str) -> Workload:
    rows = tuple(Row(f"actor call, {name}, {percentile}", SECONDS) for percentile in ("p50", "p99"))
    return Workload("latency", rows, _calls_under(load))


WORKLOADS: tuple[Workload, ...] = (
    _workload(_nothing, "nothing else"),
    _workload(_every_cpu, "all CPUs busy"),
    _workload(_other_thread, "driver computes"),
    _workload(_store_in_use, "large puts"),
    _workload(_long_queue, "100k tasks queued"),
    _workload(_draining, "tasks in flight"),
)
