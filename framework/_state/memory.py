"""Which worker to end when the machine runs out of memory. Pure.

Ending one worker is better than leaving it to the system's killer, which takes whole process groups and says
nothing: the one that is cheapest to run again goes first, and its owner is told what happened.
"""

from __future__ import annotations

from typing import NamedTuple


class Candidate(NamedTuple):
    """A worker that runs something."""

    worker_id: bytes
    name: str  #: what it runs, for the message
    retriable: bool  #: its task may be run again
    is_actor: bool
    started: float  #: when it got its present work
    rss: int  #: bytes


def choose(candidates: list[Candidate], floor: int) -> Candidate | None:
    """The worker to end: a task that may be retried before one that may not, tasks before actors, and of
    these the one that began last (it loses the least work), provided that it uses at least `floor` bytes:
    ending a small one helps nobody. None when there is none."""
    worth = [candidate for candidate in candidates if candidate.rss >= floor]
    if not worth:
        return None
    return min(worth, key=lambda c: (not c.retriable, c.is_actor, -c.started, -c.rss, c.worker_id))


def describe(victim: Candidate, candidates: list[Candidate], used: int, total: int, threshold: float) -> str:
    """What the error says: the task, its memory, and the top consumers."""
    top = sorted(candidates, key=lambda c: (-c.rss, c.worker_id))[:5]
    consumers = ", ".join(f"{c.name} {_mib(c.rss)}" for c in top)
    return (
        f"the node ran out of memory: {_mib(used)} of {_mib(total)} were in use, over the threshold of "
        f"{threshold:.0%}; "
        f"{victim.name} used {_mib(victim.rss)} and was ended to save the others. Top consumers: "
        f"{consumers}. Give tasks "
        "less to hold, run fewer at once (num_cpus, memory), or raise memory_usage_threshold"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
