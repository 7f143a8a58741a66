"""The targets, and whether a result meets them: ``--targets``, or ``python -m framework.benchmarks targets
RESULT.json`` for one that was written before.

A target is a bound on a ratio of two medians of the same run (against a peer, a floor, or another row of
the product), because a machine's figures change from day to day; or a bound on a figure itself, for a machine
with two cores. Bounds against peers are what "an order of magnitude faster" asks for, less where one leaves
no room (the start of a pool is one fork, a copy of a gigabyte is one memcpy); those against floors are what
was left of them when prototypes did the least that has to be done. The last column names the rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.benchmarks import peers
from framework.benchmarks.compare import load
from framework.benchmarks.model import BYTES, PERCENT, SECONDS
from framework.benchmarks.report import columns, figure, percent
from framework.benchmarks.stats import median

MET, NOT_MET, UNKNOWN = "met", "NOT MET", "?"

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of `row`, a row of the product.

    `against`: the name of another row (how many times better `row` is), ``"floor"`` (the share of its floor),
    ``"curve"`` (`row` names a curve, which has to be linear), or None: the median itself. `bound` is the
    least that is asked for; of a median whose unit is better when lower, the most. `each_cpu`: `bound` is for
    each CPU of the machine.
    """

    area: str
    row: str
    against: str | None
    bound: float
    each_cpu: bool = False

    @property
    def source(self) -> str:
        """The rows that the figure is made of."""
        return self.row if self.against is None else f"{self.row} / {self.against}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`value`, `low` and `high`: the ratio or figure, by the medians and by the least favourable and the most
    favourable samples. `text` has it with its unit."""

    target: Target
    met: str
    text: str = "-"
    bound: str = "-"
    range: str = ""


def _peer(area: str, core: str, **bounds: float) -> tuple[Target, ...]:
    row = peers.PRODUCT_ROWS[core]
    return tuple(Target(area, row, peers.row_name(name, core), bound) for name, bound in bounds.items())


def _floor(area: str, row: str, share: float) -> Target:
    return Target(area, row, "floor", share)


_SYNC, _ASYNC = "single client tasks sync", "single client tasks async"
_SCALING = 0.8  # of one more CPU's worth, with each CPU: this project's reading of "scales with cores"

TARGETS: tuple[Target, ...] = (
    *_peer("tasks, one at a time", peers.TASK, Ray=12, ProcessPoolExecutor=2),
    _floor("tasks, one at a time", _SYNC, 0.5),
    *_peer("tasks in flight", peers.TASKS, Ray=60, ProcessPoolExecutor=10, Dask=200),
    _floor("tasks in flight", _ASYNC, 0.35),
    *_peer("batches of 1,000", peers.BATCHES, Ray=40),
    Target("await, one at a time", "await one at a time", _SYNC, 1),
    _floor("await, one at a time", "await one at a time", 0.5),
    Target("await, one at a time", "await one at a time, uvloop", _SYNC, 1),
    _floor("await, one at a time", "await one at a time, uvloop", 0.5),
    *_peer("1:1 actor calls, sync", peers.ACTOR, Ray=6, xoscar=3),
    _floor("1:1 actor calls, sync", "1:1 actor calls sync", 0.5),
    *_peer("1:1 actor calls, async", peers.ACTORS, Ray=25, xoscar=8),
    _floor("1:1 actor calls, async", "1:1 actor calls async", 0.35),
    *_peer("n:n actor calls", peers.N_TO_N, Ray=15),
    *_peer("multi-client tasks", peers.MULTI_CLIENT, Ray=15),
    Target(
        "multi-client tasks",
        "multi client tasks async",
        "multi client tasks async, one CPU",
        _SCALING,
        each_cpu=True,
    ),
    Target("multi-client tasks", "submitters", "curve", 0),
    *_peer("generator items", peers.ITEMS, Ray=20),
    *_peer("put, warm", peers.PUT, Ray=1.5),
    _floor("put, warm", peers.PRODUCT_ROWS[peers.PUT], 0.95),
    *_peer("put, cold", peers.PUT_COLD, Ray=1),
    _floor("put, cold", peers.PRODUCT_ROWS[peers.PUT_COLD], 0.9),
    Target("get of 1 GiB on the node", "get of 1 GiB, first", None, 100e-6),
    *_peer("wait on 1k refs", peers.WAIT, Ray=20),
    Target("wait on 1k refs", "wait", "curve", 0),
    *_peer("object with 10k refs", peers.CONTAINED, Ray=20),
    Target("object with 10k refs", "contained", "curve", 0),
    *_peer("10k arguments", peers.ARGUMENTS, Ray=20),
    Target("10k arguments", "arguments", "curve", 0),
    *_peer("3k returns", peers.RETURNS, Ray=20),
    Target("3k returns", "returns", "curve", 0),
    *_peer("import, init, first result", peers.START_UP, Ray=25),
    Target("import, init, first result", "import + init + first result", None, 0.35),
    *_peer("actor start, one", peers.ACTOR_START, Ray=30),
    Target("actor start, one", "actor start, one", None, 0.012),
    *_peer("actor start, a hundred", peers.ACTOR_STARTS, Ray=30),
    Target("actor start, a hundred", "actor start, a hundred", None, 100 / 150),
    Target("1,000,000 queued tasks", "queue of 1M tasks, submit and drain", None, 25_000),
    Target("1,000,000 queued tasks", "queue of 1M tasks, per task", None, 1000),
    _floor("map of 10,000 items of 1 ms", "map over items of 1 ms", 0.9),
    Target("idle session", "idle session, CPU of all processes", None, 0.5),  # what 0 % is when rounded
    Target("idle session", "idle session, node process, resident", None, 60e6),
    Target("idle session", "idle session, worker, private memory", None, 15e6),
)


def rows_needed() -> set[str]:
    """The names of all rows that targets look at, those of peers included."""
    named = {target.row for target in TARGETS if target.against != "curve"}
    others = {target.against for target in TARGETS if target.against not in (None, "floor", "curve")}
    return named | {name for name in others if name is not None}


def judge(target: Target, rows: Rows, curves: Mapping[str, str], cpus: int) -> Verdict:
    """The verdict on one target by the rows of a result, by name, and the verdicts on curves, by name."""
    if target.against == "curve":
        found = curves.get(target.row)
        if found is None:
            return Verdict(target, UNKNOWN, bound="linear")
        return Verdict(target, MET if found == "linear" else NOT_MET, found, "linear")
    bound = target.bound * (cpus if target.each_cpu else 1)
    row = rows.get(target.row)
    if target.against is None:
        return _judge_figure(target, row, bound)
    shown = percent(bound) if target.against == "floor" else f"{bound:g}x"
    other = rows.get(str(row["floor"]) if row and target.against == "floor" else target.against)
    if not row or not other or not row["samples"] or not other["samples"]:
        return Verdict(target, UNKNOWN, bound=f">= {shown}")
    per = float(row.get("per_floor", 1.0)) if target.against == "floor" else 1.0
    lower = bool(row["lower_is_better"])
    ours, theirs = sorted(row["samples"]), sorted(other["samples"])

    def ratio(own: float, its: float) -> float:
        its *= per if lower else 1 / per
        return its / own if lower else own / its

    middle = ratio(median(ours), median(theirs))
    ends = sorted((ratio(ours[0], theirs[-1]), ratio(ours[-1], theirs[0])))
    share = target.against == "floor"
    text, *ends_text = (percent(value) if share else f"{value:.2f}x" for value in (middle, *ends))
    verdict = MET if middle >= bound else NOT_MET
    runs = min(len(ours), len(theirs))
    return Verdict(target, verdict, text, f">= {shown}", " … ".join(ends_text) if runs > 1 else "one run")


def _judge_figure(target: Target, row: Mapping[str, Any] | None, bound: float) -> Verdict:
    unit = str(row["unit"]) if row else "/s"
    lower = unit in (SECONDS, BYTES, PERCENT)
    shown = f"{'<=' if lower else '>='} {figure(bound, unit)}"
    if not row or not row["samples"]:
        return Verdict(target, UNKNOWN, bound=shown if row else f"{bound:g}")
    value = median(row["samples"])
    ends = " … ".join(figure(end(row["samples"]), unit) for end in (min, max))
    verdict = MET if (value <= bound if lower else value >= bound) else NOT_MET
    return Verdict(
        target, verdict, figure(value, unit), shown, ends if len(row["samples"]) > 1 else "one run"
    )


def judge_document(document: Mapping[str, Any]) -> list[Verdict]:
    """All verdicts on a result as ``--json`` writes it."""
    rows = {row["name"]: row for row in document.get("rows", ())}
    curves = {curve["name"]: curve["verdict"] for curve in document.get("curves", ())}
    cpus = int(document.get("settings", {}).get("cpus", 1))
    return [judge(target, rows, curves, cpus) for target in TARGETS]


def table(verdicts: Iterable[Verdict]) -> str:
    """One line per target: what, the measured ratio and its range, the bound, the verdict, the rows."""
    found = list(verdicts)
    head: tuple[str, ...] = ("TARGET", "measured", "range", "asked for", "", "from")
    lines = [head]
    area = None
    for verdict in found:
        name = verdict.target.area if verdict.target.area != area else ""
        area = verdict.target.area
        lines.append((name, verdict.text, verdict.range, verdict.bound, verdict.met, verdict.target.source))
    counts = [sum(verdict.met == kind for verdict in found) for kind in (MET, NOT_MET, UNKNOWN)]
    text = "{} met, {} not met, {} not measured".format(*counts)
    return "\n".join([*columns(lines), text])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the verdicts on a file; 2 when it cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m framework.benchmarks targets",
        description="Hold the targets against results of --json (rows of one run, curves of another).",
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    options = parser.parse_args(arguments)
    document: dict[str, Any] = {"rows": [], "curves": [], "settings": {}}
    try:
        for path in options.results:
            found = load(path)
            document["rows"] += found["rows"]
            document["curves"] += found.get("curves", [])
            document["settings"] = found["settings"] or document["settings"]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(judge_document(document)))
    return 0
