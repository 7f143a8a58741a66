"""What a session costs that does nothing: CPU, wake-ups, and memory of its processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import framework as fw
from framework.benchmarks.model import BYTES, PERCENT, WAKE_UPS, Measure, Row, Settings, Workload
from framework.benchmarks.processes import (
    children,
    descendants,
    private_memory,
    processor_seconds,
    resident_memory,
    voluntary_switches,
)
from framework.benchmarks.stats import median

_QUIET = 3.0  # seconds until what was in use has been given back
_WATCHED = 5.0
_TASKS = 200


def _pid() -> int:
    return os.getpid()


def _worker_pids(settings: Settings) -> set[int]:
    def pid() -> int:  # sent by value: the worker imports no module of ours
        return os.getpid()

    remote: Any = fw.remote(pid)
    return set(fw.get([remote.remote() for _ in range(_TASKS)]))


@contextmanager
def _idle(settings: Settings) -> Iterator[Measure]:
    workers = _worker_pids(settings)
    (node,) = children(os.getpid())
    settle = _QUIET if not settings.quick else 0.5
    time.sleep(settle)

    def measure(seconds: float) -> Sequence[float]:
        pids = [os.getpid(), *descendants(os.getpid())]
        watched = _WATCHED * seconds
        begin, used, slept = (
            time.perf_counter(),
            _sum(processor_seconds, pids),
            _sum(voluntary_switches, pids),
        )
        time.sleep(watched)
        used, slept = _sum(processor_seconds, pids) - used, _sum(voluntary_switches, pids) - slept
        taken = time.perf_counter() - begin
        living = [pid for pid in workers if pid in pids]
        if not living:
            raise RuntimeError("no worker is left")
        return (
            100 * used / taken,
            slept / taken,
            resident_memory(node),
            median([private_memory(pid) for pid in living]),
        )

    yield measure


def _sum(figure: Any, pids: list[int]) -> float:
    return float(sum(figure(pid) for pid in pids))


WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "idle",
        (
            Row("idle session, CPU of all processes", PERCENT),
            Row("idle session, wake-ups", WAKE_UPS),
            Row("idle session, node process, resident", BYTES),
            Row("idle session, worker, private memory", BYTES),
        ),
        _idle,
    ),
)
