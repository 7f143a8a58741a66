"""Actors, the caller's side: creation through the head, calls straight to the actor's worker, in order."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.ids import SEVERAL_TASKS
from framework._net.connection import Connection, Frame
from framework._runtime.actor_errors import death_error, poison_error, unavailable_error
from framework._runtime.waiters import register
from framework._serial import values
from framework._serial.errors import error_from_wire
from framework._state.fates import Fate, fates
from framework._state.objects import FAILED, Entry
from framework._state.suspects import Suspects
from framework._state.tasks import FINISHED, QUEUED, SENT, TaskRecord
from framework._wire import messages as m
from framework.exceptions import (
    ActorDiedError,
    FrameworkError,
    PendingCallsLimitExceeded,
)

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime

log = logging.getLogger("framework")

PENDING = "PENDING_CREATION"
ALIVE = "ALIVE"
RESTARTING = "RESTARTING"
DEAD = "DEAD"


class ActorClient:
    """What this process knows of one actor, and its calls to it. Calls leave in the order in which they were
    made: one whose arguments are not there yet holds up those behind it, unless the actor is `unordered`:
    then it is `parked` beside the queue, and takes its place there when they are."""

    __slots__ = (
        "_actors",
        "_handover",
        "actor_id",
        "class_name",
        "connection",
        "creation",
        "detached",
        "draining",
        "error",
        "first",
        "held",
        "incarnation",
        "inflight",
        "kept",
        "known",
        "last",
        "lost_connection",
        "open",
        "parked",
        "queue",
        "restartable",
        "running",
        "state",
        "subscribers",
        "suspects",
        "templates",
        "text",
        "unordered",
    )

    def __init__(self, actors: Actors, actor_id: bytes, class_name: str) -> None:
        self._actors = actors
        #: held by whoever puts calls in flight from outside of the loop, and by the loop when it takes them
        #: all out again
        self._handover = threading.Lock()
        self.actor_id = actor_id
        self.class_name = class_name
        self.state = PENDING
        self.incarnation = 0
        self.connection: Connection | None = None
        self.lost_connection = False
        self.unordered = False
        self.queue: deque[TaskRecord] = deque()
        #: calls that wait for their arguments, where they may be overtaken
        self.parked: dict[int, TaskRecord] = {}
        self.inflight: dict[int, TaskRecord] = {}
        self.first = self.last = 0  #: the lowest and highest numbers of calls that were sent
        self.suspects = Suspects()
        self.held: asyncio.TimerHandle | None = None  #: looks again whether the next call may leave
        self.running = SEVERAL_TASKS  #: what the last process had begun when it died
        self.error: BaseException | None = None
        #: done when its constructor is; freed when the last handle is gone
        self.creation: Entry | None = None
        self.open: set[int] = set()  #: calls that may not be done; only where their number is limited
        self.known = False  #: the head reports to us
        #: told, on the loop, of each new state: (state, detail)
        self.subscribers: list[Callable[[str, dict[str, Any]], None]] = []
        self.detached = self.restartable = False
        #: to a process that has ended: what it has still answered is being read
        self.draining: Connection | None = None
        #: references in the arguments of its constructor, in the process that made it
        self.kept: list[Any] | None = None
        self.text = "the reason is not known"  #: why it was restarted
        #: of its methods, shared by all handles in this process
        self.templates: dict[tuple[Any, ...], Any] = {}

    def enqueue(self, task: TaskRecord) -> None:
        """A call takes its place in the order; it is sent when it and all before it are `resolved`."""
        if self.state == DEAD:
            self._actors.runtime.submitter.fail(task, self.death())
        elif self.unordered and task.frame is None:
            self.parked[task.unique] = task
        else:
            self.queue.append(task)

    def resolved(self, task: TaskRecord) -> None:
        """Its arguments are known."""
        if task.state != FINISHED:
            task.state = QUEUED
            if self.parked and self.parked.pop(task.unique, None) is not None:
                self.queue.append(task)
            self._actors.dirty.add(self)

    def send_alone(self, task: TaskRecord) -> bool:
        """A user's thread: send a call at once, if nothing is under way that it could overtake."""
        connection = self.connection
        if (
            connection is None
            or self.inflight
            or self.queue
            or task.template.tid not in connection.state.templates
        ):
            return False
        if not self._handover.acquire(False):
            return False
        try:
            # In this order: a call on its way leaves `busy` for the queue, and the queue for what is in
            # flight. Looked at the other way round, it could slip past.
            busy = self._actors.runtime.submitter.busy
            if busy or self.queue or self.inflight or self.connection is not connection:
                return False
            frame = task.frame
            assert frame is not None
            task.state = SENT
            self.inflight[task.unique] = task
            self._count(task.unique)
        finally:
            self._handover.release()
        # If the connection is lost from here on, the loop knows of the call and judges it with all others in
        # flight.
        task.alone = connection
        connection.send(frame)
        return True

    def _count(self, unique: int) -> None:
        if not self.first:
            self.first = unique
        self.last = unique

    def check_pending(self, limit: int) -> None:
        """Any thread: `PendingCallsLimitExceeded` when that many calls of this process are not done."""
        if len(self.open) >= limit:
            tasks = self._actors.runtime.submitter.tasks
            self.open = {unique for unique in list(self.open) if unique in tasks}
            if len(self.open) >= limit:
                raise PendingCallsLimitExceeded(
                    f"{limit} calls of this process to the actor {self.class_name} are not done, as many as "
                    "its max_pending_calls allows: wait for some of them before the next"
                )

    def disconnect(self) -> None:
        """No call leaves any more."""
        with self._handover:
            self.connection = None

    def take_inflight(self) -> list[TaskRecord]:
        """Disconnect and take all calls out that had been sent."""
        with self._handover, self._actors.runtime.submitter.outcome:
            self.connection = None
            tasks, self.inflight = list(self.inflight.values()), {}
        return tasks

    def judged(self) -> list[tuple[TaskRecord, Fate]]:
        """The process has ended: all calls that had been sent, taken out, and what has become of them."""
        tasks = self.take_inflight()
        sent = [task.unique for task in tasks]
        if self.unordered and self.running not in (0, SEVERAL_TASKS, *sent):
            return [(task, Fate.BEGUN) for task in tasks]  # numbers tell nothing of the order
        return list(zip(tasks, fates(sent, self.running, self.first, self.last), strict=True))

    def pump(self) -> None:
        """Send what can be sent."""
        connection = self.connection
        if connection is None or self.state != ALIVE or connection.closed:
            return
        queue, inflight = self.queue, self.inflight
        prepare = self._actors.runtime.catalogue.prepare
        sent, now = False, self._actors.runtime.loop.time()
        while queue and len(inflight) < limits.MAX_PENDING_PER_ACTOR_CONNECTION:
            task = queue[0]
            if task.state == FINISHED:
                queue.popleft()
                continue
            if task.frame is None or task.state != QUEUED:
                break
            if connection.full:
                connection.when_drained(self._go_on)
                break
            if inflight and (task.strikes or self.suspects.alone) and self._hold(task):
                break
            self.suspects.sent(task.unique, task.strikes, now)
            task.state = SENT
            # Before it leaves the queue: `send_alone` must see it in one of them.
            inflight[task.unique] = task
            self._count(task.unique)
            queue.popleft()
            prepare(connection, task.template)
            connection.buffer(task.frame)
            sent = True
        if sent:
            connection.flush()

    def _hold(self, task: TaskRecord) -> bool:
        """Whether a call must wait, as it, or one that is under way, may be what ends the process."""
        loop = self._actors.runtime.loop
        left = self.suspects.hold(task.strikes, loop.time())
        if left and self.held is None:
            self.held = loop.call_later(left, self._go_on)
        return left > 0

    def _go_on(self) -> None:
        self.held = None
        self._actors.dirty.add(self)
        self._actors.runtime.flush_soon()

    def finished(self, task: TaskRecord) -> None:
        """A call is over."""
        if self.parked:
            self.parked.pop(task.unique, None)
        sent = self.inflight.pop(task.unique, None) is not None
        self.suspects.ended(task.unique)
        if self.queue:
            self._actors.dirty.add(self)
            if not sent:  # it ended in the queue, and may have held up those behind it
                self._actors.runtime.flush_soon()

    def connection_of(self, task: TaskRecord) -> Connection | None:
        return self.connection if task.unique in self.inflight else None

    def tell(self, state: str, detail: dict[str, Any]) -> None:
        """The subscribers hear of a new state."""
        for subscriber in self.subscribers:
            subscriber(state, detail)

    @property
    def ended(self) -> bool:
        """Whether the actor is dead for good."""
        return self.state == DEAD

    def death(self) -> BaseException:
        return self.error or ActorDiedError(
            "it has ended", actor_id=self.actor_id.hex(), class_name=self.class_name
        )


