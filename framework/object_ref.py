"""References to objects, and the generators of references that streaming tasks return."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar, cast

from framework._base.ids import JobID, ObjectID, TaskID
from framework._runtime.current import current
from framework._runtime.sites import format_site
from framework._runtime.waiters import mailbox_of, register, unregister
from framework._serial.refs import reduce_ref, register_ref_type
from framework._serial.values import FORM_STORED
from framework._state.objects import FAILED, Entry
from framework.exceptions import TaskCancelledError

T = TypeVar("T", covariant=True)
#: what was given to `add_done_callback`, the waiter that stands for it, the CPUs lent meanwhile, and a key by
#: which the waiter finds this (with the tuple itself it would be in a cycle, which keeps the object too long)
_Callback = tuple[
    Callable[[Any], object], Callable[[Entry], None], contextlib.AbstractContextManager[None] | None, object
]


class ObjectRef(Generic[T]):
    """A reference to an object that exists or will exist somewhere in the cluster: the result of a task, or a
    value put.

    `get` it, `await` it, pass it to other tasks. The object lives as long as a reference to it does.

    It is awaitable on any event loop and in any number of places at once; ``asyncio.gather``, ``wait``,
    ``wait_for``, ``as_completed`` and ``timeout`` take it. Cancelling an asyncio task that awaits it does not
    cancel the remote task.
    """

    __slots__ = ("__weakref__", "_callbacks", "_entry", "_runtime")
    _callbacks: list[_Callback]
    _entry: Entry
    _runtime: Any

    def __init__(self, binary: bytes) -> None:
        raise TypeError(
            "references are made by .remote(), put() and generators; "
            "ObjectRef.from_binary() does not exist here"
        )

    def __del__(self) -> None:
        # Runs in any thread at any moment, also inside the garbage collector: append, and nothing more.
        try:
            self._runtime.objects.drops.append(self._entry)
        except AttributeError:
            pass  # never completed, or the interpreter ends

    # ---- identity ------------------------------------------------------------------------------------

    def binary(self) -> bytes:
        """The 28 bytes of the object's id."""
        return self._entry.id

    def hex(self) -> str:
        """The object's id as 56 hexadecimal digits."""
        return self._entry.id.hex()

    def task_id(self) -> TaskID:
        """The task that makes the object; for a put, an id that stands for the process that put it."""
        return TaskID(self._entry.id[:24])

    def job_id(self) -> JobID:
        """The job that the object belongs to."""
        return JobID(self._entry.id[20:24])

    def is_nil(self) -> bool:
        """Always False."""
        return False

    @staticmethod
    def size() -> int:
        """Length of an id in bytes."""
        return ObjectID.SIZE

    def owner_address(self) -> str:
        """The address of the process that owns the object."""
        return cast(str, self._entry.owner or self._runtime.address)

    def call_site(self) -> str:
        """``file:line in function`` where the reference was made; an empty string for one that came from
        another process.
        """
        return format_site(self._entry.site)

    def __bytes__(self) -> bytes:
        return self.binary()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and other._entry.id == self._entry.id

    def __lt__(self, other: ObjectRef[Any]) -> bool:
        return self.binary() < other.binary()

    def __hash__(self) -> int:
        return hash(self._entry.id)

    def __repr__(self) -> str:
        return f"ObjectRef({self._entry.id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_ref(self)

    # ---- waiting -------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, T]:
        entry, runtime = self._entry, self._runtime
        if not entry.state:
            if runtime.on_blocked is None:  # a driver: as `wait_async`, without a coroutine in between
                waiter = runtime.waiting.begin(entry)
                try:
                    yield from waiter.future
                finally:
                    if not entry.state:
                        unregister(entry, waiter)
            else:
                yield from runtime.waiting.wait_async(entry).__await__()
        value: T
        if type(entry.value) is list and entry.value[0] == FORM_STORED:
            value = yield from runtime.value_async(entry).__await__()
        else:
            value = runtime.value(entry)
        return value

    async def as_coroutine(self) -> T:
        """For places that accept nothing but coroutines, such as ``asyncio.TaskGroup.create_task``."""
        return await self

    def as_future(self) -> asyncio.Future[T]:
        """An asyncio future of the running loop. Cancelling it does not cancel the remote task."""
        loop = asyncio.get_running_loop()
        return asyncio.ensure_future(self.as_coroutine(), loop=loop)

    def future(self) -> concurrent.futures.Future[T]:
        """A ``concurrent.futures.Future``; its callbacks run in a thread of the framework."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        entry, runtime = self._entry, self._runtime
        keep = self

        def finish() -> None:
            nonlocal keep
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(runtime.value(entry))
            except BaseException as error:
                future.set_exception(error)
            del keep

        runtime.waiting.callback(entry, finish)
        return future

    def _on_completed(self, callback: Callable[[Any], object]) -> None:
        """Call `callback(value or exception)` in a thread of the framework when the object is done."""
        entry, runtime = self._entry, self._runtime
        keep = self

        def finish() -> None:
            nonlocal keep
            try:
                value = runtime.value(entry)
            except BaseException as error:
                value = error
            callback(value)
            del keep

        runtime.waiting.callback(entry, finish)

    # What asyncio.wait() needs of the things it waits for.

    def done(self) -> bool:
        """Whether the object is there, or has failed."""
        return bool(self._entry.state)

    def cancelled(self) -> bool:
        """Whether the task was cancelled."""
        entry = self._entry
        if entry.state != FAILED:
            return False
        seen = entry.seen
        cancelled = isinstance(self._runtime.objects.error(entry), TaskCancelledError)
        entry.seen = seen  # this question is not yet a look at the error
        return cancelled

    def result(self) -> T:
        """The value of a done object; its exception raised; ``asyncio.InvalidStateError`` when it is not
        done."""
        if not self._entry.state:
            raise asyncio.InvalidStateError("the object is not ready: await the reference, or get() it")
        return cast(T, self._runtime.value(self._entry))

    def exception(self) -> BaseException | None:
        """The exception of a failed object, or None; ``asyncio.InvalidStateError`` when it is not done."""
        if not self._entry.state:
            raise asyncio.InvalidStateError("the object is not ready: await the reference, or get() it")
        if self._entry.state == FAILED:
            return cast(BaseException, self._runtime.objects.error(self._entry))
        return None

    def add_done_callback(
        self, callback: Callable[[Any], object], *, context: contextvars.Context | None = None
    ) -> None:
        """Have ``callback(ref)`` called by the running event loop when the object is done, in `context` (by
        default a copy of the current one)."""
        mailbox = mailbox_of(asyncio.get_running_loop())
        if context is None:
            context = contextvars.copy_context()
        # A coroutine that runs as a task waits for other tasks by this: it lends its CPUs, as by `await`.
        lending = None if self._entry.state else self._runtime.waiting.blocked()

        key = object()

        def call() -> None:
            if self._forget_callback(key):
                context.run(callback, self)

        def done(_: Entry) -> None:
            mailbox.post(call)

        added = (callback, done, lending, key)
        try:
            self._callbacks.append(added)
        except AttributeError:
            self._callbacks = [added]
        if lending is not None:
            lending.__enter__()
        if self._entry.owner is not None:
            self._runtime.post(self._runtime.objects.need, self._entry)
        self._runtime.direct.leave(self._entry)
        register(self._entry, done)

    def _forget_callback(self, key: object) -> bool:
        """Whoever takes it off the list, the call or the removal, has it to itself."""
        try:
            pair = next(pair for pair in list(self._callbacks) if pair[3] is key)
            self._callbacks.remove(pair)
        except (StopIteration, ValueError):
            return False
        if pair[2] is not None:
            pair[2].__exit__(None, None, None)
        return True

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        """Forget that callback; returns how often it had been added."""
        removed = 0
        for pair in list(getattr(self, "_callbacks", ())):
            if pair[0] == callback and self._forget_callback(pair[3]):
                unregister(self._entry, pair[1])
                removed += 1
        return removed


def ref_of(entry: Entry) -> ObjectRef[Any]:
    """A reference for an entry whose count already includes it."""
    return ref_in(entry, current())


def ref_in(entry: Entry, runtime: Any) -> ObjectRef[Any]:
    """As `ref_of`, where the runtime is at hand."""
    ref: ObjectRef[Any] = object.__new__(ObjectRef)
    ref._entry = entry
    ref._runtime = runtime
    return ref


def _describe(ref: ObjectRef[Any]) -> tuple[bytes, str]:
    return ref.binary(), ref.owner_address()


def _rebuild(object_id: bytes, owner: str) -> ObjectRef[Any]:
    return cast("ObjectRef[Any]", current().make_ref(object_id, owner))


register_ref_type(ObjectRef, _describe, _rebuild)


class ObjectRefGenerator(Generic[T]):
    """The references of a streaming task, as its items are made: ``for ref in gen`` or ``async for ref in
    gen``.

    The producer runs ahead by a bounded number of items (option `generator_window`). An exception of the
    producer is the outcome of the last reference. Closing the generator, or dropping it, stops the producer.
    It can be passed to other tasks: each item goes to whoever asks first.
    """

    __slots__ = ("_closed", "_ref")

    def __init__(self, ref: ObjectRef[Any]) -> None:
        self._ref = ref
        self._closed = False

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        return self

    def __next__(self) -> ObjectRef[T]:
        if self._closed:
            raise StopIteration
        generator_ref = self._ref
        runtime = generator_ref._runtime
        ref = runtime.streams.take_here(generator_ref._entry)
        if ref is not None:
            return ref  # type: ignore[no-any-return]
        if asyncio._get_running_loop() is not None and not runtime.streams.ready(self._ref):
            runtime.waiting.warn_blocking("next")
        ref = runtime.streams.next_blocking(self._ref)
        if ref is None:
            raise StopIteration
        return cast("ObjectRef[T]", ref)

    def __aiter__(self) -> AsyncIterator[ObjectRef[T]]:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        ref = None if self._closed else await self._ref._runtime.streams.next_async(self._ref)
        if ref is None:
            raise StopAsyncIteration
        return cast("ObjectRef[T]", ref)

    def send(self, value: None) -> ObjectRef[T]:
        """As ``next()``: nothing can be sent to a remote generator."""
        if value is not None:
            raise TypeError("a value cannot be sent to a remote generator")
        return next(self)

    def next_ready(self) -> bool:
        """Whether the next item is here (or there will be none). Never blocks: in a process that was handed
        the generator, it asks the owner, and a later call knows."""
        return self._closed or bool(self._ref._runtime.streams.ready(self._ref))

    def is_finished(self) -> bool:
        """Whether the producer is done and all its items were taken."""
        return self._closed or bool(self._ref._runtime.streams.ended(self._ref))

    def completed(self) -> ObjectRef[None]:
        """A reference that is done when the producer is."""
        return cast("ObjectRef[None]", self._ref)

    def task_id(self) -> TaskID:
        """The producing task."""
        return self._ref.task_id()

    def close(self) -> None:
        """Stop the producer; there are no more items."""
        if not self._closed:
            self._closed = True
            self._ref._runtime.streams.close(self._ref)

    async def aclose(self) -> None:
        """As `close`."""
        self.close()

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._ref.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectRefGenerator, (self._ref,))


class DynamicObjectRefGenerator:
    """The value of a task with ``num_returns="dynamic"``: the references of all its items."""

    __slots__ = ("_refs",)

    def __init__(self, refs: list[ObjectRef[Any]]) -> None:
        self._refs = list(refs)

    def __iter__(self) -> Iterator[ObjectRef[Any]]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: int) -> ObjectRef[Any]:
        return self._refs[index]

    def __reduce__(self) -> tuple[Any, ...]:
        return (DynamicObjectRefGenerator, (self._refs,))
