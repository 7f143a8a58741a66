"""The command line: ``python -m framework.benchmarks``."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from framework.benchmarks import catalogue, facts, report
from framework.benchmarks.invocation import run_all, to_json
from framework.benchmarks.model import Settings, Workload, usable_cpus
from framework.benchmarks.processes import adopt_orphans

_QUICK_RUNS, _QUICK_SECONDS = 2, 0.2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options, checked. Ends the process with a message when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m framework.benchmarks",
        description="Ray's microbenchmark and more, with the floors of this machine measured beside it.",
    )
    parser.add_argument("--runs", type=int, help="runs per row, of which the median counts (5)")
    parser.add_argument("--seconds", type=float, help="seconds per run (1)")
    parser.add_argument("--quick", action="store_true", help="2 runs of 0.2 s, batches a tenth: a smoke test")
    parser.add_argument("--filter", metavar="REGEX", help="only rows whose name matches, and their floors")
    parser.add_argument("--peers", action="store_true", help="also the core rows of other systems")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything measured to PATH")
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds that one workload may take (300)"
    )
    options = parser.parse_args(arguments)
    options.runs = options.runs if options.runs is not None else (_QUICK_RUNS if options.quick else 5)
    options.seconds = (
        options.seconds if options.seconds is not None else (_QUICK_SECONDS if options.quick else 1.0)
    )
    if options.runs < 1 or options.seconds <= 0 or options.timeout <= 0:
        parser.error("--runs, --seconds and --timeout must be positive")
    try:
        re.compile(options.filter or "")
    except re.error as error:
        parser.error(f"--filter: {error}")
    return options


def _progress(workload: Workload) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{workload.name}", end="", file=sys.stderr, flush=True)


def _terminate(number: int, frame: object) -> None:
    # As Ctrl-C: the child of the moment is ended, what has been measured is printed.
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the options ask for; 0 when every row has a figure, else 1 (peers do not count)."""
    options = parse(arguments)
    selected = catalogue.select(options.filter, with_peers=options.peers)
    if options.list:
        print("\n".join(f"{row.name} [{row.unit}]" for workload in selected for row in workload.rows))
        return 0
    if not selected:
        print("no row matches", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _terminate)
    adopt_orphans()
    settings = Settings(options.runs, options.seconds, options.quick, usable_cpus())
    machine, versions = facts.machine(), facts.versions()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    note = "one run" if settings.runs == 1 else f"median of {settings.runs} runs"
    note += f" of {settings.seconds:g} s" + (", quick" if settings.quick else "")
    print(report.heading(machine, versions, note) + "\n", flush=True)
    results = run_all(selected, settings, options.timeout, _progress)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print(report.table(results))
    if peers_text := report.peer_table(results):
        print("\n" + peers_text)
    if options.json:
        document = to_json(results, settings, {"machine": machine, "versions": versions}, started)
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    complete = len(results) == sum(len(workload.rows) for workload in selected)
    own = [result for result in results if not result.group.startswith("peer ")]
    return 0 if complete and all(result.samples for result in own) else 1


if __name__ == "__main__":
    sys.exit(main())
