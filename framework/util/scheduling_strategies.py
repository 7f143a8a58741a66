"""Where a task or actor should run."""

from __future__ import annotations


class NodeAffinitySchedulingStrategy:
    """Run on one node. `node_id`: hexadecimal id; `soft`: elsewhere if that node is gone."""

    def __init__(self, node_id: str, soft: bool) -> None:
        if not isinstance(node_id, str) or not node_id:
            raise ValueError(f"node_id is the hexadecimal id of a node, got {node_id!r}")
        self.node_id = node_id
        self.soft = bool(soft)

    def __repr__(self) -> str:
        return f"NodeAffinitySchedulingStrategy(node_id={self.node_id!r}, soft={self.soft})"
