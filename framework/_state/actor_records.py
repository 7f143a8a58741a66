"""The records of the directory of actors: of the living whole, of the dead what is left to tell.

Many dead actors are remembered, for whoever still asks why. Each is one piece of bytes: a record with its
tables would be ten times as large, and would keep alive whatever else the actor was known by (the connection
of its owner). When there are too many, or too many bytes, those that died first go.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Final

import msgpack

from framework._base import limits

PENDING = "PENDING_CREATION"
ALIVE = "ALIVE"
RESTARTING = "RESTARTING"
DEAD = "DEAD"

#: what is said of actors that end with the process that they belong to
OWNER_ENDED: Final = "its owner, the process that created it, has ended"

_SPARED: Final = ("kind", "orderly")  #: of the detail of a death: without them, it is "" and False
_TOLD: Final = ("class_name", "name", "namespace", "job")  #: of the `spec` of a dead actor


class ActorRecord:
    """One actor, through all its incarnations."""

    __slots__ = (
        "actor_id",
        "address",
        "aliases",
        "detail",
        "ending",
        "held",
        "incarnation",
        "moving",
        "no_restart",
        "node",
        "owner",
        "pid",
        "restarts",
        "saved",
        "spec",
        "state",
        "stored",
        "waiting",
        "watchers",
        "worker",
    )

    def __init__(self, actor_id: bytes, spec: dict[str, Any], owner: Hashable) -> None:
        self.actor_id = actor_id
        self.spec = spec
        #: the process that created it; the actor ends with it unless detached. Nobody asks when it is dead
        self.owner = owner
        self.node = b""  #: where it is, or is being started; empty while it has no place
        #: [force, why] while its node is to end this process of it, and has not said that it has
        self.ending: list[Any] | None = None
        self.moving = False  #: it leaves its node, and is started again elsewhere at no cost
        self.state = PENDING
        self.address = ""
        self.worker = b""
        self.pid = 0
        self.incarnation = 0
        self.restarts = 0
        self.no_restart = False
        self.held = (
            False  #: its process has ended, and its supervisor has not said yet what is to become of it
        )
        self.waiting = False  #: announced by its owner, who still waits for the arguments of its constructor
        #: who wants to hear of it -> the ids that it is known by there
        self.watchers: dict[Hashable, set[bytes]] = {}
        #: ids of handles that were made by ``get_if_exists`` and mean this actor
        self.aliases: set[bytes] = set()
        #: why it is dead or restarted: {"text": str, "error": wire error or None, "pid": int, "running": int}
        self.detail: dict[str, Any] | None = None
        #: what it wants to find again after a restart, in wire form, in a list of one (empty: nothing)
        self.saved: list[Any] = []
        self.stored: bytes | None = None  #: its id in the store, if it is there

    @property
    def name_key(self) -> tuple[str, str] | None:
        name = self.spec.get("name")
        return (self.spec.get("namespace") or "", name) if name else None

    @property
    def detached(self) -> bool:
        return self.spec.get("lifetime") == "detached"

    @property
    def supervised(self) -> bool:
        return bool(self.spec.get("supervised"))


class ActorRecords(Mapping[bytes, ActorRecord]):
    """By id: first the living, then the dead in the order of their deaths. The record of a dead actor is made
    anew each time that it is asked for: what is changed in it is lost."""

    def __init__(self) -> None:
        self.living: dict[bytes, ActorRecord] = {}
        self._dead: dict[bytes, bytes] = {}
        self._dead_bytes = 0

    def __getitem__(self, actor_id: bytes) -> ActorRecord:
        record = self.living.get(actor_id)
        return record if record is not None else _thawed(actor_id, self._dead[actor_id])

    def __contains__(self, actor_id: object) -> bool:
        return actor_id in self.living or actor_id in self._dead

    def __iter__(self) -> Iterator[bytes]:
        yield from self.living
        yield from self._dead

    def __len__(self) -> int:
        return len(self.living) + len(self._dead)

    def add(self, record: ActorRecord) -> None:
        """One that is not dead."""
        self.living[record.actor_id] = record

    def bury(self, record: ActorRecord) -> list[ActorRecord]:
        """It is dead, or, already there as such, has changed: what is left of it is kept, and in the record.
        Those that are forgotten for it."""
        actor_id = record.actor_id
        record.state, record.address, record.worker, record.ending = DEAD, "", b"", None
        record.owner = None
        record.no_restart = record.held = record.waiting = record.moving = False
        detail = record.detail or {}
        record.detail = {name: value for name, value in detail.items() if value or name not in _SPARED}
        record.spec = {name: record.spec[name] for name in _TOLD if name in record.spec}
        self.living.pop(actor_id, None)
        frozen = _frozen(record)
        self._dead_bytes += len(frozen) - len(self._dead.get(actor_id, b""))
        self._dead[actor_id] = frozen
        gone = []
        while len(self._dead) > limits.MAX_DEAD_KEPT or (
            self._dead_bytes > limits.DEAD_BYTES_KEPT and len(self._dead) > 1
        ):
            oldest = next(iter(self._dead))
            gone.append(self[oldest])
            self._dead_bytes -= len(self._dead.pop(oldest))
        return gone


def _frozen(record: ActorRecord) -> bytes:
    told = (
        record.incarnation,
        record.restarts,
        record.pid,
        record.node,
        record.detail,
        record.spec,
        sorted(record.aliases),
    )
    data: bytes = msgpack.packb(told, unicode_errors="surrogatepass")
    return data


def _thawed(actor_id: bytes, frozen: bytes) -> ActorRecord:
    told = msgpack.unpackb(frozen, strict_map_key=False, unicode_errors="surrogatepass")
    record = ActorRecord(actor_id, told[5], None)
    record.state = DEAD
    record.incarnation, record.restarts, record.pid, record.node, record.detail, _, aliases = told
    record.aliases = set(aliases)
    return record
