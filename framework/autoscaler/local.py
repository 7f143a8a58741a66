"""A provider whose nodes are processes on this machine: for tests, and for machines that are large enough to
be divided."""

from __future__ import annotations

import os
from typing import Any

from framework._base.cluster import ClusterFacts
from framework._init_checks import checked_labels, wanted_resources
from framework._node.launching import JoinedNode, end_in_order
from framework.autoscaler.provider import NodeType, ProvidedNode


class LocalNodeProvider:
    """Nodes of the cluster that `facts` tells of (see `framework.autoscaler.local_facts`), each a process
    that ends with this one at the latest."""

    def __init__(self, facts: ClusterFacts) -> None:
        self._facts = facts
        self._nodes: dict[str, tuple[str, JoinedNode]] = {}
        self._count = 0

    def create_node(self, node_type: NodeType) -> str:
        """Start its process; it joins by itself."""
        node = JoinedNode.of(self._facts, _wanted(node_type), parent_pid=os.getpid())
        self._count += 1
        name = f"{node_type.name}-{self._count}"
        self._nodes[name] = node_type.name, node
        return name

    def terminate_node(self, name: str) -> None:
        """End its process in order, and remove what it leaves."""
        found = self._nodes.pop(name, None)
        if found is not None:
            end_in_order(found[1].process)
            found[1].wait()
            found[1].forget()

    def non_terminated_nodes(self) -> list[ProvidedNode]:
        """Those whose process has not ended."""
        for name, (_, node) in list(self._nodes.items()):
            if node.process.poll():
                self.terminate_node(name)
        return [ProvidedNode(name, kind, node.node_id.hex()) for name, (kind, node) in self._nodes.items()]


def _wanted(node_type: NodeType) -> dict[str, Any]:
    amounts = dict(node_type.resources)
    memory = amounts.pop("memory", None)
    store = amounts.pop("object_store_memory", None)
    return wanted_resources(
        amounts.pop("CPU", 0),
        amounts.pop("GPU", 0),
        memory,
        resources=amounts,
        object_store_memory=int(store) if store is not None else None,
        labels=checked_labels(dict(node_type.labels)),
    )
