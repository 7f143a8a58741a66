"""Placement groups as their owner sees them: what `ready()` waits for, and when it waits no longer."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from framework._base.resources import in_group
from framework._runtime.groups import CREATED, Groups
from framework._state.leases import KeyState
from framework._wire import messages as m
from framework.exceptions import LocalNodeDiedError, PlacementGroupRemovedError

GROUP, OTHER = b"g" * 18, b"o" * 18
DEAD = LocalNodeDiedError("the node has ended")


class World:
    """The groups of a process whose head is this test."""

    def __init__(self) -> None:
        self.runtime = mock.MagicMock()
        self.runtime.dead = None
        self.runtime.head_link.handlers = {}
        self.runtime.catalogue.keys_by_id = {}
        self.groups = Groups(self.runtime)

    def told(self, group: bytes, state: str, **detail: Any) -> None:
        frame = [m.GROUP_STATE, group, state, {"text": "", **detail}]
        self.runtime.head_link.handlers[m.GROUP_STATE](mock.Mock(), frame)

    @property
    def failed(self) -> dict[Any, Any]:
        return dict(call.args for call in self.runtime.objects.fail.call_args_list)

    @property
    def completed(self) -> dict[Any, Any]:
        return dict(call.args for call in self.runtime.objects.complete.call_args_list)


@pytest.fixture
def world() -> World:
    return World()


def test_ready_when_it_is_there_and_from_then_on(world: World) -> None:
    world.groups.ready(GROUP, "one", 1)  # type: ignore[arg-type]
    assert not world.completed
    world.told(GROUP, CREATED)
    world.groups.ready(GROUP, "two", 2)  # type: ignore[arg-type]
    assert world.completed == {"one": 1, "two": 2} and not world.failed


def test_ready_fails_when_it_is_removed(world: World) -> None:
    world.groups.ready(GROUP, "one", 1)  # type: ignore[arg-type]
    world.told(GROUP, "REMOVED", text="remove_placement_group() was called")
    assert isinstance(world.failed["one"], PlacementGroupRemovedError)


def test_without_its_node_nobody_waits_for_a_group_any_more(world: World) -> None:
    """The head of a cluster may well be there still; it has nothing to say to whoever is cut off."""
    world.groups.ready(GROUP, "waits", 1)  # type: ignore[arg-type]
    world.groups.ready(OTHER, "has", 2)  # type: ignore[arg-type]
    world.told(OTHER, CREATED)
    world.runtime.dead = DEAD
    world.groups.lost(DEAD)
    assert world.failed == {"waits": DEAD} and world.completed == {"has": 2}
    world.groups.ready(b"n" * 18, "new", 3)  # type: ignore[arg-type]
    world.groups.ready(GROUP, "late", 4)  # type: ignore[arg-type]
    assert world.failed == {"waits": DEAD, "new": DEAD, "late": DEAD}


def test_a_head_that_was_away_hears_again_what_was_removed(world: World) -> None:
    """It may have said that it is gone, and have lost that with its disk."""
    world.groups.ready(GROUP, "one", 1)  # type: ignore[arg-type]
    world.groups.remove(OTHER)
    world.runtime.head_link.request.assert_called_once_with(m.GROUP_REMOVE, OTHER)
    head = mock.Mock()
    world.groups.head_returned(head)
    head.call.assert_called_once_with(m.GROUP_REMOVE, OTHER)
    head.cast.assert_called_once_with(m.GROUP_WATCH, GROUP)


def test_a_task_may_be_taken_in_before_its_group_is_made(world: World) -> None:
    """The thread that makes both leaves the making to the loop, which may take in the task first."""
    spec = {"bundles": [{"CPU": 10_000}]}
    world.runtime.leasing.dirty = {}
    world.groups.create(GROUP, spec)
    ((make, *arguments),) = (call.args for call in world.runtime.post.call_args_list)
    key = KeyState(1, in_group({"CPU": 10_000}, GROUP.hex(), -1), None, ["group", GROUP, -1])
    assert not world.groups.is_open(key)
    make(*arguments)
    world.runtime.head_link.request.assert_called_once_with(m.GROUP_CREATE, GROUP, spec)
    world.told(GROUP, CREATED)
    assert list(world.runtime.leasing.dirty) == [key]
