"""How long to wait before a failed task is tried again."""

from __future__ import annotations

import math
from collections.abc import Callable


class RetryPolicy:
    """Exponential backoff with jitter between the attempts of a task (option ``retry_policy``).

    initial_delay: seconds before the first retry, >= 0.
    multiplier: factor from one retry to the next, >= 1.
    max_delay: upper bound of a delay in seconds, >= 0.
    jitter: share of the delay that is random, 0 (none) to 1 (all of it).
    retry_if: called with the exception, in the worker that ran the task; False ends the retries. Alone it
    decides
        for every exception; with ``retry_exceptions`` both must agree. Must be picklable.

    The delays also hold between attempts after a crash of the worker.

    `ValueError` or `TypeError` for anything else. The number of retries is the task's ``max_retries``.
    """

    __slots__ = ("initial_delay", "jitter", "max_delay", "multiplier", "retry_if")

    def __init__(
        self,
        initial_delay: float = 0.1,
        multiplier: float = 2.0,
        max_delay: float = 30.0,
        jitter: float = 0.5,
        retry_if: Callable[[BaseException], bool] | None = None,
    ) -> None:
        self.initial_delay = _number("initial_delay", initial_delay, 0.0, math.inf)
        self.multiplier = _number("multiplier", multiplier, 1.0, math.inf)
        self.max_delay = _number("max_delay", max_delay, 0.0, math.inf)
        self.jitter = _number("jitter", jitter, 0.0, 1.0)
        if retry_if is not None and not callable(retry_if):
            raise TypeError(f"retry_if must be a function of the exception or None, not {retry_if!r}")
        self.retry_if = retry_if

    def delay(self, attempt: int, draw: float) -> float:
        """Seconds to wait before retry number `attempt` (from 1); `draw` is uniform in [0, 1).

        ``base = min(max_delay, initial_delay * multiplier ** (attempt - 1))``, and the delay is
        ``base * (1 - jitter * draw)``: never more than `max_delay`, never less than ``base * (1 - jitter)``.
        `ValueError` when `attempt` < 1 or `draw` is out of range.
        """
        if attempt < 1:
            raise ValueError(f"attempt counts from 1, got {attempt!r}")
        if not 0.0 <= draw < 1.0:
            raise ValueError(f"draw must be in [0, 1), got {draw!r}")
        try:
            base = min(self.max_delay, self.initial_delay * self.multiplier ** (attempt - 1))
        except OverflowError:
            base = self.max_delay if self.initial_delay else 0.0
        return base * (1.0 - self.jitter * draw)

    def _fields(self) -> tuple[object, ...]:
        return (self.initial_delay, self.multiplier, self.max_delay, self.jitter, self.retry_if)

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, RetryPolicy) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        predicate = f", retry_if={self.retry_if!r}" if self.retry_if is not None else ""
        return (
            f"RetryPolicy(initial_delay={self.initial_delay!r}, multiplier={self.multiplier!r}, "
            f"max_delay={self.max_delay!r}, jitter={self.jitter!r}{predicate})"
        )

    def __reduce__(self) -> tuple[type[RetryPolicy], tuple[object, ...]]:
        return (type(self), self._fields())


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not (low <= value <= high) or math.isinf(value):  # also false for NaN
        bound = f"between {low:g} and {high:g}" if high != math.inf else f"a finite number >= {low:g}"
        raise ValueError(f"{name} must be {bound}, got {value!r}")
    return float(value)
