"""How many nodes of which type: decisions, without any cluster."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework._base import resources as res
from framework.autoscaler.policy import Decision, Demand, Room, ScalingPolicy, Shape, demand_of, rooms_of
from framework.autoscaler.provider import NodeType, ProvidedNode

SMALL = NodeType("small", {"CPU": 2}, max_nodes=4)
LARGE = NodeType("large", {"CPU": 8}, max_nodes=2)
GPU = NodeType("gpu", {"CPU": 8, "GPU": 1}, {"kind": "gpu"}, max_nodes=2)


def units(**amounts: float) -> dict[str, int]:
    return {name: res.to_units(amount, name) for name, amount in amounts.items()}


def shapes(count: int, **amounts: float) -> Demand:
    return Demand([Shape(units(**amounts))] * count)


def room(name: str, free: float, total: float = 2, busy: bool = False, **labels: str) -> Room:
    return Room(name, units(CPU=total), units(CPU=free), labels, busy=busy)


def decide(
    types: Sequence[NodeType],
    demand: Demand,
    rooms: Sequence[Room] = (),
    provided: Sequence[ProvidedNode] = (),
    now: float = 0.0,
) -> Decision:
    return ScalingPolicy(types, idle_timeout=10).decide(now, demand, rooms, provided)


def test_nothing_waits() -> None:
    decision = decide([SMALL], Demand(), [room("a", 2)])
    assert (decision.create, decision.terminate, decision.infeasible) == ({}, [], [])


def test_what_waits_is_packed() -> None:
    assert decide([SMALL], shapes(5, CPU=1)).create == {"small": 3}
    assert decide([SMALL], shapes(5, CPU=1), [room("a", 1)]).create == {"small": 2}
    assert decide([SMALL], shapes(1, CPU=1), [room("a", 1)]).create == {}
    assert decide([SMALL], shapes(4, CPU=0.5)).create == {"small": 1}


def test_nodes_on_their_way_count() -> None:
    coming = [ProvidedNode("n1", "small"), ProvidedNode("n2", "small", "ff")]
    assert decide([SMALL], shapes(5, CPU=1), [], coming).create == {"small": 1}


def test_bounds() -> None:
    assert decide([SMALL], shapes(100, CPU=1)).create == {"small": 4}
    policy = ScalingPolicy([SMALL, LARGE], max_nodes=3)
    assert sum(policy.decide(0, shapes(100, CPU=1), [], []).create.values()) == 3
    least = NodeType("least", {"CPU": 1}, min_nodes=2)
    assert decide([least], Demand()).create == {"least": 2}
    assert decide([least], Demand(), [], [ProvidedNode("n", "least")]).create == {"least": 1}


def test_the_type_that_fits_best() -> None:
    assert decide([SMALL, LARGE, GPU], shapes(1, CPU=2)).create == {"small": 1}
    assert decide([SMALL, LARGE, GPU], shapes(1, CPU=6)).create == {"large": 1}
    assert decide([SMALL, LARGE, GPU], shapes(1, CPU=1, GPU=1)).create == {"gpu": 1}
    assert decide([GPU], shapes(1, CPU=1)).create == {"gpu": 1}, "better than nothing"


def test_large_ones_first() -> None:
    mixed = Demand([Shape(units(CPU=1))] * 2 + [Shape(units(CPU=8))])
    assert decide([LARGE], mixed).create == {"large": 2}
    assert decide([LARGE], mixed, [room("a", 8, 8)]).create == {"large": 1}


def test_what_can_never_be() -> None:
    decision = decide([SMALL], shapes(1, CPU=3))
    assert decision.create == {} and decision.infeasible == [Shape(units(CPU=3))]
    full = decide([SMALL], shapes(1, CPU=1), [], [ProvidedNode(str(n), "small", "ab") for n in range(4)])
    assert full.create == {} and full.infeasible == []


def test_labels() -> None:
    wants = Demand([Shape(units(CPU=1), {"kind": "gpu"})])
    assert decide([SMALL, GPU], wants, [room("a", 2)]).create == {"gpu": 1}
    assert decide([SMALL, GPU], wants, [room("a", 2, kind="gpu")]).create == {}
    assert decide([SMALL], wants).infeasible == list(wants.shapes)


@pytest.mark.parametrize(
    ("strategy", "created"),
    [
        ("PACK", {"small": 2}),
        ("SPREAD", {"small": 4}),
        ("STRICT_SPREAD", {"small": 4}),
        ("STRICT_PACK", {"large": 1}),
    ],
)
def test_groups(strategy: str, created: dict[str, int]) -> None:
    demand = Demand(groups=[(strategy, [units(CPU=1)] * 4)])
    types = [SMALL, LARGE] if strategy == "STRICT_PACK" else [SMALL]
    assert decide(types, demand).create == created


def test_a_group_is_placed_as_a_whole() -> None:
    five = Demand(groups=[("STRICT_SPREAD", [units(CPU=1)] * 5)])
    assert decide([SMALL], five).create == {}, "only four can be had"
    assert decide([SMALL], five, [room("a", 1)]).create == {"small": 4}
    after = Demand([Shape(units(CPU=2))], five.groups)
    assert decide([SMALL], after).create == {"small": 1}, "what was set aside for it is free again"


def test_idle_nodes_leave_after_a_while() -> None:
    policy = ScalingPolicy([SMALL], idle_timeout=10)
    provided = [ProvidedNode("n1", "small", "a"), ProvidedNode("n2", "small", "b")]
    rooms = [room("a", 2), room("b", 1)]
    assert policy.decide(0, Demand(), rooms, provided).terminate == []
    assert policy.decide(9.9, Demand(), rooms, provided).terminate == []
    assert policy.decide(10, Demand(), rooms, provided).terminate == ["n1"]


def test_work_starts_the_count_anew() -> None:
    policy = ScalingPolicy([SMALL], idle_timeout=10)
    provided = [ProvidedNode("n1", "small", "a")]
    policy.decide(0, Demand(), [room("a", 2)], provided)
    policy.decide(5, Demand(), [room("a", 2, busy=True)], provided)
    assert policy.decide(10, Demand(), [room("a", 2)], provided).terminate == []
    assert policy.decide(19, Demand(), [room("a", 2)], provided).terminate == []
    assert policy.decide(20, Demand(), [room("a", 2)], provided).terminate == ["n1"]


def test_what_waits_keeps_them() -> None:
    policy = ScalingPolicy([SMALL], idle_timeout=10)
    provided = [ProvidedNode("n1", "small", "a")]
    for now in (0, 20):
        assert policy.decide(now, shapes(1, CPU=1), [room("a", 2)], provided).terminate == []


def test_the_least_stay_and_strangers_are_left_alone() -> None:
    kind = NodeType("kept", {"CPU": 2}, min_nodes=1)
    policy = ScalingPolicy([kind], idle_timeout=0)
    provided = [ProvidedNode("n1", "kept", "a"), ProvidedNode("n2", "kept", "b")]
    rooms = [room("a", 2), room("b", 2), room("head", 2)]
    assert len(policy.decide(1, Demand(), rooms, provided).terminate) == 1


def test_wrong_types() -> None:
    with pytest.raises(ValueError, match="min_nodes"):
        NodeType("t", {"CPU": 1}, min_nodes=3, max_nodes=2)


def test_the_heads_answer() -> None:
    answer = {
        "pending": [
            [units(CPU=1), None, 2],
            [units(CPU=1), ["SPREAD"], 1],
            [units(CPU=1), ["node", "ab", False], 5],
            [{"CPU_group_abc": 10_000}, None, 5],
        ],
        "groups": [{"strategy": "PACK", "bundles": [units(CPU=1)]}],
        "nodes": [
            {"node_id": b"\xab", "total": units(CPU=2), "available": units(CPU=1), "busy": 1},
            {"node_id": b"\xcd", "total": {}, "available": {}, "alive": False},
        ],
    }
    demand = demand_of(answer)
    assert demand.shapes == [Shape(units(CPU=1))] * 3
    assert demand.groups == [("PACK", [units(CPU=1)])]
    assert rooms_of(answer) == [Room("ab", units(CPU=2), units(CPU=1), busy=True)]


@given(
    st.lists(st.integers(1, 4), max_size=12),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=4),
    st.integers(0, 6),
)
@settings(max_examples=200, deadline=None)
def test_never_too_many_and_never_too_few(wanted: list[int], there: list[tuple[int, int]], most: int) -> None:
    """Every shape has room in what is there and what is created, unless the bound is reached; and no more
    nodes are created than shapes wait."""
    kind = NodeType("t", {"CPU": 4}, max_nodes=most)
    rooms = [room(f"r{n}", min(free, total), total) for n, (free, total) in enumerate(there)]
    decision = decide([kind], Demand([Shape(units(CPU=n)) for n in wanted]), rooms)
    created = decision.create.get("t", 0)
    assert created <= min(most, len(wanted))
    assert decision.infeasible == []
    # First fit, the large ones first, over the same bins: nothing may be left while another node may be had.
    bins = [res.to_units(min(free, total), "CPU") for free, total in there] + [
        res.to_units(4, "CPU")
    ] * created
    left = 0
    for amount in sorted((res.to_units(n, "CPU") for n in wanted), reverse=True):
        for position, free in enumerate(bins):
            if free >= amount:
                bins[position] -= amount
                break
        else:
            left += 1
    assert left == 0 or created == most
