"""What is to be struck when: a pure function of a seed.

The same seed, targets and mean distance give the same plan, however long it is followed. Which process a
`pick` means is decided when the time has come: real processes come and go as they do.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

TARGETS: Final = ("workers", "nodes", "head")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault. `hold`: the shortest and the longest time, in seconds, that its victim is stopped
    (for the head after SIGKILL: that it is away)."""

    name: str
    target: str
    weight: int
    hold: tuple[float, float]
    text: str


KINDS: Final = (
    Kind("worker.kill", "workers", 30, (0, 0), "SIGKILL for a worker process"),
    Kind("worker.stop", "workers", 12, (0.05, 6), "SIGSTOP for a worker process, SIGCONT later"),
    Kind("worker.stop-kill", "workers", 4, (0.05, 3), "SIGSTOP for a worker process, SIGKILL later"),
    Kind("zygote.kill", "workers", 3, (0, 0), "SIGKILL for a node's zygote, whose workers die with it"),
    Kind("node.kill", "nodes", 10, (0, 0), "SIGKILL for all processes of a node at once: a power cut"),
    Kind("node.crash", "nodes", 6, (0, 0), "SIGKILL for a node process: its workers must end by themselves"),
    Kind("node.stop", "nodes", 8, (0.1, 3), "SIGSTOP for all processes of a node, back before it is missed"),
    Kind("node.fence", "nodes", 5, (5, 10), "the same, back after it was declared dead: it must end itself"),
    Kind("node.freeze", "nodes", 3, (5, 10), "the same, never to come back"),
    Kind("node.stall", "nodes", 4, (0.1, 8), "SIGSTOP for a node process alone: its workers go on"),
    Kind("home.stall", "nodes", 3, (0.1, 1.5), "SIGSTOP for the process of the head's and driver's node"),
    Kind("head.kill", "head", 12, (0, 3), "SIGKILL for the head, started again later"),
    Kind("head.stop", "head", 6, (0.1, 6), "SIGSTOP for the head, SIGCONT later"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """`at`: seconds after the start. `pick`, in [0, 1): which of the processes that there are then. `hold`:
    see `Kind`. `delay`: seconds until a node that is lost is replaced."""

    number: int
    at: float
    kind: Kind
    pick: float
    hold: float
    delay: float

    def __str__(self) -> str:
        held = f", {self.hold:.2f} s" if self.kind.hold[1] else ""
        return f"{self.at:8.2f} s  #{self.number} {self.kind.name}{held}"


def plan(seed: int, every: float, targets: Collection[str] = TARGETS) -> Iterator[Fault]:
    """Faults without end, `every` seconds apart on average. `ValueError` for targets that there are not, none
    at all, or times that make no sense."""
    unknown = set(targets) - set(TARGETS)
    if unknown or not targets:
        raise ValueError(f"targets are {', '.join(TARGETS)}; got {', '.join(sorted(unknown)) or 'none'}")
    if not every > 0:
        raise ValueError(f"faults are a positive number of seconds apart, got {every!r}")
    return _faults(random.Random(seed), every, [kind for kind in KINDS if kind.target in targets])


def _faults(source: random.Random, every: float, kinds: list[Kind]) -> Iterator[Fault]:
    weights = [kind.weight for kind in kinds]
    at, number = 0.0, 0
    while True:
        number += 1
        at += every * source.uniform(0.1, 1.9)
        (kind,) = source.choices(kinds, weights)
        hold = source.uniform(*kind.hold)
        yield Fault(number, at, kind, source.random(), hold, source.uniform(0, 3))
