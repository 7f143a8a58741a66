"""One invocation: each workload in a child of its own, results held against their floors."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from framework.benchmarks import peers
from framework.benchmarks.model import Row, Settings, Workload
from framework.benchmarks.processes import run_child
from framework.benchmarks.stats import median, of_floor, relative_spread

FORMAT = 1  # of the JSON file


@dataclass(slots=True)
class Result:
    """A row with its samples (none: no figure). `note` says what went wrong, or what is to be known."""

    group: str
    row: Row
    samples: list[float] = field(default_factory=list)
    note: str = ""
    ratio: float | None = None

    @property
    def value(self) -> float | None:
        """The median of the samples."""
        return median(self.samples) if self.samples else None


def hold_against_floors(results: Iterable[Result]) -> None:
    """Fill in the ratio of every result whose floor was measured in the same invocation."""
    found = list(results)
    floors = {result.row.name: result.value for result in found if result.group == "floors"}
    for result in found:
        floor = floors.get(result.row.floor) if result.row.floor else None
        if floor is not None and result.value is not None:
            result.ratio = of_floor(
                result.value,
                floor,
                per_floor=result.row.per_floor,
                lower_is_better=result.row.lower_is_better,
            )


def last_line(text: str) -> str:
    """The line of a traceback that says what happened, shortened to fit a note."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no output"


def run_workload(workload: Workload, settings: Settings, timeout: float) -> list[Result]:
    """The results of one workload; a failure becomes the note of its rows."""
    results = [Result(workload.group, row) for row in workload.rows]
    peer = workload.group.removeprefix("peer ") if workload.group.startswith("peer ") else None
    if peer is not None and not peers.installed(peer):
        for result in results:
            result.note = "not installed"
        return results
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "result.json"
        arguments = ["-m", "framework.benchmarks.child", "--name", workload.name, "--out", str(out)]
        arguments += [
            "--runs",
            str(settings.runs),
            "--seconds",
            str(settings.seconds),
            "--cpus",
            str(settings.cpus),
        ]
        outcome = run_child(arguments + (["--quick"] if settings.quick else []), timeout)
        samples = json.loads(out.read_text())["samples"] if out.exists() else None
    if outcome.code is None:
        note = f"took more than {timeout:g} s"
    elif samples is None:
        note = last_line(outcome.stderr)
    elif outcome.code != 0:
        note = f"measured, then ended with code {outcome.code}"
    else:
        note = f"left {outcome.leftovers} process(es) behind" if outcome.leftovers else ""
    for result, row_samples in zip(results, samples or [[]] * len(results), strict=True):
        result.samples, result.note = row_samples, note
    return results


def side_by_side(workloads: Iterable[Workload]) -> list[Workload]:
    """The order to run them in: what is compared with each other runs one after the other, because a machine
    changes within minutes. Floors stay first, and what has no partner stays where it is."""
    given = list(workloads)
    names = {core: [peers.row_name(peer, core) for peer in peers.MODULES] for core in peers.PRODUCT_ROWS}
    partners = {peers.PRODUCT_ROWS[core]: found for core, found in names.items()}
    by_name = {workload.name: workload for workload in given}
    order: dict[str, Workload] = {}
    for workload in given:
        order.setdefault(workload.name, workload)
        for row in workload.rows:
            for name in partners.get(row.name, ()):
                if name in by_name:
                    order.setdefault(name, by_name[name])
    return list(order.values())


def run_all(
    workloads: Iterable[Workload], settings: Settings, timeout: float, progress: Callable[[Workload], None]
) -> list[Result]:
    """All results, in the order given. Ctrl-C ends the run early; what was measured by then is returned."""
    given = list(workloads)
    found: dict[str, list[Result]] = {}
    try:
        for workload in side_by_side(given):
            progress(workload)
            found[workload.name] = run_workload(workload, settings, timeout)
    except KeyboardInterrupt:
        pass
    results = [result for workload in given for result in found.get(workload.name, ())]
    hold_against_floors(results)
    return results


def to_json(
    results: Iterable[Result], settings: Settings, facts: Mapping[str, object], started: str
) -> dict[str, object]:
    """The document that ``--json`` writes and `compare` reads."""
    rows = [
        {
            "group": result.group,
            **asdict(result.row),
            "lower_is_better": result.row.lower_is_better,
            "median": result.value,
            "spread": relative_spread(result.samples) if result.samples else None,
            "ratio": result.ratio,
            "note": result.note,
            "samples": result.samples,
        }
        for result in results
    ]
    return {"format": FORMAT, "started": started, "settings": asdict(settings), **facts, "rows": rows}
