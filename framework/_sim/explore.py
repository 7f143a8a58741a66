"""Many seeds of the project's own random programs: run, counted, made smaller. ``python -m framework._sim``.

A series fails at a seed whose run has a problem, and where it never met some fault or some path of recovery:
what was never reached was not tested.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from framework._sim.children import NoResult, in_children
from framework._sim.choices import first_difference
from framework._sim.counters import PATHS, SELDOM
from framework._sim.faults import RATES, Faults
from framework._sim.preload import preload
from framework._sim.runner import Outcome, run_program_of

#: Real seconds for one seed.
SECONDS: Final = 120.0
#: Schedules under which `shrink` tries each smaller run.
SCHEDULES: Final = 4
#: Seeds after which each fault and each path must have been reached.
ENOUGH: Final = 1_000
#: What happens to the cluster, of which a long series must meet all.
HAPPENINGS: Final = (
    "crash of a worker",
    "crash of a node",
    "crash of a head",
    "power_cut",
    "head_restart",
    "partition",
    "reset",
    "delay",
    "slow",
    "stop",
    "clock_jump",
    "disk_full",
    "disk refused a write",
    "disk_lost",
    "node_added",
    "node_removed",
    "worker_exit",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How each seed is run; what is None follows from the seed."""

    faults: Faults | None = None
    without: frozenset[str] = frozenset()  #: kinds of faults that are left out
    nodes: int | None = None
    scheduler: str | None = None
    operations: int | None = None
    kinds: tuple[str, ...] | None = None  #: of operations
    skip: frozenset[int] = frozenset()
    schedule: int = 0  #: another one: the program stays as it is, all else that chance decides does not
    planted: str | None = None  #: a bug, by its name in `framework._sim.planted`

    def faults_of(self, seed: int) -> Faults | None:
        """What goes wrong in the run of a seed; None: its weather."""
        from framework._sim import weather

        if not self.without:
            return self.faults
        faults = self.faults if self.faults is not None else weather.draw(seed).faults
        return dataclasses.replace(faults, **dict.fromkeys(self.without, 0.0))

    def settled(self, seed: int) -> Plan:
        """The same run of this seed, with nothing left that follows from the seed alone."""
        from framework._sim import weather

        found = weather.draw(seed)
        return dataclasses.replace(
            self,
            faults=self.faults_of(seed) or found.faults,
            without=frozenset(),
            nodes=self.nodes or found.nodes,
            scheduler=self.scheduler or found.scheduler,
            operations=found.operations if self.operations is None else self.operations,
        )

    def weights(self) -> Mapping[str, float] | None:
        from framework._sim.programs import WEIGHTS

        if self.kinds is None:
            return None
        if unknown := sorted(set(self.kinds) - set(WEIGHTS)):
            raise ValueError(f"no such operations: {unknown}; there are {sorted(WEIGHTS)}")
        return {kind: WEIGHTS[kind] or 1.0 for kind in self.kinds}

    def run(self, seed: int, keep_log: bool = False) -> Outcome:
        """In this process."""
        from framework._sim.planted import PLANTED

        return run_program_of(
            seed,
            faults=self.faults_of(seed),
            nodes=self.nodes,
            scheduler=self.scheduler,
            operations=self.operations,
            kinds=self.weights(),
            skip=self.skip,
            keep_log=keep_log,
            schedule=self.schedule,
            plant=None if self.planted is None else PLANTED[self.planted].plant,
        )

    def narrowed(self) -> bool:
        """Whether not everything can happen."""
        return self != Plan()

    def arguments(self) -> list[str]:
        """Those of the command line that say this."""
        found: list[str] = []
        if self.faults is not None:
            found += ["--faults", faults_text(self.faults)]
        if self.without:
            found += ["--without", ",".join(sorted(self.without))]
        for name in ("nodes", "scheduler", "operations"):
            if (value := getattr(self, name)) is not None:
                found += [f"--{name}", str(value)]
        if self.kinds is not None:
            found += ["--kinds", ",".join(self.kinds)]
        if self.skip:
            found += ["--skip", ",".join(map(str, sorted(self.skip)))]
        if self.schedule:
            found += ["--schedule", str(self.schedule)]
        if self.planted is not None:
            found += ["--planted", self.planted]
        return found

    def command(self, seed: int) -> str:
        """What replays a seed."""
        return shlex.join(["python", "-m", "framework._sim", "--seed", str(seed), *self.arguments()])


def faults_text(faults: Faults) -> str:
    """As ``--faults`` takes it."""
    default = Faults()
    shown = [
        f"{field.name}={getattr(faults, field.name)!r}"
        for field in dataclasses.fields(faults)
        if getattr(faults, field.name) != getattr(default, field.name)
    ]
    return ",".join(shown) or "none"


def faults_of_text(text: str) -> Faults | None:
    """`faults_text` turned round; "drawn" is None: what the seed draws."""
    if text == "drawn":
        return None
    if text == "none":
        return Faults()
    names = {field.name for field in dataclasses.fields(Faults)}
    rates: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in names:
            raise ValueError(f"no such fault: {name!r}; there are {', '.join(sorted(names))}")
        rates[name] = float(value)
    return Faults(**rates)


