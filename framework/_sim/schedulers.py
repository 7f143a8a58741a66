"""Who runs next, of the threads that could."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from framework._sim.choices import Choices

if TYPE_CHECKING:
    from framework._sim.kernel import Task


class Scheduler(Protocol):
    """Chooses who runs next."""

    def added(self, task: Task) -> None: ...

    def choose(self, ready: list[Task]) -> int: ...


class RandomWalk:
    """Any of them, each as likely: finds what goes wrong in few steps."""

    def __init__(self, choices: Choices) -> None:
        self._below = choices.below

    def added(self, task: Task) -> None:
        pass

    def choose(self, ready: list[Task]) -> int:
        return self._below(len(ready)) if len(ready) > 1 else 0


class Priorities:
    """Always the one with the highest priority, which are drawn at random; at some random steps the one that
    runs falls behind all others. Finds starvation, and what needs one to be slow for long.

    PCT: Burckhardt et al., A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs, 2010.
    """

    def __init__(self, choices: Choices, changes: int = 12, steps: int = 30_000) -> None:
        self._choices = choices
        self._lowest = 0.0
        self._step = 0
        self._changes = {choices.below(steps) for _ in range(changes)}
        self._every = max(1, steps // max(changes, 1))

    def added(self, task: Task) -> None:
        task.priority = 1.0 + self._choices.unit()

    def choose(self, ready: list[Task]) -> int:
        self._step += 1
        best = max(range(len(ready)), key=lambda index: ready[index].priority)
        # (Runs are longer than one can know beforehand: beyond, changes come at the same rate.)
        if self._step in self._changes or self._step % (10 * self._every) == 0:
            self._lowest -= 1.0
            ready[best].priority = self._lowest
        return best
