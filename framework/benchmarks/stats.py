"""Statistics over runs. Pure: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["median", "noise_band", "of_floor", "relative_spread", "speed_up", "verdict"]


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


def noise_band(before: Sequence[float], after: Sequence[float]) -> float:
    """The relative change that runs as scattered as these show by themselves: the sum of both half spreads.

    With one sample on a side the scatter of that side is unknown: infinity.
    """
    if len(before) < 2 or len(after) < 2:
        return math.inf
    return (relative_spread(before) + relative_spread(after)) / 2


def verdict(ratio: float, noise: float) -> str:
    """`faster`, `slower`, or `same` when the change is inside the noise; `?` when it cannot be told."""
    if math.isnan(ratio) or math.isinf(noise):
        return "?"
    # Judge both directions alike: half the speed is as large a change as twice the speed.
    if abs(math.log(ratio)) <= math.log1p(noise):
        return "same"
    return "faster" if ratio > 1 else "slower"
