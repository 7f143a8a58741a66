"""Who belongs to a cluster: the head's list of nodes, and its verdicts on them.

Pure: time comes in as an argument. Methods that can end in a verdict return commands, of one kind:

``("dead", node_id, reason)``     it does not belong to the cluster any more, and may not come back

A node is dead when it has not been heard for `limits.NODE_SILENCE`, when its connection is lost and not back
within `limits.NODE_BACK`, or when it says that it leaves. After a restart of the head, nodes that it
remembers have `limits.NODE_BACK_AFTER_RESTART` to come back. A dead node is *fenced*: its id is refused for
good, so that what was taken from it can be given to others. (A node process makes itself a new id each time
it starts.)

A *row* is what all nodes know of each: see `ROW`. `delta` gives the rows that have changed since it was last
called; rows in which only resources have changed have only those, and the node's id.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Final

from framework._base import limits
from framework.exceptions import NodeFencedError

Row = dict[str, Any]
Command = tuple[Any, ...]

#: What a row has, and what it is where a node does not tell.
ROW: Final[Row] = {
    "node_id": b"",
    "alive": True,
    "host": "",
    "port": 0,
    "data_port": 0,
    "total": {},
    "available": {},
    "labels": {},
    "draining": False,
    "hostname": "",
    "pid": 0,
    "session_dir": "",
    "head": False,
}
_KEPT: Final = ("host", "port", "data_port", "total", "labels", "hostname", "pid", "session_dir", "head")
_HELD_UP: Final = 1.0  #: seconds without a look, after which this process did not run
_ALL: Final = "all"
_LOAD: Final = "load"


class Member:
    """One node, alive or dead."""

    __slots__ = (
        "busy",
        "deadline",
        "drain_reason",
        "heard",
        "node_id",
        "peer",
        "pending",
        "reason",
        "row",
    )

    def __init__(self, node_id: bytes, row: Row) -> None:
        self.node_id = node_id
        self.row = row
        self.peer: Hashable | None = None  #: its connection
        self.heard = 0.0  #: when it last said something
        self.deadline: float | None = None  #: until when it must be back, while it has no connection
        self.reason = ""  #: why it is dead, or will be
        self.drain_reason = ""
        self.pending: list[Any] = []  #: what waits for resources there: [[units, strategy, count], ...]
        self.busy = 0  #: workers that have something to do

    @property
    def alive(self) -> bool:
        return bool(self.row["alive"])

    @property
    def draining(self) -> bool:
        return bool(self.row["draining"])

    @property
    def short(self) -> str:
        """As errors name it."""
        host = self.row["hostname"] or self.row["host"]
        return f"{self.node_id.hex()[:8]}{f' ({host})' if host else ''}"


class Membership:
    """All nodes of a cluster."""

    def __init__(self) -> None:
        self.members: dict[bytes, Member] = {}
        self.fenced: dict[bytes, None] = {}  #: the latest last
        self._dead: dict[bytes, None] = {}
        self._changed: dict[bytes, str] = {}
        self._looked: float | None = None  #: when `verdicts` was last asked for
        self._held_up_until = 0.0

    # ---- what nodes say ------------------------------------------------------------------------------

    def join(self, info: Row, peer: Hashable, now: float) -> Member:
        """A node has (re)connected and tells its row. Raises `NodeFencedError` if it was declared dead,
        `ValueError` when the row is none. Twice is as once."""
        node_id = info.get("node_id")
        if not isinstance(node_id, bytes) or not node_id:
            raise ValueError("a node must tell its id when it joins")
        if node_id in self.fenced:
            raise NodeFencedError(self.fence_text(node_id))
        row: Row = {**ROW, **{name: info[name] for name in _KEPT if name in info}, "node_id": node_id}
        row["available"] = dict(info.get("available") or row["total"])
        member = self.members.get(node_id)
        if member is None:
            member = self.members[node_id] = Member(node_id, row)
        else:
            row["draining"] = member.draining
            member.row = row
        member.peer, member.heard, member.deadline, member.reason = peer, now, None, ""
        self._changed[node_id] = _ALL
        return member

    def fence_text(self, node_id: bytes) -> str:
        """Why a node that was declared dead may not come back."""
        member = self.members.get(node_id)
        why = f": {member.reason}" if member is not None and member.reason else ""
        return (
            f"the node {node_id.hex()[:8]} was declared dead{why}. What ran there has been started again "
            "elsewhere, so it ends now; start a new node to have its machine back in the cluster"
        )

    def load(
        self,
        node_id: bytes,
        peer: Hashable,
        available: dict[str, int],
        pending: list[Any],
        total: dict[str, int] | None,
        busy: int,
        now: float,
    ) -> bool:
        """A node lives, and tells its load. False: it is none, or has come back by another connection."""
        member = self.members.get(node_id)
        if member is None or not member.alive or member.peer != peer:
            return False
        member.heard = now
        member.pending, member.busy = pending, busy
        row = member.row
        if available != row["available"] or (total is not None and total != row["total"]):
            row["available"] = available
            if total is not None:
                row["total"] = total
            self._changed.setdefault(node_id, _LOAD)
        return True

    def lost(self, node_id: bytes, peer: Hashable, now: float) -> None:
        """A node's connection has ended. It has a moment to come back."""
        member = self.members.get(node_id)
        if member is not None and member.alive and member.peer == peer:
            member.peer = None
            member.deadline = now + limits.NODE_BACK
            member.reason = "its connection to the head was lost, and it did not come back"

    def leave(self, node_id: bytes, reason: str) -> list[Command]:
        """A node ends in an orderly way, or somebody knows for sure that it has ended."""
        member = self.members.get(node_id)
        if member is None or not member.alive:
            return []
        return self._die(member, reason)

    def remembered(self, gone: Iterable[tuple[bytes, str]]) -> list[Command]:
        """A node has heard of these that they are dead. A head has said so, which does not know it any more
        (its disk did not take the verdict): it stays so, or some would speak to them and others not."""
        commands: list[Command] = []
        for node_id, reason in gone:
            member = self.members.get(node_id)
            if node_id in self.fenced:
                continue
            if member is not None and member.alive:
                commands += self._die(member, reason)
            else:
                self._fence(node_id)
        return commands

    # ---- verdicts ------------------------------------------------------------------------------------

    def held_up(self, now: float) -> bool:
        """Whether this process did not run for a while, up to a moment ago: then nobody could be heard, and
        who seems to be late may only be waiting for an answer."""
        return now < self._held_up_until or (self._looked is not None and now - self._looked > _HELD_UP)

    def verdicts(self, now: float) -> list[Command]:
        """To be asked several times a second: who is dead by now."""
        if self._looked is not None:
            held_up = now - self._looked - _HELD_UP
            if held_up > 0:
                # This process did not run for a while: nobody could be heard.
                self._held_up_until = now + _HELD_UP
                for member in self.members.values():
                    member.heard += held_up
                    if member.deadline is not None:
                        member.deadline += held_up
        self._looked = now
        commands: list[Command] = []
        for member in list(self.members.values()):
            if not member.alive:
                continue
            if member.peer is None:
                if member.deadline is not None and now >= member.deadline:
                    commands += self._die(member, member.reason)
            elif now - member.heard >= limits.NODE_SILENCE:
                commands += self._die(member, f"it was not heard for {limits.NODE_SILENCE:g} seconds")
        return commands

    def _die(self, member: Member, reason: str) -> list[Command]:
        member.row = {**member.row, "alive": False, "available": {}}
        member.reason = reason
        member.peer, member.deadline, member.pending, member.busy = None, None, [], 0
        self._changed[member.node_id] = _ALL
        self._fence(member.node_id)
        self._dead[member.node_id] = None
        while len(self._dead) > limits.NODES_DEAD_KEPT:
            oldest = next(iter(self._dead))
            del self._dead[oldest], self.members[oldest]
        return [("dead", member.node_id, reason)]

    def _fence(self, node_id: bytes) -> None:
        self.fenced[node_id] = None
        while len(self.fenced) > limits.FENCED_KEPT:
            del self.fenced[next(iter(self.fenced))]

    def drain(self, node_id: bytes, reason: str) -> bool:
        """A node gets no new work. False when it is none, or was told before."""
        member = self.members.get(node_id)
        if member is None or not member.alive or member.draining:
            return False
        member.row["draining"] = True
        member.drain_reason = reason
        self._changed[node_id] = _ALL
        return True

    # ---- what others learn ---------------------------------------------------------------------------

    def alive(self) -> list[Member]:
        """All living nodes."""
        return [member for member in self.members.values() if member.alive]

    def rows(self, dead: bool = False) -> list[Row]:
        """The full rows of the living nodes, or of all that are remembered."""
        return [member.row for member in self.members.values() if dead or member.alive]

    @property
    def changed(self) -> bool:
        """Whether `delta` would give anything."""
        return bool(self._changed)

    def delta(self) -> list[Row]:
        """What has changed since this was last asked."""
        changed, self._changed = self._changed, {}
        rows: list[Row] = []
        for node_id, what in changed.items():
            member = self.members.get(node_id)
            if member is None:
                rows.append({"node_id": node_id, "alive": False})
            elif what == _ALL:
                rows.append(member.row)
            else:
                row = member.row
                rows.append({"node_id": node_id, "available": row["available"], "total": row["total"]})
        return rows

    # ---- restarts of the head ------------------------------------------------------------------------

    def record(self, node_id: bytes) -> Row | None:
        """What must outlive the head's process, of one node; None: nothing."""
        member = self.members.get(node_id)
        if member is None:
            return None
        return {"row": member.row, "reason": member.reason, "drain_reason": member.drain_reason}

    def restore(self, records: Iterable[Row], fenced: Iterable[bytes], now: float) -> None:
        """The head has been restarted: what it had written down. Living nodes have a grace to come back."""
        self.fenced = dict.fromkeys(fenced, None)
        self._looked = now  # from here on it counts if this process is held up
        for record in records:
            row = {**ROW, **record["row"]}
            member = self.members[row["node_id"]] = Member(row["node_id"], row)
            member.reason, member.drain_reason = record["reason"], record["drain_reason"]
            if not member.alive:
                self._dead[member.node_id] = None
                self.fenced.setdefault(member.node_id)
                continue
            member.deadline = now + limits.NODE_BACK_AFTER_RESTART
            member.reason = "it did not come back after a restart of the head"


def merge(known: dict[bytes, Row], delta: Iterable[Row]) -> list[Row]:
    """The receiving side of `Membership.delta`: bring `known` up to date; the full rows that have changed.
    Dead nodes leave `known`. A partial row of a node that is not known is passed over."""
    changed: list[Row] = []
    for part in delta:
        node_id = part["node_id"]
        if part.get("alive") is False:
            row = {**ROW, **known.get(node_id, ROW), **part}
            known.pop(node_id, None)
        elif "alive" in part:
            row = known[node_id] = {**ROW, **part}
        elif node_id in known:
            row = known[node_id] = {**known[node_id], **part}
        else:
            continue
        changed.append(row)
    return changed
