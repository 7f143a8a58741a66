"""Estimate π by throwing darts at a square, in parallel, with a progress display.

Ten tasks throw the darts. Each reports to one actor, which adds the reports up; the driver asks the actor
how far the work is while it waits for the tasks.

    python examples/monte_carlo_pi.py
    python examples/monte_carlo_pi.py --tasks 4 --darts 100000
"""

from __future__ import annotations

import argparse
import math
import random
import time

import framework as fw


@fw.remote
class Scoreboard:
    """Counts the darts that have landed anywhere so far."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.thrown = 0

    def add(self, darts: int) -> None:
        self.thrown += darts

    def fraction(self) -> float:
        return self.thrown / self.expected


@fw.remote
def throw(darts: int, seed: int, batch: int, scoreboard: fw.actor.ActorHandle) -> int:
    """How many of `darts` random points in the unit square lie in the quarter circle."""
    draw = random.Random(seed).random
    inside = 0
    report = None
    for start in range(0, darts, batch):
        count = min(batch, darts - start)
        inside += sum(math.hypot(draw(), draw()) <= 1.0 for _ in range(count))
        report = scoreboard.add.remote(count)
    if report is not None:
        fw.get(report)  # calls of one caller run in order: with the last report, all are in
    return inside


def estimate(tasks: int, darts: int, batch: int, seed: int) -> float:
    """π from `tasks` tasks of `darts` darts each; the same seed gives the same number."""
    scoreboard = Scoreboard.remote(tasks * darts)
    waiting = [throw.remote(darts, seed + number, batch, scoreboard) for number in range(tasks)]
    results = list(waiting)
    while waiting:
        _, waiting = fw.wait(waiting, num_returns=len(waiting), timeout=0.5)
        print(f"progress: {fw.get(scoreboard.fraction.remote()):4.0%}", flush=True)
    return 4.0 * sum(fw.get(results)) / (tasks * darts)


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimate pi with parallel tasks and a progress actor.")
    parser.add_argument("--tasks", type=positive, default=10, help="number of tasks (default: %(default)s)")
    parser.add_argument("--darts", type=positive, default=1_000_000, help="per task (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=100_000, help="darts between two reports")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default: %(default)s)")
    options = parser.parse_args()

    with fw.init():
        started = time.perf_counter()
        pi = estimate(options.tasks, options.darts, options.batch, options.seed)
        seconds = time.perf_counter() - started
    total = options.tasks * options.darts
    print(f"pi is about {pi:.5f} (off by {abs(pi - math.pi):.5f}): {total:,} darts in {seconds:.2f} s")


if __name__ == "__main__":
    main()
