"""``python -m framework list`` and ``memory``: as a driver of the session that looks, and leaves again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from framework import _api
from framework._node.control import running_sessions
from framework._node.session import live_sessions
from framework._runtime.current import current
from framework._session import init, shutdown
from framework._wire import messages as m
from framework.exceptions import FrameworkError

Row = dict[str, Any]

#: what is shown of each, unless all is wanted; in Ray's order where Ray has it
_COLUMNS = {
    "objects": (
        "object_id",
        "object_size",
        "task_status",
        "reference_type",
        "type",
        "pid",
        "task",
        "call_site",
    ),
    "nodes": ("node_id", "state", "node_ip", "node_name", "is_head_node", "resources_total", "labels"),
    "actors": ("actor_id", "class_name", "state", "job_id", "name", "namespace", "node_id", "pid"),
    "tasks": ("task_id", "name", "state", "pid", "call_site"),
    "workers": ("worker_id", "type", "pid", "node_id", "address"),
    "placement-groups": ("placement_group_id", "name", "strategy", "state", "bundles"),
}


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """As a driver of the session that is meant: also one that some driver has for itself."""
    address = address or os.environ.get("FRAMEWORK_ADDRESS") or None
    if address in (None, "auto"):
        found = session_of_an_ancestor() or next(iter(running_sessions() or live_sessions()), None)
        if found is None:
            raise FrameworkError("no session of this user runs on this machine")
        address = found
    init(address=address, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        shutdown()


def session_of_an_ancestor() -> str | None:
    """The session that a process which has (indirectly) started this one has for itself: a notebook, say."""
    by_driver = {os.path.basename(path).split("-")[3]: path for path in reversed(live_sessions())}
    pid = os.getppid()
    while pid > 1:
        if str(pid) in by_driver:
            return by_driver[str(pid)]
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return None


def parse_filter(text: str) -> tuple[str, str, str]:
    """``KEY=VALUE`` or ``KEY!=VALUE``, taken apart; the key in small letters. `ValueError` for anything
    else."""
    found = re.fullmatch(r"\s*(\w+)\s*(!?=)(.*)", text, re.DOTALL)
    if found is None:
        raise ValueError(f"a filter is KEY=VALUE or KEY!=VALUE, got {text!r}")
    return found[1].lower(), found[2], found[3].strip()


def chosen(rows: list[Row], filters: Sequence[tuple[str, str, str]]) -> list[Row]:
    """The rows for which all filters hold; `ValueError` for a key that none of them has."""
    for key, operator, value in filters:
        if rows and not any(key in row for row in rows):
            raise ValueError(f"--filter: there is no column {key!r}; there are: {', '.join(rows[0])}")
        rows = [row for row in rows if (str(row.get(key)).lower() == value.lower()) == (operator == "=")]
    return rows


def show_list(
    what: str, filters: Sequence[str], *, limit: int, detail: bool, form: str, address: str | None
) -> int:
    """Print a list; the exit code."""
    parsed = [parse_filter(text) for text in filters]
    with _connected(address):
        rows = _FINDERS[what]()
    rows = chosen(rows, parsed)
    columns = list(_COLUMNS[what])
    if detail and rows:
        columns += [name for name in rows[0] if name not in columns]
    shown = [{name: row.get(name, "") for name in columns} for row in rows[:limit]]
    if form == "json":
        print(json.dumps(shown, default=str, indent=1))
    else:
        print(f"{what}: {len(rows)}" + (f", the first {limit}" if len(rows) > limit else ""))
        _print_table(columns, shown)
    return 0


def _print_table(columns: list[str], rows: list[Row]) -> None:
    cells = [[_text(row[name]) for name in columns] for row in rows]
    titles = [name.upper() for name in columns]
    if not rows:
        return
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.table import Table

            table = Table(*titles)
            for line in cells:
                table.add_row(*line)
            Console().print(table)
            return
    widths = [max(len(line[column]) for line in [titles, *cells]) for column in range(len(columns))]
    for line in [titles, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:g}"
    return str(value)


# ---- what there is -----------------------------------------------------------------------------------


def _objects() -> list[Row]:
    from framework.util.state import list_objects

    return list_objects(limit=1_000_000)


def _nodes() -> list[Row]:
    return [
        {
            "node_id": node["NodeID"],
            "state": "DEAD" if not node["Alive"] else "DRAINING" if node.get("draining") else "ALIVE",
            "node_ip": node["NodeManagerAddress"],
            "node_name": node["NodeManagerHostname"],
            "is_head_node": "node:__internal_head__" in node["Resources"],
            "resources_total": {
                name: amount for name, amount in node["Resources"].items() if not name.startswith("node:")
            },
            "labels": node["Labels"],
            "pid": node["pid"],
        }
        for node in _api.nodes()
    ]


def _actors() -> list[Row]:
    return [
        {name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()}
        for row in current().head_call(m.ACTOR_TABLE)
    ]


def _tasks() -> list[Row]:
    """What is not done yet, by the process that has submitted it."""
    return [
        {
            "task_id": row["object_id"][:48],
            "name": row["task"],
            "state": "PENDING_OR_RUNNING",
            "pid": row["pid"],
            "call_site": row["call_site"],
        }
        for row in _objects()
        if row["task_status"] == "PENDING" and row["task"]
    ]


def _workers() -> list[Row]:
    runtime = current()
    cluster = runtime.config.cluster is not None
    opcode = m.NODE_PROCESSES if cluster else m.PROCESSES

    async def ask() -> list[Row]:
        assert runtime.node is not None
        found: list[Row] = await runtime.node.call(opcode)
        return found

    return [
        {
            "worker_id": row["ident"].hex(),
            "type": row["kind"].upper(),
            "pid": row["pid"],
            "node_id": row.get("node_id", runtime.config.node_id).hex(),
            "address": row["address"],
        }
        for row in runtime.run_sync(ask())
        if row["ident"] != runtime.worker_id
    ]


def _groups() -> list[Row]:
    from framework.util import placement_group_table

    table = placement_group_table()
    return list(table.values()) if isinstance(table, dict) else list(table)


_FINDERS: dict[str, Callable[[], list[Row]]] = {
    "objects": _objects,
    "nodes": _nodes,
    "actors": _actors,
    "tasks": _tasks,
    "workers": _workers,
    "placement-groups": _groups,
}


def show_memory(limit: int, address: str | None) -> int:
    """Print the state of the object store, and what is in it; the exit code."""
    from framework.util.state import _stores

    with _connected(address):
        stores = _stores()
        rows = _objects()
    for store in stores:
        stats = store["stats"]
        where = f" of node {store['node_id'].hex()[:12]}" if len(stores) > 1 else ""
        print(
            f"Object store{where}: {stats['used'] / 2**20:.1f} of {stats['capacity'] / 2**20:.1f} MiB in use "
            f"by {stats['objects']} objects; spilled: {stats['spilled_bytes'] / 2**20:.1f} MiB in "
            f"{stats['spilled_objects']} objects"
        )
    owned = [row for row in rows if row["reference_type"] == "OWNED"]
    total = sum(row["object_size"] for row in owned)
    print(f"Objects: {len(owned)} owned, {len(rows) - len(owned)} borrowed; {total / 2**20:.1f} MiB")
    columns = ["object_id", "object_size", "stored", "pins", "local_references", "type", "pid", "call_site"]
    _print_table(columns, rows[:limit])
    return 0
