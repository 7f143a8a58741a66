"""Which node is chosen: each policy, and what holds for all of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._base import labels as lb
from framework._base import limits
from framework._base import resources as res
from framework._state.scheduling import ClusterView

CPU = 10_000


def ident(number: int) -> bytes:
    return bytes([number]) * 28


def row(number: int, cpus: float = 4, free: float | None = None, **more: Any) -> dict[str, Any]:
    extra = {name: round(amount * CPU) for name, amount in more.pop("extra", {}).items()}
    left = {name: round(amount * CPU) for name, amount in more.pop("left", {}).items()}
    return {
        "node_id": ident(number),
        "alive": True,
        "total": {"CPU": round(cpus * CPU), **extra},
        "available": {"CPU": round((cpus if free is None else free) * CPU), **extra, **left},
        "labels": {},
        "draining": False,
        **more,
    }


def view(*rows: dict[str, Any], own: int | None = None) -> ClusterView:
    made = ClusterView(ident(own) if own is not None else None)
    made.apply(rows)
    return made


def cpus(amount: float = 1) -> dict[str, int]:
    return {"CPU": round(amount * CPU)}


# ---- default --------------------------------------------------------------------------------------------


def test_work_stays_here_while_less_than_half_is_used() -> None:
    for free, there in ((4, 2), (3, 2), (2.5, 2), (2, 1), (1, 1), (0, 1)):
        known = view(row(1), row(2, free=free))
        assert known.choose(cpus(), local=ident(2)) == ident(there), free


def test_beyond_half_the_least_used_node_comes_first() -> None:
    known = view(row(1, free=1), row(2, free=2), row(3, free=1.5))
    assert known.choose(cpus(), local=ident(1)) == ident(2)
    known.took(ident(2), cpus(1.5))
    assert known.choose(cpus(), local=ident(1)) == ident(3)


def test_a_full_cluster_has_no_room() -> None:
    known = view(row(1, free=0), row(2, free=0.5))
    assert known.choose(cpus(), local=ident(1)) is None
    assert known.choose(cpus(0.5), local=ident(1)) == ident(2)
    assert known.never(cpus()) is None


def test_data_draws_the_task_where_there_is_room() -> None:
    known = view(row(1), row(2, free=1), row(3))
    assert known.choose(cpus(), local=ident(1), near=ident(2)) == ident(2)
    assert known.choose(cpus(2), local=ident(1), near=ident(2)) == ident(1)
    assert known.choose(cpus(), local=ident(1), near=ident(9)) == ident(1)


def test_gpus_are_left_to_those_who_need_them() -> None:
    known = view(row(1, extra={"GPU": 1}), row(2, free=1))
    assert known.choose(cpus(), local=ident(1)) == ident(2)
    assert known.choose({**cpus(), "GPU": CPU}, local=ident(2)) == ident(1)
    assert known.choose(cpus(3), local=ident(2)) == ident(1), "better than none"


def test_every_node_sends_its_first_overflow_elsewhere() -> None:
    rows = [row(n, free=0 if n == home else 4) for home in (2,) for n in (1, 2, 3)]
    assert view(*rows, own=2).choose(cpus(), local=ident(2)) == ident(3)
    rows = [row(n, free=0 if n == 3 else 4) for n in (1, 2, 3)]
    assert view(*rows, own=3).choose(cpus(), local=ident(3)) == ident(1)


# ---- spread ---------------------------------------------------------------------------------------------


def test_spread_takes_turns_among_nodes_with_room() -> None:
    known = view(*(row(n) for n in (1, 2, 3)))
    chosen = [known.choose(cpus(), ["SPREAD"]) for _ in range(6)]
    assert chosen == [ident(n) for n in (1, 2, 3, 1, 2, 3)]
    known.apply([row(2, free=0)])
    assert [known.choose(cpus(), ["SPREAD"]) for _ in range(3)] == [ident(1), ident(3), ident(1)]


# ---- affinity -------------------------------------------------------------------------------------------


def test_hard_affinity_is_for_one_node_only() -> None:
    known = view(row(1), row(2, free=0))
    hard = ["node", ident(2).hex(), False]
    assert known.choose(cpus(), hard) is None
    assert known.never(cpus(), hard) is None, "it waits for that node"
    known.apply([row(2, free=1)])
    assert known.choose(cpus(), hard) == ident(2)
    assert "only" in (known.never(cpus(9), hard) or "")
    known.remove(ident(2), "it burnt down")
    assert known.choose(cpus(), hard) is None
    assert "burnt down" in (known.lost_cause(hard) or "")
    assert "burnt down" in (known.never(cpus(), hard) or "")


def test_soft_affinity_goes_elsewhere_only_if_that_node_cannot_do_it() -> None:
    known = view(row(1), row(2, free=0))
    soft = ["node", ident(2).hex(), True]
    assert known.choose(cpus(), soft) is None, "it is only busy"
    assert known.choose(cpus(4.5), soft) is None
    known.apply([row(1, cpus=8)])
    assert known.choose(cpus(4.5), soft) == ident(1)
    known.remove(ident(2))
    assert known.choose(cpus(), soft) == ident(1)
    assert known.lost_cause(soft) is None


def test_a_node_that_nobody_knows() -> None:
    known = view(row(1))
    stranger = ["node", ident(7).hex(), False]
    assert known.lost_cause(stranger) is None, "it may be on its way"
    assert ident(7).hex() in (known.unknown(stranger) or "")
    assert known.unknown(["node", ident(1).hex(), False]) is None
    assert known.lost_cause(["node", "no id at all", False]) is not None


# ---- labels ---------------------------------------------------------------------------------------------

ZONES = [
    row(1, labels={"zone": "a", "disk": "ssd"}),
    row(2, labels={"zone": "b"}),
    row(3, labels={"zone": "c"}),
]


@pytest.mark.parametrize(
    ("selector", "nodes"),
    [
        ({"zone": "a"}, {1}),
        ({"zone": "!a"}, {2, 3}),
        ({"zone": "in(a, b)"}, {1, 2}),
        ({"zone": "!in(a,b)"}, {3}),
        ({"disk": "!ssd"}, {2, 3}),
        ({"disk": "ssd", "zone": "b"}, set()),
        ({lb.NODE_ID_LABEL: ident(3).hex()}, {3}),
    ],
)
def test_selectors(selector: dict[str, str], nodes: set[int]) -> None:
    wishes = lb.parse_selector("label_selector", selector)
    known = view(*ZONES)
    matching = {n for n in (1, 2, 3) if lb.matches(known.nodes[ident(n)].labels, wishes)}
    assert matching == nodes
    chosen = known.choose(cpus(), ["labels", wishes, {}], local=ident(2))
    assert (chosen is None) == (not nodes) and (chosen is None or chosen[0] in nodes)
    assert (known.never(cpus(), ["labels", wishes, {}]) is None) == bool(nodes)


def test_operators_of_the_strategy() -> None:
    known = view(*ZONES)
    assert known.choose(cpus(), ["labels", {"disk": ["exists", []]}, {}], local=ident(2)) == ident(1)
    assert known.choose(cpus(), ["labels", {"disk": ["!exists", []]}, {}], local=ident(1)) == ident(2)
    soft = ["labels", {}, {"zone": ["in", ["c"]]}]
    assert known.choose(cpus(), soft, local=ident(1)) == ident(3)
    known.apply([row(3, free=0, labels={"zone": "c"})])
    assert known.choose(cpus(), soft, local=ident(1)) == ident(1), "what is only wished for holds nothing up"


@pytest.mark.parametrize(
    "selector", [{"": "a"}, {"zone": "in(a,)"}, {"zone": "a b"}, {"zone": "!"}, {"a/": "b"}]
)
def test_selectors_that_mean_nothing(selector: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="label_selector"):
        lb.parse_selector("label_selector", selector)


# ---- placement groups -----------------------------------------------------------------------------------

GROUP = b"g" * 18


def test_a_group_waits_for_its_bundles_and_ends_with_the_group() -> None:
    inside = ["group", GROUP, 0, False]
    needs = res.in_group(cpus(), GROUP.hex(), 0)
    known = view(row(1), row(2))
    assert known.choose(needs, inside) is None
    assert known.never(needs, inside) is None, "the group is not placed yet"
    bundle = res.bundle_resources(cpus(2), GROUP.hex(), 0)
    ready = row(2)
    ready["total"] |= bundle
    ready["available"] |= bundle
    known.apply([ready])
    assert known.choose(needs, inside, local=ident(1)) == ident(2)
    assert known.choose(res.in_group({}, GROUP.hex(), -1), ["group", GROUP, -1, False]) == ident(2)
    assert "bundle 0" in (known.never(res.in_group(cpus(3), GROUP.hex(), 0), inside) or "")
    known.group_gone(GROUP, "it was removed")
    assert known.choose(needs, inside) is None
    assert "it was removed" in (known.lost_cause(inside) or "")


# ---- what nobody can do ---------------------------------------------------------------------------------


def test_what_no_node_can_do_becomes_possible_when_one_joins() -> None:
    known = view(row(1), row(2))
    text = known.never(cpus(5))
    assert text is not None and "{CPU: 5}" in text and "no node" in text
    known.apply([row(3, cpus=8)])
    assert known.never(cpus(5)) is None
    known.apply([row(3, cpus=8, draining=True)])
    assert known.never(cpus(5)) is not None


def test_what_was_refused_is_not_tried_again_before_the_next_row() -> None:
    known = view(row(1))
    known.refused(ident(1), cpus())
    assert known.choose(cpus()) is None
    assert known.choose(cpus(2)) == ident(1)
    known.apply([row(1)])
    assert known.choose(cpus()) == ident(1)


def test_the_own_ledger_is_looked_at_as_it_is() -> None:
    known = view(own=1)
    total, available = cpus(4), cpus(4)
    known.watch_own(total, available)
    known.apply([row(1, free=0, labels={"zone": "a"}), row(2)])
    assert known.choose(cpus(), local=ident(1)) == ident(1), "its own row is older than the ledger"
    available["CPU"] = 0
    assert known.choose(cpus(), local=ident(1)) == ident(2)
    known.remove(ident(1))
    assert ident(1) in known.nodes


# ---- what always holds ----------------------------------------------------------------------------------

amounts = st.dictionaries(st.sampled_from(["CPU", "GPU", "tape"]), st.integers(1, 6).map(lambda n: n * CPU))
zones = st.sampled_from([{}, {"zone": "a"}, {"zone": "b", "disk": "ssd"}])


@st.composite
def views(draw: st.DrawFn) -> ClusterView:
    known = ClusterView()
    for number in range(1, draw(st.integers(1, 6)) + 1):
        total = draw(amounts)
        known.apply(
            [
                {
                    "node_id": ident(number),
                    "alive": draw(st.integers(0, 5)) > 0,
                    "draining": draw(st.integers(0, 5)) == 0,
                    "total": total,
                    "available": {
                        name: draw(st.integers(-1, most // CPU)) * CPU for name, most in total.items()
                    },
                    "labels": draw(zones),
                }
            ]
        )
    return known


wanted = st.one_of(
    st.none(),
    st.just(["SPREAD"]),
    st.tuples(st.integers(1, 7), st.booleans()).map(lambda x: ["node", ident(x[0]).hex(), x[1]]),
    st.sampled_from(
        [
            ["labels", {"zone": ["in", ["a"]]}, {}],
            ["labels", {"zone": ["!in", ["a"]]}, {"disk": ["exists", []]}],
            ["labels", {"disk": ["!exists", []]}, {"zone": ["in", ["b"]]}],
        ]
    ),
)


@given(known=views(), units=amounts, strategy=wanted, local=st.integers(1, 7), near=st.integers(0, 7))
def test_never_a_node_that_cannot(
    known: ClusterView, units: dict[str, int], strategy: Any, local: int, near: int
) -> None:
    where = {"local": ident(local), "near": ident(near) if near else None}
    turn = known._turn
    chosen = known.choose(units, strategy, **where)
    known._turn = turn
    assert chosen == known.choose(units, strategy, **where), "the same question, the same answer"
    fitting = [r for r in known.nodes.values() if r.open and res.fits(units, r.available) and r.alive]
    if chosen is not None:
        found = known.nodes[chosen]
        assert found in fitting
        assert known.allows(chosen, units, strategy)
        assert known.never(units, strategy) is None
    elif not strategy or strategy[0] == "SPREAD":
        assert not fitting, "somebody had room"
    elif strategy[0] == "labels":
        assert not any(lb.matches(r.labels, strategy[1]) for r in fitting)
    if known.never(units, strategy) is not None:
        assert chosen is None


def test_what_is_over_is_remembered_up_to_a_bound() -> None:
    known = view(row(1), own=1)
    for number in range(limits.NODES_DEAD_KEPT + 5):
        known.remove(number.to_bytes(28, "big"), "lost")
    assert list(known.dead) == [n.to_bytes(28, "big") for n in range(5, limits.NODES_DEAD_KEPT + 5)]
    for number in range(limits.GROUPS_REMOVED_KEPT + 5):
        known.group_gone(number.to_bytes(18, "big"), "removed")
    kept = limits.GROUPS_REMOVED_KEPT
    assert list(known.groups_gone) == [n.to_bytes(18, "big") for n in range(5, kept + 5)]
