"""Supervisors: actors that are started in order, started again when they end, and stopped in reverse order.

The rules are those of Erlang's `supervisor` behaviour (OTP design principles, "Supervisor Behaviour").

>>> async with Supervisor([Child("store", Store), Child("api", Api, args=(8080,))],
...                       strategy="rest_for_one") as tree:
...     await tree["store"].put.remote("key", 1)

A child that is restarted stays the same actor: its handles remain valid, calls made meanwhile wait, and it
finds the state that it has saved (`save_every`, ``__framework_save__``). A child may be another `Supervisor`:
when that one gives up, the one above decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from framework._base.retry import RetryPolicy
from framework._runtime.actors import ALIVE
from framework._runtime.current import current
from framework._state.supervision import RESTARTS, STRATEGIES, SupervisorState
from framework._wire import messages as m
from framework.actor import ActorClass
from framework.exceptions import ActorDiedError, SupervisionError

__all__ = ["Child", "Supervisor"]

log = logging.getLogger("framework")

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart = Literal["permanent", "transient", "temporary"]


class Child:
    """What a supervisor must know of one child.

    name: unique among its siblings.
    what: an actor class (with its options, e.g. ``Counter.options(num_cpus=2)``), or another `Supervisor`.
    args, kwargs: of the constructor, at every start.
    restart: "permanent" (whenever it ends), "transient" (unless it ended in order: `exit_actor`), "temporary"
        (never).
    stop_timeout: seconds that it gets for the calls under way and its shutdown hook before it is killed.

    Raises `TypeError` or `ValueError` for what cannot be.
    """

    __slots__ = ("args", "kwargs", "name", "restart", "stop_timeout", "what")

    def __init__(
        self,
        name: str,
        what: ActorClass[Any] | Supervisor,
        *,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        restart: Restart = "permanent",
        stop_timeout: float = 5.0,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a child is a non-empty str, got {name!r}")
        if restart not in RESTARTS:
            raise ValueError(f"restart is one of {', '.join(RESTARTS)}, got {restart!r}")
        if isinstance(stop_timeout, bool) or not isinstance(stop_timeout, int | float) or stop_timeout < 0:
            raise ValueError(f"stop_timeout is a number of seconds >= 0, got {stop_timeout!r}")
        if isinstance(what, ActorClass):
            what = what._supervised()
        elif not isinstance(what, Supervisor):
            raise TypeError(f"a child is an actor class or a Supervisor, got {what!r}")
        elif args or kwargs:
            raise TypeError("a Supervisor as a child takes no args: it was made with them")
        self.name = name
        self.what = what
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.restart: str = restart
        self.stop_timeout = float(stop_timeout)

    def __repr__(self) -> str:
        return f"Child({self.name!r}, {self.what!r}, restart={self.restart!r})"


#: told of an end that nobody here has brought about: (orderly, error)
Ended = Callable[[bool, BaseException], None]


class _Running(Protocol):
    """One child of an open supervisor."""

    async def start(self) -> None:
        """Return when it is up; raise what keeps it from that."""

    async def stop(self, final: bool) -> None:
        """Return when it is down. `final`: it will not be started again."""

    @property
    def public(self) -> Any: ...


class _ActorChild:
    """An actor. What the runtime says of it arrives on its own loop and is passed on to ours."""

    def __init__(self, child: Child, loop: asyncio.AbstractEventLoop, ended: Ended) -> None:
        self._child = child
        self._loop = loop
        self._ended = ended
        self._runtime = current()
        self._handle: Any = None
        self._client: Any = None
        self._dead = True
        self._up: asyncio.Future[None] | None = None  #: while it is being started
        self._down: asyncio.Future[None] | None = None  #: while it is being stopped
        self._is_up = False

    @property
    def public(self) -> Any:
        return self._handle

    async def start(self) -> None:
        if self._is_up:
            return
        self._up = self._loop.create_future()
        try:
            if self._dead:
                self._dead = False
                actor_class: Any = self._child.what
                self._handle = actor_class.remote(*self._child.args, **self._child.kwargs)
                self._client = self._handle._client_of(self._runtime)
                self._runtime.post(self._runtime.actors.subscribe, self._client, self._told)
            else:
                await self._runtime.head_call_async(m.ACTOR_RESTART, self._client.actor_id)
            await self._up
        finally:
            self._up = None

    async def stop(self, final: bool) -> None:
        if self._dead or (not self._is_up and not final):
            return
        was_up = self._is_up
        self._down = self._loop.create_future()
        runtime, client = self._runtime, self._client
        reason = "its supervisor stops it" if final else "its supervisor restarts it"
        try:
            if final:
                runtime.post(runtime.actors.end, client, not was_up, reason)
            else:
                self._handle.__ray_terminate__.options(timeout=self._child.stop_timeout).remote()
            try:
                await asyncio.wait_for(asyncio.shield(self._down), self._child.stop_timeout)
            except TimeoutError:
                log.warning(
                    "%s did not stop within %g s: it is killed", self._handle, self._child.stop_timeout
                )
                if final:
                    runtime.post(runtime.actors.end, client, True, reason)
                else:
                    await runtime.head_call_async(m.ACTOR_KILL, client.actor_id, False, reason)
                await self._down
        finally:
            self._down = None

    def _told(self, state: str, detail: dict[str, Any]) -> None:
        """The runtime's loop."""
        error = None if state == ALIVE else self._runtime.actors.error_of(self._client, detail)
        with contextlib.suppress(RuntimeError):  # our loop is closed
            self._loop.call_soon_threadsafe(
                self._changed, state, bool(detail.get("orderly")), error or ActorDiedError()
            )

    def _changed(self, state: str, orderly: bool, error: BaseException) -> None:
        if state == ALIVE:
            self._is_up = True
            if self._up is not None and not self._up.done():
                self._up.set_result(None)
            return
        was_up, self._is_up = self._is_up, False
        self._dead = state == "DEAD"
        if self._down is not None:
            if not self._down.done():
                self._down.set_result(None)
        elif self._up is not None:
            if not self._up.done():
                self._up.set_exception(error)
        elif was_up:
            self._ended(orderly, error)


