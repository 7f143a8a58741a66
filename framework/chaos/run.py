"""One run: a cluster, workloads, faults, rest, and what is left."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import framework as fw
from framework.chaos import leaks, plan
from framework.chaos.faults import Injector
from framework.chaos.ledger import Hung
from framework.chaos.report import Report, Row
from framework.chaos.workload import Setting, Workload
from framework.chaos.workloads import CATALOGUE
from framework.cluster_utils import Cluster
from framework.exceptions import FrameworkError
from framework.util.state import why_pending

LATE: Final = 30.0  # seconds that an answer which did not come in time gets, to see whether it ever comes
_VARIABLE = "FRAMEWORK_TMPDIR"


@dataclass(frozen=True, slots=True)
class Options:
    """`duration` and `every` in seconds. `patience`: seconds in which a round must be done. `calls`: the run
    goes on until the actors have made so many reports."""

    duration: float = 60.0
    seed: int = 1
    every: float = 2.0
    nodes: int = 3
    workloads: tuple[str, ...] = tuple(CATALOGUE)
    targets: tuple[str, ...] = plan.TARGETS
    patience: float = 120.0
    calls: int = 0
    keep_logs: bool = False

    def command(self) -> str:
        """That makes the same plan again."""
        words = [
            f"--seed {self.seed} --duration {self.duration:g} --every {self.every:g} --nodes {self.nodes}"
        ]
        if self.workloads != tuple(CATALOGUE):
            words.append(f"--workloads {','.join(self.workloads)}")
        if self.targets != plan.TARGETS:
            words.append(f"--targets {','.join(self.targets)}")
        if self.calls:
            words.append(f"--calls {self.calls}")
        return f"python -m framework.chaos {' '.join(words)}"


@contextlib.contextmanager
def _logging_into(path: str) -> Iterator[None]:
    """What this process logs goes to a file alone."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("framework", "asyncio")]
    before = [(logger, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, propagated in before:
            logger.removeHandler(handler)
            logger.propagate = propagated
        handler.close()


def tracebacks_in(text: str) -> Counter[str]:
    """The last lines of the tracebacks in the text of a log, and how often each is there."""
    found: Counter[str] = Counter()
    inside = False
    for line in text.splitlines():
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and line and not line[0].isspace():
            found[line[:200]] += 1
            inside = False
    return found


def tracebacks_below(root: str) -> dict[str, int]:
    """Of all logs in a directory, by the name of the file and that line."""
    found: Counter[str] = Counter()
    for path, _, names in os.walk(root):
        for name in names:
            if name.endswith((".log", ".err", ".out")):
                with contextlib.suppress(OSError), open(os.path.join(path, name), errors="replace") as file:
                    for line, count in tracebacks_in(file.read()).items():
                        found[f"{name}: {line}"] += count
    return dict(found)


class Crew(threading.Thread):
    """One workload at work. `failure` and `hung` are set at its end, if it went wrong."""

    def __init__(self, workload: Workload, stop: threading.Event, alarm: Callable[[], None]) -> None:
        super().__init__(name=f"chaos-{workload.name}", daemon=True)
        self.workload = workload
        self.failure = ""
        self.hung: list[Any] = []
        self._halt = stop
        self._alarm = alarm
        self._number = 0

    def run(self) -> None:
        """Rounds, until told to stop."""
        self._guarded(self._rounds)

    def finish(self) -> None:
        """See `Workload`. By the main thread, after the end of this one."""
        self.workload.begin()
        self._guarded(self.workload.finish)

    def _rounds(self) -> None:
        self.workload.begin()
        self.workload.start()
        while not self._halt.is_set():
            self._number += 1
            begin = time.monotonic()
            self.workload.begin()
            self.workload.round(self._number)
            self.workload.ledger.round_done(time.monotonic() - begin)

    def _guarded(self, what: Callable[[], None]) -> None:
        try:
            what()
        except BaseException as error:
            self.failure = (
                f"{self.workload.name}, round {self._number}: {type(error).__name__}: {error}\n"
                f"{''.join(traceback.format_exception(error))}"
            )
            if isinstance(error, Hung):
                self.hung = error.refs
            traceback.clear_frames(error.__traceback__)
            self._alarm()


class Run:
    """`note` gets a line for each thing that happens; `stop`, once set, ends the run early, in order."""

    def __init__(self, options: Options, note: Callable[[str], None], stop: threading.Event) -> None:
        self._options = options
        self._stop = stop
        self._say = note
        self._begin = time.monotonic()
        self._log: list[str] = []
        self.report = Report(
            options.seed, options.every, options.nodes, list(options.targets), options.command()
        )
        self._alarm = threading.Event()
        self._workloads: list[Workload] = []
        self._crews: list[Crew] = []

    def _note(self, line: str) -> None:
        line = f"{time.monotonic() - self._begin:8.2f}  {line}"
        self._log.append(line)
        self._say(line)

    # ---- the whole ---------------------------------------------------------------------------------------

    def execute(self) -> Report:
        """All of it. Whatever happens is in the report."""
        root = tempfile.mkdtemp(prefix="chaos-")
        sessions, work = os.path.join(root, "s"), os.path.join(root, "w")
        os.mkdir(sessions)
        os.mkdir(work)
        old = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = sessions
        try:
            # Loads modules, and opens what stays open.
            fw.init(num_cpus=1, log_to_driver=False, configure_logging=False)
            fw.shutdown()
            before = leaks.Footprint.now()
            with _logging_into(os.path.join(root, "driver.log")):
                try:
                    self._with_cluster(sessions, work)
                except Exception as error:
                    self._fail(f"the run: {''.join(traceback.format_exception(error))}")
            self._workloads.clear()
            self._crews.clear()
            self.report.left += leaks.after(sessions, before)
        finally:
            if old is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = old
        self.report.tracebacks = tracebacks_below(root)
        if self.report.passed and not self._options.keep_logs:
            shutil.rmtree(root, ignore_errors=True)
        else:
            self.report.logs = root
            with open(os.path.join(root, "events.log"), "w") as file:
                file.write("\n".join(self._log) + "\n")
        return self.report

    def _fail(self, text: str) -> None:
        self.report.failures.append(text)
        self._note(f"FAILED: {text}")

    def _with_cluster(self, sessions: str, work: str) -> None:
        options = self._options
        with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as cluster:
            fw.init(address=cluster.address, log_to_driver=False, configure_logging=False, namespace="chaos")
            try:
                injector = Injector(cluster, options.nodes, self._note)
                for _ in range(options.nodes):
                    injector.add(wait=True)
                cluster.wait_for_nodes()
                fds = leaks.open_fds(cluster)
                setting = Setting(options.seed, work, options.patience, set(options.targets) != {"head"})
                self._workloads = [CATALOGUE[name](setting) for name in options.workloads]
                self._under_faults(injector)
                self._end(cluster, sessions, fds)
            finally:
                fw.shutdown()

    # ---- under faults ------------------------------------------------------------------------------------

    def _under_faults(self, injector: Injector) -> None:
        options = self._options
        halt = threading.Event()
        self._crews = [Crew(workload, halt, self._alarm.set) for workload in self._workloads]
        faults = plan.plan(options.seed, options.every, options.targets)
        fault = next(faults)
        for crew in self._crews:
            crew.start()
        begin = time.monotonic()
        try:
            while not self._stop.is_set() and not self._alarm.is_set() and not injector.failures:
                now = time.monotonic()
                if now - begin >= options.duration and self._enough():
                    break
                if now - begin >= fault.at:
                    injector.strike(fault)
                    fault = next(faults)
                injector.turn()
                wake = min(begin + fault.at, injector.next_due())
                self._alarm.wait(max(0.0, min(wake - time.monotonic(), 0.25)))
        except FrameworkError as error:
            self._fail(f"the cluster, under faults: {''.join(traceback.format_exception(error))}")
        finally:
            self.report.seconds = time.monotonic() - begin
            self._look_into_what_hangs("at once")
            self._note("no more faults")
            injector.heal()
            halt.set()
            self._join()
            self.report.faults, self.report.skipped = dict(injector.done), dict(injector.skipped)
            self.report.seen = dict(injector.seen)
            for text in injector.failures:
                self._fail(text)

    def _enough(self) -> bool:
        return all(
            getattr(load, "reports", self._options.calls) >= self._options.calls for load in self._workloads
        )

    def _join(self) -> None:
        """The rounds that are under way come to their end."""
        deadline = time.monotonic() + self._options.patience + 10.0
        for crew in self._crews:
            crew.join(max(0.0, deadline - time.monotonic()))
            if crew.is_alive():
                frame = sys._current_frames().get(crew.ident or 0)
                where = "".join(traceback.format_stack(frame)) if frame is not None else ""
                self._fail(f"{crew.workload.name} does not come back; it is here:\n{where}")

    # ---- the end -----------------------------------------------------------------------------------------

    def _end(self, cluster: Cluster, sessions: str, fds: dict[str, int]) -> None:
        self._look_into_what_hangs("with everything back")
        self._wait_for_what_hangs()
        for crew in self._crews:
            if not crew.failure and not crew.is_alive():
                crew.finish()
            if crew.failure:
                self._fail(crew.failure)
            crew.hung.clear()
            self.report.workloads[crew.workload.name] = Row.of(crew.workload.ledger)
            self.report.reports += getattr(crew.workload, "reports", 0)
        self._crews.clear()
        self._workloads.clear()
        self._note("at rest")
        cluster.wait_for_nodes()
        if not self.report.failures:
            self.report.left += leaks.at_rest(cluster, sessions, fds)
        self.report.descriptors = {
            name: [fds[name], count] for name, count in leaks.open_fds(cluster).items()
        }

    def _hanging(self) -> list[Any]:
        """References that have been waited for in vain."""
        refs = [ref for crew in self._crews for ref in crew.hung]
        return fw.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[1] if refs else []

    def _look_into_what_hangs(self, when: str) -> None:
        for ref in self._hanging()[:5]:
            try:
                why = why_pending(ref)
            except Exception as error:
                why = f"nobody knows ({type(error).__name__}: {error})"
            self._note(f"{ref!r} is pending, {when}: {why}")

    def _wait_for_what_hangs(self) -> None:
        begin = time.monotonic()
        while left := self._hanging():
            if time.monotonic() - begin > LATE:
                self._fail(f"{len(left)} answers never come, also when everything is back: {left[:5]}")
                return
            time.sleep(0.1)
        if any(crew.hung for crew in self._crews):
            self._note(f"what hung has come {time.monotonic() - begin:.1f} s after everything was back")


def run(
    options: Options, note: Callable[[str], None] | None = None, stop: threading.Event | None = None
) -> Report:
    """A run with these options, in this process, which must not be connected to a session.

    `note` gets a line for each thing that happens; setting `stop` ends it early, in order. `ValueError` for
    options that make no sense; whatever goes wrong under way is in the report.
    """
    check(options)
    return Run(options, note or (lambda line: None), stop or threading.Event()).execute()


def check(options: Options) -> None:
    """`ValueError` for what makes no sense."""
    unknown = set(options.workloads) - set(CATALOGUE)
    if unknown or not options.workloads:
        known = ", ".join(CATALOGUE)
        raise ValueError(f"workloads are {known}; got {', '.join(sorted(unknown)) or 'none'}")
    plan.plan(options.seed, options.every, options.targets)
    if options.nodes < 1 or options.duration < 0 or options.patience <= 0:
        raise ValueError("there is at least one node beside the head's; times are positive")
    if options.calls and "actors" not in options.workloads:
        raise ValueError("calls are those of the workload actors")


def words(text: str) -> tuple[str, ...]:
    """Of a list with commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
