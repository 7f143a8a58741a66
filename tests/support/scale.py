"""What the tests of scale run in workers. (Why a module of its own: see custody.py.)"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

import framework as fw

STORED = 101 * 1024  #: bytes of a value that is just too large for a message


def stored_arrays(count: int) -> list[fw.ObjectRef[Any]]:
    """References to arrays in the store, each with a number of its own."""
    array = np.zeros(STORED // 8)
    refs = []
    for number in range(count):
        array[0] = number
        refs.append(fw.put(array))
    return refs


@fw.remote
def nothing() -> None:
    return None


@fw.remote
def firsts(*arguments: Any) -> float:
    """The sum of the first items of arrays, or of numbers."""
    return float(sum(a if isinstance(a, int) else a[0] for a in arguments))


@fw.remote
def numbered(number: int) -> int:
    return number


@fw.remote
def arrays_of_a_worker(count: int) -> list[fw.ObjectRef[Any]]:
    return stored_arrays(count)


def shared_bytes() -> tuple[int, int]:
    """(this process's share of shared memory, its memory of its own), in bytes."""
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value, _ = line.split()
        found[name] = int(value) * 1024
    return found["Pss_Shmem:"], found["Pss_Anon:"]


@fw.remote
def use_together(
    refs: list[fw.ObjectRef[Any]], meeting: str, number: int, workers: int
) -> tuple[int, int, int, float]:
    """Use a frame while all others do: (pid, share of shared memory, more memory of its own, total)."""
    _, own = shared_bytes()
    frame = fw.get(refs[0])
    total = sum(float(column.sum()) for column in frame.values())
    Path(meeting, str(number)).touch()
    end = time.monotonic() + 30
    while len(os.listdir(meeting)) < workers and time.monotonic() < end:
        time.sleep(0.005)
    shared, more = shared_bytes()
    Path(meeting, f"{number}-measured").touch()
    while len(os.listdir(meeting)) < 2 * workers and time.monotonic() < end:
        time.sleep(0.005)
    return os.getpid(), shared, more - own, total
