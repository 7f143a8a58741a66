"""Placement groups: resources on one or several nodes that are reserved together, before they are used."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

from framework._base import labels as lb
from framework._base import resources as res
from framework._base.ids import PLACEMENT_GROUP_ID_SIZE, PlacementGroupID
from framework._base.limits import MAX_BUNDLES
from framework._runtime.context import current_task
from framework._runtime.current import current
from framework._serial.values import encode
from framework._state.objects import READY
from framework._wire import messages as m
from framework.object_ref import ObjectRef, ref_in

VALID_PLACEMENT_GROUP_STRATEGIES = {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"}


class PlacementGroup:
    """A handle of a placement group. It may be passed to other tasks; the group lives on without it.

    Give it to tasks and actors with ``scheduling_strategy=PlacementGroupSchedulingStrategy(group)``.
    """

    __slots__ = ("_bundles", "id")

    def __init__(self, id: PlacementGroupID, bundle_cache: list[dict[str, float]] | None = None) -> None:
        self.id = id
        self._bundles = bundle_cache

    @staticmethod
    def empty() -> PlacementGroup:
        """A group that stands for none."""
        return PlacementGroup(PlacementGroupID.nil(), [])

    @property
    def is_empty(self) -> bool:
        """Whether it stands for none."""
        return self.id.is_nil()

    def ready(self) -> ObjectRef[PlacementGroup]:
        """A reference that is done when all bundles are reserved; its value is the group. `get`, `wait` for
        or ``await`` it. Never blocks.

        It fails with `PlacementGroupRemovedError` when the group is removed, with `ValueError` when its name
        was taken. As long as the cluster has no room for the group it stays pending (a warning says so when
        the whole cluster would not be enough).
        """
        runtime = current()
        entry = runtime.objects.new(runtime.new_object_id())
        value = encode(self, where="a placement group").own().wire
        runtime.post(runtime.groups.ready, self.id.binary(), entry, value)
        return ref_in(entry, runtime)

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Block until all bundles are reserved. False when they are not after that time, or when the group is
        removed."""
        if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, int | float):
            raise TypeError(f"timeout_seconds is a number, got {timeout_seconds!r}")
        if timeout_seconds != timeout_seconds or timeout_seconds < 0:
            raise ValueError(f"timeout_seconds must not be negative, got {timeout_seconds!r}")
        runtime = current()
        entry = self.ready()._entry
        done = runtime.waiting.wait([entry], 1, timeout_seconds, False, "wait")
        entry.seen = True  # its error, if it is one
        return done and entry.state == READY

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The bundles, each a dict from resource to amount. Of a group that was not made here, it may take
        one round trip to the head."""
        if self._bundles is None:
            rows = current().head_call(m.GROUP_TABLE, self.id.binary())
            self._bundles = _in_order(rows[0]["bundles"]) if rows else []
        return self._bundles

    @property
    def bundle_count(self) -> int:
        """How many bundles it has."""
        return len(self.bundle_specs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (PlacementGroup, (self.id, self._bundles))


def placement_group(
    bundles: Sequence[Mapping[str, float]],
    strategy: str = "PACK",
    name: str = "",
    lifetime: str | None = None,
    bundle_label_selector: Sequence[Mapping[str, str]] | None = None,
) -> PlacementGroup:
    """Reserve resources: each of `bundles` (a dict such as ``{"CPU": 2, "GPU": 1, "memory": 10**9}``) on one
    node, all of them or none.

    strategy: PACK, on as few nodes as possible; SPREAD, on as many as possible; STRICT_PACK, all on one node;
        STRICT_SPREAD, each on a node of its own.
    name: for `get_placement_group`, unique in the namespace.
    lifetime: None, until it is removed or the job ends; "detached", until it is removed.
    bundle_label_selector: for each bundle the labels that its node must have, as in the option
        ``label_selector``.

    Never blocks, but for one round trip to the head when it has a name (not on an event loop: there `ready`
    tells of a name that is taken). Raises `ValueError` for anything that is not allowed.
    """
    units = _checked_bundles(bundles)
    if strategy not in VALID_PLACEMENT_GROUP_STRATEGIES:
        valid = ", ".join(sorted(VALID_PLACEMENT_GROUP_STRATEGIES))
        raise ValueError(f"strategy={strategy!r} is none of the strategies of placement groups: {valid}")
    if not isinstance(name, str):
        raise ValueError(f"the name of a placement group is a str, got {name!r}")
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime must be None (it ends with the job) or 'detached', got {lifetime!r}")
    selectors = _checked_selectors(bundle_label_selector, len(units))
    runtime = current()
    host = runtime.actor_host
    group_id = os.urandom(PLACEMENT_GROUP_ID_SIZE - len(runtime.config.job)) + runtime.config.job
    spec = {
        "bundles": units,
        "strategy": strategy,
        "name": name,
        "namespace": runtime.config.namespace,
        "detached": lifetime == "detached",
        "job": runtime.config.job,
        "actor": host.actor_id if host is not None and host.detached else b"",
        "selectors": selectors,
    }
    if name and not _on_event_loop():
        runtime.run_sync(runtime.groups.create_named(group_id, spec))
    else:
        runtime.groups.create(group_id, spec)
    return PlacementGroup(PlacementGroupID(group_id), [res.to_floats(bundle) for bundle in units])


def _checked_bundles(bundles: Any) -> list[dict[str, int]]:
    if not isinstance(bundles, list | tuple):
        raise ValueError(f"bundles must be a list of dicts from resources to amounts, got {bundles!r}")
    if not bundles:
        raise ValueError("bundles must not be empty: a placement group has at least one bundle")
    if len(bundles) > MAX_BUNDLES:
        raise ValueError(f"a placement group has at most {MAX_BUNDLES} bundles, got {len(bundles)}")
    found = []
    for index, bundle in enumerate(bundles):
        if not isinstance(bundle, Mapping):
            raise ValueError(f"bundle {index} must be a dict from resources to amounts, got {bundle!r}")
        units: dict[str, int] = {}
        for name, amount in bundle.items():
            if not isinstance(name, str) or not name:
                raise ValueError(f"bundle {index}: the name of a resource is a non-empty str, got {name!r}")
            if res.split_group(name) is not None or name == res.BUNDLE:
                raise ValueError(f"bundle {index}: {name!r} belongs to placement groups themselves")
            try:
                units[name] = res.to_units(amount, name)
            except (TypeError, ValueError) as error:
                raise ValueError(f"bundle {index} ({dict(bundle)!r}): {error}") from None
        units = {name: amount for name, amount in units.items() if amount}
        if not units:
            raise ValueError(f"bundle {index} asks for nothing: {dict(bundle)!r}; give it an amount above 0")
        found.append(units)
    return found


def _checked_selectors(selectors: Any, count: int) -> list[dict[str, list[Any]]] | None:
    if selectors is None:
        return None
    if not isinstance(selectors, list | tuple) or len(selectors) != count:
        raise ValueError(
            f"bundle_label_selector must be a list of {count} dicts, one for each bundle, got {selectors!r}"
        )
    try:
        found = [lb.parse_selector("bundle_label_selector", selector) for selector in selectors]
    except TypeError as error:
        raise ValueError(str(error)) from None
    return found if any(found) else None


def _on_event_loop() -> bool:
    import asyncio

    return asyncio._get_running_loop() is not None


def _checked(group: object) -> PlacementGroup:
    if not isinstance(group, PlacementGroup):
        raise ValueError(f"this takes what placement_group() returns, got {group!r}")
    return group


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """End a group and give back its resources. Tasks and actors in it are killed: they, and those that are
    started in it later, fail with `TaskPlacementGroupRemoved` or `ActorPlacementGroupRemoved`. Twice is as
    once. Blocks for one round trip to the head (not on an event loop).
    """
    group_id = _checked(placement_group).id.binary()
    runtime = current()
    if _on_event_loop():
        runtime.post(runtime.groups.remove, group_id)
    else:
        runtime.run_sync(runtime.groups.remove_and_wait(group_id))


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The living group of this name in the namespace of this job. `ValueError` when there is none. Blocks for
    one round trip to the head."""
    if not isinstance(placement_group_name, str) or not placement_group_name:
        raise ValueError(f"the name of a placement group is a non-empty str, got {placement_group_name!r}")
    runtime = current()
    found = runtime.head_call(m.GROUP_FIND, placement_group_name, runtime.config.namespace)
    if found is None:
        raise ValueError(
            f"no placement group named {placement_group_name!r} was found in namespace "
            f"{runtime.config.namespace!r}: it was never made, was removed, or is in another namespace"
        )
    bundles = [res.to_floats(units) for units in found["bundles"]]
    return PlacementGroup(PlacementGroupID(found["group"]), bundles)


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What the head knows of a group, as a dict with Ray's keys: placement_group_id, name, bundles,
    bundles_to_node_id, strategy, state (PENDING, CREATED, RESCHEDULING, REMOVED), stats. Of all groups, by
    hexadecimal id, when none is given; empty for one that is not known. Blocks for one round trip to the
    head.
    """
    group_id = None if placement_group is None else _checked(placement_group).id.binary()
    rows = current().head_call(m.GROUP_TABLE, group_id)
    for row in rows:
        row["bundles"] = dict(enumerate(_in_order(row["bundles"])))
    if placement_group is None:
        return {row["placement_group_id"]: row for row in rows}
    return dict(rows[0]) if rows else {}


def _in_order(bundles: Any) -> list[dict[str, float]]:
    return [bundles[index] for index in sorted(bundles)]


def get_current_placement_group() -> PlacementGroup | None:
    """The group that the calling task or actor runs in; None elsewhere, and in drivers."""
    runtime = current()
    context = current_task.get()
    strategy = context.strategy if context is not None else None
    if strategy is None and runtime.actor_host is not None:
        strategy = runtime.actor_host.strategy
    if not strategy or strategy[0] != "group":
        return None
    return PlacementGroup(PlacementGroupID(strategy[1]))


def check_placement_group_index(placement_group: PlacementGroup, bundle_index: int) -> None:
    """`ValueError` unless the group has such a bundle (-1: any)."""
    if placement_group.is_empty:
        if bundle_index != -1:
            raise ValueError("without a placement group, the index of a bundle must be -1")
    elif not -1 <= bundle_index < placement_group.bundle_count:
        raise ValueError(
            f"bundle index {bundle_index} is not in this placement group: it has "
            f"{placement_group.bundle_count} bundle(s)"
        )


class _Module(types.ModuleType):
    """``framework.util.placement_group`` is this module and, as in Ray, the function: whichever was imported
    first."""

    def __call__(self, *args: Any, **kwargs: Any) -> PlacementGroup:
        return placement_group(*args, **kwargs)


sys.modules[__name__].__class__ = _Module
