"""A soak: mixed work on a cluster of several processes for as long as asked, and whether anything grows.

``python -m framework.benchmarks.soak --minutes 20``. This process starts the cluster and a driver, looks at
all of them every few seconds from outside, and judges at the end. Exit code 0 when nothing grows, 1 when
something does or the work went wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

from framework.benchmarks import facts
from framework.benchmarks.processes import adopt_orphans, child_environment, end_descendants
from framework.benchmarks.report import columns
from framework.benchmarks.soak_samples import Sample, Watch, growth_of_tables, lasting
from framework.benchmarks.soak_verdict import GROWS, Bound, Judgement, judge
from framework.cluster_utils import Cluster

_KIB, _MIB = 1024, 1024 * 1024
#: What is judged, and how. Heaps take and give memory in pieces; a garbage collector lets some rubbish lie.
BOUNDS: dict[str, Bound] = {
    "heap": Bound(slope=_KIB, relative=0.03, least=_MIB / 2),
    "blocks": Bound(slope=5, relative=0.02, least=2_000),
    "descriptors": Bound(slope=0, relative=0.05, least=2.5),
    "threads": Bound(slope=0, relative=0.05, least=1.5),
    "processes": Bound(slope=0, relative=0.05, least=2.5),
    "store": Bound(slope=0, relative=0.1, least=8 * _MIB),
    "objects in store": Bound(slope=0, relative=0.1, least=10),
    "pins": Bound(slope=0, relative=0.1, least=10),
    "spilled": Bound(slope=0, relative=0.1, least=_MIB),
    "files": Bound(slope=0, relative=0.1, least=2 * _MIB),
    "actor call p50": Bound(slope=0, relative=0.25, least=50e-6),
    "actor call p99": Bound(slope=0, relative=1.0, least=500e-6),
    "task p50": Bound(slope=0, relative=0.25, least=50e-6),
    "task p99": Bound(slope=0, relative=1.0, least=500e-6),
}
_ASK_EVERY = 5  #: samples between two looks at the tables of all processes, which cost a moment there
_END_GRACE = 30.0
_START_GRACE = 300.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on one figure of one process."""

    process: str
    figure: str
    judgement: Judgement


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options, checked. Ends the process with a message when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m framework.benchmarks.soak",
        description="Mixed work for a long time: does memory, descriptors or latency of any process grow?",
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (20)")
    parser.add_argument("--nodes", type=int, default=2, help="of the cluster (2, the fewest)")
    parser.add_argument("--interval", type=float, default=3.0, help="seconds between two samples (3)")
    parser.add_argument(
        "--pause", type=float, default=0.5, help="a round begins no sooner after another (0.5)"
    )
    parser.add_argument("--visits", type=float, default=10.0, help="seconds between visits of a driver (10)")
    parser.add_argument("--no-fill", action="store_true", help="do not fill tables of what is over at first")
    parser.add_argument("--leak", type=int, default=0, help="bytes that the driver loses 1,000 times a round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples and verdicts")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (SVG or PNG; extra `plot`)")
    options = parser.parse_args(arguments)
    if min(options.minutes, options.interval, options.visits) <= 0 or options.pause < 0:
        parser.error("--minutes, --interval and --visits must be positive")
    if options.nodes < 2:
        parser.error("--nodes must be at least 2")
    if options.plot is not None:
        from framework.benchmarks.soak_plot import require

        require()
    return options


class Driver:
    """The process that works, and what it reports."""

    def __init__(self, cluster: Cluster, options: argparse.Namespace, errors: IO[bytes]) -> None:
        self._pipe, theirs = os.pipe()
        os.set_blocking(self._pipe, False)
        arguments = [f"--pause={options.pause}", f"--leak={options.leak}"]
        if not options.no_fill:
            arguments.append("--fill")
        try:
            self.process = _start_driver(cluster, theirs, arguments, errors, subprocess.PIPE)
        finally:
            os.close(theirs)
        self._rest = b""
        self.done: Counter[str] = Counter()
        self.rounds = 0

    @property
    def operations(self) -> int:
        """So far."""
        return self.done.total()

    def latency(self) -> dict[str, float]:
        """Of the probes since the last time: the median of each. Empty when there are none."""
        try:
            data = self._rest + os.read(self._pipe, _MIB)
        except BlockingIOError:
            return {}
        *lines, self._rest = data.split(b"\n")
        reports = [json.loads(line) for line in lines]
        self.rounds += len(reports)
        if reports:
            self.done = Counter(reports[-1]["done"])
        found = [report["latency"] for report in reports]
        return {name: median(one[name] for one in found) for name in (found[0] if found else ())}

    def check(self) -> None:
        """RuntimeError when it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the driver has ended, exit code {self.process.returncode}")

    def end(self) -> None:
        """Tell it to end, and wait. RuntimeError when it does not end well."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            code = self.process.wait(_END_GRACE)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the driver does not end within {_END_GRACE:g} s") from None
        finally:
            self.latency()
            os.close(self._pipe)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        if code:
            raise RuntimeError(f"the driver has failed, exit code {code}")


