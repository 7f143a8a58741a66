"""Programs of users in a simulated cluster: one run of one seed."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import inspect
import itertools
import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import cloudpickle

import framework as fw
from framework._sim.cluster import SimCluster
from framework._sim.faults import Faults
from framework._sim.kernel import Kernel, SimulationError, Task
from framework._sim.loop import SimLoop
from framework._sim.process import Process
from framework._sim.runner import Simulation

Program = Callable[[], Any]
Nodes = int | Sequence[Mapping[str, Any]]

SCHEDULERS: Final = ("walk", "priorities")
#: What a node may be given; as in `framework.cluster_utils.Cluster.add_node`.
NODE_OPTIONS: Final = ("num_cpus", "num_gpus", "resources", "labels", "object_store_memory")
_JOINING: Final = 120.0  #: virtual seconds for the nodes to come, and for the program's process to end
_NOTES: Final = 100_000  #: kept of one run

_HERE = os.path.dirname(os.path.abspath(fw.__file__)) + os.sep
_LIBRARY = os.path.dirname(os.path.abspath(asyncio.__file__))
_LIBRARY = os.path.dirname(_LIBRARY) + os.sep
_PACKAGES = os.sep + "site-packages" + os.sep


@dataclasses.dataclass
class Report:
    """What a run of `simulate` was like.

    - `seed`, and what the program returned: `result`.
    - `virtual`: seconds that passed in the simulation; `real`: those that it took; `steps`: how often a
      thread was chosen to go on.
    - `faults`: how often each kind came; `paths`: how often the cluster was on each of its ways of recovery.
    - `notes`: what `note` was told: (virtual time, process, text); `reached`: how often each `sometimes`.
    - `digest`: of all events, the same whenever the run is; `trace`: the events, one line each, where they
      were asked for.
    - `crashes`: tracebacks of threads of the program or its workers that ended with an exception.
    """

    seed: int
    result: Any = None
    virtual: float = 0.0
    real: float = 0.0
    steps: int = 0
    faults: dict[str, int] = dataclasses.field(default_factory=dict)
    paths: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: list[tuple[float, str, str]] = dataclasses.field(default_factory=list)
    reached: dict[str, int] = dataclasses.field(default_factory=dict)
    digest: str = ""
    trace: list[str] | None = None
    crashes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items())) or "no faults"
        times = f"{self.virtual:.3f} virtual s in {self.real:.2f} s, {self.steps} steps"
        return f"seed {self.seed}: {times}, {faults}"


class _Run:
    """The simulation of the moment: what user code can ask of it."""

    def __init__(self, kernel: Kernel, report: Report) -> None:
        self.kernel = kernel
        self.report = report
        self.thread = threading.get_ident()  # (of the real thread: it is asked before anything is patched)

    def note(self, text: str) -> None:
        kernel = self.kernel
        who = kernel.process.name if kernel.process is not None else ""
        if len(self.report.notes) < _NOTES:
            self.report.notes.append((kernel.now, who, text))
        kernel.log.add(f"{kernel.now:.6f} note: {who}: {text}")


_run: _Run | None = None
_class_numbers = itertools.count()


def present() -> _Run | None:
    """The run that the calling code is part of."""
    run = _run
    return run if run is not None and run.kernel.current is not None else None


def run_program(
    program: Program,
    *,
    seed: int,
    nodes: Nodes,
    faults: Faults | None,
    scheduler: str,
    limit: float,
    trace: bool,
    on_end: Callable[[Report], object] = lambda report: None,
) -> Report:
    """Run it to its end; `on_end` is told what it was like, however it ended. Raises what it raises, and
    `SimulationError` when it does not end."""
    check(program, nodes, scheduler, limit)
    check_place()
    report, outcome = Report(seed), _Outcome()
    try:
        _run_in_cluster(program, nodes, faults, scheduler, limit, trace, report, outcome)
    finally:
        _collect()
        on_end(report)
    if outcome.error is not None:
        raise outcome.error
    report.result = outcome.value
    return report


def _collect() -> None:
    """Objects of a cluster refer to each other in cycles, and some to open files. (That its coroutines never
    come to their ends is no news.)"""
    log = logging.getLogger("asyncio")
    disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
    finally:
        log.disabled = disabled


def _run_in_cluster(
    program: Program,
    nodes: Nodes,
    faults: Faults | None,
    scheduler: str,
    limit: float,
    trace: bool,
    report: Report,
    outcome: _Outcome,
) -> None:
    global _run
    simulation = Simulation(report.seed, scheduler, trace)
    kernel, cluster = simulation.kernel, simulation.cluster
    begun = time.perf_counter()
    _run = _Run(kernel, report)
    try:
        with simulation.running(faults, []) as injector:
            try:
                _guard_init(cluster)
                _name_classes(cluster)
                wanted = _node_options(nodes)
                for options in wanted:
                    cluster.add_node(**options)
                simulation.wait_for_nodes(len(wanted), _JOINING)
                injector.start()
                driver = cluster.start_driver(lambda: outcome.of(program))
                _until_over(kernel, driver, outcome, limit)
            finally:
                _run = None  # (threads that are ended now may still call)
                injector.end()
                report.faults = dict(injector.counts)
                report.crashes = [text for process in kernel.processes.values() for text in process.errors]
    finally:
        _run = None
        report.paths = simulation.counters.counts
        report.virtual, report.steps = kernel.now, kernel.steps
        report.real = time.perf_counter() - begun
        report.digest, report.trace = simulation.log.digest(), simulation.log.lines


class _Outcome:
    """Of a program."""

    def __init__(self) -> None:
        self.over = False
        self.value: Any = None
        self.error: BaseException | None = None

    def of(self, program: Program) -> Any:
        """In its driver: run it. (What this returns is run by the driver, if it is a coroutine.)"""
        if inspect.iscoroutinefunction(program):
            return self._await(program())
        try:
            made = program()
        except BaseException as error:
            self._ended(error)
            return None
        if inspect.iscoroutine(made):
            return self._await(made)
        self.value, self.over = made, True
        return None

    async def _await(self, coroutine: Any) -> None:
        try:
            self.value = await coroutine
            self.over = True
        except BaseException as error:
            self._ended(error)

    def _ended(self, error: BaseException) -> None:
        if type(error).__name__ != "GreenletExit":
            self.error, self.over = error, True


def _until_over(kernel: Kernel, driver: Process, outcome: _Outcome, limit: float) -> None:
    end = kernel.now + limit
    late: list[bool] = []
    kernel.call_at(end, late.append, True)
    kernel.run(lambda: outcome.over or bool(late) or not driver.alive, end + 1.0)
    if not outcome.over:
        if not driver.alive:
            text = f"the program's process has ended with status {driver.status}, and the program had not"
            raise SimulationError(text + "".join(f"\n{error}" for error in driver.errors))
        raise SimulationError(
            f"the program has not ended after {limit:g} virtual seconds. Who waits, and where:"
            + standstill(kernel)
        )
    kernel.run(lambda: not driver.alive or bool(late), max(end, kernel.now + _JOINING))


def _guard_init(cluster: SimCluster) -> None:
    """Programs are connected already."""
    inner = fw.init

    def init(address: str | None = None, **options: Any) -> Any:
        if isinstance(address, str) and address.startswith(cluster.directory):
            return inner(address, **options)
        raise SimulationError(
            "init() is called inside of a simulation: a simulated program is connected already, "
            "to the nodes that simulate(..., nodes=...) gives it. Leave the call to what runs it in reality"
        )

    cluster.system._set(fw, "init", init)


def _name_classes(cluster: SimCluster) -> None:
    """A class that is pickled by value gets a random name, once in the life of this process: it must not be
    drawn from the run, where the first run of a process would be another than the ones after it."""

    class Names:
        @staticmethod
        def uuid4() -> uuid.UUID:
            return uuid.uuid5(uuid.NAMESPACE_OID, f"simulated class {next(_class_numbers)}")

    cluster.system._set(cloudpickle.cloudpickle, "uuid", Names)


# ---- misuse ------------------------------------------------------------------------------------------


def check(program: Any, nodes: Any, scheduler: str, limit: float) -> None:
    """`TypeError` or `ValueError` where arguments of `simulate` make no sense."""
    if not callable(program):
        what = (
            "a coroutine: pass the function, without calling it"
            if inspect.iscoroutine(program)
            else repr(program)
        )
        raise TypeError(f"the program is a function or coroutine function without arguments, not {what}")
    if hasattr(program, "remote"):
        raise TypeError("the program is what calls .remote(): an ordinary function, not a remote one")
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler is one of {list(SCHEDULERS)}, not {scheduler!r}")
    if not limit > 0:
        raise ValueError(f"limit is a positive number of virtual seconds, not {limit!r}")
    _node_options(nodes)


def _node_options(nodes: Any) -> list[dict[str, Any]]:
    if isinstance(nodes, int) and not isinstance(nodes, bool):
        if nodes < 1:
            raise ValueError(f"there is at least one node; got nodes={nodes}")
        return [{} for _ in range(nodes)]
    if isinstance(nodes, str | bytes | Mapping) or not isinstance(nodes, Sequence) or not nodes:
        raise TypeError(f"nodes is a number, or a list of dicts of options, one for each node; got {nodes!r}")
    for options in nodes:
        if not isinstance(options, Mapping):
            raise TypeError(f"each node is a dict of options, not {options!r}")
        if unknown := sorted(set(options) - set(NODE_OPTIONS)):
            raise TypeError(f"a simulated node has no options {unknown}; there are {list(NODE_OPTIONS)}")
    return [dict(options) for options in nodes]


def check_place() -> None:
    """`SimulationError` where no simulation can begin."""
    if _run is not None:
        raise SimulationError(
            "a simulation is running already: they cannot be nested, nor run in several threads"
        )
    if fw.is_initialized():
        raise SimulationError(
            "this process is connected to a real session: call shutdown() before it simulates one"
        )
    if asyncio._get_running_loop() is not None:
        raise SimulationError(
            "simulate() was called in a running event loop, which would stand still meanwhile: "
            "call it from an ordinary function (of a coroutine program, pass the function)"
        )


# ---- who waits for what ------------------------------------------------------------------------------


def standstill(kernel: Kernel) -> str:
    """The threads and coroutines of drivers and workers, and the user's lines at which they wait."""
    loops: dict[Process, list[SimLoop]] = {}
    for thing in gc.get_objects():
        if type(thing) is SimLoop and not thing.is_closed() and thing._owner is not None:
            loops.setdefault(thing._owner, []).append(thing)
    lines = []
    for process in kernel.processes.values():
        if not process.alive or not process.name.startswith(("driver", "worker")):
            continue
        found = [f"thread {task.name} {_place_of(task)}" for task in process.tasks if _place_of(task)]
        for loop in loops.get(process, ()):
            for job in sorted(asyncio.all_tasks(loop), key=lambda job: job.get_name()):
                if where := _place_of_job(job):
                    found.append(f"coroutine {job.get_coro().__qualname__} {where}")  # type: ignore[union-attr]
        state = ", stopped" if process.stopped else ""
        lines += [f"\n  {process.name} (on {process.host}{state}): {text}" for text in found]
    return "".join(lines) or " nobody is in the middle of user code"


