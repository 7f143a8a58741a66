"""The directory of named actors."""

from __future__ import annotations

from typing import Literal, overload

from framework._runtime.current import current
from framework._wire import messages as m


@overload
def list_named_actors(all_namespaces: Literal[False] = False) -> list[str]: ...
@overload
def list_named_actors(all_namespaces: Literal[True]) -> list[dict[str, str]]: ...
def list_named_actors(all_namespaces: bool = False) -> list[str] | list[dict[str, str]]:
    """The names of the living actors in the namespace of this job; with `all_namespaces`, those of the
    cluster, as ``{"name": ..., "namespace": ...}``, as Ray has it. Sorted. Blocks for one round trip to the
    head.
    """
    runtime = current()
    rows = runtime.head_call(m.ACTOR_LIST, None if all_namespaces else runtime.config.namespace)
    if all_namespaces:
        return [{"name": name, "namespace": namespace} for namespace, name in rows]
    return [name for _, name in rows]
