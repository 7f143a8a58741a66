"""The event loop of a simulated thread: asyncio's own, on simulated time and descriptors."""

from __future__ import annotations

import asyncio
from asyncio import selector_events
from collections.abc import Callable
from typing import Any, TypeVarTuple
from weakref import WeakKeyDictionary

from framework._sim.descriptors import Descriptors, Selector
from framework._sim.kernel import SimulationError

_Ts = TypeVarTuple("_Ts")


class _OrderedWeakSet(WeakKeyDictionary[Any, None]):
    """A set that is iterated in the order in which it was filled, not in that of addresses."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)


class SimFuture(asyncio.Future[Any]):
    """Its hash is a number of its loop: sets of such are iterated in the same order in each run."""

    def __init__(self, *, loop: SimLoop) -> None:
        self._number = loop.number()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class SimTask(asyncio.Task[Any]):
    """The same for tasks."""

    def __init__(self, coroutine: Any, *, loop: SimLoop, **options: Any) -> None:
        self._number = loop.number()
        options["name"] = options.get("name") or f"Task-{self._number}"
        super().__init__(coroutine, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


def _make_task(loop: Any, coroutine: Any, **options: Any) -> SimTask:
    return SimTask(coroutine, loop=loop, **options)


class SimLoop(selector_events.BaseSelectorEventLoop):
    """`run_forever` blocks the simulated thread that calls it, like any loop's."""

    def __init__(self, table: Descriptors) -> None:
        self._waker = Selector(table)
        self._kernel = table.kernel
        self._owner = table.kernel.process
        self.number = table.kernel.number
        super().__init__(self._waker)
        self._asyncgens = _OrderedWeakSet()
        self.set_task_factory(_make_task)

    def time(self) -> float:
        process = self._owner
        return self._kernel.now + (process.clock_offset if process is not None else 0.0)

    def create_future(self) -> asyncio.Future[Any]:
        return SimFuture(loop=self)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._kernel.closing:  # (then nothing comes to its own end)
            super().call_exception_handler(context)

    # No socket pair for waking: it would only cost time.

    def _make_self_pipe(self) -> None:
        self._ssock = self._csock = None
        self._internal_fds = 0

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        raise SimulationError("a process is started inside of a simulation: real ones do not exist there")

    subprocess_shell = subprocess_exec

    def _close_self_pipe(self) -> None:
        pass

    def _write_to_self(self) -> None:
        self._waker.wake()

    def add_signal_handler(self, sig: int, callback: Callable[[*_Ts], object], *args: *_Ts) -> None:
        process = self._owner
        assert process is not None
        process.signal_handlers[sig] = lambda *_: self.call_soon_threadsafe(callback, *args)

    def remove_signal_handler(self, sig: int) -> bool:
        process = self._owner
        return process is not None and process.signal_handlers.pop(sig, None) is not None


class SimPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes such loops where simulated code asks for one."""

    def __init__(self, table: Descriptors, outside: Any, active: Callable[[], bool]) -> None:
        super().__init__()
        self._table = table
        self._outside = outside
        self._active = active

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        if self._active():
            return SimLoop(self._table)
        made: asyncio.AbstractEventLoop = self._outside.new_event_loop()
        return made

    def get_event_loop(self) -> asyncio.AbstractEventLoop:
        task = self._table.kernel.current if self._active() else None
        loop = self._outside.get_event_loop() if task is None else task.slots.get("event loop")
        if loop is None:
            raise RuntimeError("there is no current event loop in this thread")
        found: asyncio.AbstractEventLoop = loop
        return found

    def set_event_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
        task = self._table.kernel.current if self._active() else None
        if task is None:
            self._outside.set_event_loop(loop)
        else:
            task.slots["event loop"] = loop