class _SupervisorChild:
    """A supervisor below another."""

    def __init__(self, supervisor: Supervisor, ended: Ended) -> None:
        self._supervisor = supervisor
        self._ended = ended

    @property
    def public(self) -> Any:
        return self._supervisor

    async def start(self) -> None:
        await self._supervisor._close()  # it has given up: its children go, before they come again
        await self._supervisor._open(lambda error: self._ended(False, error))

    async def stop(self, final: bool) -> None:
        await self._supervisor._close()


class Supervisor:
    """Starts its children in order, watches them, and stops them in reverse order: ``async with``.

    strategy: what is started again when a child ends. "one_for_one": that child; "one_for_all": all children;
        "rest_for_one": that child and those after it.
    max_restarts, period: more than so many restarts within so many seconds, and the supervisor gives up: it
        stops all children and raises `SupervisionError`, in the body of the ``async with`` or, of a
        supervisor that is a child itself, in the supervisor above (3 and 5 as in Erlang's documentation,
        where the default is 1 in 5).
    backoff: how long to wait before a restart; `delay` grows with the number of restarts in the period.
    name: for messages.

    Lives on the loop that it is opened on. Its children end with the process that it lives in, also when that
    one is killed. It may be opened again after it was closed. Raises `TypeError` or `ValueError` for what
    cannot be.
    """

    def __init__(
        self,
        children: Iterable[Child] = (),
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        period: float = 5.0,
        backoff: RetryPolicy | None = None,
        name: str = "supervisor",
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy is one of {', '.join(STRATEGIES)}, got {strategy!r}")
        if isinstance(max_restarts, bool) or not isinstance(max_restarts, int) or max_restarts < 0:
            raise ValueError(f"max_restarts is an integer >= 0, got {max_restarts!r}")
        if isinstance(period, bool) or not isinstance(period, int | float) or not period > 0:
            raise ValueError(f"period is a number of seconds > 0, got {period!r}")
        self.name = name
        self._strategy: str = strategy
        self._max_restarts = max_restarts
        self._period = float(period)
        self._backoff = backoff or RetryPolicy(initial_delay=0.05, multiplier=2.0, max_delay=5.0)
        self._specs: dict[str, Child] = {}
        for child in children:
            if not isinstance(child, Child):
                raise TypeError(f"children are Child(...), got {child!r}")
            if child.name in self._specs:
                raise ValueError(f"two children are named {child.name!r}")
            self._specs[child.name] = child
        self._host: asyncio.Task[Any] | None = None
        self._reset()

    def _reset(self) -> None:
        self._state = SupervisorState(self._strategy, self._max_restarts, self._period)
        self._running: dict[str, _Running] = {}
        self._restarts: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()  # over starts and stops that concern several children
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._numbers = itertools.count()
        self._on_failure: Callable[[BaseException], None] | None = None
        self._failure: BaseException | None = None
        self._closing = False

    # ---- what users do -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._check_closed()
        self._host = asyncio.current_task()
        await self._open(self._cancel_host)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        host, failure = self._host, self._failure
        ours_pending = failure is not None and exc_type is not asyncio.CancelledError
        cancelled = False
        closing = asyncio.get_running_loop().create_task(self._close())
        while not closing.done():  # a cancellation does not keep children from being stopped
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                cancelled = not ours_pending
                ours_pending = False
        closing.result()
        if failure is not None:
            if host is not None:
                host.uncancel()  # it was we who had cancelled it
            raise failure
        if cancelled:
            raise asyncio.CancelledError

    def __getitem__(self, name: str) -> Any:
        """The handle of an actor, or the supervisor, of this name. `KeyError` when there is none."""
        running = self._running.get(name)
        if running is None:
            known = ", ".join(repr(child) for child in self._running) or "none"
            raise KeyError(f"{self.name} has no child {name!r} (it has: {known})")
        return running.public

    def __contains__(self, name: object) -> bool:
        return name in self._running

    @property
    def children(self) -> dict[str, int]:
        """The names of the children, in the order of their start, and how often each was restarted."""
        return {name: self._restarts.get(name, 0) for name in self._state.children}

    async def start_child(self, child: Child) -> Any:
        """Start one more child, after all others; its handle. Raises what its constructor raises,
        `ValueError` for a name in use, `RuntimeError` when the supervisor is not open.
        """
        self._check_open()
        async with self._lock:
            if child.name in self._running:
                raise ValueError(f"{self.name} has a child {child.name!r} already")
            await self._start(child)
        return self._running[child.name].public

    async def stop_child(self, name: str) -> None:
        """Stop a child for good. `KeyError` when there is none of this name."""
        self._check_open()
        async with self._lock:
            running = self._running.get(name)
            if running is None:
                raise KeyError(f"{self.name} has no child {name!r}")
            self._state.remove(name)
            await self._cancel_restart(name)
            await running.stop(True)
            del self._running[name]

    def __repr__(self) -> str:
        return f"Supervisor({self.name!r}, {self._strategy}, children={list(self._specs)})"

    # ---- open and close ------------------------------------------------------------------------------

    def _check_closed(self) -> None:
        if self._loop is not None:
            raise RuntimeError(f"{self!r} is open already")

    def _check_open(self) -> None:
        if self._loop is None or self._closing:
            raise RuntimeError(f"{self!r} is not open: use it in `async with`")

    async def _open(self, on_failure: Callable[[BaseException], None]) -> None:
        self._check_closed()
        self._reset()
        self._loop = asyncio.get_running_loop()
        self._on_failure = on_failure
        try:
            for child in self._specs.values():
                await self._start(child)
        except BaseException:
            await self._close()
            raise

    async def _start(self, child: Child) -> None:
        assert self._loop is not None

        def ended(orderly: bool, error: BaseException) -> None:
            self._child_ended(child.name, orderly, error)

        running: _Running
        if isinstance(child.what, Supervisor):
            running = _SupervisorChild(child.what, ended)
        else:
            running = _ActorChild(child, self._loop, ended)
        self._running[child.name] = running
        try:
            await running.start()
        except BaseException:
            del self._running[child.name]
            await running.stop(True)
            raise
        self._state.add(child.name, child.restart)

    async def _close(self) -> None:
        """Stop all children, the last one first."""
        self._closing = True
        for name in list(self._busy):
            await self._cancel_restart(name)
        for name in reversed(list(self._running)):
            await self._running[name].stop(True)
        self._running.clear()
        self._loop = None

    async def _cancel_restart(self, name: str) -> None:
        task = self._busy.pop(name, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])

    # ---- when children end ---------------------------------------------------------------------------

    def _child_ended(self, name: str, orderly: bool, error: BaseException) -> None:
        if self._loop is None or self._closing or self._failure is not None:
            return
        decision = self._state.ended(name, orderly, self._loop.time())
        if decision.escalate:
            self._give_up(name, error, decision.attempt)
        elif decision.forget:
            log.info("%s: the child %r has ended: %s", self.name, name, error)
            self._in_background(name, self._forget(name))
        elif decision.start:
            log.warning("%s: the child %r is started again: %s", self.name, name, error)
            delay = self._backoff.delay(decision.attempt, random.random())
            alone = decision.start == (name,)
            self._in_background(
                name if alone else "", self._restart(decision.stop, decision.start, delay, alone)
            )

    def _in_background(self, key: str, work: Any) -> None:
        assert self._loop is not None
        key = key or f"group {next(self._numbers)}"
        task = self._loop.create_task(work, name=f"{self.name}: {key}")
        self._busy[key] = task

        def done(task: asyncio.Task[None]) -> None:
            if self._busy.get(key) is task:
                del self._busy[key]
            if not task.cancelled() and task.exception() is not None:
                self._fail(SupervisionError(f"{self.name}: {task.exception()}"), task.exception())

        task.add_done_callback(done)

    async def _forget(self, name: str) -> None:
        running = self._running.pop(name, None)
        if running is not None:
            await running.stop(True)

    async def _restart(
        self, stop: tuple[str, ...], start: tuple[str, ...], delay: float, alone: bool
    ) -> None:
        # Children that are started again alone do not wait for each other; groups go one after the other.
        async with contextlib.AsyncExitStack() as stack:
            if not alone:
                await stack.enter_async_context(self._lock)
            for name in stop:
                if name in self._running:
                    await self._running[name].stop(False)
            await asyncio.sleep(delay)
            for name in start:
                running = self._running.get(name)
                if running is None:
                    continue  # stopped meanwhile
                self._restarts[name] = self._restarts.get(name, 0) + 1
                try:
                    await running.start()
                except Exception as error:
                    self._child_ended(name, False, error)  # one more restart, which starts the rest too
                    return

    def _give_up(self, name: str, error: BaseException, restarts: int) -> None:
        text = (
            f"{self.name} has given up: {restarts} restarts within {self._period:g} s, more than "
            f"max_restarts={self._max_restarts} allows. The last child to end was {name!r}: {error}"
        )
        self._fail(SupervisionError(text), error)

    def _fail(self, failure: BaseException, cause: BaseException | None) -> None:
        if self._failure is None and not self._closing and self._on_failure is not None:
            failure.__cause__ = cause
            self._failure = failure
            log.error("%s", failure)
            self._on_failure(failure)

    def _cancel_host(self, failure: BaseException) -> None:
        if self._host is not None:
            self._host.cancel()
