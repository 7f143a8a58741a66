"""What a process knows of one actor, and its calls to it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.ids import SEVERAL_TASKS
from framework._net.connection import Connection
from framework._runtime.frames import send_tasks
from framework._state.fates import Fate, fates
from framework._state.objects import Entry
from framework._state.suspects import Suspects
from framework._state.tasks import FINISHED, QUEUED, SENT, TaskRecord
from framework.exceptions import ActorDiedError, PendingCallsLimitExceeded

if TYPE_CHECKING:
    from framework._runtime.actors import Actors

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
        "ending",
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
        #: what the head was told to do with it, until that is done
        self.ending: tuple[object, ...] | None = None
        #: to a process that has ended: what it has still answered is being read
        self.draining: Connection | None = None
        #: references in the arguments of its constructor, in the process that made it
        self.kept: list[Any] | None = None
        #: why it was restarted; empty where it was not, and only the connection to it was lost
        self.text = "the reason is not known"
        #: of its methods, shared by all handles in this process
        self.templates: dict[tuple[Any, ...], Any] = {}

    def enqueue(self, task: TaskRecord) -> None:
        """A call takes its place in the order; it is sent when it and all before it are `resolved`."""
        if self.state == DEAD:
            self._actors.runtime.submitter.fail(task, self.death())
        elif self.unordered and task.deps is not None:
            self.parked[task.unique] = task
        else:
            self.queue.append(task)

    def resolved(self, task: TaskRecord) -> None:
        """Its arguments are known."""
        if task.state != FINISHED:
            task.state = QUEUED
            if self.parked and self.parked.pop(task.unique, None) is not None:
                self.queue.append(task)
            self._actors.dirty[self] = None

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
            assert frame is not None  # see `Submitter._send_alone`
            task.state = SENT
            self.inflight[task.unique] = task
            self._count(task.unique)
        finally:
            self._handover.release()
        # If the connection is lost from here on, the loop knows of the call and judges it with all others in
        # flight.
        self._actors.runtime.direct.sends(task, connection)
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
        prepare = self._actors.runtime.catalogue.prepare
        while tasks := self._take_calls(connection):
            send_tasks(connection, tasks, prepare)

    def _take_calls(self, connection: Connection) -> list[TaskRecord]:
        """The next calls that may leave now, which are in flight from here on: not too many at a time, as
        they may fill the connection."""
        queue, inflight, suspects = self.queue, self.inflight, self.suspects
        now = self._actors.runtime.loop.time()
        taken: list[TaskRecord] = []
        room = limits.SEND_CHUNK
        left = min(limits.MAX_PENDING_PER_ACTOR_CONNECTION - len(inflight), limits.TASKS_IN_FRAME)
        careful = suspects.alone or suspects.since is not None
        while queue and left > 0 and room > 0:
            task = queue[0]
            if task.state != QUEUED or task.deps is not None:
                if task.state != FINISHED:
                    break
                queue.popleft()
                continue
            if connection.full:
                connection.when_drained(self._go_on)
                break
            unique = task.unique
            if careful or task.strikes:
                strikes = task.strikes
                if inflight and (strikes or suspects.alone) and self._hold(task):
                    break
                suspects.sent(unique, strikes, now)
                careful = suspects.alone or suspects.since is not None
            task.state = SENT
            # Before it leaves the queue: `send_alone` must see it in one of them.
            inflight[unique] = task
            if not self.first:
                self.first = unique
            self.last = unique
            queue.popleft()
            taken.append(task)
            left -= 1
            if task.frame is not None:
                room -= len(task.frame)
        return taken

    def _hold(self, task: TaskRecord) -> bool:
        """Whether a call must wait, as it, or one that is under way, may be what ends the process."""
        loop = self._actors.runtime.loop
        left = self.suspects.hold(task.strikes, loop.time())
        if left and self.held is None:
            self.held = loop.call_later(left, self._go_on)
        return left > 0

    def _go_on(self) -> None:
        self.held = None
        self._actors.dirty[self] = None
        self._actors.runtime.flush_soon()

    def finished(self, task: TaskRecord) -> None:
        """A call is over."""
        if self.parked:
            self.parked.pop(task.unique, None)
        sent = self.inflight.pop(task.unique, None) is not None
        self.suspects.ended(task.unique)
        if self.queue:
            self._actors.dirty[self] = None
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
