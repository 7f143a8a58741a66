"""Queue many tasks on a held cluster, then let them run: once, in this process. Prints the figures as JSON.

``python -m framework.benchmarks.queue_once COUNT CPUS``: a process of its own per run, because memory that
one run has freed would hide what the next one takes.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import framework as fw

_HOLD_LIMIT = 300.0  # seconds: no holder outlives a driver that died
_SETTLED_STEPS = 3
_STEP = 0.05
_SETTLE_LIMIT = 200  # steps


def resident_bytes() -> int:
    """Resident memory of this process. `OSError` where there is no /proc."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _hold(directory: str, number: int) -> None:
    """Keep a CPU busy, as the scheduler sees it, until the gate opens."""
    Path(directory, f"started-{number}").touch()
    gate = Path(directory, "gate")
    end = time.monotonic() + _HOLD_LIMIT
    while not gate.exists() and time.monotonic() < end:
        time.sleep(0.005)


def _identity(number: int) -> int:
    return number


def _settled_bytes() -> int:
    """Resident memory once the runtime's thread has worked off what was submitted."""
    last, steps = 0, 0
    for _ in range(_SETTLE_LIMIT):
        now = resident_bytes()
        steps = steps + 1 if abs(now - last) <= now // 1000 else 0
        if steps >= _SETTLED_STEPS:
            break
        last = now
        time.sleep(_STEP)
    return last


def measure(count: int, cpus: int) -> dict[str, float]:
    """Tasks submitted per second, bytes of driver memory per queued task, tasks finished per second, and
    tasks per second over both (what lies between, to let the memory settle, does not count)."""
    hold: Any = fw.remote(_hold)
    work: Any = fw.remote(_identity)
    # So that the function is exported, workers are started, caches are filled.
    fw.get([work.remote(number) for number in range(1000)])
    with tempfile.TemporaryDirectory() as directory:
        holders = [hold.remote(directory, number) for number in range(cpus)]
        end = time.monotonic() + 30.0
        while len(list(Path(directory).glob("started-*"))) < cpus:
            if time.monotonic() > end:
                raise RuntimeError("the holding tasks did not start")
            time.sleep(0.005)
        gc.collect()
        before = _settled_bytes()
        begin = time.perf_counter()
        refs = [work.remote(number) for number in range(count)]
        submitted = time.perf_counter() - begin
        taken = _settled_bytes() - before
        begin = time.perf_counter()
        Path(directory, "gate").touch()
        fw.get(holders)
        if fw.get(refs) != list(range(count)):
            raise RuntimeError("queued tasks returned something else")
        drained = time.perf_counter() - begin
    return {
        "submit": count / submitted,
        "bytes": taken / count,
        "drain": count / drained,
        "whole": count / (submitted + drained),
    }


def main(count: int, cpus: int) -> None:
    """Measure inside a fresh `framework.init` and print the figures."""
    with fw.init(num_cpus=cpus, log_to_driver=False):
        figures = measure(count, cpus)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