class Actors:
    """The clients of all actors that this process has handles of. Methods run on the loop unless they say
    otherwise."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.dirty: set[ActorClient] = set()
        self._clients: dict[bytes, ActorClient] = {}
        self._creations: dict[bytes, ActorClient] = {}
        self._draining: set[ActorClient] = set()
        self.head_handlers = {m.ACTOR_STATE: self._state}

    def client(self, actor_id: bytes, class_name: str) -> ActorClient:
        """Any thread: the client for this actor."""
        client = self._clients.get(actor_id)
        if client is None:
            client = self._clients.setdefault(actor_id, ActorClient(self, actor_id, class_name))
            self.runtime.post(self._watch, client)
        return client

    def _watch(self, client: ActorClient) -> None:
        if client.known:
            return
        client.known = True
        head = self.runtime.connect_head()
        if head is None:
            self._dead(client, {"text": "the head of the cluster cannot be reached"})
        else:
            head.cast(m.ACTOR_WATCH, client.actor_id)

    def flush(self) -> None:
        """Send what can be sent."""
        while self.dirty:
            self.dirty.pop().pump()

    # ---- creation ------------------------------------------------------------------------------------

    def create(
        self,
        actor_id: bytes,
        spec: dict[str, Any],
        deps: list[tuple[Any, Entry]] | None,
        refs: list[Any] | None,
        creation: Entry,
    ) -> None:
        """Any thread: register a new actor when its constructor's arguments are there."""
        client = ActorClient(self, actor_id, spec["class_name"])
        client.known = True
        client.creation = creation
        client.detached = spec["lifetime"] == "detached"
        client.restartable = bool(spec["max_restarts"])
        creation.task = client
        self._clients[actor_id] = client
        self._creations[creation.id] = client
        self.runtime.post(self._admit, client, spec, deps or [], refs)

    def _admit(
        self, client: ActorClient, spec: dict[str, Any], deps: list[tuple[Any, Entry]], refs: list[Any] | None
    ) -> None:
        missing = {id(entry): entry for _, entry in deps if not entry.state}
        if not missing and not any(entry.state == FAILED for _, entry in deps):
            self._register(client, spec, deps, refs)
            return
        # Announce it, so that its name is taken, and others who get a handle learn that it is to come.
        self._tell_head(client, {**spec, "payload": b"", "args": [], "kwargs": None, "waiting": True})
        if not missing:
            self._register(client, spec, deps, refs)
            return

        def arrived(entry: Entry) -> None:
            if missing.pop(id(entry), None) is not None and (not missing or entry.state == FAILED):
                missing.clear()
                self._register(client, spec, deps, refs)

        for entry in list(missing.values()):
            self.runtime.objects.need(entry)
            register(entry, arrived)

    def _register(
        self, client: ActorClient, spec: dict[str, Any], deps: list[tuple[Any, Entry]], refs: list[Any] | None
    ) -> None:
        """The arguments of its constructor are there: it can be started."""
        if client.state == DEAD:
            return
        for place, entry in deps:
            if entry.state == FAILED:
                self._argument_failed(client, entry)
                return
            value = entry.value
            if values.must_be_fetched(value):
                value = [values.FORM_REFERENCE, entry.id, entry.owner or self.runtime.address]
            if isinstance(place, int):
                spec["args"][place] = value
            else:
                spec["kwargs"][place] = value
        client.kept = refs  # until it has them; for longer if it may be started again with the same arguments
        self._tell_head(client, spec)

    def _argument_failed(self, client: ActorClient, entry: Entry) -> None:
        entry.seen = True
        text = "an argument of its constructor has failed"
        head = self.runtime.connect_head()
        if head is not None:
            # For others who have its handle.
            reason = f"{text}: {error_from_wire(self.runtime.objects.wire(entry))}"
            head.cast(m.ACTOR_END, client.actor_id, 0, True, reason)
        self._dead(client, {"text": text, "error": self.runtime.objects.wire(entry)})

    def _tell_head(self, client: ActorClient, spec: dict[str, Any]) -> None:
        head = self.runtime.connect_head()
        if head is None:
            self._dead(client, {"text": "the head of the cluster cannot be reached"})
            return
        future = head.call(m.ACTOR_CREATE, client.actor_id, spec)
        future.add_done_callback(lambda f: self._created(client, f))

    def _created(self, client: ActorClient, future: Any) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None and client.state != DEAD:
            client.error = error if isinstance(error, FrameworkError) else FrameworkError(str(error))
            self._dead(client, {"text": str(error)})

    # ---- what the head says --------------------------------------------------------------------------

    def _state(self, head: Connection, frame: Frame) -> None:
        _, actor_id, state, address, incarnation, detail = frame
        client = self._clients.get(actor_id)
        if client is None or client.state == DEAD:
            return
        if state == client.state == ALIVE and client.lost_connection and incarnation == client.incarnation:
            # (The answer to `_no_verdict`.) If its process has ended, the head hears of it in a moment.
            self.runtime.loop.call_later(limits.EXIT_GRACE, self._cut_off, client, incarnation)
            return
        if client.draining is not None and incarnation != client.incarnation:
            self._judge(client)  # by what that process had begun, not by what its successor has
        client.incarnation = incarnation
        if detail is not None:
            client.running = detail.get("running", SEVERAL_TASKS)
        if state == ALIVE:
            client.state = ALIVE
            client.lost_connection = False
            self._connect(client, address)
            client.tell(ALIVE, {})
        elif state == RESTARTING:
            client.state = RESTARTING
            client.text = (detail or {}).get("text") or client.text
            self._drain(client)
            client.tell(RESTARTING, detail or {})
        elif state == DEAD:
            self._dead(client, detail or {})
        self.runtime.flush_soon()

    def _connect(self, client: ActorClient, address: str) -> None:
        if client.draining is not None:
            self._judge(client)
        connection = self.runtime.peers.connect(address)
        client.connection = connection
        if connection is None:
            self._unreachable(client, address)
            return
        self.dirty.add(client)
        if not client.restartable:
            client.kept = None
        if client.creation is not None and not client.creation.state:
            self.runtime.objects.complete(client.creation, None)

    def _unreachable(self, client: ActorClient, address: str) -> None:
        """It has died again, and the head will say; or too many connect at once, or there are no descriptors
        left here."""
        loop, incarnation = self.runtime.loop, client.incarnation
        over = loop.time() + limits.DEATH_VERDICT_TIMEOUT

        def again() -> None:
            if client.state != ALIVE or client.incarnation != incarnation or client.connection is not None:
                return
            if self.runtime.peers.connect(address) is not None:
                self._connect(client, address)
                self.runtime.flush_soon()
            elif loop.time() < over:
                loop.call_later(limits.CONNECT_AGAIN, again)
            else:
                client.lost_connection = True
                self._no_verdict(client, incarnation)

        loop.call_later(limits.CONNECT_AGAIN, again)

    def _drain(self, client: ActorClient) -> None:
        """Its process has ended. What it has still answered is read first; then the calls without an answer
        are judged."""
        connection = client.connection
        client.disconnect()
        if client.draining is None:
            client.draining = connection
        if client.draining is None or client.draining.closed or not client.inflight:
            self._judge(client)
        else:
            self._draining.add(client)
            self.runtime.loop.call_later(limits.EXIT_GRACE, self._drained, client, client.draining)

    def _drained(self, client: ActorClient, connection: Connection) -> None:
        if client.draining is connection:
            self._judge(client)

    def _judge(self, client: ActorClient) -> None:
        client.draining = None
        self._draining.discard(client)
        again = []
        now, suspects = self.runtime.loop.time(), client.suspects
        for task, fate in client.judged():
            task.strikes += fate is Fate.STRUCK and not suspects.spares(task.unique, now)
            free = fate is Fate.UNTOUCHED
            if client.state == DEAD:
                self.runtime.submitter.lost(task, client.death())
            elif task.cancelled is None and (free or (task.retries and task.strikes < limits.POISON_DEATHS)):
                task.retries -= task.retries > 0 and not free
                task.state = QUEUED
                if task.stream is not None:
                    task.stream.restart()
                again.append(task)
            elif task.strikes >= limits.POISON_DEATHS:
                self.runtime.submitter.lost(task, poison_error(client, task))
            else:
                self.runtime.submitter.lost(task, unavailable_error(client, task))
        client.queue.extendleft(reversed(again))
        suspects.restarted()

    def _dead(self, client: ActorClient, detail: dict[str, Any]) -> None:
        client.state = DEAD
        client.kept = None
        if client.error is None:
            client.error = death_error(client, detail)
        calls, client.queue = [*client.queue, *client.parked.values()], deque()
        client.parked = {}
        creation = client.creation
        if creation is not None and (calls or client.inflight or detail.get("error") is None):
            creation.seen = True  # the error was or will be seen by callers, or is no news
        self._drain(client)
        for task in calls:
            self.runtime.submitter.lost(task, client.error)
        if creation is None or creation.id not in self._creations:
            # Handles that are here keep it; for those to come, the head remembers.
            self._clients.pop(client.actor_id, None)
        if creation is not None:
            self.runtime.objects.fail(creation, client.error)
        client.tell(DEAD, detail)

    def peer_lost(self, connection: Connection) -> None:
        """A connection to a worker is gone: if actors lived there, the head will say what became of them."""
        for client in {*self._clients.values(), *self._draining}:
            if client.draining is connection:
                self._judge(client)
            elif client.connection is connection:
                client.disconnect()
                client.lost_connection = True
                self.runtime.loop.call_later(
                    limits.DEATH_VERDICT_TIMEOUT, self._no_verdict, client, client.incarnation
                )

    def _no_verdict(self, client: ActorClient, incarnation: int) -> None:
        """Ask: the head may have been held up."""
        head = self.runtime.connect_head()
        if client.lost_connection and client.incarnation == incarnation and head is not None:
            head.cast(m.ACTOR_WATCH, client.actor_id)

    def _cut_off(self, client: ActorClient, incarnation: int) -> None:
        if client.lost_connection and client.incarnation == incarnation and client.state == ALIVE:
            self._dead(
                client,
                {"text": "its process cannot be reached any more, and the head does not know why"},
            )

    # ---- supervision ---------------------------------------------------------------------------------

    def subscribe(self, client: ActorClient, subscriber: Callable[[str, dict[str, Any]], None]) -> None:
        """Loop: have `subscriber` called with (state, detail) now, if it lives or is dead, and at every
        change.
        """
        client.subscribers.append(subscriber)
        if client.state in (ALIVE, DEAD):
            subscriber(client.state, {})

    def end(self, client: ActorClient, force: bool, reason: str) -> None:
        """Loop: end an actor of this process for good. Without `force`, after the calls under way."""
        head = self.runtime.connect_head()
        if head is not None:
            head.cast(m.ACTOR_END, client.actor_id, client.incarnation, force, reason)

    def error_of(self, client: ActorClient, detail: dict[str, Any]) -> BaseException:
        """What the callers of an actor are told that has ended so."""
        return death_error(client, detail) if client.state != DEAD else client.death()

    # ---- ends ----------------------------------------------------------------------------------------

    def freed(self, creation_id: bytes) -> None:
        """The last handle is gone: the actor may end, after the calls that are under way."""
        client = self._creations.pop(creation_id, None)
        if client is None:
            return
        client.creation = None
        if not client.detached:
            client.kept = None
        if client.state == DEAD:
            self._clients.pop(client.actor_id, None)
            return
        # The client stays until the actor is dead: handles that were found by name may still be in use.
        head = self.runtime.head
        if head is not None and not head.closed:
            head.cast(
                m.ACTOR_END,
                client.actor_id,
                client.incarnation,
                False,
                "its last handle has gone out of scope",
            )

    def owns_living(self) -> bool:
        """Whether actors that this process has created would end with it: those that live and are not
        detached."""
        return any(c.state != DEAD and not c.detached for c in self._creations.values())

    def head_lost(self, error: BaseException) -> None:
        """No head, no actors."""
        for client in list(self._clients.values()):
            if client.state != DEAD:
                client.error = error
                self._dead(client, {})
