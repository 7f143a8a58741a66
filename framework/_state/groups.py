"""One placement group, and one node, as the head's `Placement` knows them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from framework._base import resources as res

PENDING = "PENDING"
CREATED = "CREATED"
RESCHEDULING = "RESCHEDULING"
REMOVED = "REMOVED"

PREPARE = "prepare"
COMMIT = "commit"


class Group:
    """One placement group. Its bundles are numbered from 0."""

    __slots__ = (
        "attempt",
        "bundles",
        "group_id",
        "infeasible",
        "nodes",
        "phase",
        "refusals",
        "since",
        "spec",
        "state",
        "text",
        "unanswered",
        "wanted",
        "watchers",
    )

    def __init__(self, group_id: bytes, spec: dict[str, Any]) -> None:
        """`spec`: "bundles" (list of units), "strategy", "name", "namespace", "detached" (bool), "job"
        (bytes), "actor" (bytes: the detached actor that has made it, or empty); "selectors" (for each
        bundle the labels that it wants, see `framework._base.labels`) where there are any."""
        self.group_id = group_id
        self.spec = spec
        self.bundles: list[dict[str, int]] = spec["bundles"]
        self.state = PENDING
        self.nodes: list[bytes] = [b""] * len(self.bundles)  #: where each bundle is; empty: nowhere
        self.since = [0] * len(self.bundles)  #: the attempt by which it came there
        self.attempt = 0
        self.refusals = 0  #: attempts in a row that a node had no room for after all
        self.phase: str | None = None  #: of the attempt under way
        self.wanted: dict[bytes, list[int]] = {}  #: of the attempt under way: node -> bundles
        self.unanswered: set[bytes] = set()
        self.watchers: dict[Hashable, None] = {}
        self.infeasible = False  #: more than the whole cluster has
        self.text = ""  #: why it is where it is

    @property
    def strategy(self) -> str:
        return str(self.spec["strategy"])

    @property
    def name_key(self) -> tuple[str, str] | None:
        name = self.spec.get("name")
        return (self.spec.get("namespace") or "", name) if name else None

    @property
    def visible(self) -> bool:
        """Whether tasks and actors may be in it."""
        return self.state in (CREATED, RESCHEDULING)

    @property
    def lacking(self) -> dict[int, dict[str, int]]:
        """The bundles that have no node."""
        return {index: self.bundles[index] for index, node in enumerate(self.nodes) if not node}

    def rows(self, indices: Iterable[int]) -> list[list[Any]]:
        """Bundles as nodes are told of them."""
        return [[index, self.bundles[index]] for index in indices]

    def detail(self) -> dict[str, Any]:
        """What watchers are told beside the state."""
        return {
            "name": self.spec.get("name") or "",
            "text": self.text,
            "infeasible": self.infeasible,
            "bundles": self.bundles,
        }

    def to_record(self) -> dict[str, Any]:
        """What of it outlives the head."""
        return {
            "group": self.group_id,
            "spec": self.spec,
            "state": self.state,
            "nodes": self.nodes,
            "since": self.since,
            "attempt": self.attempt,
        }


class Node:
    """One living node, less all that placement groups have added to its resources."""

    __slots__ = ("asked", "free", "row", "total")

    def __init__(self, row: Mapping[str, Any]) -> None:
        #: (group, attempt) -> (units that it was asked to prepare, whether it has said yes): what its row may
        #: not show yet
        self.asked: dict[tuple[bytes, int], tuple[dict[str, int], bool]] = {}
        self.update(row)

    def update(self, row: Mapping[str, Any]) -> None:
        self.row = row
        self.total = res.without_groups(row["total"])
        self.free = res.without_groups(row["available"])
        for units, _ in self.asked.values():
            res.subtract(self.free, units)

    def ask(self, key: tuple[bytes, int], units: dict[str, int]) -> None:
        self.asked[key] = units, False
        res.subtract(self.free, units)

    def agreed(self, key: tuple[bytes, int]) -> None:
        if key in self.asked:
            self.asked[key] = self.asked[key][0], True

    def forget(self, key: tuple[bytes, int]) -> None:
        asked = self.asked.pop(key, None)
        if asked is not None:
            res.add(self.free, asked[0])

    def loaded(self, row: Mapping[str, Any]) -> bool:
        """A fresh row: what it had said yes to before is reckoned in. Whether its total has changed."""
        before = self.total
        self.asked = {key: value for key, value in self.asked.items() if not value[1]}
        self.update(row)
        return self.total != before
