"""The one source of chance in a simulation, and the log of what happened."""

from __future__ import annotations

import hashlib
import random
from typing import Any


class Choices:
    """All that is decided by chance is drawn here, so the seed decides all of it."""

    def __init__(self, seed: int, schedule: int = 0) -> None:
        self.seed = seed
        self._random = random.Random(f"{seed} {schedule}" if schedule else seed)
        self.below = self._random.randrange  #: an int from 0 up to, and without, the argument
        self.unit = self._random.random  #: a float from 0 up to, and without, 1
        self.uniform = self._random.uniform

    def chance(self, probability: float) -> bool:
        """True with this probability. (Draws nothing for 0 and 1, so that a fault that is off costs none.)"""
        return probability > 0.0 and (probability >= 1.0 or self.unit() < probability)

    def pick(self, items: Any) -> Any:
        """One of a sequence."""
        return items[self.below(len(items))]

    def bytes(self, size: int) -> bytes:
        """For `os.urandom`."""
        return self._random.randbytes(size)

    def derive(self, name: str) -> random.Random:
        """A source of its own, decided by the seed and the name alone: what else is drawn does not disturb
        it."""
        return random.Random(f"{self.seed}/{name}")


class Log:
    """What happened, in order: hashed always, kept if asked for.

    Two runs of one seed must have the same log; `first_difference` tells where they part.
    """

    def __init__(self, keep: bool = False) -> None:
        self.lines: list[str] | None = [] if keep else None
        self.count = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._pending: list[str] = []

    def add(self, line: str) -> None:
        """One event. The text must hold nothing that another run would have otherwise: no `id()`, no
        address, no real time."""
        self.count += 1
        if self.lines is not None:
            self.lines.append(line)
        pending = self._pending
        pending.append(line)
        if len(pending) > 512:
            self._fold()

    def _fold(self) -> None:
        self._hash.update("\n".join(self._pending).encode("utf-8", "backslashreplace"))
        self._pending.clear()

    def digest(self) -> str:
        """Of all events until now."""
        self._fold()
        return self._hash.copy().hexdigest()


def first_difference(one: list[str], other: list[str]) -> str | None:
    """Where two logs part, in words; None when they are the same."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            before = "".join(f"\n    {line}" for line in one[max(0, index - 3) : index])
            return (
                f"event {index} differs:\n  first run:  {left}\n  second run: {right}\n  before that:{before}"
            )
    if len(one) != len(other):
        index = min(len(one), len(other))
        longer, which = (one, "first") if len(one) > len(other) else (other, "second")
        return f"event {index}: only the {which} run has it: {longer[index]}"
    return None
