"""Submitting tasks: from `f.remote()` in any thread to a frame on the connection to a leased worker, and its
outcome back.

The user's thread encodes the arguments and appends the task to a deque; the loop is woken once per batch.
From there on all happens on the loop. A task whose arguments are known is packed once; the frame is kept, so
that it can be sent again.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.ids import UNIQUE_MASK, object_id_bytes, task_id_bytes
from framework._net.connection import Connection, Frame
from framework._runtime.context import current_task
from framework._runtime.encoding import encode_args
from framework._runtime.task_errors import timeout_error, unschedulable
from framework._runtime.waiters import register
from framework._serial import values
from framework._state.leases import KeyState, Lease
from framework._state.objects import FAILED, Entry
from framework._state.streams import StreamState
from framework._state.tasks import DYNAMIC, FINISHED, SENT, STREAMING, WAITING, TaskRecord, Template
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework.exceptions import (
    FrameworkError,
    LocalNodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    TaskCancelledError,
    TaskError,
)

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime

log = logging.getLogger("framework")

RETURN_1 = object_id_bytes(b"", 1)


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.pack = new_packer()


class Submitter:
    """Tasks of this process, from submission to outcome."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._loop = runtime.loop
        self._objects = runtime.objects
        self._thread = _PerThread()
        self._submitted: deque[TaskRecord] = deque()
        self._awake = False
        #: the loop is taking in what was submitted: calls that are in neither queue now are not lost
        self.busy = False
        self.tasks: dict[int, TaskRecord] = {}
        self.outcome = threading.Lock()  #: held by whoever decides what becomes of a task that was sent
        self.handlers = {
            m.DONE: self._done,
            m.DONE_MANY: self._done_many,
            m.FAILED: self._failed,
            m.ITEM: self._item,
            m.ARG_LOST: self._arg_lost,
        }

    # ---- any thread ----------------------------------------------------------------------------------

    def submit(
        self,
        template: Template,
        args: Iterable[Any],
        kwargs: Mapping[str, Any] | None,
        *,
        scope: bytes,
        retries: int,
        timeout: float | None = None,
        window: int = 0,
        actor: Any = None,
        keep: Any = None,
    ) -> TaskRecord:
        """Any thread: make the task and its entries, and hand it to the loop."""
        runtime = self._runtime
        wire, wire_kwargs, refs, deps = encode_args(runtime, template, args, kwargs)
        unique = next(runtime.uniques) & UNIQUE_MASK
        task = TaskRecord(unique, template, wire, wire_kwargs)
        if keep is not None:
            if refs is None:
                refs = []
            refs.append(keep)
        task.refs = refs
        task.deps = deps
        task.retries = retries
        task.actor = actor
        self._inherit(task, timeout)
        task_id = task_id_bytes(unique, scope)
        add = self._objects.new
        returns = template.returns
        if returns == 1:
            entry = add(task_id + RETURN_1)
            entry.task = task
            task.entries.append(entry)
        else:
            if returns == STREAMING or returns == DYNAMIC:
                task.stream = StreamState(window if returns == STREAMING else -1)
                task.extra = {**(task.extra or {}), "window": task.stream.window}
                returns = 1
            for index in range(1, returns + 1):
                entry = add(object_id_bytes(task_id, index))
                entry.task = task
                task.entries.append(entry)
        if deps is None:
            task.frame = self._thread.pack((m.TASK, unique, template.tid, wire, wire_kwargs, task.extra))
            task.args, task.kwargs = [], None  # the frame has them
        caller = sys._getframe(2)
        for entry in task.entries:
            entry.site = (caller.f_code, caller.f_lasti)
        self.tasks[unique] = task
        if deps is None and task.deadline is None and self._send_alone(task):
            return task
        self._submitted.append(task)
        if not self._awake:
            try:
                self._awake = True
                runtime.wake(self._drain)
            except BaseException:  # Ctrl-C: nobody knows whether it came before or after
                self._awake = False
                raise
        return task

    @property
    def waiting(self) -> bool:
        """Any thread: whether tasks wait for the loop to take them in."""
        return bool(self._submitted)

    def _send_alone(self, task: TaskRecord) -> bool:
        """Any thread: a lone task goes out from here, without a hop to the loop: an idle worker, or an idle
        actor, that knows the template. (A burst goes through the loop, which sends many at a time.)"""
        if self._submitted:
            return False
        template = task.template
        if task.actor is not None:
            return bool(task.actor.send_alone(task))
        key: KeyState = template.key
        lease = key.send_alone(task)
        if lease is None:
            return False
        connection: Connection = lease.connection
        if template.tid in connection.state.templates and not connection.closed:
            assert task.frame is not None
            self._runtime.direct.sends(task, connection)
            connection.send(task.frame)
        else:
            self._runtime.post(self._send_first, task, lease)
        if lease.dead:
            self._runtime.post(self._rescue, task, lease)
        return True

    def _send_first(self, task: TaskRecord, lease: Lease) -> None:
        if task.lease is lease and task.frame is not None:
            self._runtime.catalogue.prepare(lease.connection, task.template)
            lease.connection.send(task.frame)

    def _rescue(self, task: TaskRecord, lease: Lease) -> None:
        """The lease ended at the moment when a user's thread put the task on it."""
        lease.inflight.pop(task.unique, None)
        if task.lease is lease and task.state == SENT:
            task.lease = None
            if self._runtime.dead is not None:
                self.fail(task, self._runtime.dead)
            else:
                self.ready(task)
                self._runtime.flush_soon()

    def _inherit(self, task: TaskRecord, timeout: float | None) -> None:
        context = current_task.get()
        if context is not None:
            if context.deadline is not None:
                task.deadline = context.deadline
            if context.children is None:
                context.children = set()
            context.children.add(task.unique)
            task.parent = context.unique
            task.children = context.children
        if timeout is not None:
            deadline = self._runtime.clock() + timeout
            if task.deadline is None or deadline < task.deadline:
                task.deadline = deadline
                task.timeout = timeout
        if task.deadline is not None:
            task.extra = {"deadline": task.deadline}

    # ---- arguments -----------------------------------------------------------------------------------

    def _drain(self) -> None:
        self._awake = False
        submitted = self._submitted
        self.busy = True
        while submitted:
            self._admit(submitted.popleft())
        self._runtime.flush()
        self.busy = False

    def _admit(self, task: TaskRecord) -> None:
        if task.cancelled is not None:
            return
        if task.deadline is not None:
            task.timer = self._loop.call_at(task.deadline, self._timed_out, task)
        if self._runtime.dead is not None:
            self.fail(task, self._runtime.dead)
            return
        if task.deps is None:
            self.ready(task)
            return
        if task.actor is not None:
            task.actor.enqueue(task)  # takes its place in the order now
        missing = [entry for _, entry in task.deps if not entry.state]
        if not missing:
            self._resolve(task)
            return
        waiting = {id(entry) for entry in missing}

        def arrived(entry: Entry) -> None:
            waiting.discard(id(entry))
            if task.state == WAITING and task.deps is not None and (not waiting or entry.state == FAILED):
                self._resolve(task)
                self._runtime.flush_soon()

        for entry in missing:
            self._objects.need(entry)
            self._runtime.direct.leave(entry)
            register(entry, arrived)

    def _resolve(self, task: TaskRecord) -> None:
        """All references in the arguments have outcomes (or one has failed): put the values in and pack."""
        if task.state != WAITING:
            return
        deps, task.deps = task.deps or [], None
        for place, entry in deps:
            if entry.state == FAILED:
                self.argument_failed(task, entry)
                return
            value = entry.value
            if type(value) is list and value[0] == values.FORM_STORED:
                if task.stored_deps is None:
                    task.stored_deps = []
                task.stored_deps.append(entry)
            if values.must_be_fetched(value):
                value = [values.FORM_REFERENCE, entry.id, entry.owner or self._runtime.address]
            if isinstance(place, int):
                task.args[place] = value
            else:
                assert task.kwargs is not None
                task.kwargs[place] = value
        if task.stored_deps is not None and task.actor is None and self._runtime.config.cluster is not None:
            self._seek_arguments(task)
        pack = self._runtime.pack
        task.frame = pack((m.TASK, task.unique, task.template.tid, task.args, task.kwargs, task.extra))
        task.args, task.kwargs = [], None
        if task.actor is not None:
            task.actor.resolved(task)
        else:
            self.ready(task)

    def _seek_arguments(self, task: TaskRecord) -> None:
        """Large arguments on another node draw the task there."""
        at: dict[bytes, int] = {}
        for entry in task.stored_deps or ():
            node_id = values.node_of(entry.value)
            if node_id:
                at[node_id] = at.get(node_id, 0) + entry.value[3]
        if at:
            most = max(at, key=lambda node_id: (at[node_id], node_id))
            if at[most] >= limits.LOCALITY_MIN and most != self._runtime.config.node_id:
                task.key = self._runtime.catalogue.near(task.template.key, most)

    def ready(self, task: TaskRecord) -> None:
        """It can be sent: queue it for its actor or for a worker."""
        if task.actor is not None:
            task.actor.enqueue(task)
            task.actor.resolved(task)
            return
        key: KeyState = task.key or task.template.key
        if key.infeasible is not None:
            self.fail(task, unschedulable(task, key.infeasible))
            return
        key.enqueue(task)
        self._runtime.leasing.dirty[key] = None

    def out_of_memory(self, task: TaskRecord, pid: int, detail: str) -> None:
        """Its worker was ended because memory ran out. That has a budget of its own: the task may be
        innocent.
        """
        task.oom_failures += 1
        if task.template.options.max_retries == 0 or task.oom_failures > limits.OOM_RETRIES:
            tried = f"It was tried {task.oom_failures} time(s)"
            self.discard_results(task)
            self.fail(task, OutOfMemoryError(f"{task.template.name}() (pid={pid}): {detail}. {tried}"))
            return
        log.warning("%s() is run again after its worker was ended: %s", task.template.name, detail)
        task.state = WAITING
        task.lease = None
        if task.stream is not None:
            task.stream.restart()

        def again() -> None:
            if task.state == WAITING and task.cancelled is None:
                self.ready(task)
                self._runtime.flush_soon()

        self._loop.call_later(limits.MEMORY_RECOVERY * task.oom_failures, again)

    @staticmethod
    def survives(task: TaskRecord) -> bool:
        if task.retries == 0:
            return False
        if task.retries > 0:
            task.retries -= 1
        return True

    # ---- outcomes ------------------------------------------------------------------------------------

    def _take(self, unique: int, micros: int | None) -> TaskRecord | None:
        task = self.tasks.get(unique)
        if task is None:
            return None
        if micros is not None:
            task.template.measured(micros)
        lease = task.lease
        if lease is not None:
            key = lease.key
            key.finished(task, self._loop.time())
            if lease.retiring and not lease.inflight:
                self._runtime.leasing.end_retired(lease)
            self._runtime.leasing.dirty[key] = None
        elif task.actor is not None:
            task.actor.finished(task)
        return task

    def _done(self, connection: Connection, frame: Frame) -> None:
        _, unique, micros, value = frame
        task = self._take(unique, micros)
        if task is None:
            self._unwanted(connection, unique, [value])
            return
        if task.stream is not None:
            self._runtime.streams.finished(task, value)
            return
        if task.again is not None:
            self._settle(task)
            self._runtime.lineage.ended(task, None)
            return
        if type(value) is list and value[0] == values.FORM_STORED:
            self._runtime.lineage.remember(task, [value])
        if task.lost:
            self._scattered(task.entries, [value])
        self._settle(task)
        entry = task.entries[0]
        if type(value) is list and values.nested_refs(value):
            self._objects.complete(entry, value)
            self._objects.release_when_registered(connection, unique, 1)
        else:
            self._objects.complete(entry, value)

    def _done_many(self, connection: Connection, frame: Frame) -> None:
        _, unique, micros, results = frame
        task = self._take(unique, micros)
        if task is None:
            self._unwanted(connection, unique, results)
            return
        self._runtime.lineage.remember(task, results)
        if task.lost:
            self._scattered(task.entries, results)
        self._settle(task)
        nested = False
        complete = self._objects.replace if task.stands_for else self._objects.complete
        for entry, value in zip(task.entries, results, strict=False):
            nested = nested or bool(type(value) is list and values.nested_refs(value))
            complete(entry, value)
        if nested:
            self._objects.release_when_registered(connection, unique, 1)

    def _scattered(self, entries: list[Entry], results: list[Any]) -> None:
        """These are from another attempt than the first. An earlier one may have put its own into the store
        of another node, and could not say so any more."""
        for entry, value in zip(entries, results, strict=False):
            if values.is_stored(value):
                self._runtime.store.made_again(value[1])
            else:
                self._runtime.store.free_anywhere([entry.id])

    def _unwanted(self, connection: Connection, unique: int, results: list[Any]) -> None:
        """A late answer to a task that has been given up: its sender need not keep the references in it."""
        for value in results:
            self._runtime.discard(value)
        if any(type(value) is list and values.nested_refs(value) for value in results):
            self._objects.release_when_registered(connection, unique, 1)

    def _failed(self, connection: Connection, frame: Frame) -> None:
        _, unique, micros, retryable, error = frame
        task = self._take(unique, micros)
        if task is None:
            pass
        elif task.cancelled is not None:
            self.end_cancelled(task)
        elif retryable and self.survives(task):
            self.retry(task, "it raised an exception")
        else:
            if len(task.entries) > 1:
                self.discard_results(task)
            self._finish(task, error)
        if values.nested_refs(error):
            self._objects.release_when_registered(connection, unique, 1)

    def discard_results(self, task: TaskRecord) -> None:
        """It has failed for good, after it may have put results, or some of them, into the store."""
        if task.again is not None:
            return  # they belong to entries already
        self._runtime.store.free_anywhere([entry.id for entry in task.entries])

    def _arg_lost(self, connection: Connection, frame: Frame) -> None:
        """The worker could not find an argument in the store."""
        _, unique, object_id = frame
        task = self._take(unique, None)
        if task is None:
            return
        task.state = WAITING
        if task.cancelled is not None:
            self.end_cancelled(task)
        elif not self._runtime.lineage.lost_argument(task, object_id):
            self.fail(task, ObjectLostError(object_id.hex(), f"It is an argument of {task.template.name}()"))

    def argument_failed(self, task: TaskRecord, argument: Entry) -> None:
        """The task cannot run: it fails with the error of its argument. Of one that was lost it is the task's
        own error too, as it is in Ray."""
        argument.seen = True
        error = self._objects.error(argument)
        if isinstance(error, ObjectLostError) and not isinstance(error, TaskError):
            name = task.template.name
            text = f"{type(error).__name__}: an argument of {name}() is lost: {error}"
            config = self._runtime.config
            lost = TaskError(name, text, error, pid=self._runtime.pid, ip=config.node_ip)
            self.fail(task, lost.as_instanceof_cause())
        else:
            self._finish(task, argument.value)

    def retry(self, task: TaskRecord, why: str) -> None:
        """The task may be run once more: now, or when its retry policy says."""
        task.app_failures += 1
        task.state = WAITING
        task.lease = None
        if task.stream is not None:
            task.stream.restart()
        policy = task.template.options.retry_policy
        delay = policy.delay(task.app_failures, self._runtime.random()) if policy is not None else 0.0
        log.info("%s() is retried (attempt %d): %s", task.template.name, task.app_failures + 1, why)

        def again() -> None:
            if task.state == WAITING and task.cancelled is None:
                self.ready(task)
                self._runtime.flush_soon()

        if delay > 0:
            self._loop.call_later(delay, again)
        else:
            again()

    def _item(self, connection: Connection, frame: Frame) -> None:
        _, unique, index, value = frame
        task = self.tasks.get(unique)
        if task is not None and task.stream is not None:
            self._runtime.streams.arrived(task, connection, index, value)
        elif task is not None and task.again is not None:
            self._runtime.lineage.made_item(task, index, value)
            self._runtime.streams.release(connection, unique, index, value)
        else:
            self._runtime.streams.unwanted(connection, unique, index, value)

    def _settle(self, task: TaskRecord) -> None:
        """The task is done."""
        task.state = FINISHED
        self.let_go(task)

    def let_go(self, task: TaskRecord) -> None:
        """Any thread, about a task that is done: drop everything that it kept."""
        self.tasks.pop(task.unique, None)
        task.refs = None
        task.frame = None
        if task.timer is not None:
            task.timer.cancel()
            task.timer = None
        if task.children is not None:
            task.children.discard(task.unique)
        for entry in task.entries:
            entry.task = None

    def _finish(self, task: TaskRecord, error: Any) -> None:
        """The task has failed: all its returns get this error (wire form or exception)."""
        if task.state == FINISHED:
            return
        if task.actor is not None:
            task.actor.finished(task)
        if task.stream is not None:
            self._runtime.streams.failed(task, error)
            return
        with self.outcome:
            if task.state == FINISHED:
                return
            task.state = FINISHED
        self._settle(task)
        if task.again is not None:
            self._runtime.lineage.ended(task, error)
            return
        if not task.entries and task.cancelled is None:
            self._unseen(error)
        for entry in task.entries:
            if isinstance(error, BaseException):
                self._objects.fail(entry, error)
            else:
                self._objects.complete(entry, error)

    def _unseen(self, error: Any) -> None:
        """A task without returns has failed: nobody can ever look at that."""
        entry = Entry(b"")
        entry.value = error
        entry.state = FAILED
        self._runtime._unhandled(entry)

    def lost(self, task: TaskRecord, error: BaseException) -> None:
        """Whoever ran it is gone: that is what became of it, unless it was being cancelled anyway."""
        if task.state == SENT:
            self.discard_results(task)
        self._finish(task, error if task.cancelled is None else self._cancel_error(task))

    def fail(self, task: TaskRecord, error: BaseException) -> None:
        """The task cannot be done."""
        self._finish(task, error)

    def settle(self, task: TaskRecord) -> None:
        """For streams, which end in their own way."""
        if task.state != FINISHED:
            self._settle(task)

    # ---- ends ----------------------------------------------------------------------------------------

    def end_cancelled(self, task: TaskRecord) -> None:
        """It was to end, and has."""
        self._finish(task, self._cancel_error(task))

    def _cancel_error(self, task: TaskRecord) -> FrameworkError:
        reason = task.cancelled or ""
        task_id = task.entries[0].id[:24].hex() if task.entries else None
        if reason == "timeout":
            return timeout_error(task, task_id)
        return TaskCancelledError(task_id, f"{task.template.name}() ended because {reason}")

    def _timed_out(self, task: TaskRecord) -> None:
        task.timer = None
        if task.state != FINISHED:
            self.cancel(task, False, True, "timeout")

    def cancel(self, task: TaskRecord, force: bool, recursive: bool, reason: str) -> None:
        """End the task: dropped if it has not been sent, else its worker is asked to interrupt it."""
        if task.state == FINISHED:
            return
        if task.cancelled is None:
            task.cancelled = reason
        connection = None
        if task.actor is not None:
            connection = task.actor.connection_of(task)
        elif task.lease is not None:
            connection = task.lease.connection
        if task.state != SENT or connection is None:
            self.end_cancelled(task)
            return
        connection.cast(m.CANCEL, task.unique, force, recursive, reason)
        if task.lease is None:
            return
        # The worker ends itself for `force`, because it alone knows whether this very task still runs. The
        # node does it for one that cannot even do that.
        if force:
            self._loop.call_later(
                limits.EXIT_GRACE, self._overdue, task, "its task was cancelled with force=True"
            )
        elif reason == "timeout":
            why = "its task was over its timeout and did not end when it was interrupted"
            self._loop.call_later(limits.CANCEL_GRACE, self._overdue, task, why)

    def _overdue(self, task: TaskRecord, why: str) -> None:
        """It was to end a while ago and has not reacted."""
        if task.state == SENT and task.actor is not None:
            # The actor has other callers: it stays, and this one waits no longer.
            self.end_cancelled(task)
        elif task.state == SENT and task.lease is not None and self._runtime.node is not None:
            self._runtime.node.cast(m.KILL_WORKER, task.lease.worker_id, why)

    def node_lost(self, error: LocalNodeDiedError) -> None:
        """Nothing more can run."""
        self._runtime.leasing.clear()
        for task in list(self.tasks.values()):
            self._finish(task, error)
