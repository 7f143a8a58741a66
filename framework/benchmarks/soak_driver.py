"""A driver of the soak, as a process of its own: ``python -m framework.benchmarks.soak_driver``.

It works until its standard input ends, and writes a line of JSON to a descriptor after each round.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import tempfile
import time

import framework as fw
from framework.benchmarks import soak_work

_PROBES = 100


def parse() -> argparse.Namespace:
    """The options; see `framework.benchmarks.soak`, which starts this."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--report", type=int, required=True)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--fill", action="store_true")
    parser.add_argument("--visit", action="store_true")
    parser.add_argument("--leak", type=int, default=0)
    return parser.parse_args()


def _told_to_end(seconds: float) -> bool:
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _report(descriptor: int, **facts: object) -> None:
    os.write(descriptor, json.dumps(facts).encode() + b"\n")


def work(options: argparse.Namespace, scratch: str) -> None:
    """Rounds, until told to end."""
    done: dict[str, int] = {}
    kept: list[bytes] = []
    job = soak_work.Work(scratch)
    if options.fill:
        done["fill"] = job.fill()
    while True:
        begin = time.monotonic()
        for kind, count in job.round().items():
            done[kind] = done.get(kind, 0) + count
        latency = job.probes(_PROBES)
        done["probes"] = done.get("probes", 0) + 2 * _PROBES
        if options.leak:
            kept.extend(os.urandom(options.leak) for _ in range(1_000))
        _report(options.report, done=done, latency=latency)
        if _told_to_end(max(0.0, begin + options.pause - time.monotonic())):
            return


def main() -> None:
    """Connect, work, leave."""
    options = parse()
    with fw.init(address=options.address):
        if options.visit:
            _report(options.report, visit=soak_work.visit())
            return
        with tempfile.TemporaryDirectory() as scratch:
            work(options, scratch)


if __name__ == "__main__":
    main()
