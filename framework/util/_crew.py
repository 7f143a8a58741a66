"""A crew of worker actors that take calls from one queue: what `PoolExecutor`, `Pool` and the joblib backend
have in common.

Each worker has one call at a time, so that a call never waits behind a slow one while another worker is idle,
and calls that wait for each other do not lock up. There is no thread here: queued calls are handed on by
whoever submits or closes, and by the framework's thread for callbacks when a worker has answered.

A crew that nobody refers to any more goes as soon as its last call has been answered, and its workers with
it: what is under way refers to the crew, the crew to its workers, and nothing back.

Locks: the crew's lock guards its tables and nothing else. User code (pickling, callbacks of futures,
finalizers of dropped arguments) never runs under it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import framework as fw
from framework._service.blocking import patiently
from framework.exceptions import TaskCancelledError, TaskError
from framework.util._pool_worker import (
    SESSION_LOST,
    BrokenWorkerPool,
    RemoteWorker,
    as_raised,
    crashed,
    is_loss,
    reason_of,
)


class Call:
    """A function to be called in some worker, and the future of its result."""

    __slots__ = ("args", "function", "future", "kwargs", "retries")

    def __init__(
        self, function: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.future: Future[Any] = Future()
        self.retries = -1  #: how often it may be run again; -1 until it is handed out for the first time


class _Worker:
    """What a crew knows of one of its actors."""

    __slots__ = ("calls", "handle")

    def __init__(self) -> None:
        self.handle: Any = None  #: None until it is started
        self.calls = 0


class _Once:
    """A callback that refers to nothing any more when it has been called: a handle that somebody still holds
    keeps its actor alive."""

    __slots__ = ("_args", "_function")

    def __init__(self, function: Callable[..., object], *args: Any) -> None:
        self._function: Callable[..., object] | None = function
        self._args = args

    def __call__(self, outcome: Future[Any]) -> None:
        function, args = self._function, self._args
        self._function, self._args = None, ()
        if function is not None:
            function(*args, outcome)


class Crew:
    """Up to `size` workers and the queue of calls for them.

    tasks_per_worker: a worker is replaced after so many calls; None: never.
    retries: how often a call whose worker died is run again.
    replace: a worker that died is replaced, and its call fails alone; otherwise the whole crew is broken.
    eager: start all workers now, and not when they are needed.
    options: options of the actors; by default they hold no CPUs, so that pools inside of pools cannot wait
        for each other for ever. Workers with options may have to wait for resources: they get calls when they
        are up. Others get them at once.
    """

    def __init__(
        self,
        size: int,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        tasks_per_worker: int | None = None,
        retries: int = 0,
        replace: bool = False,
        eager: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.size = size
        self.broken: BaseException | None = None  #: why no more calls are taken
        self.closed = False
        self._initializer = initializer
        self._initargs = initargs
        self._tasks_per_worker = tasks_per_worker
        self._retries = retries
        self._replace = replace
        self._patient = bool(options)
        self._starting = 0  #: workers that get calls when they are up
        settings: dict[str, Any] = {"num_cpus": 0, **(options or {})}
        self._actor_class = RemoteWorker.options(**settings)
        self._lock = threading.Lock()
        self._done = threading.Condition(self._lock)
        self._queue: deque[Call] = deque()
        self._workers: dict[_Worker, None] = {}
        self._idle: list[_Worker] = []
        self._unfinished = 0
        self._terminated = False
        self._eager = eager
        if eager:
            self._fill_up()

    # ---- what owners of a crew call, in any thread ---------------------------------------------------

    def submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        refuse: Callable[[], None] | None = None,
    ) -> Future[Any]:
        """Queue a call. `refuse` is asked under the lock and raises where no more calls are taken."""
        call = Call(function, args, kwargs)
        with self._lock:
            if refuse is not None:
                refuse()
            if self.broken is not None or self._terminated:
                raise self._broken_error()
            self._queue.append(call)
            self._unfinished += 1
        future = call.future
        del call  # not kept by this frame while user code runs below
        self._advance()
        return future

    def close(self) -> None:
        """Take no more calls; end workers when the queue is empty."""
        self.closed = True
        self._advance()

    def cancel_queued(self) -> None:
        """Cancel the calls that no worker has."""
        with self._lock:
            calls, self._queue = self._queue, deque()
        for call in calls:
            if call.retries < 0:
                call.future.cancel()
                call.future.set_running_or_notify_cancel()
            else:  # it has run, its worker has died, and it cannot be cancelled any more
                call.future.set_exception(self._broken_error())
        self._finished(len(calls))

    def terminate(self) -> None:
        """Kill all workers now; calls that are not done fail with `TaskCancelledError`."""
        self.closed = True
        self._terminated = True
        self._kill_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Until all calls are done; False when the time ran out."""
        with self._done:
            return patiently(lambda s: self._done.wait_for(lambda: not self._unfinished, s), timeout)

    # ---- workers -------------------------------------------------------------------------------------

    def _fill_up(self) -> None:
        while True:
            with self._lock:
                if self.closed or self.broken is not None or len(self._workers) >= self.size:
                    return  # (terminating closes, too)
                self._workers[worker := _Worker()] = None
            try:
                self._start(worker)
            except BaseException:
                with self._lock:
                    self._workers.pop(worker, None)
                raise
            if not self._patient:
                self._back(worker)

    def _start(self, worker: _Worker) -> Any:
        handle = self._actor_class.remote()
        if self._initializer is not None:
            ready = handle.prepare.remote(self._initializer, self._initargs)
        elif self._patient:
            ready = handle.__ray_ready__.remote()
        else:
            ready = None
        worker.handle = handle
        if ready is not None:
            with self._lock:
                self._starting += self._patient
            ready.future().add_done_callback(_Once(self._prepared, worker))
        return handle

    def _prepared(self, worker: _Worker, outcome: Future[Any]) -> None:
        error = outcome.exception()
        with self._lock:
            self._starting -= self._patient
            if worker not in self._workers:
                return
        if error is None:
            if self._patient:
                self._back(worker)
                self._advance()
            return
        cause = as_raised(error)
        if isinstance(error, TaskError):
            logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=cause)
        self._break(cause)

    def _break(self, cause: BaseException) -> None:
        with self._lock:
            if self.broken is None:
                self.broken = cause
        self._kill_all()

    def _kill_all(self) -> None:
        with self._lock:
            calls, self._queue = self._queue, deque()
            workers, self._workers, self._idle = self._workers, {}, []
        for call in calls:
            if call.retries >= 0 or call.future.set_running_or_notify_cancel():
                call.future.set_exception(self._broken_error())
        for worker in workers:
            if worker.handle is not None:
                with contextlib.suppress(Exception):  # it, or the whole session, is gone already
                    fw.kill(worker.handle)
        self._finished(len(calls))

    def _broken_error(self) -> BaseException:
        if self._terminated:
            return TaskCancelledError(None, "the pool was terminated")
        error = BrokenWorkerPool(f"the pool cannot be used any more: {reason_of(self.broken)}")
        error.__cause__ = self.broken
        return error

    # ---- the queue -----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Give calls to workers as long as there are both."""
        while True:
            with self._lock:
                pair = self._next()
            if pair is None:
                return
            self._hand_out(*pair)
            del pair

    def _next(self) -> tuple[_Worker, Call | None] | None:
        """Under the lock: a call, and the worker that shall have it; or a worker to be started for it."""
        if not self._queue:
            if self.closed and self._idle:
                for worker in self._idle:
                    del self._workers[worker]
                self._idle.clear()  # the last handle goes: the actor ends
            return None
        if self._idle:
            worker = self._idle.pop()
        elif len(self._workers) < self.size and self._starting < len(self._queue):
            self._workers[worker := _Worker()] = None
            if self._patient:
                return worker, None
        else:
            return None
        return worker, self._queue.popleft()

    def _hand_out(self, worker: _Worker, call: Call | None) -> None:
        if call is None:
            try:
                self._start(worker)
            except BaseException as error:  # the initializer cannot be pickled, the session has ended
                self._break(error)
            return
        future = call.future
        try:
            if call.retries < 0:
                if not future.set_running_or_notify_cancel():
                    self._back(worker)
                    self._finished()
                    return
                call.retries = self._retries
            handle = worker.handle if worker.handle is not None else self._start(worker)
            ref = handle.run.remote(call.function, call.kwargs, *call.args)
            if not call.retries:
                call.function, call.args, call.kwargs = None, (), None  # held no longer than needed
            ref.future().add_done_callback(_Once(self._answered, worker, call))
        except BaseException as error:  # most likely it cannot be pickled
            if worker.handle is None or is_loss(error):
                with self._lock:
                    self._workers.pop(worker, None)
            else:
                self._back(worker)
            future.set_exception(error)
            self._finished()
            if not isinstance(error, Exception):
                raise

    def _back(self, worker: _Worker, was_used: bool = False) -> None:
        """A worker is free."""
        with self._lock:
            if worker not in self._workers:
                return
            worker.calls += was_used
            if worker.calls == self._tasks_per_worker:
                self._workers.pop(worker, None)
            elif worker.handle is None:
                self._workers.pop(worker, None)  # its call was cancelled before it was started
            else:
                self._idle.append(worker)

    def _answered(self, worker: _Worker, call: Call, outcome: Future[Any]) -> None:
        """In the thread for callbacks: a worker has answered, or is lost."""
        error = outcome.exception()
        if is_loss(error):
            self._lost(worker, call, error)
            return
        self._back(worker, was_used=True)
        self._keep_going()
        if error is None:
            call.future.set_result(outcome.result())
        else:
            call.future.set_exception(as_raised(error))
            error = None
        self._finished()

    def _lost(self, worker: _Worker, call: Call, error: BaseException) -> None:
        session_lost = isinstance(error, SESSION_LOST)
        with self._lock:
            self._workers.pop(worker, None)
            again = call.retries > 0 and self.broken is None and not self._terminated and not session_lost
            if again:
                call.retries -= 1
                self._queue.appendleft(call)
        if not again:
            if self._replace and self.broken is None and not self._terminated and not session_lost:
                call.future.set_exception(crashed(error))
            else:
                if not self._terminated and self.broken is None:
                    self._break(error)
                call.future.set_exception(self._broken_error())
            self._finished()
        self._keep_going()

    def _keep_going(self) -> None:
        if self._eager:
            with contextlib.suppress(Exception):  # the session ends: the next call meets it
                self._fill_up()
        self._advance()

    def _finished(self, count: int = 1) -> None:
        with self._done:
            self._unfinished -= count
            if not self._unfinished:
                self._done.notify_all()


def run_chunk(function: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    """In a worker: several calls that were sent as one."""
    return [function(*args) for args in chunk]


def cluster_cpus() -> int:
    """The CPUs of the cluster, at least 1. Blocks while the session starts."""
    fw.get_runtime_context().get_node_id()
    return max(int(fw.cluster_resources().get("CPU", 1)), 1)
