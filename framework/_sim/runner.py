"""One run of the simulation, from the seed to the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from framework._sim.choices import Choices, Log
from framework._sim.cluster import SimCluster
from framework._sim.counters import Counters
from framework._sim.faults import Faults, Injector
from framework._sim.kernel import Kernel, SimulationError
from framework._sim.preload import preload
from framework._sim.schedulers import Priorities, RandomWalk
from framework._sim.slots import provide_slots

if TYPE_CHECKING:
    from framework._sim.world_of_simulation import SimWorld

#: Virtual seconds in which what nobody refers to any more must be gone, after a program.
SETTLE: Final = 90.0
#: and those after which a run is given up
LIMIT: Final = 4000.0

#: length of the path of a run's directory and of the user's number together
_PATH: Final = 32


class Outcome:
    """What became of a run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.problems: list[str] = []  #: violations; empty: all was well
        self.faults: dict[str, int] = {}
        self.paths: dict[str, int] = {}
        self.operations: dict[str, int] = {}
        self.steps = 0
        self.virtual = 0.0  #: seconds
        self.real = 0.0
        self.digest = ""
        self.log: list[str] | None = None

    @property
    def ok(self) -> bool:
        return not self.problems

    def __repr__(self) -> str:
        state = "ok" if self.ok else "; ".join(problem.splitlines()[0] for problem in self.problems[:3])
        took = f"{self.virtual:.1f} virtual s, {self.steps} steps, {self.real:.2f} s"
        return f"<seed {self.seed}: {state}; {took}>"


def make_directory() -> str:
    """A new one for the files of a run. Paths go into messages, and the sizes of messages into what happens:
    so they are as long in each run, whoever runs it (as far as the place for temporary files lets them)."""
    uid = str(os.getuid())
    shortest = len(os.path.join(tempfile.gettempdir(), "fw-sim-xxxxxxxx")) + len(uid)
    return tempfile.mkdtemp(prefix="fw-sim-" + "-" * (_PATH - shortest))


