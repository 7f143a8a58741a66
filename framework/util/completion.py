"""Results in the order in which they are ready: `as_completed` and `map_unordered`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Generic, Literal, Protocol, TypeVar, cast, overload

import framework as fw
from framework.exceptions import GetTimeoutError

R = TypeVar("R")
Out = TypeVar("Out")
Item = TypeVar("Item", contravariant=True)
Returned = TypeVar("Returned", covariant=True)


class _Remote(Protocol[Item, Returned]):
    """A remote function, or a method of an actor, of one argument."""

    def remote(self, item: Item, /) -> fw.ObjectRef[Returned]: ...


class Results(Generic[Out]):
    """What `as_completed` and `map_unordered` return: an iterator for ``for`` and for ``async for``.

    A result that is an exception is raised by the step that would give it, and the iterator stays usable: the
    next step gives the next result.
    """

    def __init__(self, chunk_size: int, yield_obj_refs: bool, timeout: float | None) -> None:
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
            raise TypeError(f"chunk_size is an int, got {chunk_size!r}")
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must not be negative, got {timeout!r}")
        self._chunk = chunk_size
        self._refs = yield_obj_refs
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._pending: dict[fw.ObjectRef[Any], None] = {}  #: in the order of their submission
        self._unwatched: list[fw.ObjectRef[Any]] = []  #: those of them that no event loop knows yet
        self._ready: deque[fw.ObjectRef[Any]] = deque()
        self._released = 0  #: how many of the ready ones may be given out
        self._news: asyncio.Event | None = None

    def _add(self, ref: fw.ObjectRef[Any]) -> None:
        self._pending[ref] = None
        self._unwatched.append(ref)

    def _refill(self) -> None:
        """Submit more, where there is more."""

    def _missing(self) -> int:
        """How many more have to be done before the next ones are given out."""
        return min(self._chunk - len(self._ready), len(self._pending))

    def _release(self) -> bool:
        """Whether something can be given out now."""
        if not self._released and self._missing() <= 0:
            self._released = len(self._ready)
        return self._released > 0

    def _late(self) -> None:
        """Time is up: what is done is given out, be it less than a chunk."""
        self._released = len(self._ready)
        if not self._released:
            raise GetTimeoutError(
                f"{len(self._pending)} of the references were not ready within {self._timeout} s"
            )

    def _remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _ended(self) -> bool:
        return not self._pending and not self._ready

    # ---- blocking ------------------------------------------------------------------------------------

    def _collect(self) -> None:
        done = [ref for ref in self._pending if ref.done()]
        for ref in done:
            del self._pending[ref]
        self._ready.extend(done)
        if self._unwatched:
            self._unwatched = list(self._pending)

    def __iter__(self) -> Iterator[Out]:
        return self

    def __next__(self) -> Out:
        self._refill()
        if not self._release():
            self._collect()
        if self._ended():
            raise StopIteration
        if not self._release():
            pending = list(self._pending)
            fw.wait(pending, num_returns=self._missing(), timeout=self._remaining())
            self._collect()
            if not self._release():
                self._late()
        self._released -= 1
        ref = self._ready.popleft()
        return cast("Out", ref if self._refs else fw.get(ref))

    # ---- in a coroutine ------------------------------------------------------------------------------

    def _watch(self) -> asyncio.Event:
        """Have the running loop say when one is done. (Each reference is watched once, however many there
        are: asking for all of them at each step would take time that grows with their square.)"""
        if self._news is None:
            self._news = asyncio.Event()
        unwatched, self._unwatched = self._unwatched, []
        for ref in unwatched:
            ref.add_done_callback(self._done)
        return self._news

    def _done(self, ref: fw.ObjectRef[Any]) -> None:
        if ref in self._pending:
            del self._pending[ref]
            self._ready.append(ref)
        if self._news is not None:
            self._news.set()

    def __aiter__(self) -> AsyncIterator[Out]:
        return self

    async def __anext__(self) -> Out:
        self._refill()
        news = self._watch()
        while not self._release():
            if self._ended():
                raise StopAsyncIteration
            news.clear()
            try:
                async with asyncio.timeout(self._remaining()):
                    await news.wait()
            except TimeoutError:
                self._late()
        self._released -= 1
        ref = self._ready.popleft()
        if self._refs:
            return cast("Out", ref)
        try:
            return cast("Out", await ref)
        except asyncio.CancelledError:  # of the caller: nothing is lost
            self._ready.appendleft(ref)
            self._released += 1
            raise


class _Mapped(Results[Out]):
    """References that are made while the iterator advances."""

    def __init__(
        self,
        fn: _Remote[Any, Any],
        items: Iterable[Any],
        backpressure_size: int | None,
        chunk_size: int,
        yield_obj_refs: bool,
    ) -> None:
        super().__init__(chunk_size, yield_obj_refs, None)
        if not hasattr(fn, "remote"):
            raise TypeError(f"map_unordered() takes a remote function or an actor's method, got {fn!r}")
        if backpressure_size is not None and backpressure_size < 1:
            raise ValueError(f"backpressure_size must be at least 1 or None, got {backpressure_size!r}")
        self._fn = fn
        self._items: Iterator[Any] | None = iter(items)
        self._bound = backpressure_size

    def _refill(self) -> None:
        while self._items is not None and (
            self._bound is None or len(self._pending) + len(self._ready) < self._bound
        ):
            try:
                item = next(self._items)
            except StopIteration:
                self._items = None
                break
            ref = self._fn.remote(item)
            if not isinstance(ref, fw.ObjectRef):
                raise TypeError(f"map_unordered() takes a function with one result per call, got {ref!r}")
            self._add(ref)


@overload
def as_completed(
    refs: Iterable[fw.ObjectRef[R]],
    chunk_size: int = 1,
    yield_obj_refs: Literal[False] = False,
    *,
    timeout: float | None = None,
) -> Results[R]: ...
@overload
def as_completed(
    refs: Iterable[fw.ObjectRef[R]],
    chunk_size: int = 1,
    *,
    yield_obj_refs: Literal[True],
    timeout: float | None = None,
) -> Results[fw.ObjectRef[R]]: ...
def as_completed(
    refs: Iterable[fw.ObjectRef[Any]],
    chunk_size: int = 1,
    yield_obj_refs: bool = False,
    *,
    timeout: float | None = None,
) -> Results[Any]:
    """The values of `refs` (with `yield_obj_refs` the references), each when it is done, for ``for`` and
    ``async for``.

    They come in batches: whenever at least `chunk_size` are done, all that are done. Those of a batch are in
    the order of their completion in ``async for``, and of `refs` in ``for``. A larger `chunk_size` makes the
    iteration over thousands of references cheaper.

    An exception is raised at its place; the iterator can be asked for the next result after it. `timeout`:
    seconds from this call after which a step that would have to wait raises `GetTimeoutError`, a
    `TimeoutError`.

    Raises `TypeError` for what is not a reference, `ValueError` for a duplicate or a wrong `chunk_size`.
    """
    if isinstance(refs, fw.ObjectRef):
        raise TypeError("as_completed() takes references, got a single one")
    results: Results[Any] = Results(chunk_size, yield_obj_refs, timeout)
    for position, ref in enumerate(refs):
        if not isinstance(ref, fw.ObjectRef):
            raise TypeError(f"as_completed() takes references: item {position} is {ref!r}")
        if ref in results._pending:
            raise ValueError(f"as_completed() takes each reference once: item {position} is there twice")
        results._add(ref)
    return results


@overload
def map_unordered(
    fn: _Remote[Item, R],
    items: Iterable[Item],
    backpressure_size: int | None = 100,
    chunk_size: int = 1,
    yield_obj_refs: Literal[False] = False,
) -> Results[R]: ...
@overload
def map_unordered(
    fn: _Remote[Item, R],
    items: Iterable[Item],
    backpressure_size: int | None = 100,
    chunk_size: int = 1,
    *,
    yield_obj_refs: Literal[True],
) -> Results[fw.ObjectRef[R]]: ...
def map_unordered(
    fn: _Remote[Any, Any],
    items: Iterable[Any],
    backpressure_size: int | None = 100,
    chunk_size: int = 1,
    yield_obj_refs: bool = False,
) -> Results[Any]:
    """``fn.remote(item)`` for each item: the values (with `yield_obj_refs` the references), each when it is
    done, for ``for`` and ``async for``. `fn`: a remote function, or a method of an actor handle.

    At most `backpressure_size` calls (None: any number) are under way or done and not taken yet. `items` is
    read only as far as that, so it may be endless; nothing is submitted before the first step. What is under
    way when the iterator is dropped goes on. `chunk_size` and exceptions: as with `as_completed`. What
    reading `items`, or submitting an item, raises is raised by the step that does it.

    Raises `TypeError` for an `fn` that is not remote or does not give one reference per call, `ValueError`
    for sizes below 1.
    """
    return _Mapped(fn, items, backpressure_size, chunk_size, yield_obj_refs)
