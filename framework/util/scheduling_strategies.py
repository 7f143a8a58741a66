"""Where a task or actor should run: values of the option ``scheduling_strategy``, beside the words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from framework._base import labels as lb
from framework._base.ids import NODE_ID_SIZE


class NodeAffinitySchedulingStrategy:
    """Run on one node. `node_id`: hexadecimal id; `soft`: elsewhere if that node is gone, or too small.

    Without `soft`, tasks fail with `TaskUnschedulableError` and actors with `ActorUnschedulableError` when
    the node is dead, or is none of this cluster. Raises `ValueError` for what is no id.
    """

    def __init__(self, node_id: str, soft: bool) -> None:
        if not isinstance(node_id, str) or not _is_node_id(node_id):
            raise ValueError(
                f"node_id is the hexadecimal id of a node ({2 * NODE_ID_SIZE} digits, as in "
                f"framework.nodes()), got {node_id!r}"
            )
        self.node_id = node_id
        self.soft = bool(soft)

    def __repr__(self) -> str:
        return f"NodeAffinitySchedulingStrategy(node_id={self.node_id!r}, soft={self.soft})"


def _is_node_id(text: str) -> bool:
    try:
        return len(bytes.fromhex(text)) == NODE_ID_SIZE
    except ValueError:
        return False


class _Values:
    """A wish about the value of a label."""

    _operator = ""

    def __init__(self, *values: str) -> None:
        name = type(self).__name__
        if not values:
            raise ValueError(f"{name}() needs at least one value")
        self.values = [lb.check_value(f"{name}()", value) for value in values]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.values))})"


class In(_Values):
    """The label has one of these values."""

    _operator = lb.IN


class NotIn(_Values):
    """The label has none of these values, or the node has no such label."""

    _operator = lb.NOT_IN


class Exists:
    """The node has the label, with whatever value."""

    _operator = lb.EXISTS
    values: list[str] = []  # noqa: RUF012 - always empty

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class DoesNotExist(Exists):
    """The node does not have the label."""

    _operator = lb.ABSENT


class NodeLabelSchedulingStrategy:
    """Run on a node whose labels satisfy all of `hard`, and of `soft` where there is one with room.

    Both are dicts from the name of a label to `In`, `NotIn`, `Exists` or `DoesNotExist`. Raises `ValueError`
    or `TypeError` for anything else. As long as no node satisfies `hard`, tasks wait, and a warning says so.
    """

    def __init__(self, hard: Mapping[str, Any], *, soft: Mapping[str, Any] | None = None) -> None:
        self.hard = _wishes("hard", hard)
        self.soft = _wishes("soft", soft if soft is not None else {})
        if not self.hard and not self.soft:
            raise ValueError("NodeLabelSchedulingStrategy needs a label in `hard` or in `soft`")

    @property
    def node_labels(self) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Both, as they travel."""
        return self.hard, self.soft

    def __repr__(self) -> str:
        return f"NodeLabelSchedulingStrategy(hard={self.hard!r}, soft={self.soft!r})"


def _wishes(which: str, wishes: Mapping[str, Any]) -> dict[str, list[Any]]:
    option = f"NodeLabelSchedulingStrategy({which}=)"
    if not isinstance(wishes, Mapping):
        raise TypeError(f"{option} must be a dict from names of labels to In, NotIn, Exists or DoesNotExist")
    found: dict[str, list[Any]] = {}
    for name, wish in wishes.items():
        lb.check_label(option, name)
        if not isinstance(wish, _Values | Exists):
            raise TypeError(
                f"{option}: {name!r} must be In(...), NotIn(...), Exists() or DoesNotExist(), not {wish!r}"
            )
        found[name] = [wish._operator, list(wish.values)]
    return found


class PlacementGroupSchedulingStrategy:
    """Run in a placement group. With None in none, not even in that of a caller that captures its children.

    placement_group_bundle_index: the bundle to run in; -1: any of them.
    placement_group_capture_child_tasks: what it starts runs in the group too, unless it says otherwise.

    Raises `TypeError` when `placement_group` is none, `ValueError` for a bundle that it does not have.
    """

    def __init__(
        self,
        placement_group: Any,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        if placement_group is not None and not hasattr(placement_group, "bundle_specs"):
            raise TypeError(
                f"placement_group must be what placement_group() returns, not {placement_group!r} of type "
                f"{type(placement_group).__name__}"
            )
        index = placement_group_bundle_index
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"placement_group_bundle_index must be an integer >= -1, not {index!r}")
        count = len(placement_group.bundle_specs) if placement_group is not None else 0
        if index < -1 or (placement_group is not None and index >= count):
            raise ValueError(
                f"placement_group_bundle_index={index} is not in this placement group: it has {count} "
                f"bundle(s), 0 to {count - 1}; -1 stands for any"
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = index
        self.placement_group_capture_child_tasks = bool(placement_group_capture_child_tasks)

    def __repr__(self) -> str:
        return (
            f"PlacementGroupSchedulingStrategy({self.placement_group!r}, "
            f"placement_group_bundle_index={self.placement_group_bundle_index})"
        )
