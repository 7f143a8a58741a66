"""From the options that say where something is to run to what travels: a strategy, and what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from framework._base import labels as lb
from framework._base import resources as res
from framework._runtime.context import current_task

Wire = list[Any] | None


def strategy_wire(strategy: Any, label_selector: Mapping[str, str] | None = None) -> Wire:
    """As nodes take it, see `framework._state.scheduling`. `ValueError` for what contradicts itself."""
    if label_selector:
        if strategy is not None and strategy != "DEFAULT":
            raise ValueError(
                f"label_selector and scheduling_strategy={strategy!r} cannot be given together: put the "
                "labels into a NodeLabelSchedulingStrategy, or leave one of them out"
            )
        return ["labels", lb.parse_selector("label_selector", label_selector), {}]
    if strategy is None or strategy == "DEFAULT":
        return None
    if isinstance(strategy, str):
        return [strategy]
    if hasattr(strategy, "node_id"):
        return ["node", strategy.node_id, bool(strategy.soft)]
    if hasattr(strategy, "node_labels"):
        hard, soft = strategy.node_labels
        return ["labels", hard, soft]
    group = strategy.placement_group
    if group is None or group.is_empty:
        return None
    return [
        "group",
        group.id.binary(),
        strategy.placement_group_bundle_index,
        bool(strategy.placement_group_capture_child_tasks),
    ]


def inherited(runtime: Any) -> Wire:
    """The strategy of what is started by code that runs in a placement group and captures its children: the
    group, any bundle of it. None elsewhere."""
    context = current_task.get()
    own = context.strategy if context is not None else None
    if own is None and runtime.actor_host is not None:
        own = runtime.actor_host.strategy
    if own and own[0] == "group" and own[3]:
        return ["group", own[1], -1, True]
    return None


def units_there(units: dict[str, int], strategy: Wire) -> dict[str, int]:
    """What is asked for: in a placement group, its bundles' resources."""
    if strategy is None or strategy[0] != "group":
        return units
    return res.in_group(units, strategy[1].hex(), strategy[2])


def check_fits(what: str, units: Mapping[str, int], strategy: Any) -> None:
    """`ValueError` when no bundle of the placement group that was asked for can ever hold this."""
    group = getattr(strategy, "placement_group", None)
    if group is None or group.is_empty:
        return
    index = strategy.placement_group_bundle_index
    specs = group.bundle_specs if index < 0 else [group.bundle_specs[index]]
    bundles = [{name: res.to_units(amount, name) for name, amount in spec.items()} for spec in specs]
    if not specs or any(res.fits(units, bundle) for bundle in bundles):
        return
    where = "any bundle of its placement group" if index < 0 else f"bundle {index} of its placement group"
    have = ", ".join(res.format_resources(bundle) for bundle in bundles[:8])
    raise ValueError(
        f"{what} needs {res.format_resources(units)}, which does not fit into {where} (they have: {have}). "
        "Ask for less, or make the bundles larger"
    )
