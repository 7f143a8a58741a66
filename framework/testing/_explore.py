"""Many seeds of one program."""

from __future__ import annotations

import dataclasses
import os
import pickle
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import cloudpickle

from framework._sim import user_programs
from framework._sim.children import in_children
from framework._sim.faults import Faults
from framework._sim.preload import preload
from framework._sim.user_programs import Report
from framework.testing._simulate import call_text, faults_of, simulate

_SHOWN: Final = 5  #: failures in the text of `SimulationFailed`


@dataclasses.dataclass
class Failure:
    """A seed that failed. `text`: the traceback, or why there was no result; `replay`: the call that has the
    same run again; `error`: what was raised, where it could be brought here."""

    seed: int
    text: str
    replay: str
    error: BaseException | None = None


@dataclasses.dataclass
class Exploration:
    """What `explore` has seen: all counts are sums over its seeds, as in `Report`."""

    seeds: int = 0
    virtual: float = 0.0
    real: float = 0.0
    steps: int = 0
    faults: dict[str, int] = dataclasses.field(default_factory=dict)
    paths: dict[str, int] = dataclasses.field(default_factory=dict)
    reached: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: list[Failure] = dataclasses.field(default_factory=list)

    def add(self, report: Report) -> None:
        self.virtual += report.virtual
        self.real += report.real
        self.steps += report.steps
        for mine, theirs in (
            (self.faults, report.faults),
            (self.paths, report.paths),
            (self.reached, report.reached),
        ):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count

    def __str__(self) -> str:
        return (
            f"{self.seeds} seeds, {len(self.failures)} failed; "
            f"{self.virtual:.1f} virtual s in {self.real:.1f} s; "
            f"faults: {self.faults or 'none'}; reached: {self.reached or 'nothing that was marked'}"
        )


class SimulationFailed(AssertionError):
    """A seed failed, or a place in `must_reach` was never reached. The first failure's exception is the
    cause, where it could be brought here.

    `failures` lists what failed; `never` what was not reached; `exploration` has the rest.
    """

    def __init__(self, text: str, exploration: Exploration, never: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.exploration = exploration
        self.failures = exploration.failures
        self.never = list(never)


class _Child:
    """What a child sends: a report, and of a failure what can be sent."""

    def __init__(self, report: Report | None, text: str = "", error: bytes = b"") -> None:
        self.report = report
        self.text = text
        self.error = error


def explore(
    program: Callable[[], Any],
    *,
    seeds: int | Iterable[int] = 100,
    nodes: int | Sequence[Mapping[str, Any]] = 1,
    faults: Faults | str | None = None,
    scheduler: str | None = None,
    limit: float = 600.0,
    jobs: int | None = None,
    seconds: float = 60.0,
    must_reach: Iterable[str] = (),
    failures: int = 1,
    replay: Callable[[int], str] | None = None,
) -> Exploration:
    """Run a program under many seeds, and return what was seen; `SimulationFailed` when one fails.

    - `seeds`: those from 0 up to, and without, this number, or these.
    - `program`, `nodes`, `faults`, `limit`: as in `simulate`. `scheduler`: by default every third seed has
      ``"priorities"``, the others ``"walk"``.
    - `jobs`: how many run at a time (2, or as many as there are CPUs if that is less), each in a forked child
      of this process: what the program changes in its memory does not reach the caller, nor other seeds.
    - `seconds`: of real time that one seed may take. One that takes longer has failed.
    - `must_reach`: names of places (`sometimes`) of which each must be reached under at least one seed.
    - `failures`: end after so many failing seeds.
    - `replay(seed)`: what is to be shown as the way to have a seed again; by default the call of `simulate`.
    """
    user_programs.check(program, nodes, scheduler or "walk", limit)
    user_programs.check_place()
    faults_of(faults, 0)
    todo = range(seeds) if isinstance(seeds, int) else list(seeds)
    if jobs is None:
        jobs = min(2, os.cpu_count() or 1)
    if jobs < 1 or seconds <= 0 or failures < 1:
        raise ValueError("jobs, seconds and failures are positive numbers")
    preload()

    def run(seed: int) -> _Child:
        try:
            report = simulate(
                program,
                seed=seed,
                nodes=nodes,
                faults=faults,
                scheduler=scheduler_of(scheduler, seed),
                limit=limit,
            )
        except BaseException as error:
            return _Child(None, *_sendable(error))
        report.result = None
        return _Child(report)

    exploration = Exploration()
    results = in_children(todo, run, jobs=jobs, limit=seconds)
    try:
        for seed, child in results:
            exploration.seeds += 1
            if isinstance(child, _Child) and child.report is not None:
                exploration.add(child.report)
                continue
            if replay is not None:
                call = replay(seed)
            else:
                call = call_text(program, seed, nodes, faults, scheduler_of(scheduler, seed), limit)
            error = _received(child.error) if isinstance(child, _Child) else None
            exploration.failures.append(Failure(seed, child.text, call, error))
            if len(exploration.failures) >= failures:
                break
    finally:
        results.close()
    _judge(exploration, [] if exploration.failures else _never(exploration, must_reach))
    return exploration


def scheduler_of(given: str | None, seed: int) -> str:
    """The scheduler of a seed."""
    return given or ("priorities" if seed % 3 == 2 else "walk")


def _never(exploration: Exploration, must_reach: Iterable[str]) -> list[str]:
    names = [must_reach] if isinstance(must_reach, str) else must_reach
    return [name for name in names if not exploration.reached.get(name)]


def _judge(exploration: Exploration, never: list[str]) -> None:
    if never:
        text = f"in {exploration.seeds} seeds these places were never reached: {', '.join(map(repr, never))}"
        raise SimulationFailed(text, exploration, never)
    if not exploration.failures:
        return
    found = sorted(exploration.failures, key=lambda failure: failure.seed)
    parts = [
        f"{len(found)} of {exploration.seeds} seeds failed: {', '.join(str(f.seed) for f in found[:50])}"
    ]
    for failure in found[:_SHOWN]:
        parts.append(f"seed {failure.seed}; to have it again:\n  {failure.replay}\n{failure.text.rstrip()}")
    raise SimulationFailed("\n\n".join(parts), exploration) from found[0].error


def _sendable(error: BaseException) -> tuple[str, bytes]:
    text = "".join(traceback.format_exception(error))
    try:
        return text, cloudpickle.dumps(error)
    except Exception:
        return text, b""


def _received(data: bytes) -> BaseException | None:
    if not data:
        return None
    try:
        found = pickle.loads(data)
    except Exception:
        return None
    return found if isinstance(found, BaseException) else None
