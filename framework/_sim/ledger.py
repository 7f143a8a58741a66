"""What really ran, written down by the functions and actors themselves. In a simulation all processes share
one interpreter, so they can write into this one book; elsewhere it stays closed, and the notes cost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType

RUNNING = "running"  #: begun; if the program is over: its process ended in the middle
DONE = "done"
RAISED = "raised"


class Attempt:
    """One execution of a task, up to wherever it came."""

    __slots__ = ("began", "ended", "node", "number", "pid", "state", "task")

    def __init__(self, task: int, number: int, began: float, pid: int, node: str) -> None:
        self.task = task
        self.number = number  #: 1 for the first of this task
        self.began = began
        self.ended = began
        self.pid = pid
        self.node = node
        self.state = RUNNING

    def __repr__(self) -> str:
        end = f" to {self.ended:.6f}" if self.state != RUNNING else ""
        return (
            f"task {self.task} attempt {self.number} {self.state} {self.began:.6f}{end} "
            f"pid {self.pid} node {self.node[:6]}"
        )


class Incarnation:
    """One life of an actor: its constructor ran."""

    __slots__ = ("actor", "born", "node", "number", "pid")

    def __init__(self, actor: int, number: int, born: float, pid: int, node: str) -> None:
        self.actor = actor
        self.number = number  #: 1 for the first
        self.born = born
        self.pid = pid
        self.node = node

    def __repr__(self) -> str:
        where = f"pid {self.pid} node {self.node[:6]}"
        return f"actor {self.actor} life {self.number} from {self.born:.6f} {where}"


class Call:
    """One execution of a method."""

    __slots__ = ("actor", "began", "caller", "ended", "life", "number", "state")

    def __init__(self, actor: int, life: int, caller: int, number: int, began: float) -> None:
        self.actor = actor
        self.life = life
        self.caller = caller  #: the strand that made it
        self.number = number  #: of its calls, counted up
        self.began = began
        self.ended = began
        self.state = RUNNING

    def __repr__(self) -> str:
        end = f" to {self.ended:.6f}" if self.state != RUNNING else ""
        return (
            f"actor {self.actor} life {self.life} call {self.caller}:{self.number} {self.state} "
            f"{self.began:.6f}{end}"
        )


class Item:
    """A generator has come to one of its yields."""

    __slots__ = ("attempt", "index", "task", "when")

    def __init__(self, task: int, attempt: int, index: int, when: float) -> None:
        self.task = task
        self.attempt = attempt
        self.index = index
        self.when = when


class Ledger:
    """The book of one run. `clock`: the time that all processes share, whatever their own clocks say."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] | None = None
        self.clear()

    def clear(self) -> None:
        self.attempts: dict[int, list[Attempt]] = {}
        self.lives: dict[int, list[Incarnation]] = {}
        self.calls: dict[int, list[Call]] = {}
        self.items: dict[int, list[Item]] = {}

    def open(self, clock: Callable[[], float]) -> None:
        """A simulation begins."""
        self.clear()
        self.clock = clock

    def close(self) -> None:
        """It is over; what was written stays to be read."""
        self.clock = None

    # ---- written by what runs in workers -------------------------------------------------------------

    def begin(self, task: int) -> Attempt | None:
        if self.clock is None:
            return None
        attempts = self.attempts.setdefault(task, [])
        attempt = Attempt(task, len(attempts) + 1, self.clock(), os.getpid(), node_here())
        attempts.append(attempt)
        return attempt

    def born(self, actor: int) -> int:
        """The number of a new life."""
        if self.clock is None:
            return 0
        lives = self.lives.setdefault(actor, [])
        lives.append(Incarnation(actor, len(lives) + 1, self.clock(), os.getpid(), node_here()))
        return len(lives)

    def called(self, actor: int, life: int, caller: int, number: int) -> Call | None:
        if self.clock is None:
            return None
        call = Call(actor, life, caller, number, self.clock())
        self.calls.setdefault(actor, []).append(call)
        return call

    def end(self, entry: Attempt | Call | None, state: str) -> None:
        if entry is not None and self.clock is not None:
            entry.ended, entry.state = self.clock(), state

    def item(self, task: int, attempt: Attempt | None, index: int) -> None:
        if self.clock is not None and attempt is not None:
            self.items.setdefault(task, []).append(Item(task, attempt.number, index, self.clock()))


#: the book of the simulation that runs in this process
LEDGER = Ledger()


def node_here() -> str:
    """Hexadecimal id of the node of the calling process; empty where it is not known."""
    from framework._runtime.current import existing

    runtime = existing()
    return runtime.config.node_id.hex() if runtime is not None else ""


class noted:
    """``with noted(LEDGER.begin(task)):`` writes down the end too. What is thrown into the code of a process
    that was killed (nothing of it runs any more, but it is collected) is none."""

    __slots__ = ("entry",)

    def __init__(self, entry: Attempt | Call | None) -> None:
        self.entry = entry

    def __enter__(self) -> Attempt | Call | None:
        return self.entry

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            LEDGER.end(self.entry, DONE)
        elif kind.__name__ not in ("GreenletExit", "GeneratorExit"):
            LEDGER.end(self.entry, RAISED)
