"""What a program has described once (functions, options, scheduling keys) goes when nobody can use it any
more: here, in the workers, and in the node."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest

import framework as fw
from framework._base import limits
from framework._node.control import Client
from framework._runtime.current import current
from framework._wire import messages as m
from framework.util.placement_group import placement_group, remove_placement_group
from framework.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LIMIT = 30.0


@fw.remote
def plus_one(value: int) -> int:
    return value + 1


@fw.remote
class Known:
    def here(self) -> tuple[int, int]:
        """Templates and functions that this process knows of."""
        listener = current().peers._listener
        assert listener is not None
        states = [connection.state for connection in listener.connections if connection.state is not None]
        return sum(len(state.incoming) for state in states), sum(len(state.sources) for state in states)


def told() -> tuple[int, int]:
    """The same, that others know of this process."""
    states = [connection.state for connection in current().peers.outgoing()]
    return sum(len(state.templates) for state in states), sum(len(state.functions) for state in states)


def census_of_node() -> dict[str, int]:
    with Client(current().session_dir, "node") as node:
        found: dict[str, int] = node.call(m.CENSUS)
    return found


def test_options_at_each_call(session: object) -> None:
    fw.get(plus_one.remote(1), timeout=LIMIT)
    before, functions = told()
    for number in range(0, 200, 20):
        refs = [plus_one.options(name=f"plus {number + one}").remote(one) for one in range(20)]
        assert fw.get(refs, timeout=LIMIT) == list(range(1, 21))
        del refs
    gc.collect()
    # (Two workers: each may have come to know those that are still in use.)
    wait_until(lambda: told()[0] <= before + 2, what="the end of all templates")
    assert told()[1] <= functions + 1
    assert fw.get(plus_one.options(name="plus 7").remote(1), timeout=LIMIT) == 2


def test_names_of_calls_of_an_actor(session: object) -> None:
    actor: Any = Known.remote()
    method: Any = actor.here
    for number in range(limits.METHOD_TEMPLATES_KEPT + 50):
        fw.get(method.options(name=f"call {number}").remote(), timeout=LIMIT)
    wait_until(
        lambda: fw.get(method.remote(), timeout=LIMIT)[0] <= limits.METHOD_TEMPLATES_KEPT + 1,
        what="the end of the oldest templates",
    )


def test_functions_defined_anew(session: object) -> None:
    def use(number: int) -> None:
        ballast = os.urandom(1_000)

        @fw.remote
        def fresh() -> int:
            return number + len(ballast)

        assert fw.get(fresh.remote(), timeout=LIMIT) == number + 1_000

    for number in range(limits.FUNCTIONS_KEPT + 100):
        use(number)
    gc.collect()
    catalogue = current().catalogue
    assert len(catalogue._functions) <= limits.FUNCTIONS_KEPT + 10
    connections = len(current().peers.outgoing())
    wait_until(lambda: told()[1] <= limits.FUNCTIONS_KEPT + 10 * connections, what="the end of the oldest")


def test_keys_of_placement_groups(session: object) -> None:
    def use() -> None:
        group = placement_group([{"CPU": 1}])
        inside = PlacementGroupSchedulingStrategy(group)
        assert fw.get(plus_one.options(scheduling_strategy=inside).remote(1), timeout=LIMIT) == 2
        remove_placement_group(group)

    use()
    gc.collect()
    demands = "framework._state.node.NodeState.demands"
    for _ in range(10):
        use()
    gc.collect()
    wait_until(lambda: len(current().catalogue.keys_by_id) <= 4, what="the end of all keys")
    wait_until(lambda: census_of_node().get(demands, 0) <= 6, what="that the node forgets them")
