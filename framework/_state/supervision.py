"""What a supervisor does when one of its children ends: Erlang's rules (the `supervisor` behaviour of OTP).

Pure: time comes in as an argument, decisions come out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

ONE_FOR_ONE: Final = "one_for_one"  #: only the child that ended is started again
ONE_FOR_ALL: Final = "one_for_all"  #: all children are stopped and started again
REST_FOR_ONE: Final = "rest_for_one"  #: that child and all that were started after it
STRATEGIES: Final = (ONE_FOR_ONE, ONE_FOR_ALL, REST_FOR_ONE)

PERMANENT: Final = "permanent"  #: started again whatever its end was like
TRANSIENT: Final = "transient"  #: started again unless it ended in order
TEMPORARY: Final = "temporary"  #: never started again
RESTARTS: Final = (PERMANENT, TRANSIENT, TEMPORARY)


class Decision:
    """What is to be done about the end of a child.

    stop: names of the children to stop, in this order (the last started first).
    start: names to start again, in this order.
    attempt: how many restarts, this one included, fall into the period: the backoff grows with it.
    forget: the child does not belong to the supervisor any more.
    escalate: there were more restarts than the supervisor allows: it gives up.
    """

    __slots__ = ("attempt", "escalate", "forget", "start", "stop")

    def __init__(
        self,
        *,
        stop: Iterable[str] = (),
        start: Iterable[str] = (),
        attempt: int = 0,
        forget: bool = False,
        escalate: bool = False,
    ) -> None:
        self.stop = tuple(stop)
        self.start = tuple(start)
        self.attempt = attempt
        self.forget = forget
        self.escalate = escalate

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decision) and self._fields() == other._fields()

    __hash__ = None  # type: ignore[assignment]

    def _fields(self) -> tuple[object, ...]:
        return self.stop, self.start, self.attempt, self.forget, self.escalate

    def __repr__(self) -> str:
        return "Decision(stop={}, start={}, attempt={}, forget={}, escalate={})".format(*self._fields())


class SupervisorState:
    """The children of one supervisor in the order of their start, and the restarts of late."""

    def __init__(self, strategy: str, max_restarts: int, period: float) -> None:
        self.strategy = strategy
        self.max_restarts = max_restarts
        self.period = period
        self._restart: dict[str, str] = {}
        self._times: deque[float] = deque()

    @property
    def children(self) -> list[str]:
        """In the order of their start."""
        return list(self._restart)

    def add(self, name: str, restart: str) -> None:
        """A child was started, after all others."""
        self._restart[name] = restart

    def remove(self, name: str) -> None:
        """A child was stopped for good."""
        self._restart.pop(name, None)

    def ended(self, name: str, orderly: bool, now: float) -> Decision:
        """A child has ended by itself, at this time (seconds, on any steady clock)."""
        restart = self._restart.get(name)
        if restart is None:
            return Decision()
        if restart == TEMPORARY or (restart == TRANSIENT and orderly):
            self.remove(name)
            return Decision(forget=True)
        times = self._times
        times.append(now)
        while times and times[0] <= now - self.period:
            times.popleft()
        if len(times) > self.max_restarts:
            return Decision(escalate=True, attempt=len(times))
        group = self._group(name)
        return Decision(
            stop=(child for child in reversed(group) if child != name), start=group, attempt=len(times)
        )

    def _group(self, name: str) -> list[str]:
        children = self.children
        if self.strategy == ONE_FOR_ALL:
            return children
        if self.strategy == REST_FOR_ONE:
            return children[children.index(name) :]
        return [name]
