"""The command line: ``python -m framework.benchmarks``."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from framework.benchmarks import catalogue, curves, facts, pythons, report, targets
from framework.benchmarks.invocation import Result, run_all, to_json
from framework.benchmarks.model import Settings, Workload, usable_cpus
from framework.benchmarks.processes import adopt_orphans

_QUICK_RUNS, _QUICK_SECONDS = 2, 0.2

#: What the first argument may name instead of an option: modules with a `main` of their own.
_COMMANDS = {
    "compare": "compare A.json B.json: two results against each other",
    "targets": "targets RESULT.json ...: hold the targets against results",
    "plot": "plot RESULT.json ... DIRECTORY: pictures (takes matplotlib)",
    "guard": "guard [--write]: counts per call, which do not depend on the machine's speed, against bounds",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options, checked. Ends the process with a message when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m framework.benchmarks",
        description="Ray's microbenchmark and more, with the floors of this machine measured beside it.",
        epilog="Other commands: " + "; ".join(_COMMANDS.values()),
    )
    parser.add_argument("--runs", type=int, help="runs per row, of which the median counts (5)")
    parser.add_argument("--seconds", type=float, help="seconds per run (1)")
    parser.add_argument("--quick", action="store_true", help="2 runs of 0.2 s, batches a tenth: a smoke test")
    parser.add_argument("--filter", metavar="REGEX", help="only rows whose name matches, and their floors")
    parser.add_argument("--peers", action="store_true", help="also the core rows of other systems")
    parser.add_argument(
        "--targets", action="store_true", help="only rows that targets are set for; and whether they are met"
    )
    parser.add_argument(
        "--curves",
        nargs="*",
        metavar="NAME",
        choices=[*curves.CURVES, []],
        help=f"no rows, but how cost grows: all of {', '.join(curves.CURVES)}, or those named",
    )
    parser.add_argument(
        "--pythons", action="store_true", help="also the core rows under other versions of Python found here"
    )
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything measured to PATH")
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds that one workload or curve may take (300)"
    )
    options = parser.parse_args(arguments)
    options.runs = options.runs if options.runs is not None else (_QUICK_RUNS if options.quick else 5)
    options.seconds = (
        options.seconds if options.seconds is not None else (_QUICK_SECONDS if options.quick else 1.0)
    )
    if options.runs < 1 or options.seconds <= 0 or options.timeout <= 0:
        parser.error("--runs, --seconds and --timeout must be positive")
    if options.curves is not None and (options.targets or options.peers or options.pythons or options.filter):
        parser.error(
            "--curves measures no rows: it goes with none of --filter, --peers, --pythons, --targets"
        )
    try:
        re.compile(options.filter or "")
    except re.error as error:
        parser.error(f"--filter: {error}")
    return options


def _progress(name: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{name}", end="", file=sys.stderr, flush=True)


def _terminate(number: int, frame: object) -> None:
    # As Ctrl-C: the child of the moment is ended, what has been measured is printed.
    raise KeyboardInterrupt


def _select(options: argparse.Namespace) -> list[Workload]:
    names = targets.rows_needed() if options.targets else None
    return catalogue.select(options.filter, with_peers=options.peers, names=names)


def _rows(
    options: argparse.Namespace, selected: Sequence[Workload], settings: Settings
) -> tuple[list[Result], dict[str, object]]:
    """Results, and what else goes into the document; printed as they come."""
    results = run_all(selected, settings, options.timeout, lambda workload: _progress(workload.name))
    _progress("")
    print(report.table(results), flush=True)
    if peers_text := report.peer_table(results):
        print("\n" + peers_text, flush=True)
    more: dict[str, object] = {}
    if options.pythons:
        runs = pythons.run_others([result.row.name for result in results], settings, _progress)
        _progress("")
        print("\n" + pythons.table(results, runs))
        more["pythons"] = [asdict(run) for run in runs]
    return results, more


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the options ask for; 0 when every row (curve) has a figure, else 1 (peers do not count)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in _COMMANDS:
        module = importlib.import_module(f"framework.benchmarks.{arguments[0]}")
        code: int = module.main(arguments[1:])
        return code
    options = parse(arguments)
    selected = [] if options.curves is not None else _select(options)
    if options.list:
        rows = [f"{row.name} [{row.unit}]" for workload in selected for row in workload.rows]
        print("\n".join(rows if options.curves is None else curves.CURVES))
        return 0
    if not selected and options.curves is None:
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
    results: list[Result] = []
    more: dict[str, object] = {}
    if options.curves is not None:
        names = options.curves or list(curves.CURVES)
        measured = curves.run_curves(names, settings, options.timeout, _progress)
        _progress("")
        print(curves.table(measured))
        more["curves"] = [curve.to_json() for curve in measured]
        complete = len(measured) == len(names) and all(curve.points for curve in measured)
    else:
        results, more = _rows(options, selected, settings)
        own = [result for result in results if not result.group.startswith("peer ")]
        complete = len(results) == sum(len(workload.rows) for workload in selected)
        complete = complete and all(result.samples for result in own)
    document = {**to_json(results, settings, {"machine": machine, "versions": versions}, started), **more}
    if options.targets:
        print("\n" + targets.table(targets.judge_document(document)))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
