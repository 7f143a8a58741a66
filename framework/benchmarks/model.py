"""What a benchmark is: rows, the workload that fills them, and the settings of one invocation."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

PER_SECOND = "/s"
GB_PER_SECOND = "GB/s"
SECONDS = "s"
BYTES = "B"
PERCENT = "%"  # of one CPU
WAKE_UPS = "wake-ups/s"
LOWER_IS_BETTER = frozenset({SECONDS, BYTES, PERCENT, WAKE_UPS})

QUICK_DIVISOR = 10

#: One run: takes the seconds that it should last, returns one value per row of its workload.
Measure = Callable[[float], Sequence[float]]


def usable_cpus() -> int:
    """The number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of one invocation. `seconds` is the time per run; `quick` divides batch sizes by ten."""

    runs: int = 5
    seconds: float = 1.0
    quick: bool = False
    cpus: int = 1

    def batch(self, full: int) -> int:
        """The size of a batch whose row is a rate per item: `full`, or a tenth of it in a quick run."""
        return max(1, full // QUICK_DIVISOR) if self.quick else full


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `unit` also gives the direction: seconds and bytes are better when lower. `floor` names the floor row that
    this one is held against, and `per_floor` says how many operations of the floor one unit of this row
    needs (1000 for a row that counts batches of a thousand calls; 0.001 for a rate that takes a thousand).
    """

    name: str
    unit: str
    floor: str | None = None
    per_floor: float = 1.0

    @property
    def lower_is_better(self) -> bool:
        return self.unit in LOWER_IS_BETTER


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows that are measured together, and how.

    `prepare` sets up what is not timed and yields the `Measure`; leaving it takes everything down again.
    With `product` the workload runs inside `framework.init`; floors, peers and fresh-process rows do not.
    With `fresh` every sample is a new process, so there is nothing to warm up. With `once` there is one run,
    however many are asked for, because it takes a minute or more.
    """

    group: str
    rows: tuple[Row, ...]
    prepare: Callable[[Settings], AbstractContextManager[Measure]]
    product: bool = True
    fresh: bool = False
    once: bool = False

    @property
    def name(self) -> str:
        """The name of the first row, which identifies the workload."""
        return self.rows[0].name
