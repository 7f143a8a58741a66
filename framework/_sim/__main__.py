"""The command line of the project's own exploration: ``python -m framework._sim``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

#: the order of sets of strings is that of a replay, whatever the environment says
_HASH_SEED: Final = "0"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options, checked. Ends the process with a message when they are wrong."""
    from framework._sim.explore import SECONDS, Plan, faults_of_text
    from framework._sim.faults import RATES
    from framework._sim.planted import PLANTED

    parser = argparse.ArgumentParser(
        prog="python -m framework._sim",
        description="Random programs on simulated clusters, judged by oracles: one run for each seed.",
    )
    add = parser.add_argument
    add("--seeds", metavar="A-B|N", help="these seeds, or those from 0 up to, and without, N (100)")
    add("--seed", type=int, metavar="S", help="this one: a replay")
    add("--trace", action="store_true", help="with --seed: print everything that happened")
    add("--shrink", action="store_true", help="with --seed: look for a smaller run that fails so")
    add(
        "--planted",
        choices=sorted(PLANTED),
        metavar="NAME",
        help="look for this bug, which is put into the product",
    )
    add("--list-planted", action="store_true", help="print these bugs, and end")
    add("--first", action="store_true", help="end at the first seed that fails")
    add("--check-determinism", action="store_true", help="run each seed twice, compare the events")
    add("--jobs", type=int, default=2, help="processes at a time (2)")
    add("--limit", type=float, default=SECONDS, help=f"real seconds for one seed ({SECONDS:g})")
    add("--json", metavar="PATH", help="write what came of it to PATH; - is the standard output")
    narrow = parser.add_argument_group("narrower runs (by default all of this follows from the seed)")
    narrow.add_argument("--faults", default="drawn", metavar="KIND=RATE,…", help="what goes wrong; or: none")
    narrow.add_argument("--without", default="", metavar="KIND,…", help="kinds of faults that are left out")
    narrow.add_argument("--nodes", type=int, help="nodes at the beginning")
    narrow.add_argument(
        "--scheduler", choices=["walk", "priorities"], help="who chooses which thread goes on"
    )
    narrow.add_argument("--operations", type=int, help="length of the program")
    narrow.add_argument("--kinds", metavar="KIND,…", help="only operations of these kinds")
    narrow.add_argument("--skip", default="", metavar="N,…", help="leave out operations with these numbers")
    narrow.add_argument("--schedule", type=int, default=0, help="another schedule of the same program")
    options = parser.parse_args(arguments)
    try:
        without = frozenset(filter(None, options.without.split(",")))
        if unknown := sorted(without - {*RATES, "delay"}):
            raise ValueError(f"no such faults: {unknown}")
        options.plan = Plan(
            faults=faults_of_text(options.faults),
            without=without,
            nodes=options.nodes,
            scheduler=options.scheduler,
            operations=options.operations,
            kinds=tuple(options.kinds.split(",")) if options.kinds else None,
            skip=frozenset(int(part) for part in options.skip.split(",") if part),
            schedule=options.schedule,
            planted=options.planted,
        )
        options.plan.weights()
        options.range = (
            _seeds(options.seeds or "100") if options.seed is None else range(options.seed, options.seed + 1)
        )
    except ValueError as error:
        parser.error(str(error))
    if (options.trace or options.shrink) and options.seed is None:
        parser.error("--trace and --shrink take one seed: --seed S")
    if options.jobs < 1 or options.limit <= 0:
        parser.error("--jobs and --limit must be positive")
    return options


def _seeds(text: str) -> range:
    first, dash, last = text.partition("-")
    found = range(int(first), int(last) + 1) if dash else range(int(first))
    if not found:
        raise ValueError(f"there are no seeds in {text!r}")
    return found


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # what was found until then is printed


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when all was well, 1 when something was found."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    if options.list_planted:
        from framework._sim.planted import PLANTED

        for name, bug in PLANTED.items():
            print(f"{name}: {bug.text}{f' ({bug.narrow})' if bug.narrow else ''}")
        return 0
    if options.planted is not None and options.seed is None:
        return _find(options)
    if options.check_determinism:
        return _check_determinism(options)
    if options.shrink:
        return _shrink(options)
    return _explore(options)


def _explore(options: argparse.Namespace) -> int:
    from framework._sim.explore import Summary, report, run_seeds

    plan, summary = options.plan, Summary(options.plan)
    out = sys.stderr if options.json == "-" else sys.stdout
    runs = run_seeds(options.range, plan, jobs=options.jobs, limit=options.limit, keep_log=options.trace)
    try:
        for outcome in runs:
            summary.add(outcome)
            if outcome.log is not None:
                print("\n".join(outcome.log), file=out)
            if not outcome.ok:
                print(report(outcome, plan), file=out, flush=True)
                if options.first:
                    break
            elif sys.stderr.isatty():
                print(f"\r\x1b[K{summary.seeds} of {len(options.range)}", end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    finally:
        runs.close()
    if options.seed is not None and summary.ok:
        print(f"seed {options.seed}: no problem", file=out)
    print("\n".join(summary.lines()), file=out)
    _write(options, summary.to_json())
    return 0 if summary.ok else 1


def _find(options: argparse.Namespace) -> int:
    """0 when the bug was found: then the oracles are as good as they should be."""
    from framework._sim.explore import find, report

    found = find(options.range, options.plan, jobs=options.jobs, limit=options.limit)
    if found.beside:
        print(f"these seeds fail without it too, and were passed over: {found.beside}")
    if found.outcome is None:
        print(f"{found.name}: NOT FOUND in {found.seeds} seeds")
    else:
        print(report(found.outcome, options.plan))
        print(f"{found.name}: found after {found.seeds} seeds")
    problems = found.outcome.problems if found.outcome is not None else []
    _write(options, {"planted": found.name, "seeds": found.seeds, "problems": problems})
    return 0 if found.outcome is not None else 1


def _check_determinism(options: argparse.Namespace) -> int:
    from framework._sim.explore import twice

    differ: dict[int, str] = {}
    count = 0
    for seed, difference in twice(options.range, options.plan, jobs=options.jobs, limit=options.limit):
        count += 1
        if difference:
            differ[seed] = difference
            print(f"seed {seed} is not the same twice: {difference}", flush=True)
    print(f"{count - len(differ)} of {count} seeds were the same twice")
    _write(options, {"seeds": count, "differ": differ})
    return 1 if differ else 0


def _shrink(options: argparse.Namespace) -> int:
    from framework._sim.explore import report, shrink

    say = lambda text: print(text, flush=True)  # noqa: E731
    found = shrink(options.seed, options.plan, jobs=options.jobs, limit=options.limit, say=say)
    if found is None:
        print(f"seed {options.seed}: no problem")
        return 0
    plan, outcome = found
    print(report(outcome, plan))
    _write(options, {"replay": plan.command(options.seed), "problems": outcome.problems})
    return 1


def _write(options: argparse.Namespace, what: object) -> None:
    if options.json == "-":
        print(json.dumps(what, indent=1))
    elif options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(what, file, indent=1)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != _HASH_SEED:
        os.environ["PYTHONHASHSEED"] = _HASH_SEED
        os.execv(sys.executable, [sys.executable, "-m", "framework._sim", *sys.argv[1:]])
    sys.exit(main())
