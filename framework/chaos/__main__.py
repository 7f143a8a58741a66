"""The command line: ``python -m framework.chaos``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from framework.chaos import plan
from framework.chaos.ledger import RULES
from framework.chaos.report import text
from framework.chaos.run import Options, check, run, words
from framework.chaos.workloads import CATALOGUE


def parse(arguments: Sequence[str] | None) -> tuple[Options, argparse.Namespace]:
    """Options, checked. Ends the process with a message when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m framework.chaos",
        description="Kills and stops processes of a cluster at random, while work of every kind goes on in "
        "it: nothing may be lost, wrong, hang or stay behind. Exit code 1 if something does.",
    )
    default = Options()
    parser.add_argument("--duration", type=float, default=default.duration, help="seconds under faults (60)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the plan and the workloads (1)")
    parser.add_argument("--every", type=float, default=default.every, help="seconds between faults (2)")
    parser.add_argument("--nodes", type=int, default=default.nodes, help="nodes beside the head's (3)")
    parser.add_argument(
        "--workloads", type=words, default=default.workloads, help=f"of {','.join(CATALOGUE)} (all)"
    )
    parser.add_argument(
        "--targets", type=words, default=default.targets, help=f"of {','.join(plan.TARGETS)} (all)"
    )
    parser.add_argument(
        "--patience", type=float, default=default.patience, help="seconds in which a round must be done (120)"
    )
    parser.add_argument(
        "--calls",
        type=int,
        default=default.calls,
        help="go on until the actors have made so many reports (0)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to FILE, too")
    parser.add_argument("--keep-logs", action="store_true", help="also of a run that went well")
    parser.add_argument("--quiet", action="store_true", help="only the report, not what happens")
    parser.add_argument("--list", action="store_true", help="print workloads, faults and permitted errors")
    parser.add_argument("--plan", action="store_true", help="print the faults of this seed, and end")
    given = parser.parse_args(arguments)
    options = Options(
        **{name: getattr(given, name) for name in Options.__slots__ if hasattr(given, name)},
    )
    try:
        check(options)
    except ValueError as error:
        parser.error(str(error))
    return options, given


def _list() -> None:
    print("WORKLOADS")
    for kind in CATALOGUE.values():
        print(f"  {kind.name:<12}{kind.text}")
    print("FAULTS")
    for fault in plan.KINDS:
        held = f", {fault.hold[0]:g} to {fault.hold[1]:g} s" if fault.hold[1] else ""
        print(f"  {fault.name:<18}{fault.weight:>3}  {fault.text}{held}")
    print("PERMITTED ERRORS")
    for rule in RULES:
        print(f"  {rule.name:<26}{'/'.join(error.__name__ for error in rule.errors)}: {rule.why}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when the run was survived, 1 when it was not, 2 for wrong options."""
    options, given = parse(arguments)
    if given.list:
        _list()
        return 0
    if given.plan:
        faults = plan.plan(options.seed, options.every, options.targets)
        for fault in takewhile(lambda fault: fault.at <= options.duration, faults):
            print(fault)
        return 0
    if not sys.platform.startswith("linux"):
        print("this needs Linux: processes are found in /proc", file=sys.stderr)
        return 2
    stop = threading.Event()

    def interrupted(number: int, frame: object) -> None:
        # The first asks for an end in order, with the report; the second for one at once.
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    report = run(options, None if given.quiet else lambda line: print(line, flush=True), stop)
    print(text(report), flush=True)
    if given.json:
        given.json.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
