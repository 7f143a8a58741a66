"""Helpers with Ray's names. Modules are loaded when a name of theirs is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.util import queue as queue
    from framework.util.actor_pool import ActorPool as ActorPool
    from framework.util.completion import as_completed as as_completed
    from framework.util.completion import map_unordered as map_unordered
    from framework.util.named_actors import list_named_actors as list_named_actors
    from framework.util.network import get_node_ip_address as get_node_ip_address
    from framework.util.placement_group import get_current_placement_group as get_current_placement_group
    from framework.util.placement_group import get_placement_group as get_placement_group
    from framework.util.placement_group import placement_group as placement_group
    from framework.util.placement_group import placement_group_table as placement_group_table
    from framework.util.placement_group import remove_placement_group as remove_placement_group

_WHERE = {
    "ActorPool": "framework.util.actor_pool",
    "as_completed": "framework.util.completion",
    "get_current_placement_group": "framework.util.placement_group",
    "get_node_ip_address": "framework.util.network",
    "get_placement_group": "framework.util.placement_group",
    "list_named_actors": "framework.util.named_actors",
    "map_unordered": "framework.util.completion",
    "placement_group_table": "framework.util.placement_group",
    "remove_placement_group": "framework.util.placement_group",
}
_MODULES = ("actor_pool", "placement_group", "queue", "scheduling_strategies", "state", "supervision")

__all__ = [
    "ActorPool",
    "as_completed",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "list_named_actors",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "queue",
    "remove_placement_group",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"framework.util.{name}")
    else:
        raise AttributeError(f"module 'framework.util' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
