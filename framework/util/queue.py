"""`Queue`: first in, first out, for any number of producers and consumers in any process. It lives in an
actor; its handle can be passed to tasks and actors."""

from __future__ import annotations

import asyncio
import itertools
import queue
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar, cast

import framework as fw
from framework._base import limits
from framework.exceptions import ActorDiedError, GetTimeoutError
from framework.util._queue_actor import QueueActor, Taken

T = TypeVar("T")
R = TypeVar("R")

_GROUPS = QueueActor.concurrency_groups()
_DEFAULT_OPTIONS: dict[str, Any] = {"num_cpus": 0}


class Empty(queue.Empty):
    """There was no item (in time)."""


class Full(queue.Full):
    """There was no room (in time)."""


class Queue(Generic[T]):
    """A first-in-first-out queue that processes share. Ray's `Queue`, on the model of ``queue.Queue``.

    maxsize: how many items it holds at the most; 0 or less: any number. actor_options: options of the actor
    that holds them (by default it takes no CPU), such as ``{"name": "jobs", "lifetime": "detached"}``.
    actor: its handle; None after `shutdown`.

    The queue lives as long as a handle to it does. Whoever blocks is served in the order of arrival, and
    holds up nobody else. Each item goes to one consumer: a call that times out, is cancelled or interrupted
    takes none (an item that was on its way to it goes back to its place), and neither does one whose process
    has died while it waited. Items are lost with the queue's actor; one that was sent to a process that dies
    before it has arrived is lost with that, as is one for a consumer that dies within its first tenth of a
    second of waiting.

    A reference that is put is replaced by its value, as every argument is; inside of other values it stays.

    All calls raise `ActorDiedError` when the queue is gone.
    """

    def __init__(self, maxsize: int = 0, actor_options: Mapping[str, Any] | None = None) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise TypeError(f"maxsize is an int, got {maxsize!r}")
        options = {**_DEFAULT_OPTIONS, **(actor_options or {})}
        options["concurrency_groups"] = {**(options.get("concurrency_groups") or {}), **_GROUPS}
        self._begin(maxsize, fw.remote(QueueActor).options(**options).remote(maxsize))

    def _begin(self, maxsize: int, actor: fw.ActorHandle[Any] | None) -> None:
        self.maxsize = maxsize
        self.actor = actor
        self._holder = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._attendance: fw.ObjectRefGenerator[None] | None = None

    # ---- questions -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.qsize()

    def __bool__(self) -> bool:
        return True

    def qsize(self) -> int:
        """How many items it holds. Like all calls that do not end in `_async`, it blocks for a round trip."""
        return cast(int, fw.get(self._handle().qsize.remote()))

    def size(self) -> int:
        """As `qsize`."""
        return self.qsize()

    def empty(self) -> bool:
        """Whether it holds no item."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether it holds `maxsize` items."""
        return 0 < self.maxsize <= self.qsize()

    # ---- in ------------------------------------------------------------------------------------------

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Add an item at the end; wait for room, at most `timeout` seconds.

        Raises `Full` when there was none in time, or with ``block=False`` when there is none now;
        `ValueError` for a negative timeout. Interrupted, it has put the item or not, but does not later.
        """
        ref, token = self._put(item, block, timeout)
        try:
            done = self._wait(ref, token)
        except BaseException:
            self._give_up(ref, token)
            raise
        self._check_put(done)

    async def put_async(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """`put` for coroutines."""
        ref, token = self._put(item, block, timeout)
        try:
            done = await self._wait_async(ref, token)
        except BaseException:
            self._give_up(ref, token)
            raise
        self._check_put(done)

    def put_nowait(self, item: T) -> None:
        """Add an item; raises `Full` when there is no room now."""
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[T]) -> None:
        """Add several items in one step; raises `Full`, and adds none, when there is no room for all."""
        if not isinstance(items, Iterable):
            raise TypeError("Argument 'items' must be an Iterable")
        batch = list(items)
        size = fw.get(self._handle().put_batch.remote(batch))
        if size is not None:
            raise Full(f"Cannot add {len(batch)} items to queue of size {size} and maxsize {self.maxsize}.")

    # ---- out -----------------------------------------------------------------------------------------

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the first item; wait for one, at most `timeout` seconds.

        Raises `Empty` when there was none in time, or with ``block=False`` when there is none now;
        `ValueError` for a negative timeout.
        """
        ref, token = self._get(block, timeout)
        try:
            taken = self._wait(ref, token)
        except BaseException:
            self._give_up(ref, token)
            raise
        return self._item(taken)

    async def get_async(self, block: bool = True, timeout: float | None = None) -> T:
        """`get` for coroutines."""
        ref, token = self._get(block, timeout)
        try:
            taken = await self._wait_async(ref, token)
        except BaseException:
            self._give_up(ref, token)
            raise
        return self._item(taken)

    def get_nowait(self) -> T:
        """Take the first item; raises `Empty` when there is none now."""
        return self.get(block=False)

    def get_nowait_batch(self, num_items: int) -> list[T]:
        """Take the first `num_items` items in one step; raises `Empty`, and takes none, when there are
        fewer."""
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError("Argument 'num_items' must be an int")
        if num_items < 0:
            raise ValueError("'num_items' must be nonnegative")
        ref = self._handle().get_batch.remote(num_items)
        try:
            taken = fw.get(ref)
        except BaseException:
            self._give_up(ref, "")
            raise
        if isinstance(taken, int):
            raise Empty(f"Cannot get {num_items} items from queue of size {taken}.")
        return [item for _, item in taken]

    # ---- end -----------------------------------------------------------------------------------------

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the queue's actor. What it holds is lost; calls that wait, in any process, raise
        `ActorDiedError`, as do later ones. Calls that are being served finish first, within `grace_period_s`
        seconds; with `force` they do not. A second call does nothing."""
        actor, self.actor, self._attendance = self.actor, None, None
        if actor is None:
            return
        if not force:
            actor.close.remote()
            ready, _ = fw.wait([actor.__ray_terminate__.remote()], timeout=grace_period_s)
            if ready:
                ready[0].exception()  # that it is dead now is no news
                return
        fw.kill(actor, no_restart=True)

    # ---- inside --------------------------------------------------------------------------------------

    def _handle(self) -> fw.ActorHandle[Any]:
        if self.actor is None:
            raise ActorDiedError("the queue was shut down", class_name=QueueActor.__name__)
        return self.actor

    def _put(self, item: T, block: bool, timeout: float | None) -> tuple[fw.ObjectRef[bool], str]:
        _check_timeout(timeout)
        if not block:
            return self._handle().put_now.remote(item), ""
        token = self._new_token()
        return self._handle().put.remote(token, item, timeout), token

    def _new_token(self) -> str:
        """A name for a blocking call: of this handle, in this process."""
        return f"{self._holder}{next(self._numbers)}"

    def _wait(self, ref: fw.ObjectRef[R], token: str) -> R:
        if token:
            try:
                return fw.get(ref, timeout=limits.QUEUE_ATTEND_AFTER)
            except GetTimeoutError:
                self._attend()
        return fw.get(ref)

    async def _wait_async(self, ref: fw.ObjectRef[R], token: str) -> R:
        if token:
            # What asyncio.wait needs of a future, references have.
            waited_for = cast("list[asyncio.Future[R]]", [ref])
            done, _ = await asyncio.wait(waited_for, timeout=limits.QUEUE_ATTEND_AFTER)
            if not done:
                self._attend()
        return await ref

    def _attend(self) -> None:
        """This call is going to wait: have the actor know when this process, or its last use of this handle,
        is gone. (Not from the start: most calls are served at once.)"""
        attendance = self._attendance
        if self.actor is not None and (attendance is None or attendance.completed().done()):
            self._attendance = self.actor.attend.remote(self._holder)

    def _check_put(self, done: bool) -> None:
        if not done:
            raise Full

    def _get(self, block: bool, timeout: float | None) -> tuple[fw.ObjectRef[Taken | None], str]:
        _check_timeout(timeout)
        if not block:
            return self._handle().get_now.remote(), ""
        token = self._new_token()
        return self._handle().get.remote(token, timeout), token

    def _item(self, taken: Taken | None) -> T:
        if taken is None:
            raise Empty
        return cast("T", taken[1])

    def _give_up(self, ref: fw.ObjectRef[Any], token: str) -> None:
        """The caller does not wait any longer: the call is to end, and what it has taken goes back."""
        actor = self.actor
        if actor is None or not fw.is_initialized():
            return
        if token and not ref.done():
            actor.abandon.remote(token)

        def return_items(future: Any) -> None:
            if future.exception() is None and fw.is_initialized():
                taken = future.result()
                if isinstance(taken, tuple):
                    actor.put_back.remote([taken])
                elif isinstance(taken, list):
                    actor.put_back.remote(taken)

        ref.future().add_done_callback(return_items)

    def __repr__(self) -> str:
        return f"Queue(maxsize={self.maxsize}, actor={self.actor!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_with_actor, (self.maxsize, self.actor))


def _with_actor(maxsize: int, actor: fw.ActorHandle[Any] | None) -> Queue[Any]:
    other: Queue[Any] = object.__new__(Queue)
    other._begin(maxsize, actor)
    return other


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not timeout >= 0:
        raise ValueError("'timeout' must be a non-negative number")
