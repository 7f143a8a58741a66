"""The head service: an actor directory, the membership of nodes, job numbers. It never unpickles user
data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base import resources as res
from framework._net.connection import Connection, Frame, Handler
from framework._service.census import answer_census
from framework._state.actor_records import DEAD, ActorRecord
from framework._state.actors import ActorDirectory
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._head.groups import HeadGroups


#: messages about placement groups, see `framework._head.groups`
_OF_GROUPS = (
    m.GROUP_CREATE,
    m.GROUP_REMOVE,
    m.GROUP_WATCH,
    m.GROUP_FIND,
    m.GROUP_TABLE,
    m.GROUP_PREPARED,
    m.GROUP_COMMITTED,
)


class HeadService:
    """Handlers for drivers, workers and nodes. Lives on one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._actors = ActorDirectory()
        self.groups: HeadGroups | None = None  #: once somebody has asked for it
        self._nodes: dict[Connection, dict[str, Any]] = {}
        self._placed_on: dict[bytes, Connection] = {}
        self._next_job = 0
        self.handlers: dict[int, Handler] = {
            m.JOB_START: self._job_start,
            m.ACTOR_CREATE: self._actor_create,
            m.ACTOR_FIND: self._actor_find,
            m.ACTOR_WATCH: self._actor_watch,
            m.ACTOR_KILL: self._actor_kill,
            m.ACTOR_END: self._actor_end,
            m.ACTOR_LIST: self._actor_list,
            m.ACTOR_TABLE: self._actor_table,
            m.ACTOR_PLACED: self._actor_placed,
            m.ACTOR_GONE: self._actor_gone,
            m.ACTOR_SAVE: self._actor_save,
            m.ACTOR_RESTART: self._actor_restart,
            m.NODE_JOIN: self._node_join,
            m.NODE_LOAD: self._node_load,
            m.NODES: self._list_nodes,
            m.RESOURCES: self._resources,
            m.CENSUS: answer_census,
            **dict.fromkeys(_OF_GROUPS, self._group_message),
        }

    def peer_joined(self, connection: Connection) -> dict[str, object] | None:
        """A peer said HELLO."""
        return None

    def peer_lost(self, connection: Connection) -> None:
        """A driver, worker or node is gone."""
        self._nodes.pop(connection, None)
        self._run(self._actors.owner_gone(connection))
        if self.groups is not None:
            self.groups.peer_lost(connection)
            if connection.kind == "driver":
                self.groups.job_over(connection.peer.get("job", b""))

    # ---- jobs and nodes ------------------------------------------------------------------------------

    def _job_start(self, connection: Connection, frame: Frame) -> None:
        self._next_job += 1
        connection.reply(frame[1], {"job": self._next_job})

    def _node_join(self, connection: Connection, frame: Frame) -> None:
        _, rid, info = frame
        self._nodes[connection] = {**info, "available": dict(info["total"])}
        connection.reply(rid, None)

    def _node_load(self, connection: Connection, frame: Frame) -> None:
        node = self._nodes.get(connection)
        if node is not None:
            node["available"] = frame[1]
            node["total"] = frame[3] or node["total"]
            if self.groups is not None:
                self.groups.node_loaded(node)

    def _list_nodes(self, connection: Connection, frame: Frame) -> None:
        connection.reply(frame[1], list(self._nodes.values()))

    def _resources(self, connection: Connection, frame: Frame) -> None:
        total: dict[str, int] = {}
        for node in self._nodes.values():
            res.add(total, node["available"] if frame[2] else node["total"])
        connection.reply(frame[1], total)

    # ---- actors --------------------------------------------------------------------------------------

    def _actor_create(self, connection: Connection, frame: Frame) -> None:
        _, rid, actor, spec = frame
        waiting = bool(spec.get("waiting"))
        commands = self._actors.create(actor, spec, self._owner(connection), waiting, connection)
        connection.reply(rid, None)
        self._run(commands)

    def _actor_find(self, connection: Connection, frame: Frame) -> None:
        _, rid, name, namespace = frame
        record = self._actors.find(name, namespace)
        connection.reply(rid, None if record is None else self._describe(record))

    @staticmethod
    def _describe(record: ActorRecord) -> dict[str, Any]:
        return {"actor": record.actor_id, "handle": record.spec.get("handle")}

    def _actor_watch(self, connection: Connection, frame: Frame) -> None:
        record = self._actors.watch(frame[1], connection)
        if record is None:
            self._loop.call_later(limits.DEATH_VERDICT_TIMEOUT, self._never_born, frame[1])
        else:
            self._publish(connection, record, frame[1])

    def _never_born(self, actor: bytes) -> None:
        """Nobody has told of this actor's creation."""
        detail = {"text": "no such actor is known to this cluster", "error": None, "pid": 0}
        for watcher in self._actors.never_born(actor):
            if isinstance(watcher, Connection) and not watcher.closed:
                watcher.cast(m.ACTOR_STATE, actor, DEAD, "", 0, detail)

    def _actor_kill(self, connection: Connection, frame: Frame) -> None:
        _, rid, actor, no_restart, reason = frame
        self._run(self._actors.kill(actor, no_restart, reason))
        connection.reply(rid, None)

    def _actor_end(self, connection: Connection, frame: Frame) -> None:
        """Its creator holds no handle any more, or cannot go on with it."""
        _, actor, _incarnation, force, reason = frame
        self._run(self._actors.out_of_scope(actor, reason, force))

    def _actor_list(self, connection: Connection, frame: Frame) -> None:
        connection.reply(frame[1], [list(key) for key in self._actors.named(frame[2])])

    def _actor_table(self, connection: Connection, frame: Frame) -> None:
        rows = [
            {
                "actor_id": record.actor_id,
                "class_name": record.spec.get("class_name", ""),
                "state": record.state,
                "job_id": record.spec.get("job", b""),
                "name": record.spec.get("name") or "",
                "namespace": record.spec.get("namespace") or "",
                "node_id": record.node,
                "pid": record.pid,
                "restarts": record.restarts,
                "detail": (record.detail or {}).get("text", ""),
            }
            for record in self._actors.records.values()
        ]
        connection.reply(frame[1], rows)

    def _actor_placed(self, connection: Connection, frame: Frame) -> None:
        _, actor, incarnation, worker, address, pid, error = frame
        self._run(self._actors.placed(actor, incarnation, worker, address, pid, error))

    def _actor_gone(self, connection: Connection, frame: Frame) -> None:
        _, actor, incarnation, detail, intended, running, kind = frame
        self._run(self._actors.gone(actor, incarnation, detail, intended, running, kind))

    def _actor_restart(self, connection: Connection, frame: Frame) -> None:
        self._run(self._actors.restart(frame[2]))
        connection.reply(frame[1], None)

    def _actor_save(self, connection: Connection, frame: Frame) -> None:
        _, rid, actor, incarnation, state, stored = frame
        self._run(self._actors.save(actor, incarnation, state, stored))
        connection.reply(rid, None)

    def _owner(self, connection: Connection) -> Hashable:
        """By what the directory knows the process at the other end."""
        return connection

    def _run(self, commands: list[tuple[Any, ...]]) -> None:
        for command in commands:
            word = command[0]
            if word == "publish":
                self._publish(*command[1:])
            elif word == "place":
                if not self._kept_by_group(*command[1:]):
                    self._place(*command[1:])
            elif word == "end_at":
                self._end_at(*command[1:])
            elif word == "unstore_at":
                self._unstore_at(*command[1:])
            else:
                actor = command[1]
                node = self._where(actor)
                if node is not None and not node.closed:
                    if word == "end":
                        node.cast(m.ACTOR_END, actor, *command[2:])
                    elif word == "unstore":
                        node.cast(m.STORE_FREE, [command[2]])
                    elif word == "end_later":
                        end = ("end", actor, command[2], True, command[3])
                        self._loop.call_later(limits.SHUTDOWN_HOOK_GRACE, self._run, [end])
                    else:
                        node.cast(m.ACTOR_END, actor, -1, True, "it is not wanted any more")
        if self.groups is not None:
            self.groups.actors_changed()

    # ---- placement groups ----------------------------------------------------------------------------

    def _group_message(self, connection: Connection, frame: Frame) -> None:
        self._group_part().handlers[frame[0]](connection, frame)

    def _group_part(self) -> HeadGroups:
        """Loaded when the first group is made."""
        if self.groups is None:
            from framework._head.groups import HeadGroups

            self.groups = HeadGroups(self._loop, self)
            for node in self._nodes.values():
                self.groups.node_joined(node["node_id"], node)
        return self.groups

    def _kept_by_group(self, actor: bytes, spec: dict[str, Any], incarnation: int) -> bool:
        """Whether it is to be in a placement group that is not there (yet)."""
        strategy = spec.get("strategy")
        if not strategy or strategy[0] != "group":
            return False
        record = self._actors.records.get(actor)
        if record is None or record.state == DEAD or record.incarnation != incarnation:
            return True
        return self._group_part().keeps(actor, spec, incarnation)

    @property
    def actors(self) -> ActorDirectory:
        """All actors, for the other parts of the head."""
        return self._actors

    def run(self, commands: list[tuple[Any, ...]]) -> None:
        """Do what the directory of actors says."""
        self._run(commands)

    def node_peer(self, node_id: bytes) -> Connection | None:
        """The connection to a node, while there is one."""
        return next((peer for peer, row in self._nodes.items() if row["node_id"] == node_id), None)

    def node_id(self, connection: Connection) -> bytes:
        """The node at the other end."""
        node: bytes = self._nodes[connection]["node_id"] if connection in self._nodes else b""
        return node

    def is_draining(self, node_id: bytes) -> bool:
        """Whether a node gets no new work."""
        return False

    def keep_soon(self) -> None:
        """(Nothing outlives this process.)"""
        if self.groups is not None:
            self.groups.persist()

    # ---- places --------------------------------------------------------------------------------------

    def _place(self, actor: bytes, spec: dict[str, Any], incarnation: int) -> None:
        node = self._choose_node()
        if node is not None:
            self._forget_dead()
            self._placed_on[actor] = node
            node.cast(m.ACTOR_PLACE, actor, spec, incarnation)

    def _where(self, actor: bytes) -> Connection | None:
        """The node that an actor is on."""
        return self._placed_on.get(actor)

    def _end_at(self, node_id: bytes, actor: bytes, incarnation: int, why: str) -> None:
        """(With one node, an actor is nowhere else.)"""

    def _unstore_at(self, node_id: bytes, stored: bytes) -> None:
        """(Nor is anything else.)"""

    def _forget_dead(self) -> None:
        """Where actors were that the directory does not remember any more."""
        if len(self._placed_on) > 2 * max(limits.MAX_DEAD_KEPT, len(self._actors.records)):
            records = self._actors.records
            self._placed_on = {actor: node for actor, node in self._placed_on.items() if actor in records}

    def _choose_node(self) -> Connection | None:
        return next(iter(self._nodes), None)

    @staticmethod
    def _publish(watcher: Connection, record: ActorRecord, actor: bytes) -> None:
        if not watcher.closed:
            watcher.cast(
                m.ACTOR_STATE, actor, record.state, record.address, record.incarnation, record.detail
            )
