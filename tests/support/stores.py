"""What lies in the object stores of the nodes of a cluster, asked from outside."""

from __future__ import annotations

from typing import Any

from framework._node.control import Client
from framework._wire import messages as m
from framework.cluster_utils import Cluster, ClusterNode
from support.leaks import wait_until


def listing(node: ClusterNode) -> dict[str, Any]:
    """Its objects, and the numbers of its store."""
    with Client(node.session_dir, "node") as client:
        found: dict[str, Any] = client.call(m.STORE_LIST)
        return found


def stats(node: ClusterNode) -> dict[str, int]:
    """The numbers of its store."""
    found: dict[str, int] = listing(node)["stats"]
    return found


def objects(node: ClusterNode) -> int:
    """How many objects lie there."""
    return stats(node)["objects"]


def wait_until_empty(cluster: Cluster, but: int = 0) -> None:
    """Until no store of the cluster has an object (or more than `but` in all), or uses memory for what is
    gone."""

    def is_empty() -> bool:
        every = [stats(node) for node in cluster.list_all_nodes()]
        if but:
            return sum(s["objects"] for s in every) <= but
        return all(s["objects"] == s["pins"] == 0 and s["used"] == s["region_bytes"] for s in every)

    try:
        wait_until(is_empty, 10, "that all stores are empty")
    except AssertionError as error:
        raise AssertionError(f"{error}: {[listing(node) for node in cluster.list_all_nodes()]}") from None
