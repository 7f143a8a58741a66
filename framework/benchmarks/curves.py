"""Curves: what work costs as it grows, and whether that is linear. ``--curves [NAME ...]``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from framework.benchmarks import curve_work
from framework.benchmarks.curve_work import Prepare, TooLarge
from framework.benchmarks.linearity import BOUND, UNKNOWN, slope, verdict
from framework.benchmarks.model import Settings
from framework.benchmarks.processes import run_child
from framework.benchmarks.report import columns

STORE_BYTES = 4 * 1024**3  # sparse: memory is taken as it is written
_RUNS = 3  # per point, at the most
_POINT_SECONDS = 15.0  # after which a point is not measured once more
_QUICK_SHARE = 100  # of the largest size, in a quick run


@dataclass(frozen=True, slots=True)
class Curve:
    """`unit`: what the sizes count."""

    name: str
    title: str
    unit: str
    sizes: tuple[int, ...]
    prepare: Prepare

    def sizes_for(self, settings: Settings) -> tuple[int, ...]:
        """All sizes, or those up to a hundredth of the largest in a quick run (three at least)."""
        if not settings.quick:
            return self.sizes
        few = tuple(size for size in self.sizes if size * _QUICK_SHARE <= self.sizes[-1])
        return few if len(few) >= _RUNS else self.sizes[:_RUNS]


@dataclass(slots=True)
class Measured:
    """A curve with the samples of each point, in seconds. `note` says what went wrong or was left out."""

    name: str
    title: str
    unit: str
    points: list[tuple[int, list[float]]] = field(default_factory=list)
    note: str = ""

    @property
    def least(self) -> list[tuple[float, float]]:
        """Size and the least seconds of each point that has samples: other programs only ever add to them."""
        return [(float(size), min(samples)) for size, samples in self.points if samples]

    @property
    def slope(self) -> float | None:
        return slope(self.least)

    @property
    def verdict(self) -> str:
        return verdict(self.least)

    def to_json(self) -> dict[str, object]:
        """As ``--json`` writes it."""
        return {**asdict(self), "slope": self.slope, "bound": BOUND, "verdict": self.verdict}


def _decades(first: int, last: int) -> tuple[int, ...]:
    """1, 3, 10, 30 ... between both."""
    steps = (digit * 10**power for power in range(10) for digit in (1, 3))
    return tuple(step for step in steps if first <= step <= last)


CURVES: dict[str, Curve] = {
    curve.name: curve
    for curve in (
        Curve("tasks", "tasks in flight", "tasks", _decades(1000, 1_000_000), curve_work.tasks),
        Curve("actors", "actors, started and called", "actors", _decades(1, 1000), curve_work.actors),
        Curve(
            "values",
            "a value put and read by a task",
            "bytes",
            (1, 10, 100, 1000, 10_000, 100_000, *_decades(1_000_000, 1_000_000_000)),
            curve_work.values,
        ),
        Curve(
            "submitters",
            "processes, 10,000 tasks of each",
            "processes",
            tuple(range(1, 9)),
            curve_work.submitters,
        ),
        Curve("wait", "tasks, all waited for", "refs", _decades(100, 100_000), curve_work.wait),
        Curve("contained", "refs inside an object", "refs", _decades(100, 100_000), curve_work.contained),
        Curve("arguments", "refs as arguments", "arguments", _decades(100, 30_000), curve_work.arguments),
        Curve("returns", "results of one task", "returns", _decades(100, 30_000), curve_work.returns),
    )
}


def sample(curve: Curve, settings: Settings) -> Measured:
    """Measure `curve` in this process, inside a session that is there already. Sizes ascend."""
    measured = Measured(curve.name, curve.title, curve.unit)
    with curve.prepare(settings) as timed:
        for size in curve.sizes_for(settings):
            samples: list[float] = []
            try:
                while len(samples) < min(settings.runs, _RUNS) and sum(samples) < _POINT_SECONDS:
                    samples.append(timed(size))
            except TooLarge as error:
                measured.note = f"up to {measured.points[-1][0] if measured.points else 0}: {error}"
                break
            measured.points.append((size, samples))
    return measured


def run_curves(
    names: Iterable[str], settings: Settings, timeout: float, progress: Callable[[str], None]
) -> list[Measured]:
    """Each in a process of its own. Ctrl-C ends it early; what was measured by then is returned."""
    found: list[Measured] = []
    try:
        for name in names:
            progress(name)
            found.append(_run_curve(CURVES[name], settings, timeout))
    except KeyboardInterrupt:
        pass
    return found


def _run_curve(curve: Curve, settings: Settings, timeout: float) -> Measured:
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "curve.json"
        arguments = ["-m", "framework.benchmarks.child", "--curve", "--name", curve.name, "--out", str(out)]
        arguments += ["--runs", str(settings.runs), "--seconds", str(settings.seconds)]
        arguments += ["--cpus", str(settings.cpus), *(["--quick"] if settings.quick else [])]
        outcome = run_child(arguments, timeout)
        measured = Measured(curve.name, curve.title, curve.unit)
        if out.exists():
            document = json.loads(out.read_text())
            measured.points = [(size, samples) for size, samples in document["points"]]
            measured.note = document["note"]
    if outcome.code is None:
        measured.note = f"took more than {timeout:g} s"
    elif outcome.code != 0:
        lines = outcome.stderr.strip().splitlines() or ["no output"]
        measured.note = lines[-1][:160]
    elif outcome.leftovers:
        measured.note = f"left {outcome.leftovers} process(es) behind"
    return measured


def table(curves: Sequence[Measured]) -> str:
    """Per curve a line with its verdict, and below it one line per point: the time, and that of one item."""
    lines: list[tuple[str, ...]] = [("CURVES", "time", "each", "slope", "")]
    for curve in curves:
        found = curve.slope
        text = "-" if found is None else f"{found:.2f}"
        note = "too few points" if curve.verdict == UNKNOWN and not curve.note else curve.note
        lines.append((f"  {curve.title}", "", "", text, f"{curve.verdict}  {note}".strip()))
        for size, samples in curve.points:
            taken = min(samples)
            lines.append((f"    {size:,} {curve.unit}", _time(taken), _time(taken / size), "", ""))
    return "\n".join(columns(lines))


def _time(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
