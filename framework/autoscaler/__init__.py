"""Nodes that come and go with the work.

    from framework.autoscaler import Autoscaler, LocalNodeProvider, NodeType, local_facts

    small = NodeType("small", {"CPU": 2}, max_nodes=4)
    provider = LocalNodeProvider(local_facts(address))
    with Autoscaler(address, [small], provider, idle_timeout=30):
        ...

`NodeProvider` is what another kind of place (a cloud, a batch system) has to offer.
"""

from __future__ import annotations

from framework.autoscaler.autoscaler import Autoscaler, local_facts
from framework.autoscaler.local import LocalNodeProvider
from framework.autoscaler.policy import Decision, Demand, Room, ScalingPolicy, Shape
from framework.autoscaler.provider import NodeProvider, NodeType, ProvidedNode

__all__ = [
    "Autoscaler",
    "Decision",
    "Demand",
    "LocalNodeProvider",
    "NodeProvider",
    "NodeType",
    "ProvidedNode",
    "Room",
    "ScalingPolicy",
    "Shape",
    "local_facts",
]
