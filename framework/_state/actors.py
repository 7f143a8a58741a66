"""The head's directory of actors: where each one is, what it is called, and what happens when its process ends.

Pure: methods return commands, tuples that start with a word:

``("place", actor_id, spec, incarnation)``      have a node start it
``("publish", watcher, record)``                tell a watcher the state of the actor
``("end", actor_id, incarnation, force, why)``  have its node end it
``("unplace", actor_id)``                       have the node forget that it should start it
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from framework.exceptions import ActorAlreadyExistsError

PENDING = "PENDING_CREATION"
ALIVE = "ALIVE"
RESTARTING = "RESTARTING"
DEAD = "DEAD"

Command = tuple[Any, ...]

MAX_DEAD_KEPT = 10_000
"""Records of dead actors that are kept, for whoever still asks why; the oldest go first."""


class ActorRecord:
    """One actor, through all its incarnations."""

    __slots__ = (
        "actor_id",
        "address",
        "detail",
        "incarnation",
        "no_restart",
        "owner",
        "pid",
        "restarts",
        "spec",
        "state",
        "watchers",
        "worker",
    )

    def __init__(self, actor_id: bytes, spec: dict[str, Any], owner: Hashable) -> None:
        self.actor_id = actor_id
        self.spec = spec
        self.owner = owner  #: connection of the process that created it; the actor ends with it unless detached
        self.state = PENDING
        self.address = ""
        self.worker = b""
        self.pid = 0
        self.incarnation = 0
        self.restarts = 0
        self.no_restart = False
        self.watchers: set[Hashable] = set()
        self.detail: dict[str, Any] | None = None  #: why it is dead: {"text": str, "error": wire error or None, "pid": int}

    @property
    def name_key(self) -> tuple[str, str] | None:
        name = self.spec.get("name")
        return (self.spec.get("namespace") or "", name) if name else None

    @property
    def detached(self) -> bool:
        return self.spec.get("lifetime") == "detached"


class ActorDirectory:
    """All actors of the cluster."""

    def __init__(self) -> None:
        self.records: dict[bytes, ActorRecord] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        self._dead: dict[bytes, None] = {}

    def create(self, actor_id: bytes, spec: dict[str, Any], owner: Hashable) -> list[Command]:
        """Register a new actor. Repeating it changes nothing. Raises `ActorAlreadyExistsError` for a name in use."""
        if actor_id in self.records:
            return []
        record = ActorRecord(actor_id, spec, owner)
        key = record.name_key
        if key is not None:
            if key in self._names:
                raise ActorAlreadyExistsError(
                    f"the name {key[1]!r} is taken by another actor in namespace {key[0]!r}: choose another, "
                    "kill() that actor first, or pass get_if_exists=True to use it"
                )
            self._names[key] = actor_id
        self.records[actor_id] = record
        record.watchers.add(owner)
        return [("place", actor_id, spec, 0)]

    def placed(
        self, actor_id: bytes, incarnation: int, worker: bytes, address: str, pid: int, error: list[Any] | None
    ) -> list[Command]:
        """A node reports the outcome of starting it: alive, or the error of its ``__init__``."""
        record = self.records.get(actor_id)
        if record is None or record.state == DEAD or record.incarnation != incarnation:
            return [("end", actor_id, incarnation, True, "it is not wanted any more")]
        if error is not None:
            return self._die(record, {"text": "its constructor raised an exception", "error": error, "pid": pid})
        record.state = ALIVE
        record.worker, record.address, record.pid = worker, address, pid
        return self._publish(record)

    def gone(self, actor_id: bytes, incarnation: int, text: str, intended: bool) -> list[Command]:
        """Its process has ended."""
        record = self.records.get(actor_id)
        if record is None or record.state == DEAD or record.incarnation != incarnation:
            return []
        limit = record.spec.get("max_restarts") or 0
        if not intended and not record.no_restart and (limit < 0 or record.restarts < limit):
            record.restarts += 1
            record.incarnation += 1
            record.state, record.address, record.worker = RESTARTING, "", b""
            record.detail = {"text": text, "error": None, "pid": record.pid}
            return [*self._publish(record), ("place", actor_id, record.spec, record.incarnation)]
        return self._die(record, {"text": text, "error": None, "pid": record.pid})

    def kill(self, actor_id: bytes, no_restart: bool, why: str, force: bool = True) -> list[Command]:
        """End it. With `no_restart` for good, else it counts as a crash."""
        record = self.records.get(actor_id)
        if record is None or record.state == DEAD:
            return []
        incarnation = record.incarnation
        was_placed = record.state == ALIVE
        if not no_restart:
            return [("end", actor_id, incarnation, force, why)]
        commands: list[Command] = []
        if was_placed and not force:
            record.no_restart = True
            return [("end", actor_id, incarnation, False, why)]
        commands.append(("end", actor_id, incarnation, True, why))
        if not was_placed:
            commands.append(("unplace", actor_id))
        return commands + self._die(record, {"text": why, "error": None, "pid": record.pid})

    def owner_gone(self, owner: Hashable) -> list[Command]:
        """The process that created them has ended: so do its actors, except detached ones."""
        commands: list[Command] = []
        for record in list(self.records.values()):
            record.watchers.discard(owner)
            if record.owner == owner and not record.detached and record.state != DEAD:
                commands += self.kill(record.actor_id, True, "its owner, the process that created it, has ended")
        return commands

    def watch(self, actor_id: bytes, watcher: Hashable) -> ActorRecord | None:
        """Somebody holds a handle and wants to hear of the actor."""
        record = self.records.get(actor_id)
        if record is not None and record.state != DEAD:
            record.watchers.add(watcher)
        return record

    def find(self, name: str, namespace: str) -> ActorRecord | None:
        """The live actor of this name."""
        actor_id = self._names.get((namespace, name))
        return self.records.get(actor_id) if actor_id is not None else None

    def named(self, namespace: str | None) -> list[tuple[str, str]]:
        """(namespace, name) of all named actors, or of those in one namespace."""
        return sorted(key for key in self._names if namespace is None or key[0] == namespace)

    def _die(self, record: ActorRecord, detail: dict[str, Any]) -> list[Command]:
        record.state = DEAD
        record.detail = detail
        record.address = ""
        key = record.name_key
        if key is not None and self._names.get(key) == record.actor_id:
            del self._names[key]
        commands = self._publish(record)
        record.watchers.clear()
        # What a dead record still has to tell is small.
        record.spec = {
            k: record.spec.get(k) for k in ("class_name", "name", "namespace", "job") if k in record.spec
        }
        self._dead[record.actor_id] = None
        while len(self._dead) > MAX_DEAD_KEPT:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            self.records.pop(oldest, None)
        return commands

    def _publish(self, record: ActorRecord) -> list[Command]:
        return [("publish", watcher, record) for watcher in record.watchers]
