"""Whether a cost grows in proportion. Pure: sizes and times in, a slope and a verdict out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import median

LINEAR, FASTER, UNKNOWN = "linear", "grows faster", "?"

#: The slope up to which a curve counts as linear: over two decades, 1.1 makes an item dearer by 58 %, which
#: is about what leaving the processor's caches does to a plain copy.
BOUND = 1.1
_JUDGED = (
    100.0  # the part of the largest size from which on points count: below it, constant costs hide growth
)
_FEWEST = 3


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """The exponent of growth: the median slope between all pairs of points, on logarithmic axes (Theil, Sen).

    1.0 is proportional, 2.0 quadratic, 0.0 constant. Only points within two decades of the largest size
    count. None with fewer than three of these. `ValueError` for sizes or times that are not positive.
    """
    if any(x <= 0 or y <= 0 for x, y in points):
        raise ValueError("sizes and times must be positive")
    largest = max((x for x, _ in points), default=0.0)
    judged = [(math.log(x), math.log(y)) for x, y in points if x * _JUDGED >= largest]
    if len({x for x, _ in judged}) < _FEWEST:
        return None
    return median((b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(judged, 2) if a[0] != b[0])


def verdict(points: Sequence[tuple[float, float]], bound: float = BOUND) -> str:
    """`LINEAR` (or better), `FASTER`, or `UNKNOWN` when there are too few points."""
    found = slope(points)
    if found is None:
        return UNKNOWN
    return LINEAR if found <= bound else FASTER
