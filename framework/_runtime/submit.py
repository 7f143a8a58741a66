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
from functools import partial
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.ids import UNIQUE_MASK, object_id_bytes, task_id_bytes
from framework._net.connection import Connection, Frame
from framework._runtime.context import current_task
from framework._runtime.peers import PeerState
from framework._runtime.waiters import register
from framework._serial import values
from framework._state.leases import KeyState, Lease
from framework._state.objects import FAILED, Entry
from framework._state.streams import StreamState
from framework._state.tasks import DYNAMIC, FINISHED, QUEUED, SENT, STREAMING, WAITING, TaskRecord, Template
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework.exceptions import (
    FrameworkError,
    LocalNodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskTimeoutError,
    TaskUnschedulableError,
    WorkerCrashedError,
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
        self._keys: dict[tuple[Any, ...], KeyState] = {}
        self._keys_by_id: dict[int, KeyState] = {}
        self._registration = threading.Lock()
        self._next_template = 0
        self._functions: dict[bytes, tuple[bytes, list[Any]]] = {}
        self._leases: dict[int, Lease] = {}
        self._dirty: set[KeyState] = set()
        self._lease_timer: Any = None
        self._stall_timer: Any = None
        self._pressure_until = 0.0
        self.tasks: dict[int, TaskRecord] = {}
        self.handlers = {
            m.DONE: self._done,
            m.DONE_MANY: self._done_many,
            m.FAILED: self._failed,
            m.ITEM: self._item,
            m.ARG_LOST: self._arg_lost,
            m.RETURNED: self._returned,
            m.RETIRING: self._retiring,
        }
        self.node_handlers = {
            m.LEASE_GRANT: self._granted,
            m.LEASE_INFEASIBLE: self._infeasible,
            m.LEASE_LOST: self._lost,
            m.LEASE_PRESSURE: self._pressure,
        }

    # ---- any thread ----------------------------------------------------------------------------------

    def key(
        self,
        resources: dict[str, int],
        env: dict[str, str] | None,
        strategy: list[Any] | None,
        retriable: bool = True,
    ) -> KeyState:
        """Any thread: the scheduling key for these needs."""
        name = (
            tuple(sorted(resources.items())),
            tuple(sorted(env.items())) if env else (),
            tuple(strategy) if strategy else (),
            retriable,
        )
        with self._registration:
            key = self._keys.get(name)
            if key is None:
                key = KeyState(len(self._keys) + 1, resources, env, strategy)
                key.retriable = retriable
                self._keys[name] = key
                self._keys_by_id[key.key_id] = key
        return key

    def function(self, function_hash: bytes, payload: bytes, refs: list[Any]) -> None:
        """Any thread: a function (or class) that templates name by its hash; its references live as long as
        this process.
        """
        self._functions.setdefault(function_hash, (payload, refs))

    def template(
        self,
        name: str,
        returns: int,
        function_hash: bytes,
        spec: dict[str, Any],
        options: Any,
        key: KeyState | None,
    ) -> Template:
        """Any thread: the constant part of tasks to come."""
        with self._registration:
            tid = self._next_template = self._next_template + 1
            spec = {"name": name, "returns": returns, "hash": function_hash, **spec}
            template = Template(tid, name, returns, function_hash, spec, options, key)
        return template

    def encode_args(
        self, template: Template, args: Iterable[Any], kwargs: Mapping[str, Any] | None
    ) -> tuple[list[Any], dict[str, Any] | None, list[Any] | None, list[tuple[Any, Entry]] | None]:
        """Any thread: wire values, references to keep, and (place, entry) of arguments that are
        references.
        """
        refs: list[Any] = []
        deps: list[tuple[Any, Entry]] = []
        wire = []
        for position, value in enumerate(args):
            if values.is_atom(value):
                wire.append(value)
            else:
                wire.append(self._encode_arg(template, position, value, refs, deps))
        wire_kwargs = None
        if kwargs:
            wire_kwargs = {
                name: value if values.is_atom(value) else self._encode_arg(template, name, value, refs, deps)
                for name, value in kwargs.items()
            }
        return wire, wire_kwargs, refs or None, deps or None

    def _encode_arg(
        self, template: Template, place: Any, value: Any, refs: list[Any], deps: list[tuple[Any, Entry]]
    ) -> Any:
        runtime = self._runtime
        if isinstance(value, runtime.ref_class):
            refs.append(value)
            deps.append((place, value._entry))
            return None
        label = f"argument {place + 1}" if isinstance(place, int) else f"the argument {place!r}"
        name = f"args[{place}]" if isinstance(place, int) else place
        encoded = values.encode(value, where=f"{label} of {template.name}()", name=name)
        if encoded.size > limits.INLINE_LIMIT and not _outlives_us(template, encoded.size):
            ref = runtime.put_encoded(encoded)
            refs.append(ref)
            deps.append((place, ref._entry))
            return None
        encoded.own()
        refs.extend(encoded.refs)
        return encoded.wire

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
        wire, wire_kwargs, refs, deps = self.encode_args(template, args, kwargs)
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
            self._awake = True
            runtime.wake(self._drain)
        return task

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
            connection.send(task.frame)
        else:
            self._runtime.post(self._send_first, task, lease)
        if lease.dead:
            self._runtime.post(self._rescue, task, lease)
        return True

    def _send_first(self, task: TaskRecord, lease: Lease) -> None:
        if task.lease is lease and task.frame is not None:
            self.prepare(lease.connection, task.template)
            lease.connection.send(task.frame)

    def _rescue(self, task: TaskRecord, lease: Lease) -> None:
        """The lease ended at the moment when a user's thread put the task on it."""
        lease.inflight.pop(task.unique, None)
        if task.lease is lease and task.state == SENT:
            task.lease = None
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
            register(entry, arrived)

    def _resolve(self, task: TaskRecord) -> None:
        """All references in the arguments have outcomes (or one has failed): put the values in and pack."""
        if task.state != WAITING:
            return
        deps, task.deps = task.deps or [], None
        for place, entry in deps:
            if entry.state == FAILED:
                entry.seen = True
                self._finish(task, entry.value)
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
        pack = self._runtime.pack
        task.frame = pack((m.TASK, task.unique, task.template.tid, task.args, task.kwargs, task.extra))
        task.args, task.kwargs = [], None
        if task.actor is not None:
            task.actor.resolved(task)
        else:
            self.ready(task)

    def ready(self, task: TaskRecord) -> None:
        """It can be sent: queue it for its actor or for a worker."""
        if task.actor is not None:
            task.actor.enqueue(task)
            task.actor.resolved(task)
            return
        key: KeyState = task.template.key
        if key.infeasible is not None:
            self.fail(task, _unschedulable(task, key.infeasible))
            return
        key.enqueue(task)
        self._dirty.add(key)

    # ---- sending -------------------------------------------------------------------------------------

    def flush_dirty(self) -> None:
        """Send what can be sent, for all keys where something changed."""
        while self._dirty:
            key = self._dirty.pop()
            touched: set[Lease] = set()
            for lease, task in key.dispatch():
                connection = lease.connection
                self.prepare(connection, task.template)
                connection.buffer(task.frame)
                touched.add(lease)
            for lease in touched:
                lease.connection.flush()
                if lease.connection.full and not lease.full:
                    lease.full = True
                    lease.connection.when_drained(partial(self._drained, lease))
            self._tell_demand(key)
        if self._leases:
            self._tend_leases()

    def _drained(self, lease: Lease) -> None:
        """Its worker takes what is sent to it again."""
        lease.full = False
        self._dirty.add(lease.key)
        self._runtime.flush_soon()

    def _tell_demand(self, key: KeyState) -> None:
        node = self._runtime.node
        if node is None:
            return
        seen = key.seen
        wanted = key.wanted()
        if wanted is not None:
            if seen == 0 and not node.state.get(key.key_id):
                node.state[key.key_id] = True
                node.cast(m.LEASE_KEY, key.key_id, key.resources, key.env, key.strategy, key.retriable)
            node.cast(m.LEASE_DEMAND, key.key_id, wanted, seen)

    def node_connected(self) -> None:
        """There is a node to ask now."""
        self._dirty.update(key for key in self._keys.values() if key.pending)
        self.flush_dirty()

    def prepare(self, connection: Connection, template: Template) -> None:
        """The peer must know the template and its function before the first frame that names it."""
        state: PeerState = connection.state
        if template.tid in state.templates:
            return
        state.templates.add(template.tid)
        if template.function_hash and template.function_hash not in state.functions:
            state.functions.add(template.function_hash)
            payload, _ = self._functions[template.function_hash]
            connection.buffer(connection.pack((m.FUNCTION, template.function_hash, payload)))
        connection.buffer(connection.pack((m.TEMPLATE, template.tid, template.spec)))

    # ---- leases --------------------------------------------------------------------------------------

    def _granted(self, node: Connection, frame: Frame) -> None:
        _, key_id, lease_id, worker_id, address, gpus = frame
        key = self._keys_by_id[key_id]
        now = self._loop.time()
        connection = self._runtime.peers.connect(address)
        if connection is None:
            # Dead before we could use it: the node will hear, too.
            key.seen += 1
            key.demand_sent = max(0, key.demand_sent - 1)
            node.cast(m.LEASE_RETURN, lease_id)
        else:
            lease = Lease(lease_id, key, worker_id, address, gpus, connection, now)
            key.granted(lease)
            self._leases[lease_id] = lease
            connection.state.leases[lease_id] = lease
            omp = key.resources.get("CPU", 0) // 10_000
            connection.buffer(connection.pack((m.LEASE_BEGIN, lease_id, gpus, omp)))
        self._dirty.add(key)
        self.flush_dirty()

    def _infeasible(self, node: Connection, frame: Frame) -> None:
        _, key_id, forever, error, text = frame
        key = self._keys_by_id[key_id]
        if forever:
            key.infeasible = text
        key.demand_sent = 0
        tasks = [task for task in key.pending if task.state == QUEUED]
        key.pending.clear()
        for task in tasks:
            if forever:
                self.fail(task, _unschedulable(task, text))
            elif error == "RuntimeEnvSetupError":
                variables = ", ".join(key.env or ())
                self.fail(
                    task,
                    RuntimeEnvSetupError(
                        f"{task.template.name}() could not run with the env_vars of its runtime_env "
                        f"({variables}): {text}"
                    ),
                )
            else:
                self.fail(task, WorkerCrashedError(f"{task.template.name}() could not run: {text}"))

    def _tend_leases(self) -> None:
        now = self._loop.time()
        if now < self._pressure_until:
            self._return_idle(0.0)
        if self._lease_timer is None and self._leases:
            self._lease_timer = self._loop.call_later(limits.LEASE_IDLE, self._lease_tick)
        if self._stall_timer is None and any(len(lease.inflight) > 1 for lease in self._leases.values()):
            self._stall_timer = self._loop.call_later(limits.STALL, self._stall_tick)

    def _lease_tick(self) -> None:
        self._lease_timer = None
        self._return_idle(limits.LEASE_IDLE * 0.8)
        if self._leases:
            self._lease_timer = self._loop.call_later(limits.LEASE_IDLE, self._lease_tick)

    def _return_idle(self, age: float) -> None:
        now = self._loop.time()
        node = self._runtime.node
        for key in {lease.key for lease in self._leases.values()}:
            for lease in key.take_idle(now, age):
                self._forget(lease)
                if node is not None:
                    node.cast(m.LEASE_RETURN, lease.lease_id)

    def _forget(self, lease: Lease) -> list[TaskRecord]:
        self._leases.pop(lease.lease_id, None)
        lease.connection.state.leases.pop(lease.lease_id, None)
        return lease.key.lost(lease)

    def _pressure(self, node: Connection, frame: Frame) -> None:
        self._pressure_until = self._loop.time() + 1.0
        self._return_idle(0.0)

    def _stall_tick(self) -> None:
        self._stall_timer = None
        now = self._loop.time()
        again = False
        for key in {lease.key for lease in self._leases.values()}:
            for lease in key.stalled(now):
                lease.reclaiming = True
                lease.connection.cast(m.RECLAIM, len(lease.inflight) - 1)
            again = again or any(len(lease.inflight) > 1 for lease in key.leases.values())
        if again:
            self._stall_timer = self._loop.call_later(limits.STALL, self._stall_tick)

    def _returned(self, connection: Connection, frame: Frame) -> None:
        _, uniques, blocked = frame
        now = self._loop.time()
        by_lease: dict[Lease, list[int]] = {}
        for unique in uniques:
            task = self.tasks.get(unique)
            if task is not None and task.lease is not None:
                by_lease.setdefault(task.lease, []).append(unique)
        for lease in connection.state.leases.values():
            lease.reclaiming = False
            if blocked:
                lease.blocked = True
            else:
                lease.progress = now
                # Its running task is slow after all: it takes no more before that is done.
                lease.load = max(lease.load, limits.LEASE_BUDGET_US) if lease.inflight else lease.load
        for lease, group in by_lease.items():
            for task in lease.key.handed_back(lease, group, now):
                if task.template.mean_us is not None:
                    task.template.mean_us = max(task.template.mean_us, limits.STALL * 1e6 / 4)
            lease.blocked = blocked
            self._dirty.add(lease.key)

    def _retiring(self, connection: Connection, frame: Frame) -> None:
        for lease in connection.state.leases.values():
            lease.retiring = True
        if connection.state.address:
            connection.state.templates.clear()

    def peer_lost(self, connection: Connection) -> None:
        """The connection to a worker is gone: the node will say why (LEASE_LOST)."""
        for lease in list(connection.state.leases.values()):
            lease.retiring = True
            if lease.verdict is not None:
                self._lose(*lease.verdict)
                self._runtime.flush_soon()
            else:
                verdict = (lease.lease_id, 0, 0, "the connection to it was lost", "")
                self._loop.call_later(limits.DEATH_VERDICT_TIMEOUT, self._lose, *verdict)

    def _lost(self, node: Connection, frame: Frame) -> None:
        verdict = frame[1:]
        lease = self._leases.get(verdict[0])
        if lease is None:
            return
        if lease.connection.closed:
            self._lose(*verdict)
            self.flush_dirty()
            return
        # The node's word has overtaken what the worker has still said: that is read first, so that no task
        # that was done runs again. The end of the connection may not come, if user code has forked a process
        # that holds it open.
        lease.retiring = True
        lease.verdict = verdict
        self._loop.call_later(limits.EXIT_GRACE, self._lose, *verdict)

    def _lose(self, lease_id: int, running: int, pid: int, detail: str, kind: str) -> None:
        lease = self._leases.get(lease_id)
        if lease is None:
            return
        lease.connection.close()
        tasks = self._forget(lease)
        self._dirty.add(lease.key)
        # `running` is what the worker had begun. If it is not among ours, none of ours had started: no retry
        # is spent.
        for task in reversed(tasks):
            if task.cancelled is not None:
                self._finish(task, self._cancel_error(task))
            elif task.unique != running:
                task.state = QUEUED
                lease.key.pending.appendleft(task)
            elif kind == "memory":
                self._out_of_memory(task, pid, detail)
            elif self._survives(task):
                self._retry(task, f"its worker (pid={pid}) died: {detail}")
            else:
                self._discard_results(task)
                self.fail(task, _crashed(task, pid, detail))

    def _out_of_memory(self, task: TaskRecord, pid: int, detail: str) -> None:
        """Its worker was ended because memory ran out. That has a budget of its own: the task may be
        innocent.
        """
        task.oom_failures += 1
        if task.template.options.max_retries == 0 or task.oom_failures > limits.OOM_RETRIES:
            tried = f"It was tried {task.oom_failures} time(s)"
            self._discard_results(task)
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
    def _survives(task: TaskRecord) -> bool:
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
                self._end_retired(lease)
            self._dirty.add(key)
        elif task.actor is not None:
            task.actor.finished(task)
        return task

    def _end_retired(self, lease: Lease) -> None:
        """Its worker is about to exit: the node takes the lease back when it sees that."""
        self._forget(lease)

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
        self._settle(task)
        nested = False
        complete = self._objects.replace if task.stands_for else self._objects.complete
        for entry, value in zip(task.entries, results, strict=False):
            nested = nested or bool(type(value) is list and values.nested_refs(value))
            complete(entry, value)
        if nested:
            self._objects.release_when_registered(connection, unique, 1)

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
            self._finish(task, self._cancel_error(task))
        elif retryable and self._survives(task):
            self._retry(task, "it raised an exception")
        else:
            if len(task.entries) > 1:
                self._discard_results(task)
            self._finish(task, error)
        if values.nested_refs(error):
            self._objects.release_when_registered(connection, unique, 1)

    def _discard_results(self, task: TaskRecord) -> None:
        """It has failed for good, after it may have put results, or some of them, into the store."""
        if task.again is not None:
            return  # they belong to entries already
        self._runtime.store.client.free([entry.id for entry in task.entries])

    def _arg_lost(self, connection: Connection, frame: Frame) -> None:
        """The worker could not find an argument in the store."""
        _, unique, object_id = frame
        task = self._take(unique, None)
        if task is None:
            return
        task.state = WAITING
        if task.cancelled is not None:
            self._finish(task, self._cancel_error(task))
        elif not self._runtime.lineage.lost_argument(task, object_id):
            self.fail(task, ObjectLostError(object_id.hex(), f"It is an argument of {task.template.name}()"))

    def fail_wire(self, task: TaskRecord, error: Any) -> None:
        """The task fails with this error (wire form or exception)."""
        self._finish(task, error)

    def _retry(self, task: TaskRecord, why: str) -> None:
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
        """The task is done: let go of everything that it kept."""
        task.state = FINISHED
        del self.tasks[task.unique]
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
            self._discard_results(task)
        self._finish(task, error if task.cancelled is None else self._cancel_error(task))

    def fail(self, task: TaskRecord, error: BaseException) -> None:
        """The task cannot be done."""
        self._finish(task, error)

    def settle(self, task: TaskRecord) -> None:
        """For streams, which end in their own way."""
        if task.state != FINISHED:
            self._settle(task)

    # ---- ends ----------------------------------------------------------------------------------------

    def _cancel_error(self, task: TaskRecord) -> FrameworkError:
        reason = task.cancelled or ""
        task_id = task.entries[0].id[:24].hex() if task.entries else None
        if reason == "timeout":
            return _timeout_error(task, task_id)
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
            self._finish(task, self._cancel_error(task))
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
            self._finish(task, self._cancel_error(task))
        elif task.state == SENT and task.lease is not None and self._runtime.node is not None:
            self._runtime.node.cast(m.KILL_WORKER, task.lease.worker_id, why)

    def node_lost(self, error: LocalNodeDiedError) -> None:
        """Nothing more can run."""
        for task in list(self.tasks.values()):
            self._finish(task, error)
        for key in self._keys.values():
            key.pending.clear()
        self._leases.clear()
        self._dirty.clear()

    def close(self) -> None:
        """No more timers."""
        for timer in (self._lease_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()


def _outlives_us(template: Template, size: int) -> bool:
    """Whether this is an argument of a detached actor, which may be restarted when this process, and what it
    has put into the store, is gone: it travels in the actor's description, which the head keeps."""
    return size <= limits.DETACHED_INLINE_LIMIT and getattr(template.options, "lifetime", None) == "detached"


def _crashed(task: TaskRecord, pid: int, detail: str) -> WorkerCrashedError:
    attempts = task.app_failures + 1
    times = "once" if attempts == 1 else f"{attempts} times"
    most = task.template.options.max_retries
    return WorkerCrashedError(
        f"{task.template.name}() was tried {times} (max_retries={most})", pid=pid or None, exit_detail=detail
    )


def _timeout_error(task: TaskRecord, task_id: str | None) -> TaskTimeoutError:
    where = {
        WAITING: "its arguments were not ready yet",
        QUEUED: "it was still waiting for a free worker",
    }.get(task.state, "it was running")
    own = task.timeout
    if own is not None:
        text = f"{task.template.name}() did not finish within its timeout of {own:g} s: {where}"
    else:
        text = f"{task.template.name}() did not finish within the timeout of the task that called it: {where}"
    return TaskTimeoutError(text, task_id=task_id, timeout=own)


def _unschedulable(task: TaskRecord, text: str) -> TaskUnschedulableError:
    return TaskUnschedulableError(
        f"{task.template.name}() can never be scheduled: {text}. Ask for less, or start the cluster with more"
    )
