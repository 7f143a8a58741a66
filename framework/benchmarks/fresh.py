"""Rows that need a fresh process per sample: start-up, and the long queue."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from framework.benchmarks.floors import ECHO_BATCH, INTERPRETER
from framework.benchmarks.model import BYTES, PER_SECOND, SECONDS, Measure, Row, Settings, Workload
from framework.benchmarks.processes import compiled_modules, run_child

FIRST_RESULT = str(Path(__file__).with_name("first_result.py"))
START_UP_TIMEOUT = 120.0
_QUEUE_TIMEOUT = 600.0
_QUEUED = 100_000
_QUEUED_MORE = 1_000_000


def figures(
    arguments: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Run a script in a fresh interpreter; the JSON object that it printed last.

    `RuntimeError` with the end of its stderr when it fails, takes over `timeout` seconds, or prints none.
    """
    outcome = run_child(arguments, timeout, environment=environment)
    if outcome.code is None:
        raise RuntimeError(f"took more than {timeout:g} s")
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("{")]
    if outcome.code != 0 or not lines:
        reason = outcome.stderr.strip().splitlines()[-1:] or ["no output"]
        raise RuntimeError(f"ended with code {outcome.code}: {reason[0]}")
    found: dict[str, float] = json.loads(lines[-1])
    return found


def first_result(
    system: str, settings: Settings, environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Seconds of each stage from import to shutdown of `system`, in a fresh process."""
    return figures(["-P", FIRST_RESULT, system, str(settings.cpus)], START_UP_TIMEOUT, environment)


@contextmanager
def _start_up(settings: Settings) -> Iterator[Measure]:
    def measure(seconds: float) -> Sequence[float]:
        stages = first_result("framework", settings, environment)
        parts = [stages[name] for name in ("import", "init", "first result")]
        return (sum(parts), *parts, stages["shutdown"])

    with compiled_modules() as environment:  # the peers' are compiled when they are installed
        first_result("framework", settings, environment)
        yield measure


def _queue(tasks: int) -> Callable[[Settings], AbstractContextManager[Measure]]:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        count = settings.batch(tasks)

        def measure(seconds: float) -> Sequence[float]:
            arguments = ["-m", "framework.benchmarks.queue_once", str(count), str(settings.cpus)]
            found = figures(arguments, _QUEUE_TIMEOUT)
            return found["submit"], found["bytes"], found["drain"], found["whole"]

        yield measure

    return prepare


def _queue_rows(name: str) -> tuple[Row, ...]:
    return (
        Row(f"queue of {name} tasks, submit", PER_SECOND, ECHO_BATCH),
        Row(f"queue of {name} tasks, per task", BYTES),
        Row(f"queue of {name} tasks, drain", PER_SECOND, ECHO_BATCH),
        Row(f"queue of {name} tasks, submit and drain", PER_SECOND, ECHO_BATCH),
    )


WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "start-up",
        (
            Row("import + init + first result", SECONDS, INTERPRETER),
            Row("import", SECONDS),
            Row("init", SECONDS),
            Row("first result", SECONDS),
            Row("shutdown", SECONDS),
        ),
        _start_up,
        product=False,
        fresh=True,
    ),
    Workload("queue", _queue_rows("100k"), _queue(_QUEUED), product=False, fresh=True),
    Workload("queue", _queue_rows("1M"), _queue(_QUEUED_MORE), product=False, fresh=True, once=True),
)
