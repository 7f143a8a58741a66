"""`ActorPool`: many items, a few actors, and each actor gets its next item when it has done the last one."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic, NoReturn, TypeVar, cast

import framework as fw
from framework._base import limits
from framework.exceptions import ActorDiedError, ActorError, ActorUnavailableError, TaskError

T = TypeVar("T")
V = TypeVar("V")
R = TypeVar("R")

_NO_MORE = "No more results to get"
_HANDLE = cast("type[object]", cast(Any, fw).ActorHandle)  #: (for type checkers it is no class)


class _Call:
    """One item: what to call with it, and what became of it."""

    __slots__ = ("actor", "error", "fn", "index", "refs", "single", "taken", "value")

    def __init__(self, index: int, fn: Callable[[Any, Any], Any], value: object) -> None:
        self.index = index
        self.fn: Any = fn
        self.value = value
        self.actor: Any = None  #: which it occupies
        self.refs: list[fw.ObjectRef[Any]] = []
        self.single = True
        self.error: BaseException | None = None  #: it could not even be submitted
        self.taken = False

    def start(self, actor: fw.ActorHandle[Any]) -> None:
        """Submit it. Raises what the user's function raises."""
        result = self.fn(actor, self.value)
        self.single = isinstance(result, fw.ObjectRef)
        refs = [result] if self.single else result
        if not isinstance(refs, list) or not refs or not all(isinstance(r, fw.ObjectRef) for r in refs):
            raise TypeError(f"the function of an ActorPool returns what .remote() does, got {result!r}")
        self.refs = refs
        self.actor = actor
        self.fn = self.value = None

    def waits_for(self) -> list[fw.ObjectRef[Any]]:
        return [ref for ref in self.refs if not ref.done()]

    def killed_its_actor(self) -> bool:
        """Whether the outcome says that this actor is dead. (A method that asks another actor, which is dead,
        fails with a `TaskError`; an argument from a dead actor names that one.)"""
        for ref in self.refs:
            error = ref.exception()
            if isinstance(error, ActorError) and not isinstance(error, TaskError | ActorUnavailableError):
                if error.actor_id in (None, self.actor._ray_actor_id.hex()):
                    return True
        return False


