"""``python -m framework status`` and ``drain``: as tables in a terminal, as plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from framework._base import labels as lb
from framework._base import limits
from framework._base import resources as res
from framework._node.control import Client, client_of_head, cluster_facts
from framework._node.draining import drain
from framework._node.session import node_pid
from framework._wire import messages as m
from framework.exceptions import FrameworkError

_BYTES = ("memory", "object_store_memory")


def show_status(session_dir: str) -> None:
    """Print what a session, and the cluster that its node belongs to, has and does. `ConnectionFailedError`
    when it does not answer."""
    facts = cluster_facts(session_dir)
    with Client(session_dir, "node") as node, client_of_head(session_dir) as head:
        kinds = [row["kind"] for row in node.call(m.PROCESSES)]
        total = _amounts(head.call(m.RESOURCES, False))
        free = _amounts(head.call(m.RESOURCES, True))
        nodes = head.call(m.NODES)
        actors = head.call(m.ACTOR_LIST, None)
        demand = head.call(m.HEAD_DEMAND) if facts is not None else {}
    print(f"Session {session_dir}")
    print(
        f"  node process {node_pid(session_dir)}; drivers: {kinds.count('driver')}, "
        f"workers: {kinds.count('worker')}"
    )
    if facts is not None:
        encrypted = "encrypted" if facts.certificate is not None else "not encrypted"
        print(f"  cluster at {facts.head}, {encrypted}; this node is {facts.node_id.hex()}")
    rows = [(name, usage(name, amount, free.get(name, 0.0))) for name, amount in total.items() if amount]
    if sys.stdout.isatty():
        _tables(rows, nodes, facts is not None)
    else:
        for name, text in rows:
            print(f"  {name}: {text} in use")
        if facts is not None:
            for row in nodes:
                print("  " + _node_line(row))
    for text in _demand_lines(demand):
        print(f"  {text}")
    for namespace, name in actors:
        print(f"  actor {name!r} in namespace {namespace!r}")


def _amounts(units: dict[str, int]) -> dict[str, float]:
    """Without the parts of placement groups, which stand for what is in it already."""
    return {name: amount for name, amount in res.to_floats(units).items() if "_group_" not in name}


def usage(name: str, amount: float, free: float) -> str:
    """As in "1 of 4"."""
    used = amount - free
    if name in _BYTES:
        return f"{used / 2**30:.2f} of {amount / 2**30:.2f} GiB"
    return f"{used:g} of {amount:g}"


def _state(row: dict[str, Any]) -> str:
    if not row.get("alive", True):
        return "dead"
    return "draining" if row.get("draining") else "alive"


def _shape(row: dict[str, Any]) -> str:
    total, free = _amounts(row["total"]), _amounts(row.get("available", {}))
    return ", ".join(
        f"{name} {usage(name, amount, free.get(name, 0.0))}" for name, amount in total.items() if amount
    )


def _node_line(row: dict[str, Any]) -> str:
    kind = "head node" if row.get("head") else "node"
    labels = "".join(f" {name}={value}" for name, value in row.get("labels", {}).items())
    where = f"{row.get('host', '')} ({row.get('hostname', '')})"
    rest = f": {_shape(row)}{labels}" if row.get("alive", True) else ""
    return f"{kind} {row['node_id'].hex()[:12]} {_state(row)} at {where}{rest}"


def _demand_lines(demand: dict[str, Any]) -> list[str]:
    lines = []
    for units, strategy, count, *_ in demand.get("pending", ()):
        lines.append(f"waiting: {count} x {res.format_resources(res.out_of_group(units))}{_where(strategy)}")
    if demand.get("groups"):
        lines.append(f"waiting: {len(demand['groups'])} placement groups")
    return lines


def _where(strategy: Any) -> str:
    """A strategy as it travels, for people."""
    if not strategy or strategy[0] == "SPREAD":
        return ", SPREAD" if strategy else ""
    if strategy[0] == "node":
        return f", on node {strategy[1][: limits.SHOWN_ID]}" + (" if it can" if strategy[2] else "")
    if strategy[0] == "labels":
        return f", on nodes with the labels {lb.format_wishes({**strategy[1], **strategy[2]})}"
    bundle = "" if strategy[2] < 0 else f"bundle {strategy[2]} of "
    return f", in {bundle}placement group {strategy[1].hex()}"


def _tables(rows: list[tuple[str, str]], nodes: list[dict[str, Any]], cluster: bool) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for name, text in rows:
            print(f"  {name}: {text} in use")
        return
    console = Console()
    table = Table("resource", "in use")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if not cluster:
        return
    table = Table("node", "state", "address", "in use", "labels")
    for node in nodes:
        labels = ", ".join(f"{name}={value}" for name, value in node.get("labels", {}).items())
        name = node["node_id"].hex()[:12] + (" (head)" if node.get("head") else "")
        shape = _shape(node) if node.get("alive", True) else ""
        table.add_row(name, _state(node), str(node.get("host", "")), shape, labels)
    console.print(table)


def drain_node(session_dir: str, prefix: str, timeout: float, ends: bool) -> int:
    """Have a node's work moved off, then stop it; the exit code."""
    with client_of_head(session_dir) as head:
        found = [row for row in head.call(m.NODES) if row.get("alive", True)]
        chosen = [row for row in found if row["node_id"].hex().startswith(prefix)]
        if len(chosen) != 1:
            what = "no node's id begins" if not chosen else f"the ids of {len(chosen)} nodes begin"
            raise FrameworkError(f"{what} with {prefix!r}; there are: {_ids(found)}")
        node_id = chosen[0]["node_id"]
    name = node_id.hex()[: limits.SHOWN_ID]
    done, rest = drain(lambda: client_of_head(session_dir), node_id, _DRAINED, timeout, _tell_waiting)
    if not done:
        raise FrameworkError(f"node {name} is not drained after {timeout:g} s. What is left there: {rest}")
    if rest:
        print(f"Warning: {rest}", file=sys.stderr)
    if ends:
        with client_of_head(session_dir) as head:
            head.call(m.NODE_END, node_id, _DRAINED)
    print(f"Node {name} has no work left" + (" and ends." if ends else "."))
    return 0


def _tell_waiting(text: str) -> None:
    print(f"Waiting for {text}", file=sys.stderr, flush=True)


_DRAINED = "it is drained (`python -m framework drain`)"


def _ids(rows: list[dict[str, Any]]) -> str:
    return ", ".join(row["node_id"].hex()[: limits.SHOWN_ID] for row in rows)
