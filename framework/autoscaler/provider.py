"""What the autoscaler needs of whatever can start and end machines: one class per kind of place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of node that can be had.

    `resources`: what it offers, by Ray's names (``{"CPU": 4, "GPU": 1, "memory": 8e9, "oven": 1}``);
    `labels`: those of its nodes. At least `min_nodes` are kept, at most `max_nodes` are had at a time.
    """

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    min_nodes: int = 0
    max_nodes: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.min_nodes <= self.max_nodes:
            raise ValueError(f"node type {self.name!r}: 0 <= min_nodes <= max_nodes must hold")


@dataclass(frozen=True, slots=True)
class ProvidedNode:
    """A node that a provider has created and not ended. `name` is the provider's own; `node_id` (hexadecimal)
    that in the cluster, "" as long as it is not known there."""

    name: str
    type: str
    node_id: str = ""


class NodeProvider(Protocol):
    """Creates and ends nodes of a cluster. Methods are called by one thread, may block for seconds, and may
    raise anything: it is logged, and tried again later."""

    def create_node(self, node_type: NodeType) -> str:
        """Begin to make a node that joins the cluster with the resources and labels of its type; its name.
        Need not wait until it has joined."""

    def terminate_node(self, name: str) -> None:
        """End a node. One that has ended already is no error."""

    def non_terminated_nodes(self) -> list[ProvidedNode]:
        """All nodes that were created and have not ended, also those that are still on their way."""
