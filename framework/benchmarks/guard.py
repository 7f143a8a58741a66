"""The guard: counts per call against bounds. ``python -m framework.benchmarks guard``.

Rates depend on the machine and its mood; how many functions a call enters, how many frames it sends and how
many blocks it allocates do not. The bounds are in ``guard_bounds.json``, per version of Python, somewhat
above what was counted when they were written; ``--write`` writes those of the running version anew. A version
without bounds of its own gets the largest of the others, with room.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from framework.benchmarks.processes import adopt_orphans, run_child
from framework.benchmarks.report import columns

BOUNDS_FILE = Path(__file__).with_name("guard_bounds.json")
_TIMEOUT = 300.0
_ROOM_FOR_OTHERS = 1.25  # on top, for a version that has no bounds


class _Room(NamedTuple):
    """Between a count and its bound: a factor, and what comes on top. A count below `least` is taken for it:
    less is luck (an answer that was there before anybody slept)."""

    factor: float
    more: float
    least: float = 0.0


#: By the first of these that is part of the name of a count.
_ROOMS: tuple[tuple[str, _Room], ...] = (
    ("sleeps of the node", _Room(1.0, 0.2)),
    ("sleeps", _Room(1.0, 0.3, least=1.0)),
    ("frames", _Room(1.0, 0.05)),
    ("system calls", _Room(1.15, 0.4)),
    ("blocks", _Room(1.1, 0.3)),
    ("one at a time", _Room(1.15, 1.0)),  # there, the threads may meet in two ways
    ("", _Room(1.1, 1.0)),
)
_WRITTEN_FROM = 3  # times that is counted for --write; the largest is what bounds are made of
_SHOWN = 25

Bounds = Mapping[str, Mapping[str, float]]


def version() -> str:
    """Of the running interpreter, as bounds name it."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def bound_for(metric: str, counted: float) -> float:
    """What the count of `metric` may be at the most, when it is `counted` now."""
    room = next(room for part, room in _ROOMS if part in metric)
    return math.ceil(100 * (max(counted, room.least) * room.factor + room.more)) / 100


def bounds_of(running: str, bounds: Bounds) -> dict[str, float]:
    """Those of a version; the largest of all others, with room, when it has none."""
    if running in bounds:
        return dict(bounds[running])
    largest: dict[str, float] = {}
    for found in bounds.values():
        for metric, bound in found.items():
            largest[metric] = max(largest.get(metric, 0.0), bound * _ROOM_FOR_OTHERS)
    return largest


def exceeded(figures: Mapping[str, float], bounds: Mapping[str, float]) -> list[str]:
    """One line for each count that is over its bound, has none, or was not made."""
    lines = []
    for metric, bound in bounds.items():
        counted = figures.get(metric)
        if counted is None:
            lines.append(f"{metric}: not counted any more; guard --write takes its bound out")
        elif counted > bound:
            lines.append(
                f"{metric}: {counted:.2f} a call, at most {bound:.2f} are allowed. What they are:\n"
                f"    python -m framework.benchmarks guard --profile '{metric}'"
            )
        elif counted < _at_least(metric):
            lines.append(f"{metric}: {counted:.2f} cannot be; guard_counts.py looks in the wrong place")
    lines += [
        f"{metric}: has no bound; guard --write gives it one" for metric in figures if metric not in bounds
    ]
    return lines


def _at_least(metric: str) -> float:
    """What is less cannot be: it was counted where nothing happens any more."""
    if "sleeps" in metric:
        return 0.0
    return 0.99 if "one at a time: frames" in metric else 0.001


def count() -> dict[str, Any]:
    """``figures`` and ``names``, counted in a process of its own. `RuntimeError` when that fails."""
    adopt_orphans()
    outcome = run_child(["-m", "framework.benchmarks.guard_counts"], _TIMEOUT, tail=1 << 24)
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("{")]
    if outcome.code != 0 or not lines:
        raise RuntimeError(f"counting ended with code {outcome.code}:\n{outcome.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _table(figures: Mapping[str, float], bounds: Mapping[str, float]) -> str:
    head = (f"COUNTS PER CALL, Python {version()}", "counted", "at most", "")
    lines: list[tuple[str, ...]] = [head]
    for metric, counted in figures.items():
        bound = bounds.get(metric)
        verdict = "no bound" if bound is None else "" if counted <= bound else "OVER"
        lines.append((metric, f"{counted:.2f}", "-" if bound is None else f"{bound:.2f}", verdict))
    return "\n".join(columns(lines))


def _profile(names: Mapping[str, Mapping[str, float]], pattern: str) -> str:
    lines = []
    for metric, found in names.items():
        if metric == pattern or re.search(pattern, metric, re.IGNORECASE):
            lines.append(f"{metric}: {sum(found.values()):.2f} a call")
            most = sorted(found.items(), key=lambda item: -item[1])
            lines += [f"    {value:8.3f}  {name}" for name, value in most[:_SHOWN] if value >= 0.005]
    return "\n".join(lines) or f"of {pattern!r} no names are kept: look at the Python functions beside it"


def _load() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(BOUNDS_FILE.read_text()) if BOUNDS_FILE.exists() else {}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, and compare: 0 within the bounds, 1 over one, 2 when nothing could be counted."""
    parser = argparse.ArgumentParser(
        prog="python -m framework.benchmarks guard",
        description="Counts per call, against the bounds for this version of Python.",
    )
    parser.add_argument("--write", action="store_true", help="make what is counted now the measure of bounds")
    parser.add_argument(
        "--profile", metavar="COUNT", help="what counts are made of, by name: of those whose name matches"
    )
    options = parser.parse_args(arguments)
    try:
        found = count()
        figures: dict[str, float] = found["figures"]
        if options.profile:
            print(_profile(found["names"], options.profile))
            return 0
        known = _load()
        if options.write:
            for _ in range(_WRITTEN_FROM - 1):
                figures = _each(max, figures, count()["figures"])
            known[version()] = {metric: bound_for(metric, value) for metric, value in figures.items()}
            BOUNDS_FILE.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        bounds = bounds_of(version(), known)
        if exceeded(figures, bounds):  # what is real is so again
            figures = _each(min, figures, count()["figures"])
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    print(_table(figures, bounds))
    if over := exceeded(figures, bounds):
        print("\n" + "\n".join(over))
        return 1
    return 0


def _each(
    choose: Callable[[float, float], float], some: Mapping[str, float], others: Mapping[str, float]
) -> dict[str, float]:
    return {metric: choose(value, others.get(metric, value)) for metric, value in some.items()}
