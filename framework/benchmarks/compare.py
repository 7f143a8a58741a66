"""Two runs against each other: ``python -m framework.benchmarks compare A.json B.json``.

A difference is one only where the ranges of all runs miss each other. What changes from one invocation to the
next, and not within one, such ranges do not show: so the floors of both are compared as well, and a line says
when the machine was not the same.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.benchmarks.invocation import FORMAT
from framework.benchmarks.report import columns, figure
from framework.benchmarks.stats import SAME, UNKNOWN, median, speed_up, verdict

Document = Mapping[str, Any]


def load(path: Path) -> Document:
    """The document of ``--json``. `ValueError` when the file is something else, `OSError` when unreadable."""
    document = json.loads(path.read_text())
    if not isinstance(document, dict) or document.get("format") != FORMAT or "rows" not in document:
        raise ValueError(f"{path} is not a benchmark result of format {FORMAT}")
    return document


def _times(ratio: float | None) -> str:
    return "-" if ratio is None or math.isnan(ratio) else f"{ratio:.2f}x"


def _range(samples: Sequence[float], unit: str) -> str:
    if len(samples) < 2:
        return "one run"
    return f"{figure(min(samples), unit)} … {figure(max(samples), unit)}"


def compare_row(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of one row: name, both medians with the range of their runs, speed-up, speed-up relative to the
    floor, verdict."""
    old, new = before["samples"], after["samples"]
    if not old or not new:
        missing = "A" if not old else "B"
        return (before["name"], "-", "-", "-", "-", "-", "-", f"no figure in {missing}")
    lower = bool(before["lower_is_better"])
    floors = (before.get("ratio"), after.get("ratio"))
    of_floor = floors[1] / floors[0] if floors[0] and floors[1] else None
    unit = before["unit"]
    return (
        before["name"],
        figure(median(old), unit),
        _range(old, unit),
        figure(median(new), unit),
        _range(new, unit),
        _times(speed_up(median(old), median(new), lower_is_better=lower)),
        _times(of_floor),
        verdict(old, new, lower_is_better=lower),
    )


def _changed_floors(old: Mapping[str, Any], new: Mapping[str, Any], shared: Sequence[str]) -> list[str]:
    """Floors whose runs differ: the machine was another, or in another state."""
    found = []
    for name in shared:
        if old[name].get("group") == "floors" and compare_row(old[name], new[name])[-1] not in (
            SAME,
            UNKNOWN,
        ):
            found.append(f"{name} {compare_row(old[name], new[name])[5]}")
    return found


def compare(before: Document, after: Document) -> str:
    """The table, with rows that only one of the two has named below it. `ValueError` when none is shared."""
    old = {row["name"]: row for row in before["rows"]}
    new = {row["name"]: row for row in after["rows"]}
    shared = [name for name in old if name in new]
    if not shared:
        raise ValueError("the two results have no row in common")
    head: tuple[str, ...] = ("", "A", "its runs", "B", "its runs", "B/A", "of floor", "")
    lines = columns([head, *(compare_row(old[name], new[name]) for name in shared)])
    if floors := _changed_floors(old, new, shared):
        lines.append(f"the floors differ, so the machine did, too: {', '.join(floors)}")
    for label, only in (("A", [n for n in old if n not in new]), ("B", [n for n in new if n not in old])):
        if only:
            lines.append(f"only in {label}: {', '.join(only)}")
    for name in ("machine", "versions", "settings"):
        if changed := _changed(before.get(name) or {}, after.get(name) or {}):
            lines.append(f"different {name}: {', '.join(changed)}")
    return "\n".join(lines)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    # The load differs between any two runs.
    names = [name for name in {**before, **after} if name != "load"]
    return [
        f"{name} {before.get(name)} -> {after.get(name)}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; 2 when a file cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m framework.benchmarks compare",
        description="Compare two results of --json. B/A above 1 means that B is better, whatever the unit.",
    )
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    options = parser.parse_args(arguments)
    try:
        print(compare(load(options.before), load(options.after)))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
