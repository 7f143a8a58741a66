"""Runs user code: tasks and the calls of an actor, in the worker's main thread or where the actor wants them.

The runtime's loop receives TASK frames and appends them to a deque; the main thread takes them from there,
runs them and writes the replies itself (no hop back to the loop). Replies of a burst of short tasks leave
together.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from contextvars import copy_context
from sys import getrefcount
from typing import Any

from framework._base import limits
from framework._net.connection import Connection, Frame
from framework._runtime.context import TaskContext, current_task
from framework._runtime.frames import NO_ARGUMENTS
from framework._runtime.runtime import Runtime
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework._worker import stdio
from framework._worker.arguments import decode_args
from framework._worker.generators import Producer
from framework._worker.inbox import Inbox
from framework._worker.interruption import Interrupt, may_interrupt, open_to_interruption
from framework._worker.process import RunMark, end_fork
from framework._worker.replies import Replies, Result
from framework._worker.results import Results
from framework._worker.retirement import Retirement, is_needed
from framework._worker.templates import ExecTemplate, FunctionCache
from framework.exceptions import (
    FrameworkError,
    ProtocolError,
    TaskCancelledError,
    TaskTimeoutError,
)

_NO_KEYWORDS: dict[str, Any] = {}
_BLOCKED = new_packer()([m.BLOCKED])
_UNBLOCKED = new_packer()([m.UNBLOCKED])


def _unshared() -> int:
    """What `getrefcount` says of what one variable alone refers to."""
    thing = object()
    return getrefcount(thing)


_UNSHARED = _unshared()


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.pack = new_packer()


class Executor:
    """The executor service of a worker process."""

    def __init__(self, runtime: Runtime, run_file: str) -> None:
        self.runtime = runtime
        self._inbox = Inbox(runtime.direct, self._runs_directly)
        self.queue = self._inbox.items
        self.push = self._inbox.push  #: loop: one more thing for the main thread to do
        self.functions = FunctionCache()
        self.thread = _PerThread()
        self._main = threading.main_thread().ident or 0
        self.running = 0  #: unique number of the task whose user code the main thread is in (0: none)
        self.interrupt: int | None = None  #: the task that the main thread is to be interrupted in
        self.reasons: dict[int, str] = {}  #: why tasks are being cancelled
        self._early: dict[
            int, tuple[bool, str]
        ] = {}  #: cancelled when neither queued nor begun: (force, why)
        self.forked = False  #: this is a fork that user code has made
        self.contexts: dict[int, TaskContext] = {}
        self.producers: dict[int, Producer] = {}
        self.async_tasks: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = {}
        self._block_lock = threading.Lock()
        self._blocks = 0
        self.blocked = False
        self.replies = Replies(self.queue)
        self._leaving: str | None = None  #: an actor that is about to end
        self._retirement: Retirement | None = None  #: it takes no more tasks
        self.job_over = False
        self._task_loop: asyncio.AbstractEventLoop | None = None
        self.gpus: list[int] = []
        self._provisional, self._registering = runtime.objects.unregistered
        self._cell = RunMark(run_file).cell
        self._spare: TaskContext | None = None  #: of a task that is over, and that nobody has kept
        self._output = stdio.current_name()
        self.results = Results(self)
        self.actor: Any = None  #: an ActorHost once this worker has become an actor
        runtime.on_blocked = self.enter_blocked
        runtime.on_unblocked = self.leave_blocked
        runtime.on_node_lost = lambda: os._exit(1)
        runtime.on_peer_lost = self._peer_lost
        os.register_at_fork(after_in_child=self._is_forked)
        runtime.peer_handlers.update(
            {
                m.FUNCTION: self._function,
                m.TEMPLATE: self._template,
                m.FORGET: self._forget,
                m.LEASE_BEGIN: self._lease_begin,
                m.TASK: self._task,
                m.TASKS: self._tasks,
                m.CANCEL: self._cancel,
                m.RECLAIM: self._reclaim,
                m.CREDIT: self._credit,
            }
        )
        runtime.node_handlers.update({m.EXIT: self._exit, m.JOB_OVER: self._job_is_over})

    # ---- frames (loop) -------------------------------------------------------------------------------

    def _function(self, connection: Connection, frame: Frame) -> None:
        connection.state.sources[frame[1]] = self.functions.define(frame[1], frame[2])

    def _forget(self, connection: Connection, frame: Frame) -> None:
        """(Tasks that have arrived keep what they need.)"""
        for tid in frame[1]:
            connection.state.incoming.pop(tid, None)
        for function_hash in frame[2]:
            connection.state.sources.pop(function_hash, None)

    def _template(self, connection: Connection, frame: Frame) -> None:
        template = ExecTemplate(frame[2], connection.state.sources)
        if template.source is None and template.method is None:
            raise ProtocolError(f"template {frame[1]} of an unknown function")
        connection.state.incoming[frame[1]] = template
        if template.strategy is not None and template.strategy[3]:
            self.runtime.captures = True

    def _lease_begin(self, connection: Connection, frame: Frame) -> None:
        _, _, gpus, omp = frame
        self.set_devices(gpus, omp)

    def set_devices(self, gpus: list[int], omp: int) -> None:
        """What the processes of BLAS, OpenMP and CUDA may use from now on, as Ray sets it."""
        if gpus or self.gpus or self.runtime.node_facts.get("total", {}).get("GPU"):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        self.gpus = gpus
        self.runtime.store.client.cpus = max(1, omp)
        if os.environ.get("FRAMEWORK_OMP_DEFAULT") and omp != int(os.environ.get("OMP_NUM_THREADS") or 0):
            os.environ["OMP_NUM_THREADS"] = str(max(1, omp))
            limiter = sys.modules.get("threadpoolctl")
            if limiter is not None:
                limiter.threadpool_limits(max(1, omp))

    @staticmethod
    def check(connection: Connection, frame: Frame) -> None:
        """A TASK has come: from now on it has its template, instead of the number of that."""
        if type(frame) is not list or len(frame) != 6 or frame[0] != m.TASK:
            raise ProtocolError("tasks: one of them is none")
        if type(frame[1]) is not int or type(frame[2]) is not int or type(frame[3]) is not list:
            raise ProtocolError("task: fields of wrong types")
        template = connection.state.incoming.get(frame[2])
        if template is None:
            raise ProtocolError(f"task of an unknown template {frame[2]!r}")
        frame[2] = template

    def _runs_directly(self, connection: Connection, frame: Frame) -> bool:
        """Main thread, idle: whether it may run what it has read itself."""
        self.check(connection, frame)
        return not self.blocked and (self.actor is None or self.actor.mode == "sync")

    def _task(self, connection: Connection, frame: Frame) -> None:
        self.check(connection, frame)
        if self.runtime.store.node_id:
            self.runtime.store.prefetch([*frame[3], *(frame[4] or {}).values()])
        if self.actor is not None:
            self.actor.arrived(connection, frame)
            return
        self.push((connection, frame))
        if self.blocked:
            self._hand_back()

    def _tasks(self, connection: Connection, frame: Frame) -> None:
        tasks, known = frame[1], connection.state.incoming
        for task in tasks:
            if (
                type(task) is list
                and len(task) == 6
                and task[0] == m.TASK
                and type(task[1]) is type(task[2]) is int
                and type(task[3]) is list
                and (template := known.get(task[2])) is not None
            ):
                task[2] = template
            else:
                self.check(connection, task)  # says what is wrong with it
        if self.runtime.store.node_id:
            self.runtime.store.prefetch(
                [wire for task in tasks for wire in (*task[3], *(task[4] or {}).values())]
            )
        if self.actor is not None and self.actor.mode != "sync":
            for task in tasks:
                self.actor.arrived(connection, task)
            return
        self._inbox.push_all([(connection, task) for task in tasks])
        if self.blocked and self.actor is None:
            self._hand_back()

    def _hand_back(self) -> None:
        """Any thread: the main thread waits for other tasks; those queued behind it go back to their
        owners.
        """
        self._give_back(len(self.queue), self.queue.popleft, True)

    def _reclaim(self, connection: Connection, frame: Frame) -> None:
        self.flush_replies()  # the running task is slow: those before it shall not wait for it either
        self._give_back(min(frame[1], len(self.queue)), self.queue.pop, False)

    def _give_back(self, most: int, pop: Any, blocked: bool) -> None:
        returned: dict[Connection, list[int]] = {}
        kept = []
        for _ in range(most):
            try:
                item = pop()
            except IndexError:
                break
            connection, frame = item
            if connection is None:
                kept.append(item)
            else:
                returned.setdefault(connection, []).append(frame[1])
        self.queue.extend(kept)
        for connection, uniques in returned.items():
            if pop == self.queue.pop:
                uniques.reverse()  # in the order in which they had come
            connection.send(self.thread.pack((m.RETURNED, uniques, blocked)))

    def _credit(self, connection: Connection, frame: Frame) -> None:
        producer = self.producers.get(frame[1])
        if producer is not None:
            producer.credit(frame[2])

    def _peer_lost(self, connection: Connection) -> None:
        for producer in list(self.producers.values()):
            producer.lost(connection)

    def _exit(self, connection: Connection, frame: Frame) -> None:
        _, orderly, reason = frame
        if orderly:
            if self.actor is not None and self.actor.mode != "sync":
                self.actor.end(reason)
            else:
                self.push((None, ["exit", reason]))
        elif is_needed(self, self.job_over):
            connection.cast(m.EXIT_DENIED)
        else:
            self.leave(reason)

    def _job_is_over(self, connection: Connection, frame: Frame) -> None:
        """Its driver is gone, and so is everything that it was to end with, except for detached actors."""
        self.job_over = True
        self._exit(connection, [m.EXIT, False, "the driver of its job has ended"])

    # ---- cancelling (loop) ---------------------------------------------------------------------------

    def _cancel(self, connection: Connection, frame: Frame) -> None:
        _, unique, force, recursive, reason = frame
        for item in list(self.queue):
            if item[0] is connection and item[1][1] == unique:
                try:
                    self.queue.remove(item)
                except ValueError:
                    break  # it has just started
                self._reply_cancelled(connection, unique, reason)
                return
        if self.actor is not None and self.actor.cancel_queued(connection, unique):
            self._reply_cancelled(connection, unique, reason)
            return
        if unique not in self.contexts:
            # It has just been taken from the queue, or its reply is under way. Note it first, then look
            # again.
            while len(self._early) >= limits.EARLY_CANCELS:
                del self._early[next(iter(self._early))]
            self._early[unique] = (force, reason)
        context = self.contexts.get(unique)
        if context is None:
            return
        self._early.pop(unique, None)
        if force and self.actor is None:
            self.flush_replies()
            if unique in self.contexts:  # this one, and none after it
                os._exit(1)
        self.reasons[unique] = reason
        if unique not in self.contexts:  # it has ended meanwhile, and nobody will take this away
            self.reasons.pop(unique, None)
            return
        if recursive and context.children:
            self.runtime.cancel_children(context.children)
        producer = self.producers.get(unique)
        if producer is not None:
            producer.close()
            if reason == "closed":
                return
        if self.actor is not None and self.actor.mode != "sync":
            self.actor.interrupt(unique)
            return
        self.interrupt = unique
        self._interrupt(unique)

    def _interrupt(self, unique: int) -> None:
        """Loop: have the exception raised in the task, as soon as it is where it may be: see `on_signal` and
        `call`.
        """
        if self.interrupt != unique or unique not in self.contexts:
            return
        running = self.async_tasks.get(unique)
        if running is not None:
            self.interrupt = None
            loop, task = running
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
            return
        if self.running == unique:
            signal.pthread_kill(self._main, signal.SIGURG)
        self.runtime.loop.call_later(limits.INTERRUPT_AGAIN, self._interrupt, unique)

    def _reply_cancelled(self, connection: Connection, unique: int, reason: str) -> None:
        error = self.cancel_error(unique, reason)
        connection.cast(m.FAILED, unique, 0, False, self.runtime.wire_error(error, ""))

    def cancel_error(self, unique: int, reason: str) -> FrameworkError:
        """What a cancelled task ends with."""
        if reason == "timeout":
            return TaskTimeoutError("it did not finish in the time that its timeout (or its caller's) allows")
        return TaskCancelledError(None, reason or None)

    def on_signal(self, signum: int, frame: Any) -> None:
        """Main thread: somebody wants the running task to end. Only that task is hit."""
        if self.interrupt is not None and self.interrupt == self.running and may_interrupt(frame):
            self.interrupt = None
            raise Interrupt("the task was cancelled")

    # ---- waiting -------------------------------------------------------------------------------------

    def enter_blocked(self) -> None:
        """A thread of a task begins to wait: lend the CPUs, hand back what has not started."""
        with self._block_lock:
            self._blocks += 1
            if self._blocks > 1:
                return
            self.blocked = True
        self.flush_replies()
        for producer in list(self.producers.values()):
            producer.flush()
        node = self.runtime.node
        if node is not None:
            node.send(_BLOCKED)
        if self.actor is None:
            self._hand_back()

    def leave_blocked(self) -> None:
        """It goes on."""
        with self._block_lock:
            self._blocks -= 1
            if self._blocks:
                return
            self.blocked = False
        node = self.runtime.node
        if node is not None:
            node.send(_UNBLOCKED)

    # ---- the main thread -----------------------------------------------------------------------------

    def run(self) -> None:
        """Run what arrives until the process ends."""
        signal.signal(signal.SIGURG, self.on_signal)
        # Not SIG_IGN, which processes that tasks start would inherit.
        signal.signal(signal.SIGINT, _ignore_signal)
        while True:
            connection, frame = self._inbox.take(self._on_idle)
            if connection is not None:
                if self._retirement is not None:  # this was sent before its owner knew of that
                    connection.buffer(self.thread.pack((m.RETIRING,)))
                    connection.send(self.thread.pack((m.RETURNED, [frame[1]], False)))
                    continue
                if self.actor is None:
                    copy_context().run(
                        self.execute, connection, frame
                    )  # context variables end with their task
                else:
                    self.execute(connection, frame)
                if self._leaving is not None or self._retirement is not None:
                    self._last_is_done(connection)
            elif frame[0] == "exit":
                self.leave(frame[1])
            else:
                frame[0]()  # a function: to become an actor

    def _last_is_done(self, connection: Connection) -> None:
        self._give_back(len(self.queue), self.queue.popleft, False)
        if self._retirement is not None:
            self._retirement.begin(connection)
        else:
            self.leave(self._leaving or "")

    def _on_idle(self) -> None:
        self.flush_replies()
        self.runtime.direct.keep_up()

    def flush_replies(self) -> None:
        """Any thread: write the replies that wait for company."""
        self.replies.flush(self.thread.pack)

    def context_of(self, template: ExecTemplate, unique: int, extra: dict[str, Any] | None) -> TaskContext:
        """The context of a task that begins."""
        context = TaskContext(
            unique,
            # (A task that makes lost results again gives them the ids that they had.)
            unique if extra is None else extra.get("as", unique),
            template.scope,
            template.name,
            None,
            template.resources,
            self.gpus,
            template.strategy,
        )
        if extra is not None:
            context.deadline = extra.get("deadline")
        if self.actor is not None:
            context.actor_id = self.actor.actor_id
            context.resources = self.actor.resources
        if extra is None:
            context.made_for = template
        return context

    def mark_running(self, unique: int) -> None:
        """What the node is to know of what runs here, should this process die: a task, 0 or
        `SEVERAL_TASKS`."""
        self._cell[0] = unique

    def execute(self, connection: Connection, frame: Frame) -> None:
        """Main thread: run one task and reply."""
        template: ExecTemplate
        _, unique, template, args, kwargs, extra = frame
        self._cell[0] = unique
        actor, context = self.actor, self._spare
        if context is not None and context.made_for is template and extra is None:
            self._spare = None
            context.unique = context.id_unique = unique
            context.gpus = self.gpus
        else:
            context = self.context_of(template, unique, extra)
        self._output.name = template.name if actor is None else actor.log_name
        self.contexts[unique] = context
        if self._early:
            self._cancel_early(unique)
        token = current_task.set(context)
        started = time.monotonic_ns()
        failed = False
        try:
            if template.function is None:
                self.load(template)
            if args or kwargs:
                arguments, keywords = decode_args(self.runtime, args, kwargs)
                started = time.monotonic_ns()
            else:
                arguments, keywords = NO_ARGUMENTS, _NO_KEYWORDS
            if template.returns < 0:  # a stream
                result: Any = self._stream(connection, template, unique, extra, arguments, keywords)
            elif template.is_async:
                result = self._run_async(unique, template.function(*arguments, **keywords))
            else:
                result = self.call(unique, template.function, arguments, keywords)
            if self.forked:
                end_fork(None)
            if actor is not None and actor.hooks.every:
                actor.hooks.after_call()
            ended = time.monotonic_ns()
            del arguments, keywords
            reply, refs = self.results.encode(connection, template, unique, (ended - started) // 1000, result)
            del result
        except BaseException as error:
            self.running = 0
            if self.forked:
                end_fork(error)
            ended = time.monotonic_ns()
            reply, refs = self.results.encode_error(template, context, (ended - started) // 1000, error)
            failed = True
            arguments = keywords = result = None  # type: ignore[assignment]  # noqa: F841 - drops references
            del error
        finally:
            if self._output.unfinished:
                stdio.end_task()
            current_task.reset(token)
            self.contexts.pop(unique, None)
            if self.reasons:
                self.reasons.pop(unique, None)
            if self.interrupt == unique:
                self.interrupt = None
        if context.made_for is not None and context.children is None and getrefcount(context) == _UNSHARED:
            self._spare = context
        if template.max_calls:
            self._count_call(connection, template)
        if refs or isinstance(reply, bytes) or self._is_delicate(template):
            self.finish(connection, template, unique, reply, refs, failed)
        else:
            self.replies.add(connection, reply, self.thread.pack, ended)

    def _count_call(self, connection: Connection, template: ExecTemplate) -> None:
        template.calls += 1
        if template.calls >= template.max_calls:
            connection.buffer(self.thread.pack((m.RETIRING,)))
            why = f"it has run {template.name}() {template.calls} times (max_calls)"
            self._retirement = Retirement(self, why)

    def _cancel_early(self, unique: int) -> None:
        """Main thread: it may have been cancelled between the queue and here."""
        early = self._early.pop(unique, None)
        if early is not None:
            force, reason = early
            if force and self.actor is None:
                self.flush_replies()
                os._exit(1)
            self.reasons[unique] = reason
            self.interrupt = unique

    def _is_forked(self) -> None:
        self.forked = True

    def finish(
        self,
        connection: Connection,
        template: ExecTemplate,
        unique: int,
        reply: bytes | Result,
        refs: list[Any] | None,
        failed: bool = False,
    ) -> None:
        """Send the reply; before that, if references stay behind, their owners learn of it."""
        objects = self.runtime.objects
        if refs:
            objects.hold(connection, unique, 1, refs)
            if failed:
                # An exception and the frames in its traceback refer to each other easily (asyncio's always
                # do): without this the references in it would stay until this process makes garbage again.
                gc.collect(1)
        pack = self.thread.pack
        if isinstance(reply, bytes):
            data = reply
        elif self._is_delicate(template):
            data = pack((m.DONE, *reply))
        else:
            self.replies.add(connection, reply, pack, time.monotonic_ns())
            return
        at_once = template.careful or self._leaving is not None or self._retirement is not None
        if self._leaving is None and objects.register_provisional(lambda: connection.send(data)):
            return
        self.replies.send(connection, data, pack, at_once)

    def _is_delicate(self, template: ExecTemplate) -> bool:
        """Whether a reply must not wait for company: it, or something before it, has to be out."""
        return bool(
            template.careful
            or self._leaving is not None
            or self._retirement is not None
            or self._provisional
            or self._registering
        )

    def load(self, template: ExecTemplate) -> None:
        """The function behind a template."""
        if template.method is not None:
            template.bind(self.actor.method(template.method))
        else:
            assert template.source is not None
            template.bind(template.source.load())

    def call(self, unique: int, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """User code in the main thread: may be interrupted from the first line to the last, and not
        outside.
        """
        try:
            self.running = unique
            if self.interrupt == unique:
                self.interrupt = None
                raise Interrupt("the task was cancelled")
            result = function(*args, **kwargs) if args or kwargs else function()
            if self.forked:
                end_fork(None)
            return result
        finally:
            self.running = 0

    def _run_async(self, unique: int, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """A coroutine as a task: on a loop of the main thread that lives as long as the worker."""
        loop = self._task_loop
        if loop is None:
            loop = self._task_loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
        task = loop.create_task(coroutine)
        self.async_tasks[unique] = (loop, task)
        if self.interrupt == unique:
            self.interrupt = None
            task.cancel()
        try:
            return loop.run_until_complete(task)
        finally:
            self.async_tasks.pop(unique, None)
            left = asyncio.all_tasks(loop)
            if left:
                _end_left(loop, left)

    def _stream(
        self,
        connection: Connection,
        template: ExecTemplate,
        unique: int,
        extra: dict[str, Any] | None,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> int:
        with Producer(self, connection, template, unique, extra, self.call) as producer:
            iterable = self.call(unique, template.function, args, kwargs)
            if template.is_async:
                iterable = self._run_async(unique, iterable)
            if hasattr(iterable, "__aiter__"):
                count: int = self._run_async(unique, producer.run_async(iterable))
            else:
                count = producer.run(iterable)
            if self.reasons.get(unique, "closed") != "closed":
                raise Interrupt("the task was cancelled")
            return count

    # ---- the end -------------------------------------------------------------------------------------

    def announce_end(self, reason: str) -> None:
        """Get all replies out, and tell the node why this process is going to end."""
        self.flush_replies()
        node = self.runtime.node
        if node is not None:
            node.buffer(self.thread.pack((m.LEAVING, reason)))
            node.flush(wait=True)

    def leave(self, reason: str) -> None:
        """End this process in order: what was said and printed gets out."""
        self.announce_end(reason)
        if self.actor is not None:
            self.actor.shut_down()
        stdio.flush()
        os._exit(0)


open_to_interruption(Executor.call.__code__)


def _ignore_signal(signum: int, frame: Any) -> None:
    """Ctrl-C is for the driver."""


def _end_left(loop: asyncio.AbstractEventLoop, left: set[asyncio.Task[Any]]) -> None:
    """What a coroutine has started and not waited for ends with it, as in `asyncio.run`."""
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    for task in left:
        if not task.cancelled() and task.exception() is not None:
            loop.call_exception_handler(
                {
                    "message": "a task that a remote coroutine left running has failed",
                    "exception": task.exception(),
                    "task": task,
                }
            )
