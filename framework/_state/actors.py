"""The head's directory of actors: where each one is, what it is called, and what happens when its process
ends.

Pure: methods return commands, tuples that start with a word:

``("place", actor_id, spec, incarnation)``      have a node start it
``("publish", watcher, record, actor_id)``      tell a watcher the state, under the id that it knows
``("end", actor_id, incarnation, force, why)``  have its node end it
``("end_at", node, actor_id, incarnation, why)``  have this node end it: it is wanted elsewhere, or not at all
``("end_later", actor_id, incarnation, why)``   the same, by force, if it has not ended in good time
``("unplace", actor_id)``                       have the node forget that it should start it
``("unstore", actor_id, object_id)``            have the node free a saved state that is of no use any more
``("unstore_at", node, object_id)``             the same, in a cluster, where it may be on another node
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Final

from framework._base.ids import SEVERAL_TASKS
from framework._state.actor_records import (
    ALIVE,
    DEAD,
    OWNER_ENDED,
    RESTARTING,
    ActorRecord,
    ActorRecords,
)
from framework.exceptions import ActorAlreadyExistsError

Command = tuple[Any, ...]

#: What outlives the head's process, beside `spec` and `aliases`.
_KEPT: Final = (
    "owner",
    "state",
    "address",
    "worker",
    "pid",
    "incarnation",
    "restarts",
    "no_restart",
    "held",
    "waiting",
    "moving",
    "ending",
    "node",
    "detail",
    "saved",
    "stored",
)


def stored_on(state: Any) -> bytes:
    """The node that has a saved state in its store (wire form), in a cluster; else empty."""
    node = state[5] if isinstance(state, list) and len(state) > 5 and state[0] == 3 else b""
    return node if isinstance(node, bytes) else b""


class ActorDirectory:
    """All actors of the cluster."""

    def __init__(self) -> None:
        self.records = ActorRecords()
        self._living = self.records.living
        self._names: dict[tuple[str, str], bytes] = {}
        self._aliases: dict[bytes, bytes] = {}
        self._unborn: dict[bytes, dict[Hashable, None]] = {}
        #: what `export` would tell anew -> whether its `spec` has changed too; None: nobody keeps it
        self.touched: dict[bytes, bool] | None = None

    def _touch(self, record: ActorRecord, spec: bool = False) -> None:
        if self.touched is not None:
            self.touched[record.actor_id] = spec or self.touched.get(record.actor_id, False)

    def record(self, actor_id: bytes) -> ActorRecord | None:
        """The actor of this id, or the one that the id is an alias of."""
        return self.records.get(self._aliases.get(actor_id, actor_id))

    def create(
        self,
        actor_id: bytes,
        spec: dict[str, Any],
        owner: Hashable,
        waiting: bool = False,
        watcher: Hashable | None = None,
    ) -> list[Command]:
        """Register a new actor. With `waiting` it is only announced, to be placed when this is called once
        more; any other repetition changes nothing.

        A name in use raises `ActorAlreadyExistsError`; under ``get_if_exists`` the new id becomes an alias of
        the living actor. `watcher`: by what its owner is told of it, if not as `owner`.
        """
        watcher = owner if watcher is None else watcher
        record = self.records.get(actor_id)
        if record is not None:
            if not record.waiting or waiting or record.state == DEAD:
                return []
            record.waiting, record.spec = False, spec
            self._touch(record, True)
            return [self._place(record)]
        if actor_id in self._aliases:
            return []
        watchers = [*self._unborn.pop(actor_id, {}) | {watcher: None}]
        record = ActorRecord(actor_id, spec, owner)
        key = record.name_key
        if key is not None:
            namesake = self.find(key[1], key[0])
            if namesake is not None and spec.get("get_if_exists"):
                return self._alias(actor_id, namesake, watchers)
            if namesake is not None:
                raise ActorAlreadyExistsError(
                    f"the name {key[1]!r} is taken by another actor in namespace {key[0]!r}: choose another, "
                    "kill() that actor first, or pass get_if_exists=True to use it"
                )
            self._names[key] = actor_id
        self.records.add(record)
        record.watchers = {watcher: {actor_id} for watcher in watchers}
        record.waiting = waiting
        self._touch(record, True)
        return [] if waiting else [self._place(record)]

    @staticmethod
    def _place(record: ActorRecord) -> Command:
        spec = {**record.spec, "saved": record.saved} if record.saved else record.spec
        return ("place", record.actor_id, spec, record.incarnation)

    def _alias(self, actor_id: bytes, record: ActorRecord, watchers: list[Hashable]) -> list[Command]:
        self._aliases[actor_id] = record.actor_id
        record.aliases.add(actor_id)
        self._touch(record)
        for watcher in watchers:
            record.watchers.setdefault(watcher, set()).add(actor_id)
        return [("publish", watcher, record, actor_id) for watcher in watchers]

    def placed(
        self,
        actor_id: bytes,
        incarnation: int,
        worker: bytes,
        address: str,
        pid: int,
        error: list[Any] | None,
    ) -> list[Command]:
        """A node reports the outcome of starting it: alive, or the error of its ``__init__``."""
        record = self.records.get(actor_id)
        if record is None or record.state == DEAD or record.incarnation != incarnation:
            return [("end", actor_id, incarnation, True, "it is not wanted any more")]
        if error is not None:
            detail = {"text": "its constructor raised an exception", "error": error, "pid": pid}
            return (
                self._hold(record, detail) if incarnation and record.supervised else self._die(record, detail)
            )
        record.state = ALIVE
        record.worker, record.address, record.pid = worker, address, pid
        self._touch(record)
        return self._publish(record)

    def save(self, actor_id: bytes, incarnation: int, state: Any, stored: bytes | None) -> list[Command]:
        """It wants to find this state (wire form) again if it is restarted. Where it is in the store, under
        the id `stored`, it belongs to this directory from now on. Raises `ValueError` when that incarnation
        is over."""
        record = self.records.get(actor_id)
        if record is None or record.state == DEAD or record.incarnation != incarnation:
            raise ValueError("this incarnation of the actor is over: its state is not kept")
        commands = self._unsave(record)
        record.saved, record.stored = [state], stored
        self._touch(record)
        return commands

    @staticmethod
    def _unsave(record: ActorRecord) -> list[Command]:
        saved, stored = record.saved, record.stored
        record.saved, record.stored = [], None
        if stored is None:
            return []
        where = stored_on(saved[0]) if saved else b""
        return [("unstore_at", where, stored)] if where else [("unstore", record.actor_id, stored)]

    def gone(
        self,
        actor_id: bytes,
        incarnation: int,
        text: str,
        intended: bool,
        running: int = 0,
        kind: str = "",
    ) -> list[Command]:
        """Its process has ended. `running`: the call that it had begun last (0: none; `SEVERAL_TASKS`: it may
        have run many at a time). `kind`: "memory" when it was ended for want of memory."""
        record = self.records.get(actor_id)
        if record is None or record.state == DEAD or record.incarnation != incarnation:
            return []
        limit = record.spec.get("max_restarts") or 0
        fate = {
            "error": None,
            "pid": record.pid,
            "running": running,
            "kind": kind,
            "orderly": intended,
        }
        if record.moving and not record.no_restart:
            record.restarts -= 1  # it is not its fault
            return [*self._again(record, {**fate, "text": text}), self._place(record)]
        if record.supervised and not record.no_restart:
            return self._hold(record, {**fate, "text": text})
        if not intended and not record.no_restart and (limit < 0 or record.restarts < limit):
            return [*self._again(record, {**fate, "text": text}), self._place(record)]
        if record.restarts:
            text = f"{text}; it had been restarted {record.restarts} time(s) (max_restarts={limit})"
        return self._die(record, {**fate, "text": text})

    def _again(self, record: ActorRecord, detail: dict[str, Any]) -> list[Command]:
        """There will be another incarnation."""
        record.restarts += 1
        record.incarnation += 1
        record.state, record.address, record.worker = RESTARTING, "", b""
        record.node, record.moving, record.ending = b"", False, None
        record.detail = detail
        self._touch(record)
        return self._publish(record)

    def _hold(self, record: ActorRecord, detail: dict[str, Any]) -> list[Command]:
        """There may be another incarnation: its supervisor will say."""
        record.held = True
        return self._again(record, detail)

    def restart(self, actor_id: bytes) -> list[Command]:
        """Its supervisor wants it to go on. May be repeated."""
        record = self.records.get(actor_id)
        if record is None or not record.held or record.state == DEAD:
            return []
        record.held = False
        self._touch(record)
        return [self._place(record)]

    def kill(
        self, actor_id: bytes, no_restart: bool, why: str, force: bool = True, final: bool = False
    ) -> list[Command]:
        """End it. With `no_restart` for good, else it counts as a crash. Without `force` it finishes its
        calls first. Of a supervised actor only its supervisor, or the end of that, is `final`.
        """
        record = self.record(actor_id)
        if record is None or record.state == DEAD:
            return []
        if record.supervised and not final:
            if record.held:
                return []
            no_restart = False
        end: Command = ("end", record.actor_id, record.incarnation, force, why)
        if not no_restart:
            if record.waiting:
                return []
            if record.state == ALIVE or record.node:
                # Its next life begins when this one is over; the node says so even if it has yet to begin.
                return [self._ends(record, force, why)]
            return [end, *self.gone(record.actor_id, record.incarnation, why, False)]
        if record.state == ALIVE and not force:
            record.no_restart = True
            self._release_name(record)  # it takes no new users
            return [self._ends(record, force, why)]
        commands: list[Command] = [end]
        if record.state != ALIVE:
            commands.append(("unplace", record.actor_id))
        return commands + self._die(record, {"text": why, "error": None, "pid": record.pid})

    def fail(self, actor_id: bytes, text: str, error: list[Any]) -> list[Command]:
        """End it for good, whatever its options. `error`: what its callers get, in wire form."""
        record = self.records.get(actor_id)
        if record is None or record.state == DEAD:
            return []
        commands: list[Command] = [("end", actor_id, record.incarnation, True, text)]
        if record.state != ALIVE:
            commands.append(("unplace", actor_id))
        return commands + self._die(record, {"text": text, "error": error, "pid": record.pid})

    def _ends(self, record: ActorRecord, force: bool, why: str) -> Command:
        """Its process is to end; what becomes of the actor is decided when it has."""
        if record.ending is None or force:
            record.ending = [force, why]
        self._touch(record)
        return ("end", record.actor_id, record.incarnation, force, why)

    def out_of_scope(self, actor_id: bytes, why: str, force: bool = False) -> list[Command]:
        """Its creator's last handle is gone, or its creator cannot go on with it. Detached actors and those
        that the creator only found by name live on."""
        target = self._aliases.pop(actor_id, None)
        if target is not None:
            record = self.records.get(target)
            if record is not None:
                record.aliases.discard(actor_id)
                self._touch(record)
                self._unwatch(record, actor_id)
                if record.state == DEAD:
                    self._bury(record)
            return []
        record = self.records.get(actor_id)
        if record is None or (record.detached and not force):
            return []
        return self.kill(actor_id, True, why, force=force, final=True)

    @staticmethod
    def _unwatch(record: ActorRecord, actor_id: bytes) -> None:
        for watcher, ids in list(record.watchers.items()):
            ids.discard(actor_id)
            if not ids:
                del record.watchers[watcher]

    def watcher_gone(self, watcher: Hashable) -> None:
        """Who was told of actors does not listen any more."""
        for watchers in self._unborn.values():
            watchers.pop(watcher, None)
        for record in self._living.values():
            record.watchers.pop(watcher, None)

    def owner_gone(self, owner: Hashable) -> list[Command]:
        """The process that created them has ended: so do its actors, except detached ones."""
        commands: list[Command] = []
        for watchers in self._unborn.values():
            watchers.pop(owner, None)
        for record in list(self._living.values()):
            record.watchers.pop(owner, None)
            if record.owner == owner and (record.waiting or not record.detached):
                why = OWNER_ENDED
                graceful = bool(record.spec.get("shutdown_hook")) and record.state == ALIVE
                commands += self.kill(record.actor_id, True, why, force=not graceful, final=True)
                if graceful:
                    commands.append(("end_later", record.actor_id, record.incarnation, why))
        return commands

    def watch(self, actor_id: bytes, watcher: Hashable) -> ActorRecord | None:
        """Somebody holds a handle and wants to hear of the actor. None: it is not known yet (a handle may
        arrive before the news of its creation, see `never_born`)."""
        record = self.record(actor_id)
        if record is None:
            self._unborn.setdefault(actor_id, {})[watcher] = None
        elif record.state != DEAD:
            record.watchers.setdefault(watcher, set()).add(actor_id)
        return record

    def never_born(self, actor_id: bytes) -> list[Hashable]:
        """Time is up for the news of this actor's creation: those who wait for it in vain."""
        return list(self._unborn.pop(actor_id, ()))

    def find(self, name: str, namespace: str) -> ActorRecord | None:
        """The live actor of this name."""
        actor_id = self._names.get((namespace, name))
        return self.records.get(actor_id) if actor_id is not None else None

    def named(self, namespace: str | None) -> list[tuple[str, str]]:
        """(namespace, name) of all named actors, or of those in one namespace."""
        return sorted(key for key in self._names if namespace is None or key[0] == namespace)

    def _die(self, record: ActorRecord, detail: dict[str, Any]) -> list[Command]:
        record.state, record.detail = DEAD, detail
        record.address, record.worker, record.ending = "", b"", None
        self._release_name(record)
        commands = self._publish(record) + self._unsave(record)
        record.watchers.clear()
        self._bury(record)
        return commands

    def _bury(self, record: ActorRecord) -> None:
        self._touch(record, True)
        for forgotten in self.records.bury(record):
            for alias in forgotten.aliases:
                self._aliases.pop(alias, None)
            self._touch(forgotten, True)

    def _release_name(self, record: ActorRecord) -> None:
        key = record.name_key
        if key is not None and self._names.get(key) == record.actor_id:
            del self._names[key]

    @staticmethod
    def _publish(record: ActorRecord) -> list[Command]:
        return [
            ("publish", watcher, record, actor_id)
            for watcher, ids in record.watchers.items()
            for actor_id in sorted(ids)
        ]

    def living(self) -> list[ActorRecord]:
        """All that are not dead."""
        return list(self._living.values())

    # ---- nodes -----------------------------------------------------------------------------------------

    def placing(self, actor_id: bytes, node: bytes) -> None:
        """It is to be started on this node (empty: it has no place after all)."""
        record = self._living.get(actor_id)
        if record is not None:
            record.node = node
            self._touch(record)

    def on_node(self, node: bytes) -> list[ActorRecord]:
        """The actors that live, or are being started, on a node."""
        return [record for record in self._living.values() if record.node == node]

    def node_gone(self, node: bytes, text: str) -> list[Command]:
        """A node is dead, and everything on it."""
        commands: list[Command] = []
        for record in self.on_node(node):
            if record.state == ALIVE:
                commands += self.gone(record.actor_id, record.incarnation, text, False, SEVERAL_TASKS, "node")
            else:
                commands += self._replace(record)
        return commands

    def refused(self, actor_id: bytes) -> list[Command]:
        """The node where it was to be has no room for it after all."""
        record = self.records.get(actor_id)
        if record is None or record.state in (ALIVE, DEAD):
            return []
        return self._replace(record)

    def _replace(self, record: ActorRecord) -> list[Command]:
        """Nothing has come of starting it where it was to be: elsewhere, then."""
        if record.ending is not None:  # it was killed
            return self.gone(record.actor_id, record.incarnation, record.ending[1], False)
        record.node = b""
        self._touch(record)
        return [] if record.held or record.waiting else [self._place(record)]

    def reported(self, node: bytes, actors: Iterable[list[Any]]) -> list[Command]:
        """A node has come (back) and tells which actors are there: [actor, incarnation, worker, address,
        pid] of each, with an empty address while it is being started. What it was to have and does not tell
        of is gone."""
        commands: list[Command] = []
        there: set[bytes] = set()
        for actor_id, incarnation, worker, address, pid in actors:
            record = self.records.get(actor_id)
            wanted = record is not None and record.state != DEAD and record.incarnation == incarnation
            if record is None or not wanted or record.node not in (b"", node):
                commands.append(("end_at", node, actor_id, incarnation, "it is not wanted any more"))
                continue
            there.add(actor_id)
            if record.node != node:
                self.placing(actor_id, node)
            if address and (record.state != ALIVE or record.address != address):
                commands += self.placed(actor_id, incarnation, worker, address, pid, None)
            if record.ending is not None:  # the node may not have heard of it
                commands.append(("end", actor_id, incarnation, *record.ending))
        for record in self.on_node(node):
            if record.actor_id in there:
                continue
            if record.state == ALIVE:
                text = "its process ended while its node had no connection to the head"
                commands += self.gone(record.actor_id, record.incarnation, text, False, SEVERAL_TASKS)
            else:
                commands += self._replace(record)
        return commands

    def move(self, node: bytes, why: str) -> list[Command]:
        """Actors that can be started again leave this node, after the calls that they have begun; that does
        not count as a restart."""
        commands: list[Command] = []
        for record in self.on_node(node):
            if record.state != ALIVE:
                commands += [("end_at", node, record.actor_id, -1, why), *self._replace(record)]
            elif record.spec.get("max_restarts") or record.supervised:
                record.moving = True
                commands.append(self._ends(record, False, why))
        return commands

    # ---- restarts of the head --------------------------------------------------------------------------

    def export(self, actor_id: bytes) -> dict[str, Any] | None:
        """What must be kept of an actor beside its `spec`, in values that msgpack can hold. None: nothing."""
        record = self.records.get(actor_id)
        if record is None:
            return None
        facts = {name: getattr(record, name) for name in _KEPT}
        facts["aliases"] = sorted(record.aliases)
        return facts

    def restore(self, actors: Iterable[tuple[bytes, dict[str, Any], dict[str, Any]]]) -> list[Command]:
        """The head has been restarted: id, `export` and `spec` of all actors. Who watched them will say so
        again, and their nodes what has become of them; the commands place those that had no place yet."""
        commands: list[Command] = []
        for actor_id, facts, spec in actors:
            record = ActorRecord(actor_id, spec, facts["owner"])
            for name in _KEPT:
                setattr(record, name, facts[name])
            record.aliases = set(facts["aliases"])
            self._aliases.update(dict.fromkeys(record.aliases, actor_id))
            if record.state == DEAD:
                self._bury(record)
                continue
            self.records.add(record)
            key = record.name_key
            if key is not None and not record.no_restart:
                self._names[key] = actor_id
            if record.state != ALIVE and not (record.node or record.held or record.waiting):
                commands.append(self._place(record))
        return commands

    def owners(self) -> list[Hashable]:
        """The processes whose end would end actors."""
        return list(dict.fromkeys(r.owner for r in self._living.values() if r.waiting or not r.detached))
