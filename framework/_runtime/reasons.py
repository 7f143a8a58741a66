"""Why a task is not done yet, in words. Loaded when somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework._base import labels as lb
from framework._base import resources as res
from framework._state.leases import KeyState, Lease
from framework._state.objects import FAILED, READY, Entry
from framework._state.tasks import QUEUED, SENT, WAITING, TaskRecord
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime

_SHOWN = 5


async def why(runtime: Runtime, entry: Entry) -> str:
    """On the loop: what the task that makes this object waits for, or that it does not."""
    runtime.flush()
    if entry.state == READY:
        return "It is done: the value is ready."
    if entry.state == FAILED:
        return "It is done: it has failed, and get() raises its error."
    task: TaskRecord | None = entry.task
    if task is None:
        if entry.owner is not None:
            return f"It is not done. Its owner is another process ({entry.owner}), which knows why."
        return "It is not done, and no task of this process makes it."
    name = f"{task.template.name}()"
    if task.cancelled is not None:
        return f"{name} was cancelled ({task.cancelled}), and its worker has not answered yet."
    if task.state == WAITING:
        return f"{name} {_dependencies(task)}"
    if task.actor is not None:
        return f"{name} {_actor_call(task)}"
    if task.state == SENT and task.lease is not None:
        return f"{name} {_sent(task)}"
    if task.state == QUEUED:
        return f"{name} {await _queued(runtime, task)}"
    return f"{name} is about to be sent or answered."


def _dependencies(task: TaskRecord) -> str:
    missing = {dep.id: dep for _, dep in task.deps or () if not dep.state}
    if not missing:
        return "waits for a moment before it is tried once more."
    parts = []
    for dep in list(missing.values())[:_SHOWN]:
        made_by = (
            f", made by {dep.task.template.name}(), which {_word(dep.task)}" if dep.task is not None else ""
        )
        elsewhere = f", owned by {dep.owner}" if dep.owner is not None else ""
        parts.append(f"{dep.id.hex()}{elsewhere}{made_by}")
    more = f"; and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return f"waits for {len(missing)} of its arguments: {'; '.join(parts)}{more}."


def _word(task: TaskRecord) -> str:
    if task.state == WAITING:
        return "waits for arguments itself"
    if task.state == QUEUED:
        return "waits for a worker" if task.actor is None else "waits for its actor"
    return "is at a worker"


def _actor_call(task: TaskRecord) -> str:
    client = task.actor
    who = f"the actor {client.class_name or '?'} ({client.actor_id.hex()})"
    if task.state == SENT:
        return f"is at {who}, where it runs or waits for its turn."
    if client.state == "PENDING_CREATION":
        return f"waits for {who}, which is not there yet: it waits for resources, or for its constructor."
    if client.state == "RESTARTING":
        return f"waits for {who}, which is being restarted."
    before = 0
    for other in client.queue:
        if other is task:
            break
        before += 1
    return f"waits behind {before} other call(s) to {who}."


def _sent(task: TaskRecord) -> str:
    lease: Lease = task.lease
    before = 0
    for unique in lease.inflight:
        if unique == task.unique:
            break
        before += 1
    where = f"worker {lease.worker_id.hex()[:12]} at {lease.address}"
    blocked = ", which waits for other tasks itself," if lease.blocked else ""
    if not before:
        return f"runs on {where}{blocked.rstrip(',')}."
    return f"was sent to {where}{blocked} and is behind {before} other task(s) there."


async def _queued(runtime: Runtime, task: TaskRecord) -> str:
    key: KeyState = task.key or task.template.key
    needs = res.format_resources(res.out_of_group(key.resources)) if key.resources else "no resources"
    where = _strategy(key.strategy)
    begin = f"waits for a worker; it needs {needs}{where}"
    if key.strategy is not None and key.strategy[0] == "group":
        unplaced = runtime.groups.why_not_there(key.strategy[1])
        if unplaced is not None:
            return f"{begin}; {unplaced}."
    if runtime.node is None or runtime.node.closed:
        return f"{begin}; there is no connection to the node."
    facts: dict[str, Any] = await runtime.node.call(m.LEASE_WHY, key.key_id)
    if not facts:
        return f"{begin}; the node has not been asked yet."
    if facts["never"] is not None:
        return (
            f"{begin}; no node can run it as things are: {facts['never']}. It runs when one that can joins."
        )
    reasons = []
    if key.leases:
        behind = sum(1 for _ in key.pending) - 1
        reasons.append(f"{len(key.leases)} worker(s) are at work for it and {behind} other task(s) like it")
    if facts["starting"]:
        reasons.append(f"{facts['starting']} worker process(es) are being started")
    if facts["asked"]:
        reasons.append(f"another node has been asked for {facts['asked']} worker(s)")
    if facts["missing"] and not (facts["starting"] or facts["asked"]):
        if key.strategy is not None and key.strategy[0] == "group":
            reasons.append(_group_reason(runtime, key, facts))
        else:
            reasons.append(f"what is free does not suffice ({_free(facts['free'])})")
    if facts["before"]:
        reasons.append(f"{facts['before']} other kind(s) of request wait at this node")
    return f"{begin}; {'; '.join(reasons) or 'a worker is on its way'}."


def _strategy(strategy: list[Any] | None) -> str:
    if strategy is None:
        return ""
    if strategy[0] == "SPREAD":
        return " (SPREAD)"
    if strategy[0] == "node":
        return f" on the node {strategy[1]}{' or, if that is gone, another' if strategy[2] else ''}"
    if strategy[0] == "labels":
        return f" on a node with the labels {lb.format_wishes({**strategy[1], **strategy[2]})}"
    bundle = "any bundle" if strategy[2] < 0 else f"bundle {strategy[2]}"
    return f" in {bundle} of the placement group {strategy[1].hex()}"


def _group_reason(runtime: Runtime, key: KeyState, facts: dict[str, Any]) -> str:
    assert key.strategy is not None
    _, group, index, *_ = key.strategy
    name = f"bundle_group_{index}_{group.hex()}" if index >= 0 else f"bundle_group_{group.hex()}"
    if not any(name in free for free in facts["free"].values()):
        what = "the placement group" if index < 0 else "that bundle"
        return f"{what} is not placed yet{runtime.groups.progress(group)}"
    return "its placement group is fully in use" + runtime.groups.progress(group)


def _free(free: dict[str, dict[str, int]]) -> str:
    rows = []
    for node, units in list(free.items())[:_SHOWN]:
        shown = {
            name: max(0, n) for name, n in res.without_groups(units).items() if not name.startswith("node:")
        }
        shown.pop("object_store_memory", None)
        rows.append(f"{node[:8]}: {res.format_resources(shown)}")
    more = f"; and {len(free) - _SHOWN} more nodes" if len(free) > _SHOWN else ""
    return "; ".join(rows) + more