def run_seeds(
    seeds: Iterable[int], plan: Plan, *, jobs: int = 2, limit: float = SECONDS, keep_log: bool = False
) -> Generator[Outcome, None, None]:
    """Of each seed, as they come."""
    preload()
    for seed, result in in_children(seeds, lambda seed: plan.run(seed, keep_log), jobs=jobs, limit=limit):
        yield _outcome(seed, result)


def _outcome(seed: int, result: Outcome | NoResult) -> Outcome:
    if isinstance(result, Outcome):
        return result
    outcome = Outcome(seed)
    outcome.problems.append(f"{'hang' if result.hung else 'end of the process'}: {result}")
    return outcome


# ---- what a series comes to --------------------------------------------------------------------------


class Summary:
    """Of a series of runs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.begun = time.perf_counter()
        self.seeds = 0
        self.failed: list[Outcome] = []
        self.virtual = self.real = 0.0
        self.steps = 0
        self.faults: dict[str, int] = {}
        self.paths: dict[str, int] = {}
        self.operations: dict[str, int] = {}

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.virtual += outcome.virtual
        self.real += outcome.real
        self.steps += outcome.steps
        for mine, theirs in (
            (self.faults, outcome.faults),
            (self.paths, outcome.paths),
            (self.operations, outcome.operations),
        ):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count
        if not outcome.ok:
            self.failed.append(outcome)

    def never(self) -> list[str]:
        """What ought to have been reached and was not: nothing, while the series is short or narrow."""
        if self.seeds < ENOUGH or self.plan.narrowed():
            return []
        from framework._sim.programs import WEIGHTS

        missing = [f"fault: {name}" for name in HAPPENINGS if not self.faults.get(name)]
        wanted = [name for name in PATHS if name not in SELDOM]
        missing += [f"path: {name}" for name in wanted if not self.paths.get(name)]
        drawn = [name for name, weight in WEIGHTS.items() if weight]
        return missing + [f"operation: {name}" for name in drawn if not self.operations.get(name)]

    @property
    def ok(self) -> bool:
        return not self.failed and not self.never()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.begun

    def lines(self) -> Iterator[str]:
        """For people."""
        rate = 60 * self.seeds / max(self.elapsed, 1e-9)
        compression = self.virtual / max(self.real, 1e-9)
        yield (
            f"{self.seeds} seeds in {self.elapsed:.1f} s: {rate:.0f} a minute; {self.virtual:.0f} virtual s, "
            f"{compression:.1f} to each real one of a run; {self.steps} steps"
        )
        yield "faults:     " + _counts(self.faults)
        yield "recovery:   " + _counts(self.paths)
        yield "operations: " + _counts(self.operations)
        for name in self.never():
            yield f"NEVER REACHED in {self.seeds} seeds: {name}"
        if self.failed:
            seeds = sorted(outcome.seed for outcome in self.failed)
            yield f"{len(seeds)} of {self.seeds} seeds FAILED: {', '.join(map(str, seeds))}"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "seeds": self.seeds,
            "seconds": round(self.elapsed, 3),
            "seeds_per_minute": round(60 * self.seeds / max(self.elapsed, 1e-9), 1),
            "virtual_seconds": round(self.virtual, 3),
            "compression": round(self.virtual / max(self.real, 1e-9), 2),
            "steps": self.steps,
            "faults": self.faults,
            "paths": {name: self.paths.get(name, 0) for name in PATHS},
            "operations": self.operations,
            "never": self.never(),
            "failed": [
                {"seed": o.seed, "problems": o.problems, "replay": self.plan.command(o.seed)}
                for o in self.failed
            ],
        }


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def report(outcome: Outcome, plan: Plan, most: int = 4_000) -> str:
    """What is wrong with a run, and how to have it again."""
    problems = "".join(f"\n  {problem[:most]}" for problem in outcome.problems)
    return f"seed {outcome.seed} FAILED:{problems}\n  replay: {plan.command(outcome.seed)}"


# ---- planted bugs ------------------------------------------------------------------------------------


class Find(NamedTuple):
    """What came of the search for a planted bug."""

    name: str
    seeds: int  #: that were run, to the one that has found it
    outcome: Outcome | None  #: None: not found
    beside: list[int]  #: seeds that fail without the bug too, and so prove nothing


def find(seeds: Iterable[int], plan: Plan, *, jobs: int = 2, limit: float = SECONDS) -> Find:
    """Look for the bug that a plan plants: the first seed that fails with it, and not without."""
    assert plan.planted is not None
    clean = dataclasses.replace(plan, planted=None)
    runs = run_seeds(seeds, plan, jobs=jobs, limit=limit)
    count = 0
    beside: list[int] = []
    try:
        for outcome in runs:
            count += 1
            if outcome.ok:
                continue
            if next(run_seeds([outcome.seed], clean, jobs=1, limit=limit)).ok:
                return Find(plan.planted, count, outcome, beside)
            beside.append(outcome.seed)
    except KeyboardInterrupt:
        pass
    finally:
        runs.close()
    return Find(plan.planted, count, None, beside)


# ---- the same twice ----------------------------------------------------------------------------------


def twice(
    seeds: Iterable[int], plan: Plan, *, jobs: int = 2, limit: float = SECONDS
) -> Iterator[tuple[int, str]]:
    """Run each seed twice, with heaps of different shapes; yield it, and where the two runs part ("": they do
    not)."""
    preload()

    def run(item: tuple[int, int, bool]) -> tuple[str, list[str] | None]:
        seed, turn, keep_log = item
        junk = [object() for _ in range(1000 + turn * 7919)]
        kept = junk[::3]
        del junk
        outcome = plan.run(seed, keep_log)
        assert kept is not None
        # (What the services log is beside the events, and may name real things.)
        log = (
            None
            if outcome.log is None
            else [line for line in outcome.log if not line.startswith("    log: ")]
        )
        return outcome.digest, log

    found: dict[int, str] = {}
    items = ((seed, turn, False) for seed in seeds for turn in (0, 1))
    for (seed, _, _), result in in_children(items, run, jobs=jobs, limit=limit):
        digest = str(result) if isinstance(result, NoResult) else result[0]
        if seed not in found:
            found[seed] = digest
        elif found.pop(seed) == digest:
            yield seed, ""
        else:
            logs = [
                [str(log)] if isinstance(log, NoResult) else log[1] or []
                for _, log in in_children([(seed, 0, True), (seed, 1, True)], run, jobs=1, limit=limit)
            ]
            yield (
                seed,
                first_difference(*logs) or "the two runs differed, and did not when they were run again",
            )


# ---- smaller -----------------------------------------------------------------------------------------


def sort_of(problem: str) -> str:
    """What problems that are of one kind share."""
    return re.sub(r"\d+", "#", problem.split(":", 1)[0])


def shrink(
    seed: int,
    plan: Plan,
    *,
    jobs: int = 2,
    limit: float = SECONDS,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[Plan, Outcome] | None:
    """A smaller run of this seed that has a problem of the same kind, and its outcome: with fewer operations,
    then fewer kinds of faults and fewer nodes. None: the seed has no problem."""
    plan = plan.settled(seed)
    first = next(run_seeds([seed], plan, jobs=1, limit=limit))
    if first.ok:
        return None
    sort = sort_of(first.problems[0])
    say(f"{first.problems[0].splitlines()[0][:200]}: sought in smaller runs")
    best = plan, first

    def try_all(candidates: list[Plan]) -> bool:
        """Take the first of these that fails, where one does."""
        nonlocal best
        candidates = [one for plan in candidates for one in _scheduled(plan)]
        for start in range(0, len(candidates), jobs):
            batch = candidates[start : start + jobs]
            found: dict[int, Outcome] = {}
            items = list(enumerate(batch))
            for (index, _), result in in_children(
                items, lambda item: item[1].run(seed), jobs=jobs, limit=limit
            ):
                outcome = _outcome(seed, result)
                if any(sort_of(problem) == sort for problem in outcome.problems):
                    found[index] = outcome
            if found:
                index = min(found)
                best = batch[index], found[index]
                say(f"still so: {best[0].command(seed)}")
                return True
        return False

    _fewer_operations(lambda: best[0], try_all)
    for kind in [*RATES, "delay"]:
        assert best[0].faults is not None
        if getattr(best[0].faults, kind):
            calmer = dataclasses.replace(best[0].faults, **{kind: 0.0})
            try_all([dataclasses.replace(best[0], faults=calmer)])
    while (nodes := best[0].nodes) is not None and nodes > 1:
        if not try_all([dataclasses.replace(best[0], nodes=fewer) for fewer in range(1, nodes)]):
            break
    return best


def _scheduled(plan: Plan) -> list[Plan]:
    """A smaller run draws other chances, and the moment that it takes may not come: there are several."""
    return [dataclasses.replace(plan, schedule=schedule) for schedule in range(SCHEDULES)]


def _fewer_operations(best: Callable[[], Plan], try_all: Callable[[list[Plan]], bool]) -> None:
    """Leave out halves, quarters, … and then single ones; then the tail, which needs no skipping."""
    size = max(1, (best().operations or 0) // 2)
    while True:
        plan = best()
        kept = [number for number in range(plan.operations or 0) if number not in plan.skip]
        parts = [kept[start : start + size] for start in range(0, len(kept), size)]
        smaller = [dataclasses.replace(plan, skip=plan.skip | set(part)) for part in parts]
        if len(kept) > 1 and try_all(smaller):
            size = min(size, max(1, (len(kept) - size) // 2))
        elif size > 1:
            size //= 2
        else:
            break
    plan = best()
    kept = [number for number in range(plan.operations or 0) if number not in plan.skip]
    count = max(kept, default=-1) + 1
    if count < (plan.operations or 0):
        skip = frozenset(number for number in plan.skip if number < count)
        try_all([dataclasses.replace(plan, operations=count, skip=skip)])