class Simulation:
    """A system, booted: used within ``with``."""

    def __init__(self, seed: int, scheduler: str = "walk", keep_log: bool = False, schedule: int = 0) -> None:
        preload()
        self.choices = Choices(seed, schedule)
        self.log = Log(keep_log)
        policies = {"walk": RandomWalk, "priorities": Priorities}
        if scheduler not in policies:
            raise ValueError(f"scheduler is one of {sorted(policies)}, not {scheduler!r}")
        self.kernel = Kernel(self.choices, self.log, policies[scheduler](self.choices))
        provide_slots(self.kernel)
        self.cluster = SimCluster(self.kernel, make_directory())
        self.counters = Counters()

    @contextlib.contextmanager
    def running(self, faults: Faults | None, happened: list[Any]) -> Iterator[Injector]:
        """While this is open, this thread is in the simulated system."""
        slots = {**self.kernel.process_slots, **self.kernel.thread_slots}
        before = {name: slot.get() for name, slot in slots.items()}
        environment = dict(os.environ)
        with _quiet_logs(self.kernel), self.cluster.system.installed():
            os.environ["FRAMEWORK_TMPDIR"] = self.cluster.directory
            try:
                self.cluster.patch_services()
                injector = Injector(self.cluster, faults or Faults(), happened)
                injector.patch_disks()
                self.counters.install(self.cluster.system)
                yield injector
            finally:
                self.cluster.end()
                os.environ.clear()
                os.environ.update(environment)
                for name, slot in slots.items():
                    slot.set(before[name])
                self.cluster.close()

    def wait_for_nodes(self, count: int, seconds: float = 60.0) -> None:
        """Run until so many nodes have joined."""

        def joined() -> bool:
            nodes = self.cluster.nodes.values()
            return sum(_has_joined(node) for node in nodes) >= count

        self.kernel.run(joined, self.kernel.now + seconds)

    def run_for(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let virtual time pass, or until something holds, which is looked at now and then."""
        end = self.kernel.now + seconds
        while self.kernel.now < end:
            pause = min(self.kernel.now + 0.5, end)
            over: list[bool] = []
            self.kernel.call_at(pause, over.append, True)
            self.kernel.run(lambda: bool(over), end + 10)  # noqa: B023
            if until():
                return True
        return until()


def _has_joined(node: Any) -> bool:
    return node.alive and node.service is not None and node.service.cluster.head.connection is not None


@contextlib.contextmanager
def _quiet_logs(kernel: Kernel) -> Iterator[None]:
    """What the services log goes into the run's log, and nowhere else."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if kernel.log.lines is not None:
                with contextlib.suppress(Exception):
                    kernel.log.lines.append(f"    log: {record.name}: {record.getMessage()}"[:500])

    handler = Keep()
    loggers = [logging.getLogger(name) for name in ("framework", "asyncio", "concurrent.futures")]
    before = [(logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    loggers[0].setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, (propagate, level) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate
            logger.setLevel(level)


def run_program_of(
    seed: int,
    *,
    faults: Faults | None = None,
    nodes: int | None = None,
    scheduler: str | None = None,
    operations: int | None = None,
    kinds: Mapping[str, float] | None = None,
    skip: frozenset[int] = frozenset(),
    keep_log: bool = False,
    schedule: int = 0,
    plant: Callable[[Any], object] | None = None,
) -> Outcome:
    """Run the random program of a seed in the weather of that seed, as far as nothing else is given, and
    judge it. `plant(system)` may put a bug into the product."""
    from framework._sim import weather
    from framework._sim.ledger import LEDGER
    from framework._sim.world_of_simulation import SimWorld

    found = weather.draw(seed)
    faults = found.faults if faults is None else faults
    simulation = Simulation(seed, scheduler or found.scheduler, keep_log, schedule)
    outcome = Outcome(seed)
    kernel, cluster = simulation.kernel, simulation.cluster
    begun = time.perf_counter()
    happened: list[Any] = []
    with simulation.running(faults, happened) as injector:
        if plant is not None:
            plant(cluster.system)
        try:
            cluster.add_node(resources={SimWorld.resource: 1}, object_store_memory=found.store_bytes)
            count = found.nodes if nodes is None else nodes
            for _ in range(count - 1):
                cluster.add_node(object_store_memory=found.store_bytes)
            simulation.wait_for_nodes(count)
            world = SimWorld(
                cluster,
                injector,
                count=found.operations if operations is None else operations,
                kinds=kinds,
                skip=skip,
                store_bytes=found.store_bytes,
                cpus=2,
            )
            LEDGER.open(lambda: kernel.now)
            injector.start()
            _drive_and_judge(simulation, injector, world, outcome)
        except SimulationError as error:
            outcome.problems.append(str(error))
        except Exception:
            outcome.problems.append(f"the simulation has failed: {traceback.format_exc()}")
        finally:
            LEDGER.close()
            outcome.faults = dict(injector.counts)
    outcome.paths = simulation.counters.counts
    outcome.steps, outcome.virtual = kernel.steps, kernel.now
    outcome.real = time.perf_counter() - begun
    outcome.digest, outcome.log = simulation.log.digest(), simulation.log.lines
    return outcome


def _drive_and_judge(simulation: Simulation, injector: Injector, world: SimWorld, outcome: Outcome) -> None:
    """Run the program in a driver, let what it leaves settle, and note all that was wrong."""
    from framework._sim.inspection import invariants, leftovers
    from framework._sim.ledger import LEDGER
    from framework._sim.oracles import judge
    from framework._sim.programs import run_program

    kernel, cluster = simulation.kernel, simulation.cluster
    driver_over: list[bool] = []
    settled: list[bool] = []

    async def drive() -> None:
        await run_program(world)
        driver_over.append(True)
        while not settled:  # (its runtime is looked at before it ends)
            await asyncio.sleep(0.25)

    driver = cluster.start_driver(drive)
    broken: list[str] = []
    kernel.between = _every(50, lambda: broken.extend(_checked(invariants, cluster)))
    kernel.run(lambda: bool(driver_over) or not driver.alive or bool(broken), LIMIT)
    kernel.between = lambda: None
    injector.end()
    outcome.problems += [f"invariant: {text}" for text in broken[:5]]
    if not driver.alive and not driver_over:
        outcome.problems.append(f"the driver has ended: {driver.errors}")
    if not outcome.problems:
        outcome.problems += [str(violation) for violation in judge(world, LEDGER)]
    if not outcome.problems:
        left: list[str] = []

        def clean() -> bool:
            gc.collect()
            left[:] = _checked(leftovers, cluster)
            return not left

        if not simulation.run_for(SETTLE, clean):
            outcome.problems += [f"left over: {text}" for text in left]
        settled.append(True)
        kernel.run(lambda: not driver.alive, kernel.now + 120)
    outcome.problems += [
        f"a thread of {process} has failed: {text}"
        for process in kernel.processes.values()
        for text in process.errors
    ][:5]
    for kind in world.seen.kinds.values():
        outcome.operations[kind] = outcome.operations.get(kind, 0) + 1


def _checked(check: Callable[..., list[str]], cluster: SimCluster) -> list[str]:
    """What an inspection of everything that lives finds."""
    head = cluster.head
    heads = (
        [cluster.head_service] if head is not None and head.alive and cluster.head_service is not None else []
    )
    nodes = [node.service for node in cluster.nodes.values() if node.alive and node.service is not None]
    return check(heads, nodes, list(cluster.runtimes.values()))


def _every(steps: int, function: Callable[[], object]) -> Callable[[], object]:
    count = 0

    def between() -> None:
        nonlocal count
        count += 1
        if count % steps == 0:
            function()

    return between
