"""Placement groups at the head: what `Placement` decides, as messages to nodes and to who asks."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.resources import fits, format_resources, out_of_group, to_floats
from framework._net.connection import Connection, Frame, Handler
from framework._state.actor_records import DEAD
from framework._state.bundles import REMOVED as REMOVED_TEXT
from framework._state.packing import STRATEGIES
from framework._state.placement import REMOVED, Group, Placement
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._head.service import HeadService
    from framework._head.storage import Storage

_TABLE = "groups"


class HeadGroups:
    """Part of the head service, which tells it of nodes and of the ends of jobs. Lives on one loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, head: HeadService, storage: Storage | None = None
    ) -> None:
        """Without a `storage` nothing outlives the process."""
        self._loop = loop
        self._head = head
        self._storage = storage
        self._changed: dict[bytes, Group | None] = {}  #: not written down yet
        self.state = Placement()
        self._begun: dict[bytes, float] = {}  #: when groups were made, for the table
        self._took: dict[bytes, float] = {}  #: seconds until they were first there
        #: actors that wait for their group: group -> actor -> (spec, incarnation)
        self._waiting: dict[bytes, dict[bytes, tuple[dict[str, Any], int]]] = {}
        self.handlers: dict[int, Handler] = {
            m.GROUP_CREATE: self._create,
            m.GROUP_REMOVE: self._remove,
            m.GROUP_WATCH: self._watch,
            m.GROUP_FIND: self._find,
            m.GROUP_TABLE: self._table,
            m.GROUP_PREPARED: self._prepared,
            m.GROUP_COMMITTED: self._committed,
        }
        if storage is not None:
            from framework._head.storage import unpack

            self.state.restore(unpack(data) for data in storage.all(_TABLE).values())

    # ---- what the head service tells -----------------------------------------------------------------

    def node_joined(self, node_id: bytes, info: dict[str, Any]) -> None:
        """A node is connected (again). `info`: its row, and what it holds as "bundles"."""
        row = {
            **info,
            "alive": True,
            "available": info.get("available") or info["total"],
            "draining": self._head.is_draining(node_id),
        }
        self.run(self.state.node_joined(row, info.get("bundles") or []))

    def node_changed(self, row: dict[str, Any]) -> None:
        """Something else than the load of a node is new: it is drained, or has other labels."""
        self.run(self.state.node_changed(row))

    def node_loaded(self, row: dict[str, Any]) -> None:
        """A node has told what it has free."""
        self.run(self.state.node_loaded(row))

    def node_gone(self, node_id: bytes, reason: str) -> None:
        """A node is dead."""
        self.run(self.state.node_gone(node_id, reason))

    def peer_lost(self, connection: Connection) -> None:
        """A driver or worker is not connected any more."""
        self.state.watcher_gone(connection)

    def job_over(self, job: bytes) -> None:
        """A driver is gone for good."""
        if self.state.groups:
            living = [record.actor_id for record in self._head.actors.living() if record.detached]
            self.run(self.state.job_ended(job, living))

    def actors_changed(self) -> None:
        """Actors may have ended."""
        for actor in list(self.state.makers):
            record = self._head.actors.records.get(actor)
            if record is None or record.state == DEAD:
                self.run(self.state.actor_ended(actor))

    def demand(self) -> list[dict[str, Any]]:
        """The groups that wait: [{"group", "strategy", "bundles": [units, ...]}, ...]."""
        return self.state.demand()

    def persist(self) -> None:
        """Put into the storage what has changed."""
        changed, self._changed = self._changed, {}
        if self._storage is None:
            return
        from framework._head.storage import pack

        for group_id, group in changed.items():
            if group is None:
                self._storage.delete(_TABLE, group_id)
            else:
                self._storage.put(_TABLE, group_id, pack(group.to_record()))

    # ---- actors --------------------------------------------------------------------------------------

    def keeps(self, actor: bytes, spec: dict[str, Any], incarnation: int) -> bool:
        """Of an actor that is to be placed in a group: whether it is none of the caller's business for now,
        as its group has no place yet, or is no more."""
        group_id = spec["strategy"][1]
        group = self.state.groups.get(group_id)
        if group is not None and group.visible:
            units = out_of_group(spec.get("placement") or spec.get("resources") or {})
            index = spec["strategy"][2]
            bundles = group.bundles if index < 0 else group.bundles[index : index + 1]
            if any(fits(units, bundle) for bundle in bundles):
                return False
            text = (
                f"the actor {spec.get('class_name', '?')} can never be placed: it needs "
                f"{format_resources(units)}, which fits into no {'' if index < 0 else 'such '}bundle of its "
                f"placement group {group_id.hex()} ({', '.join(map(format_resources, bundles[:8]))})"
            )
            self._head.run(self._head.actors.fail(actor, text, [2, 2, "ActorUnschedulableError", text]))
        elif group is not None and group.state == REMOVED:
            self._end_actor(actor, removal_text(group))
        else:
            self._waiting.setdefault(group_id, {})[actor] = spec, incarnation
        return True

    def _end_actor(self, actor: bytes, text: str) -> None:
        self._head.run(self._head.actors.fail(actor, text, [2, 2, "ActorPlacementGroupRemoved", text]))

    def _end_actors(self, group: Group) -> None:
        self._waiting.pop(group.group_id, None)
        for record in self._head.actors.living():
            strategy = record.spec.get("strategy")
            if strategy and strategy[:2] == ["group", group.group_id]:
                self._end_actor(record.actor_id, removal_text(group))

    def _place_waiting(self, group: Group) -> None:
        waiting = self._waiting.pop(group.group_id, {})
        self._head.run([("place", actor, *about) for actor, about in waiting.items()])

    # ---- messages ------------------------------------------------------------------------------------

    def _create(self, connection: Connection, frame: Frame) -> None:
        _, rid, group_id, spec = frame
        check_spec(spec)
        commands = self.state.create(group_id, spec, connection)
        self._begun.setdefault(group_id, time.monotonic())
        self.run(commands)
        connection.reply(rid, None)

    def _remove(self, connection: Connection, frame: Frame) -> None:
        self.run(self.state.remove(frame[2], "it was removed by remove_placement_group()"))
        connection.reply(frame[1], None)

    def _watch(self, connection: Connection, frame: Frame) -> None:
        commands = self.state.watch(frame[1], connection)
        if not commands:
            self._loop.call_later(limits.DEATH_VERDICT_TIMEOUT, self._never_born, frame[1])
        self.run(commands)

    def _never_born(self, group_id: bytes) -> None:
        for watcher in self.state.never_born(group_id):
            if isinstance(watcher, Connection) and not watcher.closed:
                detail = {"text": "no such placement group is known to this cluster", "nodes": []}
                watcher.cast(m.GROUP_STATE, group_id, REMOVED, detail)

    def _find(self, connection: Connection, frame: Frame) -> None:
        _, rid, name, namespace = frame
        group = self.state.find(name, namespace)
        found = None if group is None else {"group": group.group_id, "bundles": group.bundles}
        connection.reply(rid, found)

    def _table(self, connection: Connection, frame: Frame) -> None:
        _, rid, group_id = frame
        groups = self.state.groups
        wanted = groups.values() if group_id is None else [groups[group_id]] if group_id in groups else []
        connection.reply(rid, [self._row(group) for group in wanted])

    def _row(self, group: Group) -> dict[str, Any]:
        return {
            "placement_group_id": group.group_id.hex(),
            "name": group.spec.get("name") or "",
            "bundles": {index: to_floats(units) for index, units in enumerate(group.bundles)},
            "bundles_to_node_id": {
                index: node.hex() if group.state != REMOVED else "" for index, node in enumerate(group.nodes)
            },
            "strategy": group.strategy,
            "state": group.state,
            "stats": {
                "end_to_end_creation_latency_ms": self._took.get(group.group_id, 0.0) * 1000,
                "scheduling_attempt": group.attempt,
                "scheduling_state": group.text or ("FINISHED" if group.visible else "QUEUED"),
            },
        }

    def _prepared(self, connection: Connection, frame: Frame) -> None:
        self.run(self.state.prepared(self._head.node_id(connection), *frame[1:]))

    def _committed(self, connection: Connection, frame: Frame) -> None:
        self.run(self.state.committed(self._head.node_id(connection), *frame[1:]))

    # ---- decisions carried out -----------------------------------------------------------------------

    def run(self, commands: list[tuple[Any, ...]]) -> None:
        """Do what `Placement` says."""
        for command in commands:
            word = command[0]
            if word == "publish":
                self._publish(*command[1:])
            elif word == "prepare":
                self._tell_node(command[1], m.GROUP_PREPARE, *command[2:])
            elif word == "commit":
                self._tell_node(command[1], m.GROUP_COMMIT, *command[2:])
            elif word == "return":
                self._tell_node(command[1], m.GROUP_RETURN, *command[2:])
            elif word == "save":
                self._save(command[1])
            elif word == "forget":
                self._changed[command[1]] = None
                self._begun.pop(command[1], None)
                self._took.pop(command[1], None)
            elif word == "removed":
                self._end_actors(self.state.groups[command[1]])
            elif word == "again":
                pause = min(limits.GROUP_AGAIN * 2 ** min(command[2], 10), limits.GROUP_AGAIN_MAX)
                self._loop.call_later(pause, self._rested, command[1])
        if self._changed:
            self._head.keep_soon()

    def _save(self, group: Group) -> None:
        self._changed[group.group_id] = group
        if group.visible:
            if group.group_id in self._begun and group.group_id not in self._took:
                self._took[group.group_id] = time.monotonic() - self._begun[group.group_id]
            self._place_waiting(group)

    def _tell_node(self, node_id: bytes, *frame: Any) -> None:
        connection = self._head.node_peer(node_id)
        if connection is not None and not connection.closed:  # (else it hears of it when it joins)
            connection.cast(*frame)

    def _rested(self, group_id: bytes) -> None:
        self.run(self.state.rested(group_id))

    @staticmethod
    def _publish(watcher: Any, group: Group) -> None:
        if isinstance(watcher, Connection) and not watcher.closed:
            watcher.cast(m.GROUP_STATE, group.group_id, group.state, group.detail())


def check_spec(spec: dict[str, Any]) -> None:
    """`ValueError` for what is no description of a group: whoever made it, all that is to come would stumble
    over it."""
    fine = spec.get("strategy") in STRATEGIES and isinstance(spec.get("bundles"), list) and spec["bundles"]
    for bundle in spec["bundles"] if fine else ():
        fine = fine and isinstance(bundle, dict) and bundle
        fine = fine and all(type(n) is str and type(a) is int and a > 0 for n, a in bundle.items())
    fine = fine and all(type(spec.get(name)) is str for name in ("name", "namespace"))
    fine = fine and all(type(spec.get(name)) is bytes for name in ("job", "actor"))
    selectors = spec.get("selectors")
    if selectors is not None:
        fine = fine and type(selectors) is list and len(selectors) == len(spec["bundles"])
    if not fine or type(spec.get("detached")) is not bool:
        raise ValueError("this is no description of a placement group")


def removal_text(group: Group) -> str:
    """What those in it are told."""
    name = f" ({group.spec['name']!r})" if group.spec.get("name") else ""
    return f"{REMOVED_TEXT}: {group.group_id.hex()}{name}: {group.text}"