def _start_driver(
    cluster: Cluster, report: int, arguments: Sequence[str], errors: IO[bytes], stdin: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "framework.benchmarks.soak_driver",
            f"--address={cluster.address}",
            f"--report={report}",
            *arguments,
        ],
        stdin=stdin,
        stdout=subprocess.DEVNULL,  # what workers print
        stderr=errors,
        pass_fds=(report,),
        env={**child_environment(), "FRAMEWORK_TOKEN": cluster.token},
    )


class Visitors:
    """Drivers that come and go, one at a time."""

    def __init__(self, cluster: Cluster, every: float, errors: IO[bytes]) -> None:
        self._cluster = cluster
        self._every = every
        self._errors = errors
        self._next = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self.count = 0

    def look(self) -> None:
        """Start one when it is time. RuntimeError when the last one has failed."""
        if self._process is not None:
            code = self._process.poll()
            if code:
                raise RuntimeError(f"a visiting driver has failed, exit code {code}")
            if code is None:
                return
            self._process = None
            self.count += 1
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            arguments = ["--visit"]
            report = os.open(os.devnull, os.O_WRONLY)
            try:
                self._process = _start_driver(
                    self._cluster, report, arguments, self._errors, subprocess.DEVNULL
                )
            finally:
                os.close(report)

    def end(self) -> None:
        """Wait for the last one. RuntimeError when it does not end well."""
        if self._process is not None:
            try:
                code = self._process.wait(_END_GRACE)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"a visiting driver does not end within {_END_GRACE:g} s") from None
            if code:
                raise RuntimeError(f"a visiting driver has failed, exit code {code}")
            self.count += 1


class Soak:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.samples: list[Sample] = []
        self.rounds = self.visits = 0
        self.done: Counter[str] = Counter()
        self.error = ""

    def run(self) -> None:
        """Do all of it. What goes wrong is in `error` afterwards."""
        with tempfile.TemporaryFile() as errors, Cluster() as cluster:
            nodes = [
                cluster.add_node(num_cpus=2, resources={"steady": 100}),
                cluster.add_node(num_cpus=2, resources={"mortal": 100}),
                *(cluster.add_node(num_cpus=2) for _ in range(self._options.nodes - 2)),
            ]
            cluster.wait_for_nodes()
            head_dir = nodes[0].session_dir
            driver = Driver(cluster, self._options, errors)
            visitors = Visitors(cluster, self._options.visits, errors)
            watch = Watch(
                {f"node {index + 1}": (node.session_dir, node.pid) for index, node in enumerate(nodes)},
                (head_dir, cluster.head_pid),
                {"driver": driver.process.pid},
            )
            try:
                self._watch(watch, driver, visitors)
                driver.end()
                visitors.end()
            except (RuntimeError, AssertionError) as error:
                self.error = f"{error}\n{_tail(errors)}"
                driver.process.kill()
                driver.process.wait()
            self.rounds, self.visits, self.done = driver.rounds, visitors.count, driver.done

    def _watch(self, watch: Watch, driver: Driver, visitors: Visitors) -> None:
        begin = time.monotonic()
        while not driver.rounds:
            driver.check()
            if time.monotonic() > begin + _START_GRACE:
                raise RuntimeError(f"no round of work is done after {_START_GRACE:g} s")
            driver.latency()
            time.sleep(0.05)
        begin = time.monotonic()
        end = begin + 60 * self._options.minutes
        while (now := time.monotonic()) < end:
            driver.check()
            visitors.look()
            latency = driver.latency()
            sample = Sample(now - begin, driver.operations, latency=latency)
            watch.look(sample, ask=len(self.samples) % _ASK_EVERY == 0)
            self.samples.append(sample)
            self._progress(sample)
            time.sleep(max(0.0, now + self._options.interval - time.monotonic()))

    @staticmethod
    def _progress(sample: Sample) -> None:
        if sys.stderr.isatty():
            heaps = ", ".join(
                f"{name} {figures['heap'] / _MIB:.1f}"
                for name, figures in sample.processes.items()
                if " " not in name or (name.startswith("node") and name.count(" ") == 1)
            )
            text = f"{sample.time:6.0f} s {sample.operations:12,} operations, MiB: {heaps}"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def verdicts(samples: Sequence[Sample]) -> list[Verdict]:
    """On all figures that are judged, of all processes that were there long enough, until the end."""
    series: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for sample in samples:
        for key, value in sample.series().items():
            xs, ys = series.setdefault(key, ([], []))
            xs.append(sample.operations)
            ys.append(value)
    judged = {*lasting(samples), "session", "latency"}
    return [
        Verdict(process, figure, judge(xs, ys, BOUNDS[figure]))
        for (process, figure), (xs, ys) in series.items()
        if figure in BOUNDS and process in judged
    ]


