"""What is alive in the cluster: objects, with their size, owner, holders and the line that made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from framework._runtime.current import current
from framework._wire import messages as m


def list_objects(
    limit: int = 10_000, filters: list[tuple[str, str, Any]] | None = None
) -> list[dict[str, Any]]:
    """All objects that processes of the cluster own or borrow, one dict per (object, process), the largest
    first.

    Keys: ``object_id`` (hexadecimal), ``object_size`` (bytes), ``type`` (``DRIVER`` or ``WORKER``: the
    process that reports), ``pid``, ``node_id`` (of that process), ``owner`` (address), ``reference_type``
    (``OWNED`` or ``BORROWED``), ``task_status`` (``PENDING``, ``READY``, ``FAILED`` with the owner; ``NIL``
    with a borrower), ``task``, ``local_references``, ``borrowers``, ``contains`` (references inside the
    value), ``stored`` (in shared memory), ``pins`` (processes that read it) and ``store_state`` (on that
    node, or else where it is), ``call_site``.

    `filters`: (key, "=" or "!=", value), all of which must hold; `ValueError` for anything else. Blocks while
    all processes answer; one that does not within two seconds is left out, with a `RuntimeWarning`.
    """
    checked = [_filter(given) for given in filters or ()]
    runtime = current()
    blocks: dict[Any, dict[str, Any]] = {}
    for store in _stores():
        for block in store["objects"]:
            blocks[block["object_id"], store["node_id"]] = block
            blocks.setdefault(block["object_id"], block)
    rows = []
    for row in runtime.listing.everywhere():
        name = row["store_id"]
        block = (blocks.get((name, row["node_id"])) or blocks.get(name)) if row["stored"] else None
        rows.append(
            {
                "object_id": row["object_id"].hex(),
                "object_size": row["size"],
                "type": row["kind"].upper(),
                "pid": row["pid"],
                "node_id": row["node_id"].hex(),
                "owner": row["owner"],
                "reference_type": "BORROWED" if row["borrowed"] else "OWNED",
                "task_status": "NIL" if row["borrowed"] else row["state"],
                "task": row["task"],
                "local_references": row["local"],
                "borrowers": row["borrowers"],
                "contains": row["contains"],
                "stored": row["stored"],
                "pins": block["pins"] if block else 0,
                "store_state": block["state"] if block else "",
                "call_site": row["call_site"],
            }
        )
    for key, operator, value in checked:
        if rows and key not in rows[0]:
            raise ValueError(f"there is no key {key!r} to filter by; there are: {', '.join(rows[0])}")
        rows = [row for row in rows if (str(row.get(key)) == str(value)) == (operator == "=")]
    rows.sort(key=lambda row: -row["object_size"])
    return rows[:limit]


def _filter(given: Any) -> tuple[str, str, Any]:
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 3:
        raise ValueError(f"filters is a list of (key, '=' or '!=', value), got {given!r}")
    key, operator, value = given
    if operator not in ("=", "!="):
        raise ValueError(f"a filter compares with '=' or '!=', got {operator!r}")
    return key, operator, value


def _stores() -> list[dict[str, Any]]:
    """What is in the stores of all nodes: ``node_id``, ``objects``, ``stats``; this node's first."""
    runtime = current()
    if runtime.config.cluster is None:
        return [{**runtime.store.node_call(m.STORE_LIST), "node_id": runtime.config.node_id}]
    found: list[dict[str, Any]] = runtime.store.node_call(m.NODE_STORES)
    return found


def store_stats() -> dict[str, int]:
    """Numbers of this node's object store: ``capacity``, ``used``, ``objects``, ``pins``, ``spilled_bytes``,
    ``spilled_objects``, ``restored_objects``, ``regions``, ``region_bytes`` (leased to processes for small
    objects to come, part of ``used``), ``waiting``; sizes in bytes."""
    stats: dict[str, int] = current().store.node_call(m.STORE_LIST)["stats"]
    return stats


def why_pending(ref: Any) -> str:
    """Why the task behind this reference (or generator) is not done yet, as a text for people: on which of
    its arguments it waits and what makes those, what it needs and what is free on which node, whether no node
    can run it at all, whether its placement group is not placed or full, whether workers are being started;
    or where it runs. Blocks for one round trip to the node.

    Raises `TypeError` for anything else than a reference.
    """
    from framework._runtime.reasons import why

    entry = getattr(getattr(ref, "_ref", ref), "_entry", None)
    if entry is None:
        raise TypeError(f"why_pending() takes an ObjectRef, not {ref!r} of type {type(ref).__name__}")
    runtime = current()
    return str(runtime.run_sync(why(runtime, entry)))
