"""A worker that has become an actor: its instance, and where its calls run.

========
===================================================================================================== mode
 calls
========
===================================================================================================== sync
 in the main thread, one at a time, in the order in which they arrive (`Executor.run`) threads   in pools of
 threads (`max_concurrency` above 1, or concurrency groups)
async     coroutine methods as asyncio tasks on a loop in the main thread; its plain methods in a thread of
their own ========
=====================================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.ids import SEVERAL_TASKS, UNIQUE_MASK
from framework._base.resources import out_of_group
from framework._base.signature import is_async_class
from framework._net.connection import Connection, Frame
from framework._net.host import Stay
from framework._runtime.context import TaskContext, current_task
from framework._serial import values
from framework._serial.errors import error_to_wire
from framework._serial.functions import load_function
from framework._service.mailbox import Mailbox
from framework._service.serving import new_loop
from framework._state.tasks import DYNAMIC, STREAMING
from framework._wire import messages as m
from framework._worker import stdio
from framework._worker.actor_hooks import Hooks
from framework._worker.arguments import ArgumentLost, decode_args
from framework._worker.generators import Producer
from framework._worker.interruption import Interrupt
from framework._worker.replies import Result
from framework._worker.templates import ExecTemplate
from framework.exceptions import ActorDiedError, ObjectLostError, OwnerDiedError, ProtocolError

if TYPE_CHECKING:
    from framework._worker.executor import Executor


class ActorHost:
    """The actor that lives in this worker."""

    def __init__(self, executor: Executor, actor_id: bytes, spec: dict[str, Any], restarted: int) -> None:
        self._executor = executor
        self._runtime = executor.runtime
        self.actor_id = actor_id
        self.class_name: str = spec["class_name"]
        self.name: str | None = spec.get("name")
        self.log_name: str = self.name or self.class_name
        self.detached = spec.get("lifetime") == "detached"
        self.max_task_retries: int = spec.get("max_task_retries", 0)
        self.restarted = restarted
        self.resources: dict[str, int] = out_of_group(spec["resources"])
        self.strategy: list[Any] | None = spec.get("strategy")  #: where it was to be placed
        if self.strategy and self.strategy[0] == "group" and self.strategy[3]:
            self._runtime.captures = True
        self._spec = spec
        self.hooks = Hooks(self._runtime, actor_id, restarted, self.class_name)
        self.instance: Any = None
        self.cls: Any = None
        self.mode = "sync"
        self._ends = False  #: it was told to
        self._waiting: dict[int, Connection] = {}
        self._pools: dict[str | None, ThreadPoolExecutor] = {}
        self._limits: dict[str | None, asyncio.Semaphore] = {}
        self._threads: dict[int, int] = {}  #: unique number of a call -> the thread that runs its user code
        self._thread_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._mailbox: Mailbox | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flush_soon = self._flush_watched = False

    # ---- birth (main thread) -------------------------------------------------------------------------

    def start(self) -> None:
        """Load the class, make the instance, report. For an async actor, serve its loop until the process
        ends.
        """
        error: list[Any] | None = None
        stdio.set_name(self.log_name)
        name = f"{self.class_name}.__init__"
        context = TaskContext(0, UNIQUE_MASK, self.actor_id, name, self.actor_id)
        context.gpus = self._executor.gpus
        context.resources = self.resources
        token = current_task.set(context)
        try:
            cls = self.cls = load_function(self._spec["payload"])
            self._choose_mode(cls)
            self._executor.mark_running(0 if self.mode == "sync" else SEVERAL_TASKS)
            if self.mode == "async":
                self._loop = new_loop()
                asyncio.set_event_loop(self._loop)
                self._mailbox = Mailbox(self._loop)
                self._runtime.direct.takers[m.TASK] = self._take_call
                self._executor.replies.beside(self._executor.contexts, self._flush_later)
                self._loop.run_until_complete(self._construct_async(cls))
            else:
                self._construct(cls)
        except BaseException as problem:
            error = self._error(problem, f"{self.class_name}.__init__", context)
        finally:
            current_task.reset(token)
        for name in ("payload", "saved"):
            self._spec.pop(name, None)
        self._spec["args"] = self._spec["kwargs"] = None
        stdio.flush()  # before the news: after an error the node ends this process
        up = self._executor.thread.pack((m.ACTOR_UP, self.actor_id, error))
        node = self._runtime.node
        assert node is not None
        if not self._runtime.objects.register_provisional(lambda: node.send(up)):
            node.send(up)
        if error is None and self._loop is not None:
            self._loop.run_forever()

    def _construct(self, cls: Any) -> Any:
        args, kwargs = self._arguments()
        self.instance = cls(*args, **kwargs)
        self.hooks.attach(self.instance, self._spec.get("save_every", 0))
        saved = self._spec.get("saved")
        return self.hooks.restore(saved) if saved else None

    def _arguments(self) -> tuple[list[Any], dict[str, Any]]:
        try:
            return decode_args(self._runtime, self._spec["args"], self._spec["kwargs"])
        except ArgumentLost as lost:
            raise OwnerDiedError(
                lost.object_id.hex(),
                "It is an argument of the constructor, and went with the process that had made it. An actor "
                "that may be restarted after that (a detached one) needs its arguments by value, of at most "
                f"{limits.DETACHED_INLINE_LIMIT >> 20} MiB each, not by reference",
            ) from None

    async def _construct_async(self, cls: Any) -> None:
        """Inside the loop, so that the constructor may make asyncio objects and tasks."""
        fetched = await self._fetch(self._spec["args"], self._spec["kwargs"])
        restored = self._construct(cls)
        if inspect.isawaitable(restored):
            await restored
        del fetched

    def _choose_mode(self, cls: Any) -> None:
        groups: dict[str, int] = self._spec.get("concurrency_groups") or {}
        concurrency: int | None = self._spec.get("max_concurrency")
        if is_async_class(cls):
            self.mode = "async"
            self._limits[None] = asyncio.Semaphore(concurrency or limits.ASYNC_CONCURRENCY)
            for name, limit in groups.items():
                self._limits[name] = asyncio.Semaphore(limit)
            self._pools[None] = ThreadPoolExecutor(min(concurrency or 1, 32), thread_name_prefix="actor")
        elif groups or (concurrency or 1) > 1:
            self.mode = "threads"
            self._pools[None] = ThreadPoolExecutor(concurrency or 1, thread_name_prefix="actor")
            for name, limit in groups.items():
                self._pools[name] = ThreadPoolExecutor(limit, thread_name_prefix=f"actor-{name}")

    # ---- calls ---------------------------------------------------------------------------------------

    def method(self, name: str) -> Callable[..., Any]:
        """What a call of this name runs. Looked up on the class: an attribute of the instance does not hide a
        method.
        """
        if name in ("__ray_ready__", "__framework_ready__"):
            return lambda: True
        if name in ("__ray_call__", "__framework_call__"):
            return lambda function, *args, **kwargs: function(self.instance, *args, **kwargs)
        if name in ("__ray_terminate__", "__framework_terminate__"):
            return self._terminate
        member = inspect.getattr_static(type(self.instance), name, None)
        if member is None:
            return getattr(self.instance, name)  # type: ignore[no-any-return]
        return member.__get__(self.instance, type(self.instance))  # type: ignore[no-any-return]

    def _terminate(self) -> None:
        self._executor._leaving = "it was asked to end (__ray_terminate__)"

    def arrived(self, connection: Connection, frame: Frame) -> None:
        """Loop: a call has come."""
        if self.mode == "sync":
            self._executor.push((connection, frame))
            return
        self._waiting[frame[1]] = connection
        if self._mailbox is not None:
            self._mailbox.post(self._begin_posted, connection, frame)
            return
        template: ExecTemplate = frame[2]
        # (An unknown group fails where the call runs.)
        pool = self._pools.get(template.group) or self._pools[None]
        pool.submit(self._in_thread, connection, frame)

    def _check_group(self, template: ExecTemplate) -> None:
        group = template.group
        if group is not None and group not in (self._limits if self.mode == "async" else self._pools):
            known = ", ".join(repr(name) for name in self._spec.get("concurrency_groups") or ()) or "none"
            raise ValueError(
                f"{template.name}() is to run in the concurrency group {group!r}, which the actor class "
                f"{self.class_name} does "
                f"not have (it has: {known}). Groups are declared with "
                f"@remote(concurrency_groups={{name: limit}})"
            )

    def cancel_queued(self, connection: Connection, unique: int) -> bool:
        """Loop: drop a call that has not begun. Whoever takes it out of `_waiting` first, wins."""
        return self._waiting.pop(unique, None) is not None

    def interrupt(self, unique: int) -> None:
        """Loop: end a call that has begun, in its thread, on its loop, or both. (If it is not quite there
        yet, it looks for
        itself: the reason was noted before this.)"""
        with self._thread_lock:
            ident = self._threads.get(unique)
            if ident is not None:
                _raise_in(ident, Interrupt)
        running = self._executor.async_tasks.get(unique)
        if running is not None:
            loop, task = running
            loop.call_soon_threadsafe(task.cancel)

    def _enter_thread(self, unique: int) -> None:
        """From here on this thread may be interrupted for the sake of the call that it runs."""
        with self._thread_lock:
            self._threads[unique] = threading.get_ident()
        if self._is_cancelled(unique):
            raise Interrupt("the call was cancelled")

    def _is_cancelled(self, unique: int) -> bool:
        return self._executor.reasons.get(unique, "closed") != "closed"

    def _leave_thread(self, unique: int) -> None:
        """Not any more: an interruption that has not struck yet is taken back."""
        while True:
            try:
                with self._thread_lock:
                    if self._threads.pop(unique, None) is not None:
                        _raise_in(threading.get_ident(), None)
                return
            except Interrupt:  # it has struck in here
                continue

    def end(self, reason: str) -> None:
        """Loop: end in order: calls that are under way finish first."""
        if self._ends:
            return
        self._ends = True
        if self._mailbox is not None:
            self._mailbox.post(self._end_soon, reason)
        elif self.mode == "threads":
            threading.Thread(target=self._end_threads, args=(reason,), daemon=True).start()

    def _end_soon(self, reason: str) -> None:
        task = asyncio.get_running_loop().create_task(self._end_async(reason))
        self._tasks.add(task)

    async def _end_async(self, reason: str) -> None:
        me = asyncio.current_task()
        while others := [task for task in self._tasks if task is not me]:
            await asyncio.wait(others)
        await self._leave_async(reason)

    async def _leave_async(self, reason: str) -> None:
        if self.hooks.claim_end():
            self._executor.announce_end(reason)
            await self.hooks.shut_down_async()
            self._executor.leave(reason)

    def _end_threads(self, reason: str) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=True)
        self._executor.leave(reason)

    def shut_down(self) -> None:
        """The thread that ends this process: the last moment for user code. (An async actor has had it.)"""
        if self.mode == "async":
            return
        if self.hooks.claim_end():
            self.hooks.shut_down()
        else:
            threading.Event().wait()  # another thread is at it, and ends the process

    # ---- threads -------------------------------------------------------------------------------------

    def _in_thread(self, connection: Connection, frame: Frame) -> None:
        unique = frame[1]
        template: ExecTemplate = frame[2]
        executor = self._executor
        # Before it leaves `_waiting`: a call can be cancelled at any time, here or there.
        context = executor.contexts[unique] = executor.context_of(template, unique, frame[5])
        if self._waiting.pop(unique, None) is not None:
            self._run_in_thread(connection, frame, template, context)
        else:
            executor.contexts.pop(unique, None)

    def _run_in_thread(
        self, connection: Connection, frame: Frame, template: ExecTemplate, context: TaskContext
    ) -> None:
        _, unique, _, args, kwargs, extra = frame
        executor = self._executor
        token = current_task.set(context)
        refs, failed = None, False
        try:
            self._check_group(template)
            if template.function is None:
                executor.load(template)
            arguments, keywords = decode_args(self._runtime, args, kwargs)
            reply, refs = self._guarded(connection, template, unique, extra, arguments, keywords)
            del arguments, keywords
        except BaseException as error:
            arguments = keywords = None  # type: ignore[assignment]  # noqa: F841 - drops references
            reply, refs = executor.results.encode_error(template, context, 0, error)
            failed = True
            del error
        finally:
            current_task.reset(token)
            executor.contexts.pop(unique, None)
            executor.reasons.pop(unique, None)
        executor.finish(connection, template, unique, reply, refs, failed)
        self._maybe_leave()

    def _guarded(
        self,
        connection: Connection,
        template: ExecTemplate,
        unique: int,
        extra: dict[str, Any] | None,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> tuple[bytes | Result, list[Any] | None]:
        """Run it where it can be interrupted; afterwards no interruption is sent to this thread any more."""
        try:
            self._enter_thread(unique)
            if template.returns in (STREAMING, DYNAMIC):
                result: Any = self._produce(connection, template, unique, extra, args, kwargs)
            else:
                result = template.function(*args, **kwargs)
        finally:
            self._leave_thread(unique)
        if self.hooks.every:
            self.hooks.after_call()
        return self._executor.results.encode(connection, template, unique, 0, result)

    def _produce(
        self,
        connection: Connection,
        template: ExecTemplate,
        unique: int,
        extra: dict[str, Any] | None,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> int:
        with Producer(self._executor, connection, template, unique, extra, _plain_call) as producer:
            return producer.run(template.function(*args, **kwargs))

    def _maybe_leave(self) -> None:
        if self._executor._leaving is not None:
            self._executor.leave(self._executor._leaving)

    # ---- the loop of an async actor ------------------------------------------------------------------

    def _begin_posted(self, connection: Connection, frame: Frame) -> None:
        """A call that the runtime's loop has read. If they come one at a time, this loop reads the next."""
        assert self._loop is not None and self._mailbox is not None
        if self._mailbox.empty:
            self._runtime.direct.read_here(connection, self._loop)
        self._begin(connection, frame)

    def _take_call(self, stay: Stay, frame: Frame, size: int) -> bool:
        """A call that this loop has read itself."""
        assert self._mailbox is not None
        connection, direct = stay.connection, self._runtime.direct
        try:
            m.check(frame)
            self._executor.check(connection, frame)
        except ProtocolError:
            return False  # the runtime's loop deals with that
        if direct.behind():
            stay.reading.give_back(stay)  # it comes first, and then to this
            return True
        if not stay.reading.claim(stay):
            return False
        stay.reading.skip(stay, size)
        self._mailbox.drain()  # what it has read before
        self._waiting[frame[1]] = connection
        self._begin(connection, frame)
        return True

    def _begin(self, connection: Connection, frame: Frame) -> None:
        unique = frame[1]
        executor = self._executor
        template: ExecTemplate = frame[2]
        context = executor.contexts[unique] = executor.context_of(template, unique, frame[5])
        if self._waiting.pop(unique, None) is None:
            executor.contexts.pop(unique, None)
            return  # cancelled
        assert self._loop is not None
        task = self._loop.create_task(self._run_async(connection, frame, template, context))
        self._tasks.add(task)
        executor.async_tasks[unique] = (self._loop, task)
        task.add_done_callback(lambda task: self._ended(connection, template, context, task))
        if self._is_cancelled(unique):
            task.cancel()

    def _ended(
        self, connection: Connection, template: ExecTemplate, context: TaskContext, task: asyncio.Task[Any]
    ) -> None:
        self._tasks.discard(task)
        if not self._tasks and self._loop is not None:
            self._runtime.direct.expect_more(self._loop)
        executor, unique = self._executor, context.unique
        if executor.async_tasks.pop(unique, None) is None:
            return
        # Cancelled before its first line: nobody has replied.
        reply, refs = executor.results.encode_error(template, context, 0, asyncio.CancelledError())
        executor.contexts.pop(unique, None)
        executor.reasons.pop(unique, None)
        executor.finish(connection, template, unique, reply, refs)

    def _flush_later(self) -> None:
        """A reply waits for company: it leaves when the loop has gone once round; or from elsewhere, if user
        code holds up the loop."""
        if not self._flush_soon:
            self._flush_soon = True
            assert self._loop is not None
            self._loop.call_soon(self._flush)
        if not self._flush_watched:
            self._flush_watched = True
            self._runtime.post(self._runtime.loop.call_later, limits.FLUSH_ELSEWHERE, self._flush_elsewhere)

    def _flush(self) -> None:
        self._flush_soon = False
        self._executor.flush_replies()

    def _flush_elsewhere(self) -> None:
        self._flush_watched = False
        self._executor.flush_replies()

    async def _run_async(
        self, connection: Connection, frame: Frame, template: ExecTemplate, context: TaskContext
    ) -> None:
        _, unique, _, args, kwargs, extra = frame
        executor = self._executor
        current_task.set(context)
        refs, failed = None, False
        try:
            if template.group is not None:
                self._check_group(template)
            limit = self._limits[template.group]
            await limit.acquire()  # (`async with` makes two coroutines more)
            try:
                if template.function is None:
                    executor.load(template)
                fetched = None
                if kwargs or list in map(type, args):
                    fetched = await self._fetch(args, kwargs)
                arguments, keywords = decode_args(self._runtime, args, kwargs)
                del fetched
                frame = args = kwargs = None  # type: ignore[assignment]
                if template.returns < 0:  # a stream
                    result: Any = await self._produce_async(
                        connection, template, unique, extra, arguments, keywords
                    )
                elif template.is_async:
                    result = await template.function(*arguments, **keywords)
                else:
                    result = await self._in_pool(unique, template.function, arguments, keywords)
                    if inspect.iscoroutine(
                        result
                    ):  # of __ray_call__, or of a decorator that hides that its method is async
                        result = await result
                if self.hooks.every:
                    await self.hooks.after_call_async()
            finally:
                limit.release()
            del arguments, keywords
            reply, refs = executor.results.encode(connection, template, unique, 0, result)
            del result
        except BaseException as error:
            arguments = keywords = result = None  # type: ignore[assignment]  # noqa: F841 - drops references
            reply, refs = executor.results.encode_error(template, context, 0, error)
            failed = True
            del error
        finally:
            executor.async_tasks.pop(unique, None)
            executor.contexts.pop(unique, None)
            executor.reasons.pop(unique, None)
        executor.finish(connection, template, unique, reply, refs, failed)
        self._runtime.direct.keep_up()
        if executor._leaving is not None:
            await self._leave_async(executor._leaving)

    async def _fetch(self, args: list[Any], kwargs: dict[str, Any] | None) -> list[Any]:
        """References among the arguments: wait for them without holding up the loop. `decode_args` finds them
        here as long as what this returns is kept."""
        wires = [*args, *(kwargs or {}).values()]
        refs = [
            self._runtime.make_ref(wire[1], wire[2])
            for wire in wires
            if type(wire) is list and wire[0] == values.FORM_REFERENCE
        ]
        self._runtime.waiting.ask_for([ref._entry for ref in refs])
        for ref in refs:
            await self._runtime.waiting.wait_async(ref._entry)
        wires += [ref._entry.value for ref in refs]
        stored = [wire[1] for wire in wires if values.is_stored(wire)]
        kept: list[Any] = [*refs]
        if len(stored) > 1:
            views = await self._runtime.await_on_loop(self._runtime.store.prepare_many(stored))
            kept.append(views)
        for wire in wires:
            await self._at_hand(wire)
        return kept

    async def _at_hand(self, wire: Any) -> None:
        if values.is_stored(wire) and self._runtime.store.client.held(wire[1]) is None:
            with contextlib.suppress(ObjectLostError):  # `decode_args` meets it again
                await self._runtime.await_on_loop(self._runtime.store.prepare(wire))

    async def _in_pool(self, unique: int, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """A plain method of an async actor: in a thread, so that the loop goes on."""
        context = contextvars.copy_context()

        def run() -> Any:
            try:
                self._enter_thread(unique)
                return context.run(function, *args, **kwargs)
            finally:
                self._leave_thread(unique)

        assert self._loop is not None
        return await self._loop.run_in_executor(self._pools[None], run)

    async def _produce_async(
        self,
        connection: Connection,
        template: ExecTemplate,
        unique: int,
        extra: dict[str, Any] | None,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> int:
        iterable = template.function(*args, **kwargs)
        with Producer(self._executor, connection, template, unique, extra, _plain_call) as producer:
            if hasattr(iterable, "__aiter__"):
                return await producer.run_async(iterable)
            return await self._in_pool(unique, producer.run, [iterable], {})  # type: ignore[no-any-return]

    def _error(self, error: BaseException, name: str, context: TaskContext) -> list[Any]:
        return error_to_wire(
            error,
            function_name=name,
            pid=self._runtime.pid,
            ip=self._runtime.config.node_ip,
            actor=self.describe(),
        )

    def exit_error(self, template: ExecTemplate, error: SystemExit) -> BaseException:
        """A method has called sys.exit() or `exit_actor`: the actor ends, and this is what its caller
        gets.
        """
        what = "exit_actor()" if type(error).__name__ == "ActorExit" else f"sys.exit({error.code!r})"
        reason = f"its method {template.name}() called {what}"
        self._executor._leaving = reason
        return ActorDiedError(
            reason,
            actor_id=self.actor_id.hex(),
            class_name=self.class_name,
            name=self.name,
            pid=self._runtime.pid,
        )

    def describe(self) -> str:
        """How errors name this actor."""
        return f"{self.class_name}({self.actor_id.hex()})"


def _plain_call(unique: int, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def _raise_in(ident: int, error: type[BaseException] | None) -> None:
    """Have an exception raised in another thread, at its next line of Python; None takes one back that was
    not raised yet.
    """
    what = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), what)
