"""Cells that start clusters: functions that somebody has to call, in a process of their own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from seed_harness import plan
from seed_harness.session import execute


def _reconstruction(function: Callable[..., None]) -> None:
    """Both cases of the reconstruction test, each on a cluster of its own."""
    import framework

    cluster_utils = importlib.import_module("framework.cluster_utils")
    for enabled in (False, True):
        cluster = cluster_utils.Cluster()
        try:
            function({}, cluster, enabled)
        finally:
            framework.shutdown()
            cluster.shutdown()


def run(name: str) -> None:
    """Defines the cell's function in a fresh namespace and calls it. Raises what it raises."""
    (part,) = (part for part in plan.parts(name[:3]) if part.name == name)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    execute("import framework as ray", "<import>", namespace)
    execute(part.rule.supply, "<supplied>", namespace)
    before = set(namespace)
    execute(part.code, f"<cell {name}>", namespace)
    (function,) = (namespace[new] for new in set(namespace) - before)
    _reconstruction(function)