class _Source:
    """The values of a `map` that are not submitted yet."""

    __slots__ = ("error", "fn", "values")

    def __init__(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> None:
        self.fn = fn
        self.values: Iterator[Any] | None = iter(values)
        self.error: BaseException | None = None  #: what reading them has raised


class ActorPool(Generic[T]):
    """Spread items over actors. Each has at most one call of the pool at a time; further items wait for an
    actor that is done. Ray's `ActorPool`, with ``async`` forms.

    An item that fails raises when its result is taken; its actor takes further items, and the results of the
    others stay. An actor that has died is not used again: the item that finds it dead fails with
    `ActorDiedError`, and so do waiting items when no actor is left. (One that is restarted,
    `ActorUnavailableError`, stays.) `push` a new one to replace it. The pool ends no actors.

    Waiting items are handed on while results are being asked for, not behind the caller's back. Not for
    several threads; several coroutines may ask at a time.
    """

    def __init__(self, actors: Iterable[fw.ActorHandle[T]]) -> None:
        self._idle: list[Any] = []
        self._running: dict[int, _Call] = {}  #: started and not seen to be done
        self._settled: deque[_Call] = deque()  #: done or failed, some taken, in the order of their ends
        self._waiting: deque[_Call] = deque()
        self._ignored: list[_Call] = []  #: nobody wants their results, but they still occupy actors
        self._calls: dict[int, _Call] = {}  #: all whose results can be asked for
        self._first = 0  #: there is none below this index
        self._next = 0
        self._source: _Source | None = None
        self._deaths = 0
        for actor in actors:
            self.push(actor)

    # ---- items in ------------------------------------------------------------------------------------

    def submit(
        self, fn: Callable[[fw.ActorHandle[T], V], fw.ObjectRef[Any] | list[fw.ObjectRef[Any]]], value: V
    ) -> None:
        """Have ``fn(actor, value)`` called with an actor that is free, now or later. It returns what
        ``actor.method.remote(...)`` does. Never blocks. Raises what `fn` raises, if it is called at once; if
        later, that is the outcome of the item."""
        call = _Call(self._next, fn, value)
        if self._idle:
            actor = self._idle.pop()
            try:
                call.start(actor)
            except BaseException:
                self._idle.append(actor)
                raise
            self._running[call.index] = call
        else:
            self._waiting.append(call)
        self._next += 1
        self._calls[call.index] = call
        self._advance()

    def map(
        self,
        fn: Callable[[fw.ActorHandle[T], V], fw.ObjectRef[R] | list[fw.ObjectRef[R]]],
        values: Iterable[V],
    ) -> PoolResults[R]:
        """The results for all values, in their order, for ``for`` and ``async for``.

        The first calls start now. `values` are read as actors become free, at most 1,000 ahead of the
        consumer, so they may be endless. An item's exception is raised at its place, and
        the iterator can be asked for the next one after it. What was submitted to the pool before is dropped:
        what waits does not start, results are not kept.
        """
        return self._map(fn, values, ordered=True)

    def map_unordered(
        self,
        fn: Callable[[fw.ActorHandle[T], V], fw.ObjectRef[R] | list[fw.ObjectRef[R]]],
        values: Iterable[V],
    ) -> PoolResults[R]:
        """As `map`, each result when it is there."""
        return self._map(fn, values, ordered=False)

    def _map(self, fn: Callable[[Any, Any], Any], values: Iterable[Any], ordered: bool) -> PoolResults[Any]:
        source = _Source(fn, values)
        self._source = None
        self._waiting.clear()
        for call in list(self._calls.values()):
            self._take(call)
        self._source = source
        self._advance()
        return PoolResults(self, source, ordered)

    # ---- results out ---------------------------------------------------------------------------------

    def has_next(self) -> bool:
        """Whether a result can be asked for."""
        return bool(self._calls) or self._read()

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The result of the oldest item; a list, where `fn` returned one. Blocks.

        Raises what the item raised; `StopIteration` when there is none; `TimeoutError` when it was not there
        within `timeout` seconds. Then it can be asked for again, or with `ignore_if_timedout` is given up:
        its call goes on, and its actor takes the next item when that has ended.
        """
        return self._get(True, timeout, ignore_if_timedout)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """As `get_next`, for whichever item is done first. (`ignore_if_timedout` gives up the oldest.)"""
        return self._get(False, timeout, ignore_if_timedout)

    async def get_next_async(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """`get_next` for coroutines; raises `StopAsyncIteration` when there is none. Cancelled, it takes
        nothing."""
        return await self._get_async(True, timeout, ignore_if_timedout)

    async def get_next_unordered_async(
        self, timeout: float | None = None, ignore_if_timedout: bool = False
    ) -> Any:
        """`get_next_unordered` for coroutines; raises `StopAsyncIteration` when there is none."""
        return await self._get_async(False, timeout, ignore_if_timedout)

    def _get(self, ordered: bool, timeout: float | None, ignore: bool) -> Any:
        deadline = _deadline(timeout)
        while (call := self._pick(ordered)) is None:
            if not self.has_next():
                raise StopIteration(_NO_MORE)
            awaited = self._awaited()
            if awaited and not fw.wait(awaited, timeout=_remaining(deadline))[0]:
                self._timed_out(ignore)
        self._take(call)
        if call.error is not None:
            raise call.error
        return fw.get(call.refs[0]) if call.single else fw.get(call.refs)

    async def _get_async(self, ordered: bool, timeout: float | None, ignore: bool) -> Any:
        deadline = _deadline(timeout)
        while (call := self._pick(ordered)) is None:
            if not self.has_next():
                raise StopAsyncIteration(_NO_MORE)
            # What asyncio.wait needs of a future, references have.
            awaited = cast("list[asyncio.Future[Any]]", self._awaited())
            if awaited:
                done, _ = await asyncio.wait(
                    awaited, timeout=_remaining(deadline), return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    self._timed_out(ignore)
        self._take(call)
        if call.error is not None:
            raise call.error
        try:
            return await call.refs[0] if call.single else [await ref for ref in call.refs]
        except asyncio.CancelledError:  # of the caller, while a large value was read
            call.taken = False
            self._calls[call.index] = call
            self._settled.appendleft(call)
            self._first = min(self._first, call.index)
            raise

    def _timed_out(self, ignore: bool) -> NoReturn:
        message = "Timed out waiting for result"
        if ignore:
            oldest = self._oldest()
            assert oldest is not None
            if oldest in self._waiting:
                self._waiting.remove(oldest)
            self._take(oldest)
            message += f". The item {oldest.index} has been ignored."
        raise TimeoutError(message)

    # ---- actors --------------------------------------------------------------------------------------

    def has_free(self) -> bool:
        """Whether an actor is idle and no item waits. (An actor whose result has not been taken is not
        idle.)"""
        self._advance()
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> fw.ActorHandle[T] | None:
        """Take an idle actor out of the pool; None when there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: fw.ActorHandle[T]) -> None:
        """Add an actor; it starts with an item that waits. Raises `ValueError` when it is in the pool
        already, `TypeError` for what is not a handle."""
        if not isinstance(actor, _HANDLE):
            raise TypeError(f"an ActorPool holds handles of actors, got {actor!r}")
        busy = [call.actor for call in (*self._calls.values(), *self._ignored)]
        if actor in self._idle or actor in busy:
            raise ValueError("Actor already belongs to current ActorPool")
        self._idle.append(actor)
        self._advance()

    # ---- inside --------------------------------------------------------------------------------------

    def _oldest(self) -> _Call | None:
        if not self._calls:
            return None
        while self._first not in self._calls:
            self._first += 1
        return self._calls[self._first]

    def _pick(self, ordered: bool) -> _Call | None:
        """The call whose result comes next, if it is there."""
        self._advance()
        while self._settled and self._settled[0].taken:
            self._settled.popleft()
        if ordered:
            call = self._oldest()
            found = call if call is not None and self._has_settled(call) else None
        else:
            found = next((call for call in self._settled if not call.taken), None)
        if found is None and self._waiting and not self._running and not self._has_actors():
            found = self._waiting.popleft()  # (the oldest, as nothing runs)
            found.error = self._nobody(found)
        return found

    def _has_settled(self, call: _Call) -> bool:
        return call.error is not None or (bool(call.refs) and call.index not in self._running)

    def _has_actors(self) -> bool:
        return bool(self._idle or self._ignored or any(c.actor is not None for c in self._calls.values()))

    def _nobody(self, call: _Call) -> BaseException:
        if not self._deaths:
            self._waiting.appendleft(call)
            raise ValueError("the pool has no actors: push() one")
        return ActorDiedError(
            f"item {call.index} was not started: all {self._deaths} actors of the pool died"
        )

    def _awaited(self) -> list[fw.ObjectRef[Any]]:
        refs: dict[fw.ObjectRef[Any], None] = {}
        for call in (*self._running.values(), *self._ignored):
            refs.update(dict.fromkeys(call.waits_for()))
        return list(refs)

    def _advance(self) -> None:
        """See what has ended, and hand on waiting items."""
        for call in [call for call in self._running.values() if not call.waits_for()]:
            self._settle(call)
        ended = [call for call in self._ignored if not call.waits_for()]
        if ended:
            self._ignored = [call for call in self._ignored if call not in ended]
            for call in ended:
                self._free(call)
        for call in self._settled:  # those whose results nobody has taken yet
            if call.actor is not None and self._read():
                self._free(call)
        while self._idle and self._read():
            self._start(self._idle.pop())

    def _settle(self, call: _Call) -> None:
        del self._running[call.index]
        self._settled.append(call)
        if call.killed_its_actor():
            self._free(call)

    def _free(self, call: _Call) -> None:
        """A call that has ended gives its actor back, unless that is dead."""
        actor, dead = call.actor, call.killed_its_actor()
        call.actor = None
        if dead:
            self._deaths += 1
        else:
            self._idle.append(actor)

    def _start(self, actor: fw.ActorHandle[T]) -> None:
        call = self._waiting.popleft()
        try:
            call.start(actor)
        except BaseException as error:
            self._idle.append(actor)
            if not isinstance(error, Exception):
                self._waiting.appendleft(call)
                raise
            call.error = error
            self._settled.append(call)
        else:
            self._running[call.index] = call

    def _read(self) -> bool:
        """Whether an item waits, after reading one from the values of a `map` if need be."""
        if self._waiting:
            return True
        source = self._source
        if source is None or source.values is None:
            return False
        if len(self._calls) - len(self._running) >= limits.POOL_READ_AHEAD:
            return False
        try:
            value = next(source.values)
        except Exception as error:
            source.values = None
            if not isinstance(error, StopIteration):
                source.error = error
            return False
        call = _Call(self._next, source.fn, value)
        self._next += 1
        self._calls[call.index] = call
        self._waiting.append(call)
        return True

    def _take(self, call: _Call) -> None:
        """Its result is given out, or dropped."""
        del self._calls[call.index]
        call.taken = True
        if self._running.pop(call.index, None) is not None:
            self._ignored.append(call)
        elif call.actor is not None:
            self._free(call)
        self._advance()


class PoolResults(Generic[R]):
    """What `ActorPool.map` and `ActorPool.map_unordered` return, for ``for`` and ``async for``."""

    def __init__(self, pool: ActorPool[Any], source: _Source, ordered: bool) -> None:
        self._pool = pool
        self._source = source
        self._ordered = ordered

    def _has_next(self) -> bool:
        if self._pool._source is not self._source:
            raise RuntimeError("a later map() of the same pool has dropped the results of this one")
        if self._pool.has_next():
            return True
        if self._source.error is not None:
            error, self._source.error = self._source.error, None
            raise error
        return False

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        if not self._has_next():
            raise StopIteration
        return cast("R", self._pool._get(self._ordered, None, False))

    def __aiter__(self) -> AsyncIterator[R]:
        return self

    async def __anext__(self) -> R:
        if not self._has_next():
            raise StopAsyncIteration
        return cast("R", await self._pool._get_async(self._ordered, None, False))


def _deadline(timeout: float | None) -> float | None:
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout must not be negative, got {timeout!r}")
    return None if timeout is None else time.monotonic() + timeout


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
