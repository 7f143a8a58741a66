"""`threading` for simulated threads: locks that block a task, threads that are tasks."""

from __future__ import annotations

import re
import sys
import threading
from collections import deque
from typing import ClassVar, Final

from greenlet import GreenletExit

from framework._sim.kernel import Kernel, SimulationError, Task


class SimLock:
    """`threading.Lock`."""

    kernel: ClassVar[Kernel]
    __slots__ = ("__weakref__", "_locked", "_waiting")

    def __init__(self) -> None:
        self._locked = False
        self._waiting: deque[Task] | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not self._locked:
            self._locked = True
            return True
        if not blocking or timeout == 0:
            return False
        kernel = self.kernel
        task = kernel.current
        if task is None:
            raise SimulationError("a lock that was made in a simulation is waited for outside of it")
        deadline = kernel.now + timeout if timeout >= 0 else None
        if self._waiting is None:
            self._waiting = deque()
        waiting = self._waiting
        waiting.append(task)
        try:
            while True:
                in_time = kernel.block(deadline, "a lock")
                if self._take():
                    return True
                if not in_time:
                    return False
        finally:
            waiting.remove(task)
            if waiting and not self.locked():  # (a signal handler has raised in the one that was woken)
                kernel.wake(waiting[0])

    def _take(self) -> bool:
        taken, self._locked = not self._locked, True
        return taken

    def release(self) -> None:
        if not self._locked:
            raise RuntimeError("release unlocked lock")
        self._locked = False
        if self._waiting:
            self.kernel.wake(self._waiting[0])

    def locked(self) -> bool:
        return self._locked

    def _at_fork_reinit(self) -> None:
        self._locked = False
        self._waiting = None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *args: object) -> None:
        self.release()


class SimRLock:
    """`threading.RLock`."""

    __slots__ = ("_count", "_lock", "_owner")

    def __init__(self) -> None:
        self._lock = SimLock()
        self._owner: Task | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = SimLock.kernel.current
        if self._owner is me and self._count:
            self._count += 1
            return True
        if self._lock.acquire(blocking, timeout):
            self._owner = me
            self._count = 1
            return True
        return False

    def release(self) -> None:
        if not self._count or self._owner is not SimLock.kernel.current:
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._owner = None
            self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *args: object) -> None:
        self.release()

    # What `threading.Condition` uses.

    def _release_save(self) -> tuple[int, Task | None]:
        state = (self._count, self._owner)
        self._count, self._owner = 0, None
        self._lock.release()
        return state

    def _acquire_restore(self, state: tuple[int, Task | None]) -> None:
        self._lock.acquire()
        self._count, self._owner = state

    def _is_owned(self) -> bool:
        return bool(self._count) and self._owner is SimLock.kernel.current

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()
        self._owner, self._count = None, 0


_COUNTED: Final = re.compile(r"^(Thread-|ThreadPoolExecutor-)\d+")

# What takes the place of methods of `threading.Thread`, so that classes derived from it work whenever they
# were made. A thread that runs has the attribute `sim_task`.


def start(thread: threading.Thread) -> None:
    """A task of the present process begins."""
    kernel = SimLock.kernel
    if task_of(thread) is not None:
        raise RuntimeError("threads can only be started once")
    process = kernel.process
    assert process is not None
    # The standard library counts in the whole process, so also those of earlier runs.
    thread.name = _COUNTED.sub(lambda found: f"{found[1]}{kernel.number_of(found[0])}", thread.name)

    def run() -> None:
        try:
            thread.run()
        except (SystemExit, GreenletExit, SimulationError, KeyboardInterrupt):
            raise
        except BaseException as error:
            process.crashed(task, error)
            sys.stderr.write(process.errors[-1])

    task = kernel.spawn(process, run, thread.name)
    attach(thread, task)


def attach(thread: threading.Thread, task: Task) -> None:
    """Have this object stand for the task; it is not taken for a real thread when the simulation is over."""

    def join(timeout: float | None = None) -> None:
        kernel, me = SimLock.kernel, SimLock.kernel.current
        if task.done or me is None:  # (or the simulation is over)
            return
        if me is task:
            raise RuntimeError("cannot join current thread")
        task.on_end.append(lambda: kernel.wake(me))
        deadline = None if timeout is None else kernel.now + max(timeout, 0.0)
        while not task.done and kernel.block(deadline, f"the end of {task}"):
            pass

    task.thread = thread
    vars(thread).update(sim_task=task, join=join, is_alive=lambda: not task.done)


def task_of(thread: threading.Thread) -> Task | None:
    """None when it is no thread of a simulation, or has not been started."""
    found: Task | None = vars(thread).get("sim_task")
    return found