def _is_users(filename: str) -> bool:
    return not (
        filename.startswith((_HERE, "<frozen"))
        or (filename.startswith(_LIBRARY) and _PACKAGES not in filename)
        or _PACKAGES in filename
    )


def _place_of(task: Task) -> str:
    """Where user code stands in a thread, and what it waits for there; empty where there is none."""
    frame, called = task.glet.gr_frame, None
    while frame is not None:
        code = frame.f_code
        if _is_users(code.co_filename):
            what = _awaited(called) or task.what or "its turn"
            return f"at {code.co_filename}:{frame.f_lineno} in {code.co_qualname}, waiting for {what}"
        frame, called = frame.f_back, frame
    return ""


def _awaited(frame: Any) -> str:
    """Of a call into the API: its name, and the tasks whose results are wanted."""
    if frame is None or not frame.f_code.co_filename.startswith(_HERE):
        return ""
    found = []
    for value in frame.f_locals.values():
        for ref in value if isinstance(value, list | tuple) else [value]:
            if isinstance(ref, fw.ObjectRef):
                entry = getattr(ref, "_entry", None)
                template = getattr(getattr(entry, "task", None), "template", None)
                if template is not None:
                    found.append(f"{template.name}()")
    names = ", ".join(dict.fromkeys(found))
    return f"{frame.f_code.co_name}()" + (f" of {names}" if names else "")


def _place_of_job(job: asyncio.Task[Any]) -> str:
    place = ""
    inner: Any = job.get_coro()
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "ag_frame", None)
        if frame is not None and _is_users(frame.f_code.co_filename):
            place = f"at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        inner = getattr(inner, "cr_await", None)
    return place
