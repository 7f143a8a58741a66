"""What becomes of tasks that were sent: their results, their errors, and how else they end. On the loop,
unless a method says otherwise.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.connection import Connection, Frame
from framework._runtime.task_errors import timeout_error
from framework._runtime.waiters import ThreadWaiter
from framework._serial import values
from framework._state.leases import Lease
from framework._state.objects import FAILED, READY, Entry
from framework._state.tasks import FINISHED, SENT, WAITING, TaskRecord
from framework._wire import messages as m
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


class Outcomes:
    """The tasks of this process that are not done, and what their workers say of them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._loop = runtime.loop
        self._objects = runtime.objects
        self.tasks: dict[int, TaskRecord] = {}
        self.outcome = threading.Lock()  #: held by whoever decides what becomes of a task that was sent
        self.handlers = {
            m.DONE: self._done,
            m.DONES: self._dones,
            m.DONE_MANY: self._done_many,
            m.FAILED: self._failed,
            m.ITEM: self._item,
            m.ITEMS: self._items,
            m.ARG_LOST: self._arg_lost,
        }

    def ready(self, task: TaskRecord) -> None:
        """It can be sent (again)."""
        raise NotImplementedError

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
            self._runtime.streams.restart(task.stream)

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

    def _dones(self, connection: Connection, frame: Frame) -> None:
        """Many results."""
        told: dict[tuple[ThreadWaiter], list[Entry]] = {}
        try:
            self._take_results(connection, frame, told)
        finally:
            for (waiter,), entries in told.items():
                waiter.have_values(entries)

    def _take_results(
        self, connection: Connection, frame: Frame, told: dict[tuple[ThreadWaiter], list[Entry]]
    ) -> None:
        """Threads that wait for many, and what of that is done now, are left in `told`."""
        waits_for_many: tuple[ThreadWaiter] | None = None
        done: list[Entry] = []
        now, tasks, dirty = self._loop.time(), self.tasks, self._runtime.leasing.dirty
        touched: Lease | None = None
        each = iter(frame[1])
        for unique, micros, value in zip(each, each, each, strict=True):
            try:
                task = tasks.get(unique)
                if task is None or task.rare is not None or type(value) is list or task.stream is not None:
                    self._done(connection, [m.DONE, unique, micros, value])
                    continue
                entry = task.entry
                if entry is None or entry.state:
                    self._done(connection, [m.DONE, unique, micros, value])
                    continue
                # What `_done` does, where there is nothing special about the task and its value.
                task.template.measured(micros)
                lease = task.lease
                if lease is not None:
                    if lease is not touched:
                        touched = lease
                        lease.progress = now
                        lease.blocked = lease.reclaiming = False
                        dirty[lease.key] = None
                    task.lease = None
                    inflight = lease.inflight
                    if inflight.pop(unique, None) is not None:
                        lease.load -= task.cost
                        if not inflight:
                            lease.key.emptied(lease, now)
                            if lease.retiring:
                                self._runtime.leasing.end_retired(lease)
                elif (actor := task.actor) is not None:
                    if actor.parked or actor.suspects.alone or actor.inflight.pop(unique, None) is None:
                        actor.finished(task)
                    elif actor.queue:
                        self._runtime.actors.dirty[actor] = None
                task.state = FINISHED
                del tasks[unique]
                task.refs = task.frame = None
                entry.task = None
                entry.value = value
                entry.state = READY
                waiters = entry.waiters
                if waiters is None:
                    continue
                if waiters is waits_for_many:
                    entry.waiters = None
                    done.append(entry)
                elif type(waiters) is tuple:
                    entry.waiters, waits_for_many = None, waiters
                    done = told.setdefault(waiters, [])
                    done.append(entry)
                else:
                    self._objects.notify(entry)
            except Exception:
                if type(unique) is not int or type(micros) is not int:
                    raise  # it is to be blamed for that
                log.exception("%s: a result could not be taken in", connection.name)

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
        if not task.stands_for and list not in set(map(type, results)):
            self._objects.complete_all(task.entries, results)
            return
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
            self._runtime.streams.restart(task.stream)
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

    def _items(self, connection: Connection, frame: Frame) -> None:
        """Many items."""
        _, unique, index, wires = frame
        task = self.tasks.get(unique)
        if (
            task is not None
            and task.stream is not None
            and self._runtime.streams.all_arrived(task, index, wires)
        ):
            return
        for place, value in enumerate(wires, index):
            self._item(connection, [m.ITEM, unique, place, value])

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
        if task.entries and all(entry.freed for entry in task.entries) and self._runtime.dead is None:
            self._runtime.unhandled(task.entries[0])  # (else it is looked at, or said when they are freed)

    def _unseen(self, error: Any) -> None:
        """A task without returns has failed: nobody can ever look at that."""
        entry = Entry(b"")
        entry.value = error
        entry.state = FAILED
        self._runtime.unhandled(entry)

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
