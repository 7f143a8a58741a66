"""The kernel of the simulated system: threads that are greenlets, virtual time, one of them runs at a time.

Everything that would be parallel in reality is a `Task` here: threads of user code, those that run event
loops, those of thread pools. A task runs until it blocks (`Kernel.block`); which of those that are ready goes
on is a choice of the seed. When none is ready, the clock jumps to the next timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import itertools
import sys
from asyncio import events
from collections.abc import Callable
from typing import Any, Final, Protocol

from greenlet import GreenletExit, getcurrent, greenlet

from framework._sim.choices import Choices, Log
from framework._sim.process import Process
from framework._sim.schedulers import Scheduler

#: Seconds that one step takes: time goes on also while everybody is busy, so that what waits comes due.
STEP: Final = 2e-6
#: Steps after which the garbage of reference cycles is collected. (Never in between: when Python's own
#: collector runs depends on what else is in memory.)
COLLECT_EVERY: Final = 20_000
#: how often a thread is told to end, at the end
_PATIENCE: Final = 5


class SimulationError(Exception):
    """The simulation itself cannot go on: it is at a standstill, or code in it does what it must not."""


class Task:
    """A simulated thread."""

    __slots__ = (
        "asyncgen_hooks",
        "daemon",
        "deadline",
        "done",
        "glet",
        "ident",
        "label",
        "loop",
        "name",
        "on_end",
        "priority",
        "process",
        "ready",
        "signals",
        "slots",
        "thread",
        "timed_out",
        "wait",
        "what",
    )

    def __init__(self, process: Process, function: Callable[[], object], name: str, ident: int) -> None:
        self.process = process
        self.name = name
        self.label = f"{process.name}/{name}"
        self.ident = ident
        self.ready = False
        self.done = False
        self.deadline: float | None = None
        self.wait = 0  #: number of the present blocking: timers of earlier ones mean nothing
        self.timed_out = False
        self.what = ""  #: what it waits for, for reports
        self.priority = 0.0
        self.signals: list[int] = []  #: to be handled when it runs next
        self.loop: Any = None  #: asyncio's running loop, while another task runs
        self.asyncgen_hooks: tuple[Any, Any] = (None, None)
        self.slots: dict[str, Any] = {}  #: values of variables that each thread has its own of
        self.thread: Any = None  #: the object that stands for it in `threading`
        self.on_end: list[Callable[[], object]] = []
        self.glet = greenlet(function)

    def __repr__(self) -> str:
        return self.label


class Timer:
    """Something to be done at a time, unless it is cancelled."""

    __slots__ = ("args", "cancelled", "function")

    def __init__(self, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Slot(Protocol):
    """A variable of which each process (or thread) has its own."""

    def get(self) -> Any: ...

    def set(self, value: Any) -> None: ...

    def fresh(self) -> Any: ...


class Kernel:
    """One simulated system. Nothing here is for more than one real thread."""

    def __init__(self, choices: Choices, log: Log, scheduler: Scheduler) -> None:
        self.choices = choices
        self.log = log
        self.scheduler = scheduler
        self.now = 0.0
        self.steps = 0
        self.max_steps = 3_000_000
        self.current: Task | None = None
        self._last: Task | None = None  #: whose values of `thread_slots` are in place
        self.process: Process | None = None
        self.processes: dict[int, Process] = {}
        self.process_slots: dict[str, Slot] = {}
        self.thread_slots: dict[str, Slot] = {}
        self.between: Callable[[], object] = lambda: None  #: called between steps
        self.failed: BaseException | None = None
        self.closing = False  #: threads come to their ends where they are
        self.frame_of_interest: Callable[[], Any] = lambda: None  #: for signal handlers
        self._ready: list[Task] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self.number: Callable[[], int] = itertools.count(1).__next__  #: one that was not given out before
        self._names: dict[str, int] = {}
        self._numbers = 0
        self._idents = 0
        self._pids = 0
        self._main = getcurrent()
        self._graveyard: list[Any] = []  #: never run again, and never unwound either

    def number_of(self, name: str) -> int:
        """The number of a name in this run: the first that is asked for is 1."""
        return self._names.setdefault(name, len(self._names) + 1)

    # ---- processes and tasks -------------------------------------------------------------------------

    def new_process(self, name: str, host: str) -> Process:
        """A process without a task."""
        self._pids += 1
        process = Process(100 + self._pids, name, host)
        process.saved = {name: slot.fresh() for name, slot in self.process_slots.items()}
        self.processes[process.pid] = process
        return process

    def spawn(self, process: Process, function: Callable[[], object], name: str) -> Task:
        """Start a task of a process."""
        self._check_open()
        self._idents += 1

        def body() -> None:
            try:
                function()
            except (SystemExit, GreenletExit):
                pass
            except BaseException as error:
                if self.closing:
                    return
                process.crashed(task, error)
                self.log.add(f"{self.now:.6f} {task} ended by {type(error).__name__}")
                if isinstance(error, SimulationError | KeyboardInterrupt):
                    self.failed = self.failed or error
            finally:
                self._ended(task)

        task = Task(process, body, name, 1000 + self._idents)
        task.slots = {key: slot.fresh() for key, slot in self.thread_slots.items()}
        task.glet.parent = self._main
        process.tasks[task] = None
        self.scheduler.added(task)
        self._make_ready(task)
        return task

    def _ended(self, task: Task) -> None:
        task.done = True
        task.process.tasks.pop(task, None)
        for function in task.on_end:
            function()

    def kill(self, process: Process) -> None:
        """A power cut for this process: nothing of it runs any more, no `finally`, nothing."""
        process.alive = False
        self._graveyard.append(list(process.tasks))
        self._ready = [task for task in self._ready if task.process is not process]
        process.parked.clear()
        for task in list(process.tasks):
            task.done = True
        process.tasks.clear()

    def leave(self) -> None:
        """The present task does not run any more, ever."""
        self._check_open()
        self._main.switch()
        raise GreenletExit

    def close(self) -> None:
        """Nothing runs any more: end all threads where they are. (What is in their frames would stay for
        ever.) Their `finally` blocks do run now."""
        self.closing, self.log = True, Log()
        alive = [task for process in self.processes.values() for task in process.tasks]
        for task in [*(task for tasks in self._graveyard for task in tasks), *alive]:
            for _ in range(_PATIENCE):
                if task.glet.dead:
                    break
                task.slots = {key: slot.fresh() for key, slot in self.thread_slots.items()}
                self._enter(task)
                with contextlib.suppress(BaseException):
                    task.glet.throw(GreenletExit)
                self._leave(task)
        self._graveyard.clear()
        self._ready.clear()
        self._timers.clear()
        self._last = None
        for process in self.processes.values():
            process.let_go()

    def _check_open(self) -> None:
        if self.closing:
            raise GreenletExit

    # ---- blocking ------------------------------------------------------------------------------------

    def block(self, deadline: float | None = None, what: str = "") -> bool:
        """The present task waits until it is woken (True), or until `deadline` (False), a time of this
        kernel."""
        task = self.current
        if task is None:
            raise SimulationError(f"something blocks outside of the simulated processes ({what})")
        self._check_open()
        task.wait += 1
        task.deadline = deadline
        task.timed_out = False
        task.what = what
        if deadline is not None:
            self.call_at(deadline, self._time_out, task, task.wait)
        self._main.switch()
        if task.signals:
            self._handle_signals(task)
        return not task.timed_out

    def pause(self) -> None:
        """The present task lets others run, if there are any."""
        task = self.current
        if task is not None:
            self._check_open()
            self._make_ready(task)
            self._main.switch()
            if task.signals:
                self._handle_signals(task)

    def wake(self, task: Task) -> None:
        """End the waiting of a task, if it waits."""
        if not task.ready and not task.done and task is not self.current:
            task.wait += 1
            task.deadline = None
            self._make_ready(task)

    def _time_out(self, task: Task, wait: int) -> None:
        if task.wait != wait or task.ready or task.done:
            return
        if task.deadline is not None and task.deadline > self.now:  # its clock was moved
            self.call_at(task.deadline, self._time_out, task, wait)
            return
        task.timed_out = True
        task.wait += 1
        self._make_ready(task)

    def _make_ready(self, task: Task) -> None:
        process = task.process
        if not process.alive or task.done:
            return
        task.ready = True
        if process.stopped:
            process.parked.append(task)
        elif process.slow_until > self.now and process.slowness > 0:
            self.call_at(self.now + self.choices.unit() * process.slowness, self._let_run, task)
        else:
            self._ready.append(task)

    def _let_run(self, task: Task) -> None:
        if task.process.alive and not task.done:
            if task.process.stopped:
                task.process.parked.append(task)
            else:
                self._ready.append(task)

    def signal(self, task: Task, number: int) -> None:
        """Have the task handle a signal when it runs next, which is soon."""
        task.signals.append(number)
        self.wake(task)

    def _handle_signals(self, task: Task) -> None:
        while task.signals:
            number = task.signals.pop(0)
            handler = task.process.signal_handlers.get(number)
            if callable(handler):
                handler(number, self.frame_of_interest())

    # ---- whole processes -----------------------------------------------------------------------------

    def stop(self, process: Process) -> None:
        """SIGSTOP."""
        if process.stopped or not process.alive:
            return
        process.stopped = True
        process.parked += [task for task in self._ready if task.process is process]
        self._ready = [task for task in self._ready if task.process is not process]

    def resume(self, process: Process) -> None:
        """SIGCONT."""
        if not process.stopped or not process.alive:
            return
        process.stopped = False
        parked, process.parked = process.parked, []
        self._ready += [task for task in parked if not task.done]

    def jump_clock(self, process: Process, seconds: float) -> None:
        """The monotonic clock of a process jumps forward (its machine was suspended), and with it all that it
        waits for."""
        process.clock_offset += seconds
        for task in process.tasks:
            if task.deadline is not None:
                task.deadline -= seconds
                self.call_at(max(task.deadline, self.now), self._time_out, task, task.wait)

    # ---- time ----------------------------------------------------------------------------------------

    def call_at(self, when: float, function: Callable[..., object], *args: Any) -> Timer:
        """Have `function(*args)` called at this time, outside of all processes."""
        self._numbers += 1
        timer = Timer(function, args)
        heapq.heappush(self._timers, (when, self._numbers, timer))
        return timer

    def call_later(self, seconds: float, function: Callable[..., object], *args: Any) -> Timer:
        """The same, in so many seconds."""
        return self.call_at(self.now + seconds, function, *args)

    def run(self, finished: Callable[[], bool], until: float) -> None:
        """Until `finished()`. `SimulationError` at a standstill, and when virtual time reaches `until`."""
        limit = self.steps + self.max_steps
        while True:
            self._due()
            if self.failed is not None:
                raise self.failed
            if finished():
                return
            if not self._ready:
                if not self._advance():
                    raise SimulationError(f"standstill: nobody is ready and no timer is set. {self.report()}")
                if self.now > until:
                    raise SimulationError(f"not finished after {until:g} virtual seconds. {self.report()}")
                continue
            self._step()
            if self.steps > limit:
                raise SimulationError(
                    f"not finished after {self.max_steps} steps: a livelock? {self.report()}"
                )

    def _advance(self) -> bool:
        timers = self._timers
        while timers and timers[0][2].cancelled:
            heapq.heappop(timers)
        if not timers:
            return False
        self.now = max(self.now, timers[0][0])
        return True

    def _due(self) -> None:
        timers, now = self._timers, self.now
        while timers and timers[0][0] <= now:
            _, _, timer = heapq.heappop(timers)
            if not timer.cancelled:
                timer.function(*timer.args)

    def _step(self) -> None:
        ready = self._ready
        index = self.scheduler.choose(ready)
        task = ready[index]
        ready[index] = ready[-1]
        ready.pop()
        task.ready = False
        if task.done:
            return
        self.steps += 1
        self.now += STEP
        self.log.add(f"{self.now:.6f} {task.label}")
        self._enter(task)
        task.glet.switch()
        self._leave(task)
        if self.steps % COLLECT_EVERY == 0:
            gc.collect()
        self.between()

    def _enter(self, task: Task) -> None:
        process = task.process
        if process is not self.process:
            old = self.process
            for name, slot in self.process_slots.items():
                if old is not None:
                    old.saved[name] = slot.get()
                slot.set(process.saved[name])
            self.process = process
        last = self._last
        if task is not last:  # (else its values are still there)
            self._last = task
            for name, slot in self.thread_slots.items():
                if last is not None:
                    last.slots[name] = slot.get()
                slot.set(task.slots[name])
        self.current = task
        events._set_running_loop(task.loop)
        sys.set_asyncgen_hooks(*task.asyncgen_hooks)

    def _leave(self, task: Task) -> None:
        self.current = None
        if not task.done:
            task.loop = asyncio._get_running_loop()
            first, last = sys.get_asyncgen_hooks()  # (what this returns is hidden from the garbage collector)
            task.asyncgen_hooks = first, last
        else:
            self._let_go(task)
        events._set_running_loop(None)

    def _let_go(self, task: Task) -> None:
        """It has come to its end: its values are nobody's."""
        self._last = None
        for slot in self.thread_slots.values():
            slot.set(slot.fresh())
        task.slots = {}

    def within(self, process: Process, function: Callable[[], Any]) -> Any:
        """Call something that does not block as if this process did."""
        outer, before = self.process, self.current
        if process is not outer:
            for name, slot in self.process_slots.items():
                if outer is not None:
                    outer.saved[name] = slot.get()
                slot.set(process.saved[name])
            self.process = process
        try:
            return function()
        finally:
            if process is not outer:
                for name, slot in self.process_slots.items():
                    process.saved[name] = slot.get()
                    if outer is not None:
                        slot.set(outer.saved[name])
                self.process = outer
            self.current = before

    def report(self) -> str:
        """Who waits for what."""
        lines = [
            f"\n  {task}: {'ready' if task.ready else task.what or 'waits'}"
            for process in self.processes.values()
            if process.alive
            for task in process.tasks
        ]
        return f"Virtual time {self.now:.3f}, {self.steps} steps. Tasks:" + "".join(lines)
