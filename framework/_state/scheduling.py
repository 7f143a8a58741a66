"""Which node is to serve a request: what is known of all nodes, and the policies.

Pure and deterministic. A node manager keeps a view to find nodes for the leases that its owners want, the
head one to place actors.

A strategy is what travels: None (default), ``["SPREAD"]``, ``["node", hexadecimal id, soft]``,
``["labels", hard, soft]`` (see `framework._base.labels`) or ``["group", id, bundle index, capture]``.
Requests in a placement group ask for the renamed resources of that group's bundles, so those rules need no
case of their own here, except that a group may not be ready yet, or gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from framework._base import labels as lb
from framework._base import limits
from framework._base import resources as res

Strategy = list[Any] | None

#: resources whose use counts as load; others (custom ones, those of placement groups) are permits
_LOAD = (res.CPU, res.GPU, res.MEMORY)
_BUSY = 0.5  #: a node that is used less than this counts as empty: tasks stay where they come from


class NodeRow:
    """What is known of one node."""

    __slots__ = (
        "alive",
        "available",
        "draining",
        "facts",
        "full_for",
        "hex",
        "labels",
        "node_id",
        "reachable",
        "total",
    )

    def __init__(self, node_id: bytes) -> None:
        self.node_id = node_id
        self.hex = node_id.hex()
        self.alive = True
        self.draining = False
        self.reachable = True  #: from here; others may reach it
        self.total: dict[str, int] = {}
        self.available: dict[str, int] = {}
        self.labels: dict[str, str] = {lb.NODE_ID_LABEL: self.hex}
        self.facts: dict[str, Any] = {}  #: its whole row, as the head has it
        self.full_for: set[tuple[tuple[str, int], ...]] = set()  #: requests it has refused since its last row

    @property
    def open(self) -> bool:
        """Whether it takes anything new."""
        return self.alive and self.reachable and not self.draining

    @property
    def name(self) -> str:
        """For people."""
        host = self.facts.get("hostname") or self.facts.get("host") or ""
        return f"{self.hex} ({host})" if host else self.hex

    def load(self) -> float:
        """How much of its scarcest resource is in use, from 0 to 1."""
        most = 0.0
        for name in _LOAD:
            total = self.total.get(name, 0)
            if total:
                most = max(most, 1.0 - self.available.get(name, 0) / total)
        return most

    def has_room(self, units: Mapping[str, int]) -> bool:
        """Whether it could serve this now, as far as is known."""
        if not res.fits(units, self.available):
            return False
        return not self.full_for or res.key(units) not in self.full_for


class ClusterView:
    """The nodes as one process knows them. `own` is the node of that process, if it is a node's: of that one
    it knows better what is free (`watch_own`), so that rows only bring the rest."""

    def __init__(self, own: bytes | None = None) -> None:
        self.own = own
        self.nodes: dict[bytes, NodeRow] = {}
        #: nodes that were here, and why they are not any more; those that came last
        self.dead: dict[bytes, str] = {}
        self.groups_gone: dict[bytes, str] = {}  #: placement groups that are no more, and why; likewise
        self._turn: bytes = own or b""  #: who came last when requests are spread
        self.version = 0  #: grows whenever something here may have changed what `choose` says

    # ---- what is known -------------------------------------------------------------------------------

    def watch_own(self, total: dict[str, int], available: dict[str, int]) -> None:
        """The ledger of the own node, which is looked at whenever it matters."""
        assert self.own is not None
        row = self.nodes.get(self.own)
        if row is None:
            row = self.nodes[self.own] = NodeRow(self.own)
        row.total, row.available = total, available

    def apply(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows from the head, or of a node that has refused something."""
        for facts in rows:
            node_id = facts["node_id"]
            if not facts.get("alive", True):
                self.remove(node_id, str(facts.get("reason") or "it is dead"))
                continue
            self.version += 1
            self.dead.pop(node_id, None)
            row = self.nodes.get(node_id)
            if row is None:
                row = self.nodes[node_id] = NodeRow(node_id)
            row.facts.update(facts)
            row.draining = bool(row.facts.get("draining"))
            row.labels = {**(row.facts.get("labels") or {}), lb.NODE_ID_LABEL: row.hex}
            row.full_for.clear()
            if node_id != self.own:
                row.total = dict(row.facts.get("total") or {})
                row.available = dict(row.facts.get("available") or row.total)

    def remove(self, node_id: bytes, reason: str = "it is dead") -> None:
        """That node is no more."""
        if node_id == self.own:
            return
        self.version += 1
        if self.nodes.pop(node_id, None) is not None or node_id not in self.dead:
            self.dead[node_id] = reason
            while len(self.dead) > limits.NODES_DEAD_KEPT:
                del self.dead[next(iter(self.dead))]

    def group_gone(self, group: bytes, reason: str) -> None:
        """A placement group was removed: what waits for it never runs."""
        self.version += 1
        self.groups_gone[group] = reason
        while len(self.groups_gone) > limits.GROUPS_REMOVED_KEPT:
            del self.groups_gone[next(iter(self.groups_gone))]

    def took(self, node_id: bytes, units: Mapping[str, int]) -> None:
        """Something was sent to that node: until its next row it is taken to hold that."""
        row = self.nodes.get(node_id)
        if row is not None and node_id != self.own:
            res.subtract(row.available, units)

    def refused(self, node_id: bytes, units: Mapping[str, int]) -> None:
        """That node has no room for this, whatever its row says: not before its next row."""
        row = self.nodes.get(node_id)
        if row is not None:
            row.full_for.add(res.key(units))

    def forget_refusals(self) -> None:
        """Nodes that have refused something may be asked again."""
        for row in self.nodes.values():
            row.full_for.clear()

    # ---- policies ------------------------------------------------------------------------------------

    def choose(
        self,
        units: Mapping[str, int],
        strategy: Strategy = None,
        *,
        local: bytes | None = None,
        near: bytes | None = None,
    ) -> bytes | None:
        """A node that has room for this now; None when there is none.

        local: the node where the request comes from, preferred as long as it is not busy.
        near: the node where the request's data lies.
        """
        kind = strategy[0] if strategy else ""
        if kind == "node":
            assert strategy is not None
            wanted = self._by_hex(strategy[1])
            if wanted is not None and wanted.open and self._could(wanted, units):
                # Soft means «elsewhere if that node cannot», not «elsewhere if it is busy», as in Ray.
                return wanted.node_id if wanted.has_room(units) else None
            if not strategy[2]:
                return None
        fits = [row for row in self.nodes.values() if row.open and row.has_room(units)]
        if kind == "labels":
            assert strategy is not None
            fits = [row for row in fits if lb.matches(row.labels, strategy[1])]
            # What is only wished for must not make anything wait: it narrows, where that leaves somebody.
            fits = [row for row in fits if lb.matches(row.labels, strategy[2])] or fits
        elif kind == "group":
            assert strategy is not None
            if strategy[1] in self.groups_gone:
                return None
        if not fits:
            return None
        if kind == "SPREAD":
            return self._in_turn(fits)
        if near is not None and any(row.node_id == near for row in fits):
            return near
        return self._hybrid(fits, units, local)

    def allows(self, node_id: bytes, units: Mapping[str, int], strategy: Strategy = None) -> bool:
        """Whether that node could serve it if nothing else ran there."""
        row = self.nodes.get(node_id)
        if row is None or not row.open or not self._could(row, units):
            return False
        if strategy and strategy[0] == "node":
            return bool(strategy[1] == row.hex or strategy[2])
        return not strategy or strategy[0] != "labels" or lb.matches(row.labels, strategy[1])

    @staticmethod
    def _could(row: NodeRow, units: Mapping[str, int]) -> bool:
        return res.fits(units, row.total)

    def _by_hex(self, text: str) -> NodeRow | None:
        try:
            return self.nodes.get(bytes.fromhex(text))
        except ValueError:
            return None

    def _in_turn(self, fits: list[NodeRow]) -> bytes:
        """The next one in the order of their ids, behind whoever was last."""
        last = self._turn
        after = [row.node_id for row in fits if row.node_id > last]
        self._turn = min(after) if after else min(row.node_id for row in fits)
        return self._turn

    def _hybrid(self, fits: list[NodeRow], units: Mapping[str, int], local: bytes | None) -> bytes:
        """Ray's default: as long as nodes are used by less than half they are filled one after another,
        beginning here; beyond, the least used one comes first. Nodes with GPUs are left to those who need
        them, where there are others."""
        needs_gpu = any(name.startswith(res.GPU) for name in units)
        own = self.own or local or b""
        best: tuple[Any, ...] | None = None
        for row in fits:
            load = row.load()
            rank = (
                not needs_gpu and row.total.get(res.GPU, 0) > 0,
                load if load >= _BUSY else 0.0,
                row.node_id != local,
                row.node_id <= own,  # every node begins with another: they do not all choose the same one
                row.node_id,
            )
            if best is None or rank < best:
                best = rank
        assert best is not None
        chosen: bytes = best[-1]
        return chosen

    # ---- what can never be ---------------------------------------------------------------------------

    def lost_cause(self, strategy: Strategy) -> str | None:
        """Why nothing that may still happen to the cluster lets such a request run: the one node that it may
        run on is dead, or its placement group is removed. None otherwise."""
        kind = strategy[0] if strategy else ""
        if kind == "node":
            assert strategy is not None
            if strategy[2]:
                return None
            try:
                node_id = bytes.fromhex(strategy[1])
            except ValueError:
                return self._no_such_node(strategy[1])
            row = self.nodes.get(node_id)
            if row is not None and row.open:
                return None
            why = ""
            if row is not None:
                why = "which is being drained and takes nothing new"
            elif node_id in self.dead:
                why = f"which is dead ({self.dead[node_id]})"
            else:
                return None  # it may be on its way here: see `unknown`
            return f"its NodeAffinitySchedulingStrategy asks for the node {strategy[1]}, {why}, {_SOFT}"
        if kind == "group":
            assert strategy is not None
            gone = self.groups_gone.get(strategy[1])
            if gone is not None:
                return f"its placement group {strategy[1].hex()} is no more ({gone})"
        return None

    def is_new(self, text: str) -> bool:
        """Whether this is the id of a node that was never heard of."""
        try:
            node_id = bytes.fromhex(text)
        except ValueError:
            return False
        return node_id not in self.nodes and node_id not in self.dead

    def unknown(self, strategy: Strategy) -> str | None:
        """A text when the one node that the request may run on has never been heard of."""
        if not strategy or strategy[0] != "node" or strategy[2]:
            return None
        try:
            node_id = bytes.fromhex(strategy[1])
        except ValueError:
            return self._no_such_node(strategy[1])
        return None if node_id in self.nodes or node_id in self.dead else self._no_such_node(strategy[1])

    def _no_such_node(self, text: str) -> str:
        nodes = ", ".join(row.hex for row in self.nodes.values())
        return (
            f"its NodeAffinitySchedulingStrategy asks for the node {text}, which is not in this cluster "
            f"(its nodes: {nodes}), {_SOFT}"
        )

    def never(self, units: Mapping[str, int], strategy: Strategy = None) -> str | None:
        """Why no node that is here can ever serve such a request, however long it waits; None when one can.
        A request of a placement group whose bundles are nowhere yet has to wait, and is none of these."""
        text = self.lost_cause(strategy) or self.unknown(strategy)
        if text is not None:
            return text
        rows = [row for row in self.nodes.values() if row.open]
        kind = strategy[0] if strategy else ""
        if kind == "node":
            assert strategy is not None
            wanted = self._by_hex(strategy[1])
            if wanted is not None and wanted.open:
                if self._could(wanted, units):
                    return None
                if not strategy[2]:
                    return (
                        f"it needs {res.format_resources(units)}, but the node {wanted.name}, the only one "
                        f"that its NodeAffinitySchedulingStrategy allows, has only "
                        f"{res.format_resources(wanted.total)}"
                    )
        elif kind == "labels":
            assert strategy is not None
            rows = [row for row in rows if lb.matches(row.labels, strategy[1])]
            if not rows:
                known = "; ".join(f"{row.hex[:8]}: {_plain(row.labels)}" for row in self.nodes.values())
                return (
                    f"its label_selector or NodeLabelSchedulingStrategy {lb.format_wishes(strategy[1])} "
                    "matches no node "
                    f"(the nodes' labels: {known or 'there are no nodes'})"
                )
        group = res.group_of(units)
        if group is not None:
            there = [row for row in rows if any(_of_group(name, group) for name in row.total)]
            if not there:
                return None  # it is not placed yet
            rows = there
        if any(self._could(row, units) for row in rows):
            return None
        return self._too_little(units, rows, group)

    @staticmethod
    def _too_little(units: Mapping[str, int], rows: list[NodeRow], group: tuple[str, int] | None) -> str:
        if group is not None:
            needs = res.format_resources(res.out_of_group(units))
            where = f"bundle {group[1]}" if group[1] >= 0 else "any bundle"
            return f"it needs {needs}, which is more than {where} of its placement group {group[0]} has"
        needs = res.format_resources(units)
        if not rows:
            return f"it needs {needs}, but this cluster has no node that takes anything"
        if len(rows) == 1:
            total = res.without_groups(rows[0].total)
            lacking = [name for name, amount in units.items() if amount > total.get(name, 0)]
            return (
                f"it needs {needs}, but this cluster has only {res.format_resources(total)} "
                f"(not enough: {', '.join(lacking)})"
            )
        have = "; ".join(
            f"{row.hex[:8]}: {res.format_resources(res.without_groups(row.total))}" for row in rows[:8]
        )
        more = f"; and {len(rows) - 8} more nodes" if len(rows) > 8 else ""
        return f"it needs {needs}, but no node of this cluster has all of that ({have}{more})"


_SOFT = "and soft=False lets it run nowhere else"


def _plain(labels: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{k}: {v}" for k, v in labels.items() if k != lb.NODE_ID_LABEL) + "}"


def _of_group(name: str, group: tuple[str, int]) -> bool:
    parts = res.split_group(name)
    return parts is not None and parts[1:] == group
