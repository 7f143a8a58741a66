"""How many nodes of which type there should be: demand in, decisions out. Pure: time comes in as an
argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from framework._base import resources as res
from framework.autoscaler.provider import NodeType, ProvidedNode

Units = Mapping[str, int]
_IN_A_GROUP = "_group_"


@dataclass(frozen=True, slots=True)
class Shape:
    """Something that waits for room: an amount of resources in units (see `framework._base.resources`), and
    the labels that its node must have."""

    units: Units
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Demand:
    """What waits: single shapes, and groups of bundles with a strategy, each to be placed as a whole."""

    shapes: Sequence[Shape] = ()
    groups: Sequence[tuple[str, Sequence[Units]]] = ()


@dataclass(frozen=True, slots=True)
class Room:
    """A node of the cluster: what it offers and has free. `busy`: it runs something, or holds what is
    needed."""

    node_id: str
    total: Units
    available: Units
    labels: Mapping[str, str] = field(default_factory=dict)
    draining: bool = False
    busy: bool = False


@dataclass(slots=True)
class Decision:
    """What to do now: how many nodes of which type to create, which to end (names of the provider), and what
    no type of node could ever hold."""

    create: dict[str, int] = field(default_factory=dict)
    terminate: list[str] = field(default_factory=list)
    infeasible: list[Shape] = field(default_factory=list)


class _Bin:
    """Room on a node that is there (`name` ""), or that could be created."""

    __slots__ = ("free", "labels", "node_id", "type", "used")

    def __init__(
        self, free: Units, labels: Mapping[str, str], type_name: str = "", node_id: str = ""
    ) -> None:
        self.free = dict(free)
        self.labels = labels
        self.type = type_name
        self.node_id = node_id
        self.used = False

    def holds(self, shape: Shape) -> bool:
        return res.fits(shape.units, self.free) and _has(self.labels, shape.labels)

    def take(self, units: Units) -> None:
        res.subtract(self.free, units)
        self.used = True

    def give_back(self, units: Units) -> None:
        res.add(self.free, units)


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())


class ScalingPolicy:
    """Decides, and remembers since when nodes are idle.

    A node that has been idle for `idle_timeout` seconds, and that nothing which waits could use, is ended, as
    long as its type keeps `min_nodes`. Never more than `max_nodes` are had at a time, over all types.
    """

    def __init__(
        self, types: Iterable[NodeType], *, idle_timeout: float = 60.0, max_nodes: int = 100
    ) -> None:
        self.types = {node_type.name: node_type for node_type in types}
        self.idle_timeout = idle_timeout
        self.max_nodes = max_nodes
        self._units = {
            name: {resource: res.to_units(amount, resource) for resource, amount in kind.resources.items()}
            for name, kind in self.types.items()
        }
        self._idle_since: dict[str, float] = {}

    def decide(
        self, now: float, demand: Demand, rooms: Iterable[Room], provided: Sequence[ProvidedNode]
    ) -> Decision:
        """`rooms`: the nodes of the cluster that are alive; `provided`: those of the provider, which may be
        on their way still. `now` in seconds, never decreasing."""
        rooms = list(rooms)
        alive = {room.node_id: room for room in rooms}
        bins = [
            _Bin(room.available, room.labels, node_id=room.node_id) for room in rooms if not room.draining
        ]
        for node in provided:
            if node.node_id not in alive and node.type in self.types:
                kind = self.types[node.type]
                bins.append(_Bin(self._units[node.type], kind.labels, node.type))
        counts = {name: sum(node.type == name for node in provided) for name in self.types}
        decision = Decision()
        self._fill_up(decision, bins, counts)
        for strategy, bundles in demand.groups:
            self._place_group(decision, bins, counts, strategy, bundles)
        for shape in sorted(demand.shapes, key=_size, reverse=True):
            self._place(decision, bins, counts, shape)
        self._end_idle(now, decision, bins, alive, provided, counts)
        return decision

    # ---- room for what waits -------------------------------------------------------------------------

    def _fill_up(self, decision: Decision, bins: list[_Bin], counts: dict[str, int]) -> None:
        for name, kind in self.types.items():
            while counts[name] < kind.min_nodes and self._may_add(name, counts):
                self._add(decision, bins, counts, name)

    def _may_add(self, name: str, counts: dict[str, int]) -> bool:
        return counts[name] < self.types[name].max_nodes and sum(counts.values()) < self.max_nodes

    def _add(self, decision: Decision, bins: list[_Bin], counts: dict[str, int], name: str) -> _Bin:
        counts[name] += 1
        decision.create[name] = decision.create.get(name, 0) + 1
        found = _Bin(self._units[name], self.types[name].labels, name)
        bins.append(found)
        return found

    def _place(self, decision: Decision, bins: list[_Bin], counts: dict[str, int], shape: Shape) -> bool:
        for found in bins:
            if found.holds(shape):
                found.take(shape.units)
                return True
        name = self._best_type(shape, counts)
        if name is not None:
            self._add(decision, bins, counts, name).take(shape.units)
            return True
        if not any(self._could_hold(name, shape) for name in self.types):
            decision.infeasible.append(shape)
        return False

    def _could_hold(self, name: str, shape: Shape) -> bool:
        return res.fits(shape.units, self._units[name]) and _has(self.types[name].labels, shape.labels)

    def _best_type(self, shape: Shape, counts: dict[str, int]) -> str | None:
        """The type of which the shape uses the most: nothing goes to a node with GPUs that needs none."""
        best: tuple[bool, float, str] | None = None
        for name in self.types:
            if not self._may_add(name, counts) or not self._could_hold(name, shape):
                continue
            units = self._units[name]
            wasted = any(
                amount and resource not in shape.units
                for resource, amount in units.items()
                if resource not in _COMMON
            )
            share = sum(shape.units.get(resource, 0) / amount for resource, amount in units.items() if amount)
            key = (not wasted, share / max(1, len(units)), name)
            if best is None or key[:2] > best[:2]:
                best = key
        return best[2] if best is not None else None

    def _place_group(
        self,
        decision: Decision,
        bins: list[_Bin],
        counts: dict[str, int],
        strategy: str,
        bundles: Sequence[Units],
    ) -> None:
        """All of it, or nothing is created for it."""
        if strategy == "STRICT_PACK":
            whole: dict[str, int] = {}
            for bundle in bundles:
                res.add(whole, bundle)
            self._place(decision, bins, counts, Shape(whole))
            return
        before = len(bins), dict(counts), dict(decision.create), len(decision.infeasible)
        taken: list[tuple[_Bin, Units]] = []
        apart = strategy == "STRICT_SPREAD"
        for bundle in sorted(bundles, key=lambda units: _size(Shape(units)), reverse=True):
            shape = Shape(bundle)
            used = {id(found) for found, _ in taken}
            candidates = [found for found in bins if found.holds(shape) and not (apart and id(found) in used)]
            if strategy == "SPREAD":
                candidates.sort(key=lambda found: id(found) in used)
            found = candidates[0] if candidates else None
            if found is None or (strategy == "SPREAD" and id(found) in used):
                name = self._best_type(shape, counts)
                found = self._add(decision, bins, counts, name) if name is not None else found
            if found is None:
                self._undo(decision, bins, counts, before, taken)
                if not any(self._could_hold(name, shape) for name in self.types):
                    decision.infeasible.append(shape)
                return
            found.take(bundle)
            taken.append((found, bundle))

    @staticmethod
    def _undo(
        decision: Decision,
        bins: list[_Bin],
        counts: dict[str, int],
        before: tuple[int, dict[str, int], dict[str, int], int],
        taken: list[tuple[_Bin, Units]],
    ) -> None:
        for found, units in taken:
            found.give_back(units)
        del bins[before[0] :]
        counts.update(before[1])
        decision.create = before[2]
        del decision.infeasible[before[3] :]

    # ---- nodes that nobody needs ---------------------------------------------------------------------

    def _end_idle(
        self,
        now: float,
        decision: Decision,
        bins: list[_Bin],
        alive: dict[str, Room],
        provided: Sequence[ProvidedNode],
        counts: dict[str, int],
    ) -> None:
        needed = {found.node_id for found in bins if found.used}
        idle: dict[str, float] = {}
        for node in provided:
            room = alive.get(node.node_id)
            if room is None or room.busy or node.node_id in needed or _in_use(room):
                continue
            idle[node.name] = self._idle_since.get(node.name, now)
        self._idle_since = idle
        by_name = {node.name: node for node in provided}
        for name, since in sorted(idle.items(), key=lambda item: item[1]):
            node = by_name[name]
            kind = self.types.get(node.type)
            if now - since < self.idle_timeout:
                continue
            if kind is not None and counts[node.type] <= kind.min_nodes:
                continue
            if kind is not None:
                counts[node.type] -= 1
            decision.terminate.append(name)
        if decision.create:  # what is to be created could use them, if it fitted: let one thing settle first
            decision.terminate.clear()


_COMMON = frozenset({"CPU", "memory", "object_store_memory"})


def _in_use(room: Room) -> bool:
    return any(
        room.available.get(name, 0) < amount
        for name, amount in room.total.items()
        if name != "object_store_memory"
    )


def _size(shape: Shape) -> tuple[int, int]:
    """The large ones first: they fit in fewer places."""
    return len([name for name in shape.units if name not in _COMMON]), sum(shape.units.values())


def demand_of(answer: Mapping[str, Any]) -> Demand:
    """What the head answers to HEAD_DEMAND, as the policy takes it. What waits inside of a placement group,
    or for one node, no new node can help."""
    shapes = []
    for units, strategy, count, *_ in answer.get("pending", ()):
        if any(_IN_A_GROUP in name for name in units):
            continue
        labels: Mapping[str, str] = {}
        if strategy:
            if strategy[0] in ("node", "group"):
                continue
            if strategy[0] == "labels":
                labels = _plain_labels(strategy[1])
        shapes += [Shape(units, labels)] * min(int(count), 1_000)
    groups = [(str(strategy), list(bundles)) for strategy, bundles in map(_group, answer.get("groups", ()))]
    return Demand(shapes, groups)


def _plain_labels(selector: Any) -> dict[str, str]:
    """Of a selector, the parts that name one value."""
    hard = selector.get("hard", selector) if isinstance(selector, dict) else {}
    return {
        name: value
        for name, value in (hard or {}).items()
        if isinstance(value, str) and not value.startswith(("!", "in(", "!in("))
    }


def _group(item: Any) -> tuple[str, Any]:
    if isinstance(item, dict):
        return item["strategy"], item["bundles"]
    return item[0], item[1]


def rooms_of(answer: Mapping[str, Any]) -> list[Room]:
    """The nodes in the same answer."""
    return [
        Room(
            node_id=row["node_id"].hex(),
            total=row["total"],
            available=row["available"],
            labels=row.get("labels") or {},
            draining=bool(row.get("draining")),
            busy=bool(row.get("busy")),
        )
        for row in answer.get("nodes", ())
        if row.get("alive", True)
    ]
