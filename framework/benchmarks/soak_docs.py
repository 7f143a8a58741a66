"""The figures of a soak for the documentation: ``python -m framework.benchmarks.soak_docs soak.json DIR``.

DIR has a page ``endurance.md``; what stands there between the two marks is replaced by what the run has found
(`soak --json`), and ``endurance.svg`` is drawn anew (extra `plot`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from framework.benchmarks.soak_samples import Sample, lasting
from framework.benchmarks.soak_verdict import GROWS

BEGIN, END = "<!-- figures of a soak: begin -->", "<!-- figures of a soak: end -->"
PAGE, PICTURE = "endurance.md", "endurance.svg"
_MIB = 1024 * 1024
_EDGE = 20  #: samples at the beginning, the middle and the end, of which a median is told


def samples_of(result: Mapping[str, Any]) -> list[Sample]:
    """What was sampled, from the JSON of a run. (It has the tables of the last sample only.)"""
    return [Sample(**{**row, "tables": row["tables"] or {}}) for row in result["samples"]]


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    size = max(1, min(_EDGE, len(values) // 3))
    middle = len(values) // 2 - size // 2
    parts = (values[:size], values[middle : middle + size], values[-size:])
    return median(parts[0]), median(parts[1]), median(parts[2])


def _table(result: Mapping[str, Any], samples: Sequence[Sample]) -> list[str]:
    slopes = {
        (verdict["process"], verdict["figure"]): verdict["judgement"]["slope"]
        for verdict in result["verdicts"]
    }
    lines = [
        "| | heap, MiB: beginning, middle, end | B | blocks | descriptors | threads |",
        "|---|---|---|---|---|---|",
    ]
    for name in lasting(samples):
        rows = [sample.processes[name] for sample in samples if name in sample.processes]
        heap = ", ".join(f"{value / _MIB:.1f}" for value in _three([row["heap"] for row in rows]))
        blocks = slopes.get((name, "blocks"))
        lines.append(
            f"| {name} | {heap} | {_whole(slopes.get((name, 'heap')))} | {_whole(blocks)} "
            f"| {rows[-1]['descriptors']:.0f} | {rows[-1]['threads']:.0f} |"
        )
    return lines


def _whole(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:,.0f}"


def _latency(samples: Sequence[Sample]) -> list[str]:
    lines = ["| median by quarters of the run, µs | | | | |", "|---|---|---|---|---|"]
    quarter = max(1, len(samples) // 4)
    for name in ("actor call p50", "actor call p99", "task p50", "task p99"):
        cells = []
        for part in range(4):
            found = [
                s.latency[name] for s in samples[part * quarter : (part + 1) * quarter] if name in s.latency
            ]
            cells.append(f"{median(found) * 1e6:,.0f}" if found else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def figures(result: Mapping[str, Any]) -> str:
    """Markdown, from the JSON of a run."""
    samples = samples_of(result)
    grows = [
        f"{v['process']}: {v['figure']}" for v in result["verdicts"] if v["judgement"]["verdict"] == GROWS
    ]
    machine = result["machine"]
    last = samples[-1]
    return "\n".join(
        [
            f"{last.time / 60:.0f} minutes, {sum(result['operations'].values()):,} operations in "
            f"{result['rounds']:,} rounds, {result['visits']} visits of the second driver, "
            f"{len(samples)} samples, on {machine.get('cpus', '?')} CPUs.",
            f"What grows: {', '.join(grows) or 'nothing'}. What went wrong: {result['error'] or 'nothing'}.",
            "",
            f"![memory, descriptors, latency and disk]({PICTURE})",
            "",
            "Growth in the second half per 1,000 operations, of the heap (B) and of blocks of Python's "
            "allocator; descriptors and threads at the end:",
            "",
            *_table(result, samples),
            "",
            *_latency(samples),
            "",
            f"At the end: {last.whole.get('store', 0) / _MIB:.1f} MiB in the object stores, "
            f"{last.whole.get('spilled', 0) / _MIB:.1f} MiB spilled, "
            f"{last.whole.get('files', 0) / _MIB:.1f} MiB of files, "
            f"{last.whole.get('logs', 0) / 1024:.0f} KiB of logs.",
        ]
    )


def replaced(page: str, text: str) -> str:
    """The page with this between its marks. `ValueError` when it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Bring the page and its picture up to date."""
    parser = argparse.ArgumentParser(
        prog="python -m framework.benchmarks.soak_docs", description="Figures of a soak into its page."
    )
    parser.add_argument("result", type=Path, help="what `soak --json` has written")
    parser.add_argument("directory", type=Path, help=f"of {PAGE}")
    options = parser.parse_args(arguments)
    from framework.benchmarks.soak_plot import draw, require

    require()
    result = json.loads(options.result.read_text())
    if not result["samples"]:
        parser.error("that run has no samples")
    page = options.directory / PAGE
    page.write_text(replaced(page.read_text(), figures(result)))
    draw(samples_of(result), options.directory / PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
