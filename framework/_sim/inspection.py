"""What is left over when a program has ended and has dropped everything: nothing should be. Looked up in the
tables of the services themselves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

from framework._sim.invariants import invariants as invariants
from framework._state.groups import REMOVED
from framework._state.node import IDLE
from framework._state.objects import PENDING

SHOWN = 4  #: of each kind of thing that is left


def leftovers(heads: Sequence[Any], nodes: Sequence[Any], runtimes: Sequence[Any]) -> list[str]:
    """What is left, one text each. `heads` are `HeadProcess`es, `nodes` `NodeProcess`es, `runtimes`
    `Runtime`s: all that live, and of drivers those whose program has ended while they stay connected.

    To be called after `gc.collect()`, some seconds after the end of the program: idle leases are given back
    after a quarter of a second, objects on dead nodes are forgotten after some seconds, idle workers stay.
    """
    found: list[str] = []
    addresses = {runtime.address for runtime in runtimes} if nodes else None
    for runtime in runtimes:
        who = "driver" if runtime.config.is_driver else "worker"
        name = f"{who} {_short(runtime.worker_id)} (pid {runtime.pid})"
        found += (f"{name}: {text}" for text in of_runtime(runtime, addresses))
    alive = {node.node.node_id for node in nodes}
    for node in nodes:
        found += (f"node {_short(node.node.node_id)}: {text}" for text in of_node(node, alive))
        found += (f"store of node {_short(node.node.node_id)}: {text}" for text in of_store(node.store))
    for head in heads:
        found += (f"head: {text}" for text in of_head(head.service, {r.worker_id for r in runtimes}))
    return found


def _short(ident: bytes) -> str:
    return ident.hex()[:8]


def _several(what: str, things: Iterable[Any]) -> Iterator[str]:
    """One text for all of them, which shows a few; none where there are none."""
    listed = list(things)
    if listed:
        shown = ", ".join(f"{thing!r}" if not isinstance(thing, str) else thing for thing in listed[:SHOWN])
        more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        yield f"{len(listed)} {what}: {shown}{more}"


def _none_of(owner: Any, prefix: str, names: dict[str, str]) -> Iterator[str]:
    """Of these containers, by what is in them: those that are not empty."""
    for name, what in names.items():
        container: Sized = getattr(owner, name)
        if len(container):
            yield from _several(f"{what} ({prefix}{name})", container)  # type: ignore[arg-type]


# ---- owners ------------------------------------------------------------------------------------------


def of_runtime(runtime: Any, addresses: set[str] | None = None) -> Iterator[str]:
    """Of a `Runtime`. `addresses`: of all processes that live; None: not known."""
    objects = runtime.objects
    yield from _several("objects in the owner table", map(_described, list(objects.table.entries.values())))
    yield from _none_of(
        objects,
        "objects.",
        {
            "_held": "references held for whoever was sent a result",
            "_kept": "references held for whoever was sent a result over a connection that was lost",
            "_releasing": "references that are gone, of which the owner was not told",
            "_provisional": "borrowed references that no owner knows of",
            "_registering": "registrations under way",
            "_after_registering": "actions that wait for registrations",
            "_unregistered": "references that are to be registered",
            "drops": "references that were dropped",
        },
    )
    yield from _none_of(
        runtime.submitter, "submitter.", {"tasks": "tasks in flight", "_submitted": "new tasks"}
    )
    yield from _several(
        "leases of workers", (f"{x.lease_id}" for x in list(runtime.leasing._leases.values()))
    )
    waiting = [key for key in runtime.catalogue.keys_by_id.values() if key.pending]
    yield from _several("scheduling keys with queued tasks", (f"{key.resources}" for key in waiting))
    yield from _none_of(
        runtime.streams, "streams.", {"_streams": "streams", "_mirrors": "streams of other processes"}
    )
    clients = [client for client in list(runtime.actors._clients.values()) if not client.ended]
    yield from _several("actors that are not dead", (f"{c.class_name} {c.state}" for c in clients))
    yield from _none_of(runtime.lineage, "lineage.", {"_lost": "objects that are to be made again"})
    if runtime.presence is not None:
        yield from _none_of(runtime.presence, "presence.", {"_pulling": "objects that are being copied here"})
    if runtime.has_groups:
        views = [
            view for view in runtime.groups._views.values() if view.state != "REMOVED" and view.error is None
        ]
        yield from _several("placement groups", (f"{_short(view.group_id)} {view.state}" for view in views))
    if runtime._pinned:
        yield f"{len(runtime._pinned)} references that were pickled out of band"
    yield from _of_connections(runtime, addresses)
    yield from _of_executor(runtime)


def _described(entry: Any) -> str:
    kind = "owned" if entry.owner is None else f"borrowed from {entry.owner}"
    parts = [f"{entry!r}", kind]
    if entry.state == PENDING:
        parts.append(
            "its task is " + ("not known" if entry.task is None else f"{entry.task.__class__.__name__}")
        )
        name = getattr(getattr(entry.task, "template", None), "name", "")
        parts += [name] if name else []
    if entry.contained:
        parts.append(f"contains {len(entry.contained)}")
    if entry.borrowers:
        parts.append(f"borrowers {[getattr(peer, 'name', peer) for peer in entry.borrowers]}")
    if entry.site is not None:
        from framework._runtime.sites import format_site

        parts.append(format_site(entry.site).rsplit("/", 1)[-1])
    return f"({', '.join(part for part in parts if part)})"


def _of_connections(runtime: Any, addresses: set[str] | None) -> Iterator[str]:
    connections = [*runtime.peers._by_address.values(), runtime.node, runtime.head]
    for connection in connections:
        if connection is not None and connection._calls:
            yield f"{len(connection._calls)} calls of {connection.name} have no answer"
    for address, connection in runtime.peers._by_address.items():
        if connection.closed:
            yield f"the connection to {address} has ended, and is kept"
        elif addresses is not None and address not in addresses and runtime.dead is None:
            # (Where its own node has ended, nobody tells it of the others: it has them until its shutdown.)
            yield f"a connection to {address}, where nobody lives any more"


def _of_executor(runtime: Any) -> Iterator[str]:
    """What a worker still does."""
    executor = getattr(runtime.on_blocked, "__self__", None)
    if executor is None:
        return
    if runtime.actor_host is not None:
        yield f"it still is the actor {runtime.actor_host.class_name}"
        return
    yield from _none_of(
        executor,
        "executor.",
        {
            "contexts": "tasks that run",
            "producers": "generators that run",
            "async_tasks": "coroutines that run",
            "queue": "tasks that wait to run",
        },
    )
    if executor.blocked or executor._blocks:
        yield f"it counts as waiting, {executor._blocks} times"


# ---- nodes -------------------------------------------------------------------------------------------


def of_node(process: Any, alive: set[bytes]) -> Iterator[str]:
    """Of a `NodeProcess`. `alive`: the ids of all nodes."""
    node = process.node
    state = node.state
    yield from _several(
        "leases",
        (f"{x.lease_id} of {'an actor' if x.actor else x.owner} {x.units}" for x in state.leases.values()),
    )
    missing = {name: demand for name, demand in state.demands.items() if demand.missing > 0}
    yield from _several(
        "requests for leases", (f"{name} {d.units} x{d.missing}" for name, d in missing.items())
    )
    yield from _none_of(
        state, "state.", {"_actors": "actors that wait for room", "_guests": "leases of guests"}
    )
    yield from _several(
        "leases of workers elsewhere", (f"{_short(a.node_id)}" for a in state.away.by_id.values())
    )
    yield from _several("leases that wait for a worker", [e for e, queue in state._awaiting.items() if queue])
    busy = [w for w in state.workers.values() if w.state != IDLE]
    yield from _several("workers that are not idle", (f"{_short(w.worker_id)} {w.state}" for w in busy))
    if not state.leases:
        for name in sorted({*state.total, *state.available}):
            if state.total.get(name, 0) != state.available.get(name, 0):
                free, total = state.available.get(name, 0), state.total.get(name, 0)
                yield f"{free} units of {name} are free, of {total}"
    groups = [f"{_short(group)} {sorted(held)}" for group, held in state.bundles.groups.items()]
    yield from _several("placement groups with bundles here", groups)
    yield from _none_of(
        state.bundles,
        "bundles.",
        {
            "_leaving": "bundles that are given back and used",
            "_users": "users of bundles",
            "_devices": "GPUs",
        },
    )
    yield from _several("actors", (f"{spec.get('class_name')}" for spec, _ in node.actors.specs.values()))
    for connection in node._owners:
        if connection.closed:
            yield f"a connection that has ended counts as an owner: {connection.name}"
        if connection._calls:
            yield f"{len(connection._calls)} calls of {connection.name} have no answer"
    if process.cluster is not None:
        yield from _of_cluster_side(process.cluster, alive)


def _of_cluster_side(side: Any, alive: set[bytes]) -> Iterator[str]:
    connection = side.head.connection
    if connection is not None and connection._calls:
        yield f"{len(connection._calls)} calls of the head have no answer"
    unsent = [_short(node) for node, frames in side.forwarding._unsent.items() if frames and node in alive]
    yield from _several("nodes to which something was not sent", unsent)
    for node_id, connections in side.neighbours._open.items():
        if node_id not in alive and connections:
            yield f"{len(connections)} connections to node {_short(node_id)}, which is not there"
        for connection in connections:
            if connection._calls:
                yield f"{len(connection._calls)} calls of node {_short(node_id)} have no answer"
    across = side.objects
    transfers, sender = across.transfers, across.sender
    yield from _several("objects on their way here", (_short(i) for i in transfers.state.pulls))
    if transfers.state.active or transfers.state.active_bytes:
        yield f"{transfers.state.active} transfers of {transfers.state.active_bytes} bytes count as under way"
    yield from _none_of(transfers, "transfers.", {"_places": "places for objects", "_fetching": "transfers"})
    yield from _several("objects here that are copies of", (_short(i) for i in transfers.roots))
    yield from _none_of(sender, "sender.", {"_busy": "objects on their way elsewhere"})
    yield from _several("objects of which others have copies", (_short(i) for i in sender.copies._objects))
    yield from _none_of(across, "objects.", {"_frees": "frees that were not told"})


def of_store(service: Any) -> Iterator[str]:
    """Of a `StoreService`."""
    state = service.state
    blocks = [*state.blocks.values(), *state._zombies]
    shown = (
        f"({_short(b.object_id)}, {b.size} bytes, {b.use}, owner {_owner(b.owner)}"
        f"{'' if b.primary else ', a copy'}{', freed' if b.deleting else ''})"
        for b in blocks
    )
    yield from _several("objects", shown)
    pins = [f"{_short(b.object_id)} by {[getattr(h, 'name', h) for h in b.pins]}" for b in blocks if b.pins]
    yield from _several("pinned objects", pins)
    yield from _none_of(
        state, "state.", {"_queue": "requests for space", "_parked": "objects that are awaited"}
    )
    # The rest of a region stays with a process that may write again.
    gone = [offset for offset, holder in state._regions.items() if getattr(holder, "closed", False)]
    yield from _several("regions of processes that have ended", gone)
    if state.spilled_bytes or state._spilling:
        yield f"{state.spilled_bytes} bytes on disk, and {state._spilling} on their way there"
    directory = getattr(service.disk, "directory", None)
    if directory:
        with contextlib.suppress(OSError):
            yield from _several("files of spilled objects", sorted(os.listdir(directory)))


def _owner(owner: Any) -> str:
    return str(getattr(owner, "name", owner))


# ---- the head ----------------------------------------------------------------------------------------


def of_head(service: Any, idents: set[bytes] | None = None) -> Iterator[str]:
    """Of a `HeadService`, or the head of a cluster. `idents`: of all drivers and workers that live; None: not
    known."""
    living = service._actors.living()
    yield from _several(
        "actors that are not dead",
        (f"{r.spec.get('class_name')} {_short(r.actor_id)} {r.state} {r.name_key or ''}" for r in living),
    )
    if service.groups is not None:
        groups = [group for group in service.groups.state.groups.values() if group.state != REMOVED]
        yield from _several("placement groups", (f"{_short(g.group_id)} {g.state}" for g in groups))
        yield from _none_of(service.groups.state, "groups.state.", {"_queue": "groups that want a place"})
        yield from _none_of(service.groups, "groups.", {"_waiting": "groups that actors wait for"})
    placing = getattr(service, "placing", None)
    if placing is not None:
        yield from _none_of(
            placing,
            "placing.",
            {"_homeless": "actors without a place", "_queued": "actors that wait in a queue"},
        )
        closed = [_short(ident) for ident, connection in service._owners.items() if connection.closed]
        yield from _several("owners whose connection has ended", closed)
        yield from _none_of(service, "", {"_leaving": "owners that may come back", "_drains": "drains"})
        if idents is not None:
            gone = [_short(ident) for ident in service._owners if ident not in idents]
            yield from _several("owners that do not live", gone)
            yield from _several(
                "drivers that do not live", (_short(i) for i in service._drivers if i not in idents)
            )