def shown(figure: str, value: float) -> str:
    """A value in its unit."""
    if value != value:
        return "-"
    if figure in ("heap", "store", "spilled", "files"):
        return f"{value / _KIB:,.1f} KiB" if abs(value) < _MIB else f"{value / _MIB:,.1f} MiB"
    if figure.endswith(("p50", "p99")):
        return f"{value * 1e6:,.0f} µs"
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2f}"


def table(found: Sequence[Verdict]) -> str:
    """All verdicts, one line each."""
    lines: list[tuple[str, ...]] = [("", "level", "per 1,000 operations", "over the second half", "", "")]
    for verdict in found:
        figure, judgement = verdict.figure, verdict.judgement
        lines.append(
            (
                f"{verdict.process}: {figure}",
                shown(figure, judgement.level),
                shown(figure, judgement.slope) if figure != "heap" else f"{judgement.slope:,.0f} B",
                shown(figure, judgement.growth),
                f"{judgement.relative:+.1%}" if judgement.growth == judgement.growth else "-",
                judgement.verdict,
            )
        )
    return "\n".join(columns(lines))


def grown_tables(samples: Sequence[Sample], found: Sequence[Verdict]) -> str:
    """For those processes of which something grows: what has grown most in them."""
    parts = []
    for process in dict.fromkeys(v.process for v in found if v.judgement.verdict == GROWS):
        rows = growth_of_tables(samples, process)
        if rows:
            parts.append(f"{process}, from the middle to the end:")
            parts += [f"  {before:>10,} -> {after:>10,}  {name}" for name, before, after in rows]
    return "\n".join(parts)


def _tail(errors: IO[bytes], most: int = 8_000) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - most))
    return errors.read().decode(errors="replace")


def to_json(soak: Soak, found: Sequence[Verdict], options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "machine": facts.machine(),
        "versions": facts.versions(),
        "settings": {name: value for name, value in vars(options).items() if name not in ("json", "plot")},
        "rounds": soak.rounds,
        "visits": soak.visits,
        "operations": soak.done,
        "error": soak.error,
        "verdicts": [asdict(verdict) for verdict in found],
        "samples": [{**asdict(sample), "tables": None} for sample in soak.samples],
        "tables": next((sample.tables for sample in reversed(soak.samples) if sample.tables), {}),
        "grown": {name: growth_of_tables(soak.samples, name, 100) for name in lasting(soak.samples)},
    }


def _terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak that the options ask for; 0 when nothing grows, else 1."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    adopt_orphans()
    soak = Soak(options)
    try:
        soak.run()
    except KeyboardInterrupt:
        soak.error = "interrupted"
    finally:
        left = end_descendants(frozenset())
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    found = verdicts(soak.samples) if soak.samples else []
    seconds = soak.samples[-1].time if soak.samples else 0
    print(
        f"{seconds / 60:.1f} minutes, {soak.done.total():,} operations in {soak.rounds:,} rounds, "
        f"{soak.visits} visits of another driver, {len(soak.samples)} samples\n"
    )
    print(table(found))
    growing = [v for v in found if v.judgement.verdict == GROWS]
    if growing:
        print("\nGROWS: " + ", ".join(f"{v.process}: {v.figure}" for v in growing))
        print(grown_tables(soak.samples, found))
    if left:
        soak.error = f"{soak.error}\n{left} processes were left behind".strip()
    if soak.error:
        print(f"\nFAILED: {soak.error}")
    if options.json:
        options.json.write_text(json.dumps(to_json(soak, found, options), default=str) + "\n")
    if options.plot and soak.samples:
        from framework.benchmarks.soak_plot import draw

        draw(soak.samples, options.plot)
    return 1 if growing or soak.error else 0


if __name__ == "__main__":
    sys.exit(main())
