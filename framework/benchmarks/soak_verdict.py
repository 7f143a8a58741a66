"""Whether a figure that was sampled for a long time grows. Pure: numbers in, a verdict out.

Growth is a slope over operations, by Theil and Sen (the median of the slopes between all pairs of points): up
to 29 % of the points may be outliers. What counts is the second half of the run, the first one being for
whatever fills up once. A figure *grows* when all of this holds:

- the slope is above `Bound.slope` per 1,000 operations,
- over the judged half that makes more than `Bound.least`, and more than the part `Bound.relative` of its
  level,
- the slope is no chance: the lower end of its 95 % interval is above zero,
- it goes on: of the four steps between fifths of that half, three go up. (A heap that has taken one larger
  piece from the system, or a table that is full now, shows one or two.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

FLAT, GROWS, UNKNOWN = "flat", "grows", "?"

_POINTS = 150  #: what more samples are condensed to, by medians
_FEWEST = 8
_Z = 1.96  #: of the 95 % interval
_PARTS = 5  #: of the judged half
_STEP = 0.25  #: part of the mean growth that is a step up from one to the next


@dataclass(frozen=True, slots=True)
class Bound:
    """What is not taken for growth. `slope`: units per 1,000 operations; `relative`: part of the level;
    `least`: units, over the judged half."""

    slope: float
    relative: float
    least: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """`level`: the median of the judged half. `slope`: units per 1,000 operations. `growth`: units over the
    judged half, as the slope has it."""

    verdict: str
    level: float
    slope: float
    growth: float

    @property
    def relative(self) -> float:
        """Growth as a part of the level; 0 where that is 0."""
        return self.growth / self.level if self.level else 0.0


def judge(operations: Sequence[float], values: Sequence[float], bound: Bound) -> Judgement:
    """The verdict on a series, by the operations that had been done at each sample (never fewer than at the
    one before). `UNKNOWN` for fewer than 16 samples, or where nothing was done.
    """
    if len(operations) != len(values):
        raise ValueError(f"{len(operations)} counts of operations for {len(values)} samples")
    points = _second_half(operations, values)
    level = median(value for _, value in points) if points else math.nan
    if len(points) < _FEWEST or points[-1][0] <= points[0][0]:
        return Judgement(UNKNOWN, level, math.nan, math.nan)
    points = condensed(points, _POINTS)
    slope, low = slope_with_lower_end(points)
    growth = slope * (points[-1][0] - points[0][0])
    grows = (
        slope * 1000 > bound.slope
        and growth > bound.least
        and growth > bound.relative * abs(level)
        and low > 0
        and _goes_on(points, slope)
    )
    return Judgement(GROWS if grows else FLAT, level, slope * 1000, growth)


def _second_half(operations: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    points = [(float(x), float(y)) for x, y in zip(operations, values, strict=True)]
    return points[len(points) // 2 :] if len(points) >= 2 * _FEWEST else []


def condensed(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points, each the medians of neighbours."""
    size = math.ceil(len(points) / most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(median(x for x, _ in group), median(y for _, y in group)) for group in groups]


def slope_with_lower_end(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The slope by Theil and Sen, and the lower end of its 95 % interval (Sen 1968), both 0 where no two
    points differ in x."""
    slopes = sorted(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(points)
        for later in points[index + 1 :]
        if later[0] > earlier[0]
    )
    if not slopes:
        return 0.0, 0.0
    n = len(points)
    spread = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return median(slopes), slopes[max(0, math.floor((len(slopes) - spread) / 2))]


def _goes_on(points: Sequence[tuple[float, float]], slope: float) -> bool:
    edges = [len(points) * part // _PARTS for part in range(_PARTS + 1)]
    parts = [points[start:end] for start, end in pairwise(edges)]
    middles = [(median(x for x, _ in part), median(y for _, y in part)) for part in parts]
    up = sum(
        later[1] - earlier[1] >= _STEP * slope * (later[0] - earlier[0])
        for earlier, later in pairwise(middles)
    )
    return up >= _PARTS - 2
