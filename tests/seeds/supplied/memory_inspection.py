"""A large array from one task to another: prints what each process holds on its heap and shares.

Stands in for a script that two documents call and do not contain. Fails if the consumer copied the array.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

import framework as fw

MIB = 2**20


def memory() -> tuple[float, float]:
    """Resident and shared memory of this process in MiB (zeros where there is no /proc)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0.0, 0.0
    _, resident, shared, *_ = (int(pages) for pages in statm.read_text().split())
    page = os.sysconf("SC_PAGESIZE")
    return resident * page / MIB, shared * page / MIB


def report(who: str) -> float:
    """Prints one line; the process's heap (resident without shared) in MiB."""
    resident, shared = memory()
    print(f"{who}: resident {resident:.1f} MiB, shared {shared:.1f} MiB, heap {resident - shared:.1f} MiB")
    return resident - shared


@fw.remote
def produce(size_mib: int) -> np.ndarray:
    """An array of that size."""
    report("producer, before")
    array = np.random.rand(size_mib * MIB // 8)
    report("producer, after")
    return array


@fw.remote
def consume(array: np.ndarray) -> tuple[bool, float]:
    """Whether the array is a view, and the growth of the heap while all of it is read, in MiB."""
    before = report("consumer, before")
    array.sum()
    return not array.flags.owndata, report("consumer, after") - before


def main() -> int:
    """Entry point; 0 if the consumer shared the producer's array."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=32, help="size of the array")
    size = parser.parse_args().mib
    with fw.init(num_cpus=2, object_store_memory=8 * size * MIB):
        is_view, growth = fw.get(consume.remote(produce.remote(size)))
    print(f"array {size} MiB, view: {is_view}, growth of the consumer's heap: {growth:.1f} MiB")
    return 0 if is_view and growth < size / 2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
