"""Submitting tasks: from `f.remote()` in any thread to a frame on the connection to a leased worker. (What
becomes of them: `outcomes`.)

The user's thread encodes the arguments and appends the task to a deque; the loop is woken once per batch.
From there on all happens on the loop. Tasks with small arguments are packed when they are sent, many in one
frame (`send_tasks`); others by the user's thread, or when their arguments are known, and the frame is kept,
so that it can be sent again.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.ids import object_id_bytes
from framework._net.connection import Connection
from framework._runtime.context import TaskContext, current_task
from framework._runtime.encoding import encode_args, is_light, is_plain
from framework._runtime.frames import NO_ARGUMENTS, frame_of
from framework._runtime.outcomes import Outcomes
from framework._runtime.task_errors import unschedulable
from framework._runtime.waiters import register
from framework._serial import values
from framework._state.leases import KeyState, Lease
from framework._state.objects import FAILED, Entry
from framework._state.streams import StreamState
from framework._state.tasks import (
    DEFAULT_WINDOW,
    DYNAMIC,
    QUEUED,
    SENT,
    STREAMING,
    WAITING,
    TaskRecord,
    Template,
)
from framework._wire.codec import new_packer

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime

RETURN_1 = object_id_bytes(b"", 1)
_GIVE_WAY_AFTER, _LIGHT = limits.GIVE_WAY_AFTER, limits.LIGHT_ARGUMENTS


def _numbers(returns: int) -> list[bytes]:
    """What the ids of so many returns end in."""
    return [object_id_bytes(b"", index) for index in range(1, returns + 1)]


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.pack = new_packer()


class Submitter(Outcomes):
    """Tasks of this process, from submission to outcome."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._thread = _PerThread()
        self._numbers: list[bytes] = []  #: ends of object ids, as far as they were needed
        self._uniques = runtime.uniques
        self._entries = runtime.objects.table.entries
        self._site: tuple[Any, int] = (None, 0)  #: of the task before: in a loop, all share it
        self._submitted: deque[TaskRecord] = deque()
        self._awake = False
        #: the loop is taking in what was submitted: calls that are in neither queue now are not lost
        self.busy = False

    # ---- any thread ----------------------------------------------------------------------------------

    def submit_usual(
        self, template: Template, args: Sequence[Any], tail: bytes, retries: int, actor: Any, keep: Any
    ) -> TaskRecord:
        """Any thread: as `submit`, in fewer steps, for a task with one return, and without a timeout of its
        own or arguments by keyword. `tail`: of the id of its object, see `tail_of`."""
        if current_task.get() is not None or (args and not (len(args) <= _LIGHT and is_plain(args))):
            return self.submit(template, args, None, tail[:-4], retries, None, 0, actor, keep, 3)
        unique = next(self._uniques)
        task = TaskRecord(unique, template, list(args) if args else NO_ARGUMENTS, None, retries, actor, keep)
        caller = sys._getframe(2)
        code, at = caller.f_code, caller.f_lasti
        site = self._site
        if site[0] is not code or site[1] != at:
            site = self._site = (code, at)
        object_id = unique.to_bytes(8, "little") + tail
        task.entry = self._entries[object_id] = Entry(object_id, None, task, site)
        self.tasks[unique] = task
        submitted = self._submitted
        if not submitted:
            self._hand_over(task)
            return task
        submitted.append(task)
        if not self._awake:
            self._wake()
        elif len(submitted) % _GIVE_WAY_AFTER == _GIVE_WAY_AFTER - 1:
            self._give_way(task)
        return task

    def submit(
        self,
        template: Template,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        scope: bytes,
        retries: int,
        timeout: float | None = None,
        window: int = DEFAULT_WINDOW,
        actor: Any = None,
        keep: Any = None,
        depth: int = 2,
    ) -> TaskRecord:
        """Any thread: make the task and its entries, and hand it to the loop. `depth`: frames from here to
        the user's code."""
        runtime = self._runtime
        wire, wire_kwargs, refs, deps, light = NO_ARGUMENTS, None, keep, None, True
        if kwargs or len(args) > _LIGHT or not is_plain(args):
            wire, wire_kwargs, nested, deps = encode_args(runtime, template, args, kwargs)
            light = is_light(wire, wire_kwargs)
            if nested is not None:
                refs = (nested, keep)
        elif args:
            wire = list(args)
        unique = next(self._uniques)
        task = TaskRecord(unique, template, wire, wire_kwargs, retries, actor, refs)
        task.deps = deps
        context = current_task.get()
        if context is not None or timeout is not None:
            self._inherit(task, context, timeout)
        caller = sys._getframe(depth)
        site = (caller.f_code, caller.f_lasti)
        task_id = unique.to_bytes(8, "little") + scope
        returns = template.returns
        if returns == 1:
            object_id = task_id + RETURN_1
            task.entry = self._entries[object_id] = Entry(object_id, None, task, site)
        else:
            self._several(task, task_id, returns, window, site)
        if not light and deps is None:
            frame_of(task, self._thread.pack)
        self.tasks[unique] = task
        self._hand_over(task)
        return task

    def _hand_over(self, task: TaskRecord) -> None:
        """Any thread: send it at once, if that may be, else leave it to the loop."""
        submitted = self._submitted
        if task.deps is None and not submitted and task.deadline is None and self._send_alone(task):
            return
        submitted.append(task)
        if not self._awake:
            self._wake()
        elif len(submitted) % _GIVE_WAY_AFTER == _GIVE_WAY_AFTER - 1:
            self._give_way(task)

    def _wake(self) -> None:
        """Any thread: the loop is to take in what was submitted."""
        try:
            self._awake = True
            self._runtime.wake(self.take_in)
        except BaseException:  # Ctrl-C: nobody knows whether it came before or after
            self._awake = False
            raise

    def _give_way(self, task: TaskRecord) -> None:
        """Any thread, in a burst: the loop was woken a while ago, and has not had the interpreter since. If a
        worker may be idle for it, it is left to the loop for a moment (or for as long as the loop has work):
        then that one runs the first tasks while the others are submitted."""
        waiting = task.template.key.pending if task.actor is None else task.actor.queue
        if not waiting:
            time.sleep(limits.GIVE_WAY)

    def _several(self, task: TaskRecord, task_id: bytes, returns: int, window: int, site: Any) -> None:
        """Any thread: the entries of a task that has not just one result."""
        if returns == STREAMING or returns == DYNAMIC:
            if returns == DYNAMIC:
                stream = StreamState(-1)
            elif window == DEFAULT_WINDOW:
                stream = StreamState(limits.STREAM_WINDOW, limits.STREAM_BURST)
            else:
                stream = StreamState(window)
            task.stream = stream
            task.extra = {**(task.extra or {}), "window": stream.window}
            if stream.burst:
                task.extra["burst"] = stream.burst
            returns = 1
        numbers = self._numbers
        if len(numbers) < returns <= limits.RETURNS_KNOWN:
            numbers = self._numbers = _numbers(returns)
        elif len(numbers) < returns:
            numbers = _numbers(returns)
        ids = [task_id + number for number in numbers[:returns]]
        entries = [Entry(object_id) for object_id in ids]
        for entry in entries:
            entry.task = task
            entry.site = site
        task.entries = entries
        self._entries.update(zip(ids, entries, strict=True))

    @property
    def waiting(self) -> bool:
        """Any thread: whether tasks wait for the loop to take them in."""
        return bool(self._submitted)

    def _send_alone(self, task: TaskRecord) -> bool:
        """Any thread: a lone task goes out from here, without a hop to the loop: an idle worker, or an idle
        actor, that knows the template. (A burst goes through the loop, which sends many at a time.)"""
        template = task.template
        # Here, where nobody else knows of it yet.
        frame = frame_of(task, self._thread.pack)
        if task.actor is not None:
            return bool(task.actor.send_alone(task))
        key: KeyState = template.key
        lease = key.send_alone(task)
        if lease is None:
            return False
        connection: Connection = lease.connection
        if template.tid in connection.state.templates and not connection.closed:
            self._runtime.direct.sends(task, connection)
            connection.send(frame)
        else:
            self._runtime.post(self._send_first, task, lease)
        if lease.dead:
            self._runtime.post(self._rescue, task, lease)
        return True

    def _send_first(self, task: TaskRecord, lease: Lease) -> None:
        if task.lease is lease and task.state == SENT:
            self._runtime.catalogue.prepare(lease.connection, task.template)
            lease.connection.send(frame_of(task, self._runtime.pack))

    def _rescue(self, task: TaskRecord, lease: Lease) -> None:
        """The lease ended at the moment when a user's thread put the task on it."""
        lease.inflight.pop(task.unique, None)
        if task.lease is lease and task.state == SENT:
            task.lease = None
            self.ready(task)
            self._runtime.flush_soon()

    def _inherit(self, task: TaskRecord, context: TaskContext | None, timeout: float | None) -> None:
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

    def take_in(self) -> None:
        """Loop: what was submitted; and send what can be sent."""
        self._awake = False
        submitted, take = self._submitted, self._submitted.popleft
        dirty, dirty_actors = self._runtime.leasing.dirty, self._runtime.actors.dirty
        self.busy = True
        while submitted:
            task = take()
            if task.rare is not None or task.deps is not None or self._runtime.dead is not None:
                self._admit(task)
                continue
            # What `_admit` does, where there is nothing special about the task.
            actor = task.actor
            if actor is None:
                key: KeyState = task.template.key
                if key.infeasible is None:
                    task.state = QUEUED
                    key.pending.append(task)
                    dirty[key] = None
                    continue
            elif not actor.ended:
                task.state = QUEUED
                actor.queue.append(task)
                dirty_actors[actor] = None
                continue
            self._admit(task)
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
        frame_of(task, self._runtime.pack)
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
        if self._runtime.dead is not None:
            # (A lost object is to be made again by a task of which the end of the node has heard nothing.)
            self.fail(task, self._runtime.dead)
            return
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
