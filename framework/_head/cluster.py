"""The head of a cluster, a process of its own: `HeadService` for many nodes, with a memory that outlives it.

What is on disk is written before anybody is told of it (`turn_over`, after each batch of messages). What is
not on disk, the head learns again when it has been restarted: nodes tell what lives there when they join,
drivers and workers which actors they know when they are back. Until then each has a grace.

An *owner* is a driver or worker, named by its id. It is gone when its node says so, or is dead; one whose
node is not known, when it has lost its connection to the head and not come back. Then the actors that it made
end, and the job of a driver.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

from framework._base import limits
from framework._base import resources as res
from framework._base.cluster import ClusterFacts
from framework._head.drains import tell_what_is_left
from framework._head.groups import HeadGroups
from framework._head.placing import Placing
from framework._head.service import HeadService
from framework._head.storage import Storage, pack, unpack
from framework._net.connection import Connection, Frame
from framework._state.actor_records import DEAD, ActorRecord
from framework._state.membership import Membership
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework.exceptions import LocalNodeDiedError

log = logging.getLogger("framework.head")

_JOB_SIZE = 4


class ClusterHead(HeadService):
    """Lives on one loop. `start` after everything was attached; `on_stop(reason)` ends the process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        facts: ClusterFacts,
        storage: Storage,
        *,
        on_stop: Callable[[str], None] = lambda reason: None,
    ) -> None:
        super().__init__(loop)
        self.facts = facts
        self.storage = storage
        self.membership = Membership()
        self.placing = Placing(
            self._actors,
            node_of=self._node_of,
            fail=self._unschedulable,
            warn=self._cannot_place,
            now=loop.time,
        )
        self.groups: HeadGroups = HeadGroups(loop, self, storage)
        self._on_stop = on_stop
        self._peers: dict[bytes, Connection] = {}  #: of nodes that have joined
        self._owners: dict[bytes, Connection] = {}
        self._owner_nodes: dict[bytes, bytes] = {}
        self._drivers: dict[bytes, bytes] = {}  #: of jobs that are not over -> job
        self._leaving: dict[bytes, asyncio.TimerHandle] = {}  #: owners that may come back
        self._jobs_over: dict[bytes, None] = {}
        self._drains: dict[bytes, list[tuple[Connection, int]]] = {}
        self._drains_known: set[bytes] = set()  #: nodes that know that they drain: nothing new comes up there
        self._actors.touched = {}
        self._nodes_touched: set[bytes] = set()
        self._pack = new_packer()
        self._tell_timer: asyncio.TimerHandle | None = None
        self._told = 0.0
        self._retry_timer: asyncio.TimerHandle | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._check_timer: asyncio.TimerHandle | None = None
        self._keep_scheduled = self._closed = False
        self.handlers |= {
            m.NODE_DRAIN: self._node_drain,
            m.NODE_HOLDS: partial(tell_what_is_left, self),
            m.NODE_LEAVE: self._node_leave,
            m.OWNER_GONE: self._owner_ended,
            m.HEAD_DEMAND: self._demand,
            m.ACTOR_REFUSED: self._actor_refused,
            m.HEAD_STOP: self._head_stop,
            m.JOB_NODE: self._job_node,
        }

    # ---- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up what was written down, and begin to judge."""
        now = self._loop.time()
        self._restore(now)
        self._beat_timer = self._loop.call_later(limits.HEARTBEAT, self._beat)
        self._check_timer = self._loop.call_later(limits.MEMBERSHIP_CHECK, self._check)

    def _restore(self, now: float) -> None:
        storage = self.storage
        meta = storage.all("meta")
        self._next_job = int.from_bytes(meta.get(b"job", b""), "little")
        self.membership.restore(
            [unpack(value) for value in storage.all("node").values()], storage.all("fenced"), now
        )
        for row in self.membership.rows(dead=True):
            self.placing.known(row)
        specs = storage.all("actor_spec")
        facts = storage.all("actor")
        commands = self._actors.restore(
            (actor, unpack(value), unpack(specs[actor])) for actor, value in facts.items() if actor in specs
        )
        self._jobs_over = dict.fromkeys(storage.all("job_over"), None)
        for ident, value in storage.all("driver").items():
            job, node = unpack(value)
            self._drivers[ident] = job
            self._owner_nodes[ident] = node
        for owner in dict.fromkeys([*self._actors.owners(), *self._drivers]):
            assert isinstance(owner, bytes)
            self._expect(owner, limits.OWNER_BACK_AFTER_RESTART)
        self._run(commands)
        if facts or self._next_job:
            log.info(
                "restarted: %d nodes and %d actors were known, %d jobs were running",
                len(self.membership.alive()),
                len(facts),
                len(self._drivers),
            )

    def count_nodes(self) -> int:
        """How many are alive."""
        return len(self.membership.alive())

    def close(self, reason: str) -> None:
        """The cluster ends: its nodes are told to."""
        for timer in (self._beat_timer, self._check_timer, self._tell_timer, self._retry_timer):
            if timer is not None:
                timer.cancel()
        for connection in self._peers.values():
            connection.cast(m.NODE_STOP, f"the head of the cluster has ended: {reason}")
            connection.flush()
        self.turn_over()
        self._closed = True
        self.storage.close()

    def turn_over(self) -> None:
        """Write down what has changed. To be called after each batch of messages, before answers go out."""
        if self._closed:
            return
        touched, storage = self._actors.touched, self.storage
        if touched:
            self._actors.touched = {}
            for actor, whole in touched.items():
                facts = self._actors.export(actor)
                if facts is None:
                    storage.delete("actor", actor)
                    storage.delete("actor_spec", actor)
                    continue
                storage.put("actor", actor, pack(facts))
                if whole:
                    storage.put("actor_spec", actor, pack(self._actors.records[actor].spec))
        for node_id in sorted(self._nodes_touched):
            record = self.membership.record(node_id)
            if record is None:
                storage.delete("node", node_id)
            else:
                storage.put("node", node_id, pack(record))
            if node_id in self.membership.fenced:
                storage.put("fenced", node_id, b"")
        self._nodes_touched.clear()
        self.groups.persist()
        storage.commit()

    def keep_soon(self) -> None:
        """Something was changed outside of a batch of messages."""
        if not self._keep_scheduled:
            self._keep_scheduled = True
            self._loop.call_soon(self._keep)

    def _keep(self) -> None:
        self._keep_scheduled = False
        self.turn_over()

    # ---- peers ---------------------------------------------------------------------------------------

    def peer_joined(self, connection: Connection) -> dict[str, object] | None:
        """A driver, worker, node or tool said HELLO."""
        if connection.kind in ("driver", "worker"):
            ident = connection.ident
            self._owners[ident] = connection
            self._returned(ident)
            node = connection.peer.get("node")
            if isinstance(node, bytes) and node:
                self._owner_nodes[ident] = node
        return {"cluster_id": self.facts.cluster_id}

    def peer_lost(self, connection: Connection) -> None:
        """Its connection has ended: that need not be the end of it."""
        if connection.kind == "node":
            if self._peers.get(connection.ident) is connection:
                del self._peers[connection.ident]
                self.placing.node_away(connection.ident)
                self.membership.lost(connection.ident, connection, self._loop.time())
            return
        self._actors.watcher_gone(connection)
        self.groups.peer_lost(connection)
        ident = connection.ident
        if self._owners.get(ident) is connection:
            del self._owners[ident]
            if not self._watched(ident):
                self._expect(ident, limits.OWNER_BACK)

    def node_peer(self, node_id: bytes) -> Connection | None:
        """The connection to a node, while there is one."""
        return self._peers.get(node_id)

    def records_on(self, node_id: bytes) -> list[ActorRecord]:
        """The actors there."""
        return self._actors.on_node(node_id)

    def node_id(self, connection: Connection) -> bytes:
        """The node at the other end."""
        return connection.ident

    def is_draining(self, node_id: bytes) -> bool:
        """Whether a node gets no new work."""
        member = self.membership.members.get(node_id)
        return member is not None and member.draining

    def _owner(self, connection: Connection) -> Hashable:
        return connection.ident

    def _node_of(self, owner: Any) -> bytes:
        return self._owner_nodes.get(owner, b"")

    def _watched(self, ident: bytes) -> bool:
        """Whether there is a node that will tell of the end of this owner."""
        return self._owner_nodes.get(ident) in self._peers

    def _expect(self, ident: bytes, seconds: float) -> None:
        self._returned(ident)
        self._leaving[ident] = self._loop.call_later(seconds, self._late, ident)

    def _late(self, ident: bytes) -> None:
        if self.membership.held_up(self._loop.time()):
            self._expect(ident, limits.OWNER_BACK)
            return
        del self._leaving[ident]
        if not self._watched(ident):  # (else its node will tell)
            self._owner_gone(ident)

    def _processes_there(self, node_id: bytes, idents: Iterable[bytes]) -> None:
        """A node that has joined tells which owners it has: others of it have ended."""
        there = set(idents)
        self._owner_nodes.update(dict.fromkeys(there, node_id))
        for ident, node in list(self._owner_nodes.items()):
            if node == node_id and ident not in there and ident not in self._owners:
                self._owner_gone(ident)

    def _returned(self, ident: bytes) -> None:
        timer = self._leaving.pop(ident, None)
        if timer is not None:
            timer.cancel()

    def _owner_ended(self, connection: Connection, frame: Frame) -> None:
        _, ident, kind, job = frame
        if kind == "driver" and job and job not in self._jobs_over:
            self._drivers.setdefault(ident, job)
        self._owner_gone(ident)

    def _owner_gone(self, ident: bytes) -> None:
        """A driver or worker has ended. Twice is as once."""
        self._returned(ident)
        self._owner_nodes.pop(ident, None)
        connection = self._owners.pop(ident, None)
        if connection is not None:
            self._actors.watcher_gone(connection)
        self._run(self._actors.owner_gone(ident))
        job = self._drivers.pop(ident, None)
        if job is not None:
            self.storage.delete("driver", ident)
            self._job_over(job)
        self.keep_soon()

    # ---- jobs ----------------------------------------------------------------------------------------

    def _job_start(self, connection: Connection, frame: Frame) -> None:
        if connection.ident not in self._drivers:  # (the call may come twice)
            self._next_job += 1
            job = self._next_job.to_bytes(_JOB_SIZE, "little")
            self._drivers[connection.ident] = job
            self.storage.put("meta", b"job", job)
            node = self._owner_nodes.get(connection.ident, b"")
            self.storage.put("driver", connection.ident, pack([job, node]))
        job = self._drivers[connection.ident]
        connection.reply(frame[1], {"job": int.from_bytes(job, "little")})

    def _job_over(self, job: bytes) -> None:
        self._jobs_over[job] = None
        self.storage.put("job_over", job, b"")
        while len(self._jobs_over) > limits.JOBS_OVER_KEPT:
            oldest = next(iter(self._jobs_over))
            del self._jobs_over[oldest]
            self.storage.delete("job_over", oldest)
        self.groups.job_over(job)
        for connection in self._peers.values():
            connection.cast(m.JOB_END, job)

    def _job_node(self, connection: Connection, frame: Frame) -> None:
        """Where the driver of a job is."""
        _, rid, job = frame
        node = None
        for ident, other in self._drivers.items():
            if other == job:
                node = self._owner_nodes.get(ident) or None
        connection.reply(rid, node)

    # ---- nodes ---------------------------------------------------------------------------------------

    def _node_join(self, connection: Connection, frame: Frame) -> None:
        _, rid, info = frame
        node_id = info.get("node_id")
        if connection.kind != "node" or node_id != connection.ident:
            raise ValueError("only a node can join, under the id that it has said HELLO with")
        member = self.membership.join(info, connection, self._loop.time())
        old = self._peers.get(node_id)
        self._peers[node_id] = connection
        if old is not None and old is not connection:
            old.close()
        self._nodes_touched.add(node_id)
        self.placing.node_up(node_id, connection, member.row)
        gone = [other for other in info.get("known") or () if other in self.membership.fenced]
        connection.reply(rid, {"gone": gone} if gone else {})
        connection.cast(m.NODE_VIEW, self.membership.rows())
        for job in self._jobs_over:
            connection.cast(m.JOB_END, job)
        for words in info.get("last_words") or ():
            handler = self.handlers.get(m.check(words))
            if handler is not None and words[0] in (m.ACTOR_GONE, m.ACTOR_PLACED, m.OWNER_GONE):
                handler(connection, words)
        self._run(self._actors.reported(node_id, info.get("actors") or ()))
        if "processes" in info:
            self._processes_there(node_id, info["processes"])
        self._drains_known.discard(node_id)
        if member.draining:
            self._tell_drain(node_id, member.drain_reason)
            self._run(self._actors.move(node_id, _drained(member.drain_reason)))
        self.groups.node_joined(node_id, info)
        log.info("node %s joined", member.short)
        gone = [(other, reason) for other, reason in info.get("gone") or () if other != node_id]
        self._nodes_touched.update(other for other, _ in gone if other not in self.membership.fenced)
        self._judge(self.membership.remembered(gone))
        self._changed()

    def _node_load(self, connection: Connection, frame: Frame) -> None:
        _, available, pending, total, seen, busy = frame
        node_id = connection.ident
        member = self.membership.members.get(node_id)
        if member is None or connection.kind != "node":
            return
        before = member.row["available"]
        if self.membership.load(node_id, connection, available, pending, total, busy, self._loop.time()):
            self.placing.load(member.row, seen)
            self.groups.node_loaded(member.row)
            if before != available or total is not None:
                self._changed()
            if node_id in self._drains:
                self._check_drain(node_id)

    def _node_leave(self, connection: Connection, frame: Frame) -> None:
        if connection.kind == "node":
            self._judge(self.membership.leave(connection.ident, frame[1]))

    def _check(self) -> None:
        self._check_timer = self._loop.call_later(limits.MEMBERSHIP_CHECK, self._check)
        self._judge(self.membership.verdicts(self._loop.time()))

    def _judge(self, verdicts: list[tuple[Any, ...]]) -> None:
        for _, node_id, reason in verdicts:
            self._node_gone(node_id, reason)

    def _node_gone(self, node_id: bytes, reason: str) -> None:
        member = self.membership.members[node_id]
        log.warning("node %s is dead: %s", member.short, reason)
        self._nodes_touched.add(node_id)
        connection = self._peers.pop(node_id, None)
        self._drains_known.discard(node_id)
        self.placing.node_gone(node_id, reason)
        data = self._pack((m.NODE_GONE, node_id, reason))
        for peer in self._peers.values():
            peer.post(data)
        if connection is not None:
            connection.close()
        self._run(self._actors.node_gone(node_id, f"its node {member.short} died: {reason}"))
        self.groups.node_gone(node_id, reason)
        for owner in [owner for owner, node in self._owner_nodes.items() if node == node_id]:
            self._owner_gone(owner)
        for waiting, rid in self._drains.pop(node_id, ()):
            if not waiting.closed:
                waiting.reply(rid, {"drained": False, "reason": reason})
        self._changed()
        self.keep_soon()

    # ---- what nodes learn of each other ----------------------------------------------------------------

    def _changed(self) -> None:
        """Rows may have changed: all nodes are told soon, and what waits for room is tried again."""
        self.retry_soon()
        if self._tell_timer is None and self.membership.changed:
            # The more nodes there are, the more each change costs.
            pause = limits.VIEW_BATCH * max(1.0, len(self._peers) / limits.VIEW_BATCH_NODES)
            due = max(0.0, self._told + pause - self._loop.time())
            self._tell_timer = self._loop.call_later(due, self._tell)

    def _tell(self) -> None:
        self._tell_timer = None
        self._told = self._loop.time()
        rows = self.membership.delta()
        if rows:
            self._tell_nodes(rows)

    def _tell_nodes(self, rows: Iterable[dict[str, Any]]) -> None:
        data = self._pack((m.NODE_VIEW, list(rows)))
        for peer in self._peers.values():
            peer.post(data)

    def _beat(self) -> None:
        """They hear that the head lives."""
        self._beat_timer = self._loop.call_later(limits.HEARTBEAT, self._beat)
        self._tell_nodes(())

    def retry_soon(self) -> None:
        """Something may have room now."""
        if self.placing.waits:
            self._retry_in(limits.PLACE_AGAIN)

    def _retry_in(self, seconds: float) -> None:
        timer = self._retry_timer
        if timer is not None:
            if timer.when() <= self._loop.time() + seconds:
                return
            timer.cancel()
        self._retry_timer = self._loop.call_later(seconds, self._retry)

    def _retry(self) -> None:
        self._retry_timer = None
        self.placing.retry()
        if self.placing.waits:
            self._retry_in(limits.PLACE_PATIENCE)
        self.keep_soon()

    # ---- drains --------------------------------------------------------------------------------------

    def _node_drain(self, connection: Connection, frame: Frame) -> None:
        _, rid, node_id, reason = frame
        member = self.membership.members.get(node_id)
        if member is None:
            raise ValueError(f"no node of this cluster has the id {node_id.hex()}")
        if not member.alive:
            connection.reply(rid, {"drained": False, "reason": member.reason})
            return
        self._drains.setdefault(node_id, []).append((connection, rid))
        if self.membership.drain(node_id, reason):
            self._nodes_touched.add(node_id)
            self.placing.known(member.row)
            self.groups.node_changed(member.row)
            self._run(self._actors.move(node_id, _drained(reason)))
            self._changed()
        self._tell_drain(node_id, reason)

    def _tell_drain(self, node_id: bytes, reason: str) -> None:
        """Before it answers it tells its load: what others had sent it until then is reckoned in."""
        node = self._peers.get(node_id)
        if node is not None:
            node.call(m.NODE_DRAIN, node_id, reason).add_done_callback(partial(self._drain_known, node_id))

    def _drain_known(self, node_id: bytes, told: asyncio.Future[Any]) -> None:
        if told.cancelled() or told.exception() is not None:
            return  # its connection is lost: it is told when it is back
        self._drains_known.add(node_id)
        if node_id in self._drains:
            self._check_drain(node_id)

    def _check_drain(self, node_id: bytes) -> None:
        member = self.membership.members[node_id]
        if node_id not in self._drains_known or member.busy or self._actors.on_node(node_id):
            return
        for waiting, rid in self._drains.pop(node_id):
            if not waiting.closed:
                waiting.reply(rid, {"drained": True, "reason": member.drain_reason})

    # ---- actors --------------------------------------------------------------------------------------

    def _actor_create(self, connection: Connection, frame: Frame) -> None:
        self._check_place(connection)
        super()._actor_create(connection, frame)

    def _group_message(self, connection: Connection, frame: Frame) -> None:
        if frame[0] == m.GROUP_CREATE:
            self._check_place(connection)
        super()._group_message(connection, frame)

    def _check_place(self, connection: Connection) -> None:
        """Who asks for something that ends with him: an owner whose node was declared dead has ended for
        everybody, though he may still live and not know of it. Nobody would end what he makes now."""
        node = connection.peer.get("node")
        if node in self.membership.fenced:
            raise LocalNodeDiedError(self.membership.fence_text(node))

    def _place(self, actor: bytes, spec: dict[str, Any], incarnation: int) -> None:
        if not self.placing.place(actor, spec, incarnation):
            self._retry_in(limits.PLACE_PATIENCE)

    def _where(self, actor: bytes) -> Connection | None:
        record = self._actors.records.get(actor)
        return self._peers.get(record.node) if record is not None else None

    def _run(self, commands: list[tuple[Any, ...]]) -> None:
        super()._run(commands)
        if self._actors.touched:
            self.keep_soon()

    def _unschedulable(self, actor: bytes, incarnation: int, text: str) -> None:
        record = self._actors.records[actor]
        name = record.spec.get("class_name", "?")
        error = [2, 2, "ActorUnschedulableError", f"the actor {name} can never be placed: {text}"]
        self._run(self._actors.placed(actor, incarnation, b"", "", 0, error))

    def _cannot_place(self, record: ActorRecord, text: str) -> None:
        """Its owner is told, once per reason; it waits until there is a node for it."""
        owner = self._owners.get(record.owner) if isinstance(record.owner, bytes) else None
        if owner is not None and not owner.closed:
            owner.cast(m.ACTOR_WARNING, record.actor_id, text)

    def _reporter(self, connection: Connection, actor: bytes) -> bool:
        """Whether this node is where the actor is to be."""
        record = self._actors.records.get(actor)
        return record is None or record.node in (b"", connection.ident)

    def _actor_placed(self, connection: Connection, frame: Frame) -> None:
        _, actor, incarnation, _, _, _, error = frame
        record = self._actors.records.get(actor)
        if (
            record is None
            or record.incarnation != incarnation
            or record.state == DEAD
            or record.node not in (b"", connection.ident)
        ):
            if error is None:
                connection.cast(m.ACTOR_END, actor, incarnation, True, "it is not wanted any more")
            return
        if not record.node:
            self._actors.placing(actor, connection.ident)
        self.placing.placed(actor)
        super()._actor_placed(connection, frame)

    def _actor_gone(self, connection: Connection, frame: Frame) -> None:
        if self._reporter(connection, frame[1]):
            super()._actor_gone(connection, frame)
            if connection.ident in self._drains:
                self._check_drain(connection.ident)

    def _actor_refused(self, connection: Connection, frame: Frame) -> None:
        _, actor, incarnation, available = frame
        record = self._actors.records.get(actor)
        member = self.membership.members.get(connection.ident)
        if record is None or member is None or record.node != connection.ident:
            return
        if record.incarnation == incarnation:
            member.row["available"] = available
            self.placing.known(member.row)
            self._run(self._actors.refused(actor))

    def _end_at(self, node_id: bytes, actor: bytes, incarnation: int, why: str) -> None:
        peer = self._peers.get(node_id)
        if peer is not None:
            peer.cast(m.ACTOR_END, actor, incarnation, True, why)

    def _unstore_at(self, node_id: bytes, stored: bytes) -> None:
        # Where that node is dead, any other one tells all who have a copy.
        peer = self._peers.get(node_id) or next(iter(self._peers.values()), None)
        if peer is not None:
            peer.cast(m.STORE_FREE, [stored])

    # ---- what is asked -------------------------------------------------------------------------------

    def _list_nodes(self, connection: Connection, frame: Frame) -> None:
        connection.reply(frame[1], self.membership.rows(dead=True))

    def _resources(self, connection: Connection, frame: Frame) -> None:
        total: dict[str, int] = {}
        for row in self.membership.rows():
            res.add(total, row["available"] if frame[2] else row["total"])
        connection.reply(frame[1], total)

    def _demand(self, connection: Connection, frame: Frame) -> None:
        pending = self.placing.pending()
        rows = []
        for member in self.membership.alive():
            pending += member.pending
            rows.append({**member.row, "busy": member.busy})
        connection.reply(frame[1], {"pending": pending, "groups": self.groups.demand(), "nodes": rows})

    def _head_stop(self, connection: Connection, frame: Frame) -> None:
        connection.reply(frame[1], {"pid": os.getpid()})
        connection.flush()
        self._on_stop(frame[2])


def make_head(
    loop: asyncio.AbstractEventLoop,
    facts: ClusterFacts,
    config: dict[str, Any],
    on_stop: Callable[[str], None],
) -> ClusterHead:
    """The head of a process (see `framework._head.process`): with all its parts, and its memory.
    `StorageError` when that cannot be read."""
    return ClusterHead(loop, facts, Storage(config["state"]), on_stop=on_stop)


def _drained(reason: str) -> str:
    return f"its node is being drained{f': {reason}' if reason else ''}"
