"""Handing objects over to the cluster."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from framework._base.options import ActorOptions
from framework._runtime.current import current
from framework._wire import messages as m
from framework.actor import ActorClass
from framework.object_ref import ObjectRef
from framework.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")

KEEPER_NAME = "keeper"
KEEPER_NAMESPACE = "_framework"
_CALLS_AT_ONCE = 16


class Keeper:
    """Owns what was handed over. One per session or cluster, on the node of the head."""

    def keep(self, box: list[ObjectRef[Any]]) -> list[ObjectRef[Any]]:
        """A reference to a copy that this process owns. The value is not unpickled."""
        runtime = current()
        entry = box[0]._entry
        runtime.waiting.get([entry], None)
        return [runtime.copy_of(entry)]


def detach(ref: ObjectRef[T]) -> ObjectRef[T]:
    """Hand a value over to the cluster: a reference to a copy that outlives the process that made it.

    An object ends with the process that owns it: the driver or worker that put it, or called the task that
    made it. What this returns is owned by a process of the head's node that lives as long as the session, or
    cluster; it is freed when the last reference to it is gone. References inside of the value stay what they
    are: detach those too, if need be. Blocks until the value is there and has been copied.

    Raises what the task raised, `ObjectLostError` (or a class of it) when the value is lost already, and
    `TypeError` for what is no reference.
    """
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"detach() takes an ObjectRef, got {type(ref).__name__}: {ref!r:.80}")
    runtime = current()
    entry = ref._entry
    if not entry.state:
        runtime.waiting.get([entry], None)
    kept = _keeper().keep.remote([ref])
    runtime.waiting.get([kept._entry], None)
    return cast("ObjectRef[T]", runtime.value(kept._entry)[0])


def _keeper() -> Any:
    options: dict[str, Any] = {
        "name": KEEPER_NAME,
        "namespace": KEEPER_NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_concurrency": _CALLS_AT_ONCE,
    }
    runtime = current()
    if runtime.config.cluster is not None:
        for node in runtime.head_call(m.NODES):
            if node.get("head") and node.get("alive", True):
                strategy = NodeAffinitySchedulingStrategy(node["node_id"].hex(), soft=True)
                options["scheduling_strategy"] = strategy
    return ActorClass(Keeper, ActorOptions.parse(options)).remote()
