"""Statistics over runs. Pure: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["median", "of_floor", "overlap", "relative_spread", "speed_up", "verdict"]

FASTER, SLOWER, SAME, UNKNOWN = "faster", "slower", "no difference seen", "?"


def relative_spread(samples: Sequence[float]) -> float:
    """Distance from the lowest to the highest sample, as a fraction of the median.

    0.0 for one sample, or when the median is zero. `ValueError` when there is none.
    """
    if not samples:
        raise ValueError("no samples")
    middle = median(samples)
    return (max(samples) - min(samples)) / abs(middle) if middle else 0.0


def of_floor(value: float, floor: float, *, per_floor: float, lower_is_better: bool) -> float:
    """How much of the floor's speed `value` reaches: 1.0 is as fast as the floor, 0.25 a quarter of it.

    `per_floor` is the number of floor operations in one unit of `value`. The same reading holds for rates and
    for times. NaN when a figure is not positive.
    """
    if value <= 0 or floor <= 0:
        return math.nan
    return floor * per_floor / value if lower_is_better else value * per_floor / floor


def speed_up(before: float, after: float, *, lower_is_better: bool) -> float:
    """How many times better `after` is than `before`; NaN when a figure is not positive."""
    if before <= 0 or after <= 0:
        return math.nan
    return before / after if lower_is_better else after / before


def overlap(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the ranges of both have something in common."""
    return min(before) <= max(after) and min(after) <= max(before)


def verdict(before: Sequence[float], after: Sequence[float], *, lower_is_better: bool) -> str:
    """`FASTER` or `SLOWER` (of `after`) where no run of one reaches a run of the other, `SAME` where the
    ranges of the runs overlap, `UNKNOWN` with fewer than two runs on a side.

    Of five runs each that are no different, the ranges miss each other in 1 of 126 cases.
    """
    if len(before) < 2 or len(after) < 2:
        return UNKNOWN
    if overlap(before, after):
        return SAME
    return FASTER if (min(after) > max(before)) != lower_is_better else SLOWER
