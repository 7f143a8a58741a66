"""Actors, the caller's side: creation through the head, calls straight to the actor's worker, in order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.ids import SEVERAL_TASKS
from framework._net.connection import Connection, Frame
from framework._runtime.actor_client import ALIVE as ALIVE
from framework._runtime.actor_client import DEAD as DEAD
from framework._runtime.actor_client import RESTARTING as RESTARTING
from framework._runtime.actor_client import ActorClient as ActorClient
from framework._runtime.actor_errors import death_error, poison_error, unavailable_error
from framework._runtime.waiters import register
from framework._serial import values
from framework._serial.errors import error_from_wire
from framework._state.fates import Fate
from framework._state.objects import FAILED, Entry
from framework._state.tasks import QUEUED
from framework._wire import messages as m
from framework.exceptions import FrameworkError

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime

log = logging.getLogger("framework")


class Actors:
    """The clients of all actors that this process has handles of. Methods run on the loop unless they say
    otherwise."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.dirty: dict[ActorClient, None] = {}  #: where something may have changed
        self._clients: dict[bytes, ActorClient] = {}
        self.creations: dict[bytes, ActorClient] = {}  #: made here, by what counts handles
        self._draining: dict[ActorClient, None] = {}
        self._ended: dict[bytes, tuple[Any, ...]] = {}  #: that this process wanted to end, oldest first
        self.head_handlers = {m.ACTOR_STATE: self._state, m.ACTOR_WARNING: self._warning}

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
            self.dirty.popitem()[0].pump()

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
        self.creations[creation.id] = client
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
        if self.runtime.connect_head() is None:
            self._dead(client, {"text": "the head of the cluster cannot be reached"})
            return
        future = self.runtime.head_link.request(m.ACTOR_CREATE, client.actor_id, spec)
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
        if state == client.state and incarnation == client.incarnation and state in (ALIVE, RESTARTING):
            if state == ALIVE and client.lost_connection:
                # (The answer to `_no_verdict`.) If its process has ended, the head hears of it in a moment.
                self.runtime.loop.call_later(limits.EXIT_GRACE, self._cut_off, client, incarnation, address)
                return
            if state == RESTARTING or client.connection is not None:
                return  # no news: it was asked again when the head had been away
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

    def _warning(self, head: Connection, frame: Frame) -> None:
        """One that this process has made waits for a node that is not there yet."""
        client = self._clients.get(frame[1])
        if client is not None and client.state != DEAD:
            log.warning(
                "the actor %s waits for a node on which it could be started: %s", client.class_name, frame[2]
            )

    def _connect(self, client: ActorClient, address: str) -> None:
        if client.draining is not None:
            self._judge(client)
        connection = self.runtime.peers.connect(address)
        client.connection = connection
        if connection is None:
            self._unreachable(client, address)
            return
        self.dirty[client] = None
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
            self._draining[client] = None
            self.runtime.loop.call_later(limits.EXIT_GRACE, self._drained, client, client.draining)

    def _drained(self, client: ActorClient, connection: Connection) -> None:
        if client.draining is connection:
            self._judge(client)

    def _judge(self, client: ActorClient) -> None:
        client.draining = None
        self._draining.pop(client, None)
        again = []
        now, suspects = self.runtime.loop.time(), client.suspects
        for task, fate in client.judged():
            task.lost = True
            task.strikes += fate is Fate.STRUCK and not suspects.spares(task.unique, now)
            free = fate is Fate.UNTOUCHED
            if client.state == DEAD:
                self.runtime.submitter.lost(task, client.death())
            elif task.cancelled is None and (free or (task.retries and task.strikes < limits.POISON_DEATHS)):
                task.retries -= task.retries > 0 and not free
                task.state = QUEUED
                if task.stream is not None:
                    self.runtime.streams.restart(task.stream)
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
        if client.ending is not None and client.actor_id not in self._ended:
            # (`kill` says more: that a detached one is to end, too.)
            self._remember(client.actor_id, (m.ACTOR_END, client.actor_id, *client.ending))
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
        if creation is None or creation.id not in self.creations:
            # Handles that are here keep it; for those to come, the head remembers.
            self._clients.pop(client.actor_id, None)
        if creation is not None:
            self.runtime.objects.fail(creation, client.error)
        client.tell(DEAD, detail)

    def peer_lost(self, connection: Connection) -> None:
        """A connection to a worker is gone: if actors lived there, the head will say what became of them."""
        for client in dict.fromkeys([*self._clients.values(), *self._draining]):
            if client.draining is connection:
                self._judge(client)
            elif client.connection is connection:
                if connection.never_opened:
                    self._not_reached(client, connection)
                    continue
                client.disconnect()
                client.lost_connection = True
                # Between machines, connections break while both ends live.
                seconds = limits.DEATH_VERDICT_TIMEOUT if self._alone else limits.EXIT_GRACE
                self.runtime.loop.call_later(seconds, self._no_verdict, client, client.incarnation)

    @property
    def _alone(self) -> bool:
        return self.runtime.config.cluster is None

    def _not_reached(self, client: ActorClient, connection: Connection) -> None:
        """Its machine did not answer: nothing that was sent has arrived."""
        tasks = client.take_inflight()
        for task in tasks:
            task.state = QUEUED
        client.queue.extendleft(reversed(tasks))
        if client.state == ALIVE:
            self._unreachable(client, connection.state.address)

    def _no_verdict(self, client: ActorClient, incarnation: int) -> None:
        """Ask: the head may have been held up."""
        head = self.runtime.connect_head()
        if client.lost_connection and client.incarnation == incarnation and head is not None:
            head.cast(m.ACTOR_WATCH, client.actor_id)

    def _cut_off(self, client: ActorClient, incarnation: int, address: str) -> None:
        """The head has nothing else to say about an actor whose connection was lost."""
        if not client.lost_connection or client.incarnation != incarnation or client.state != ALIVE:
            return
        if self._alone:
            self._dead(
                client,
                {"text": "its process cannot be reached any more, and the head does not know why"},
            )
            return
        # It lives, so far. What became of the calls under way nobody knows; to the others there is a new way.
        client.running, client.lost_connection = SEVERAL_TASKS, False
        text, client.text = client.text, ""
        self._judge(client)
        client.text = text
        self._connect(client, address)
        self.runtime.flush_soon()

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
        client.ending = (client.incarnation, force, reason)
        head = self.runtime.connect_head()
        if head is not None:
            head.cast(m.ACTOR_END, client.actor_id, *client.ending)

    def error_of(self, client: ActorClient, detail: dict[str, Any]) -> BaseException:
        """What the callers of an actor are told that has ended so."""
        return death_error(client, detail) if client.state != DEAD else client.death()

    # ---- ends ----------------------------------------------------------------------------------------

    def freed(self, creation_id: bytes) -> None:
        """The last handle is gone: the actor may end, after the calls that are under way."""
        client = self.creations.pop(creation_id, None)
        if client is None:
            return
        client.creation = None
        if not client.detached:
            client.kept = None
        if client.state == DEAD:
            self._clients.pop(client.actor_id, None)
            return
        # The client stays until the actor is dead: handles that were found by name may still be in use.
        client.ending = (client.incarnation, False, "its last handle has gone out of scope")
        head = self.runtime.head
        if head is not None and not head.closed:
            head.cast(m.ACTOR_END, client.actor_id, *client.ending)

    def kill(self, actor_id: bytes, no_restart: bool, reason: str) -> Any:
        """End an actor's process at once; a future of the head's answer."""
        asked = (m.ACTOR_KILL, actor_id, no_restart, reason)
        if no_restart:
            self._remember(actor_id, asked)
        return self.runtime.head_link.request(*asked)

    async def kill_and_wait(self, actor_id: bytes, no_restart: bool, reason: str) -> None:
        """The same; returns when the head has heard of it. What the actor has given to this process is not
        lost with it, unless it owns that: whoever does knows first that it is borrowed here, too."""
        await self.runtime.objects.all_registered(limits.REGISTERING)
        await self.kill(actor_id, no_restart, reason)

    def _remember(self, actor_id: bytes, asked: tuple[Any, ...]) -> None:
        self._ended[actor_id] = asked
        if len(self._ended) > limits.ACTORS_ENDED_KEPT:
            del self._ended[next(iter(self._ended))]

    def owns_living(self) -> bool:
        """Whether actors that this process has created would end with it: those that live and are not
        detached."""
        return any(c.state != DEAD and not c.detached for c in self.creations.values())

    def head_returned(self, head: Connection) -> None:
        """The head was away, and may have missed something, or been started anew: it is asked again how all
        actors are that are known here. It may even have lost that some are dead, with what its disk did not
        take: it hears once more which were to end."""
        for opcode, *fields in self._ended.values():
            if opcode == m.ACTOR_KILL:
                head.call(opcode, *fields)
            else:
                head.cast(opcode, *fields)
        for client in list(self._clients.values()):
            if client.known and client.state != DEAD:
                head.cast(m.ACTOR_WATCH, client.actor_id)
                if client.ending is not None:
                    head.cast(m.ACTOR_END, client.actor_id, *client.ending)

    def head_lost(self, error: BaseException) -> None:
        """No head, no actors."""
        for client in list(self._clients.values()):
            if client.state != DEAD:
                client.error = error
                self._dead(client, {})
