"""Where bundles go."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from framework._base import resources as res
from framework._state.packing import PACK, SPREAD, STRATEGIES, STRICT_PACK, STRICT_SPREAD, place

A, B, C = b"a", b"b", b"c"


def cpus(*amounts: int) -> dict[int, dict[str, int]]:
    return {index: {"CPU": amount} for index, amount in enumerate(amounts)}


def free(**amounts: int) -> dict[bytes, dict[str, int]]:
    return {name.encode(): {"CPU": amount} for name, amount in amounts.items()}


def test_pack_takes_one_node_where_one_is_enough_and_the_tightest_of_those() -> None:
    assert place(cpus(1, 1, 1), PACK, free(a=8, b=3, c=2)) == {0: B, 1: B, 2: B}


def test_pack_takes_as_few_nodes_as_it_can() -> None:
    found = place(cpus(2, 2, 2), PACK, free(a=2, b=4, c=2))
    assert found is not None
    assert len(set(found.values())) == 2


def test_pack_stays_with_the_nodes_that_the_group_has() -> None:
    found = place(cpus(1), PACK, free(a=1, b=8), placed=[B])
    assert found == {0: B}


def test_spread_takes_a_node_for_each_and_shares_nodes_only_for_want_of_more() -> None:
    found = place(cpus(1, 1, 1), SPREAD, free(a=9, b=9, c=9))
    assert found is not None
    assert set(found.values()) == {A, B, C}
    found = place(cpus(1, 1, 1, 1), SPREAD, free(a=9, b=9))
    assert found is not None
    assert sorted(found.values()) == [A, A, B, B]


def test_spread_keeps_away_from_the_nodes_that_the_group_has() -> None:
    assert place(cpus(1), SPREAD, free(a=9, b=1), placed=[A]) == {0: B}


def test_strict_pack_is_all_on_one_node_or_nothing() -> None:
    assert place(cpus(2, 2), STRICT_PACK, free(a=3, b=4)) == {0: B, 1: B}
    assert place(cpus(2, 2), STRICT_PACK, free(a=3, b=3)) is None


def test_strict_pack_goes_where_the_rest_is() -> None:
    assert place(cpus(1), STRICT_PACK, free(a=9, b=9), placed=[B, B]) == {0: B}
    assert place(cpus(1), STRICT_PACK, free(a=9, b=0), placed=[B]) is None


def test_strict_spread_is_a_node_each_or_nothing() -> None:
    assert place(cpus(1, 1), STRICT_SPREAD, free(a=9)) is None
    assert place(cpus(1, 1), STRICT_SPREAD, free(a=9, b=9), placed=[A]) is None
    # The small one must leave the large node to the large one.
    assert place(cpus(1, 5), STRICT_SPREAD, free(a=5, b=1)) == {0: B, 1: A}


def test_a_place_that_only_a_search_finds() -> None:
    # Largest first, as full as possible: 5 on a, then neither 4 nor 3+3 fit well. 5+2 | 4+3 does.
    found = place(cpus(5, 4, 3, 2), PACK, free(a=7, b=7))
    assert found is not None


def test_bundles_that_may_only_go_to_some_nodes() -> None:
    assert place(cpus(1, 1), PACK, free(a=2, b=2), allowed={1: {B}}) == {0: B, 1: B}
    assert place(cpus(1), PACK, free(a=2), allowed={0: {B}}) is None


def test_of_no_bundles_all_are_placed() -> None:
    assert place({}, STRICT_SPREAD, {}) == {}


def _exists(bundles: dict[int, dict[str, int]], strategy: str, have: dict[bytes, dict[str, int]]) -> bool:
    """Whether there is a place, by trying everything."""
    for choice in itertools.product(have, repeat=len(bundles)):
        if strategy == STRICT_PACK and len(set(choice)) > 1:
            continue
        if strategy == STRICT_SPREAD and len(set(choice)) < len(choice):
            continue
        rest = {node: dict(units) for node, units in have.items()}
        for index, node in zip(bundles, choice, strict=True):
            res.subtract(rest[node], bundles[index])
        if all(amount >= 0 for units in rest.values() for amount in units.values()):
            return True
    return False


units = st.fixed_dictionaries({"CPU": st.integers(1, 4)}, optional={"GPU": st.integers(1, 2)})
room = st.fixed_dictionaries({"CPU": st.integers(0, 8), "GPU": st.integers(0, 3)})


@given(
    bundles=st.lists(units, min_size=1, max_size=4),
    nodes=st.lists(room, min_size=1, max_size=4),
    strategy=st.sampled_from(STRATEGIES),
)
@settings(max_examples=150, deadline=None)
def test_a_place_is_found_whenever_there_is_one_and_obeys_the_strategy(
    bundles: list[dict[str, int]], nodes: list[dict[str, int]], strategy: str
) -> None:
    wanted = dict(enumerate(bundles))
    have = {bytes([number]): units for number, units in enumerate(nodes)}
    before = {node: dict(units) for node, units in have.items()}
    found = place(wanted, strategy, have)
    assert have == before
    if found is None:
        assert not _exists(wanted, strategy, have)
        return
    assert set(found) == set(wanted)
    for node in have:
        need: dict[str, int] = {}
        for index, at in found.items():
            if at == node:
                res.add(need, wanted[index])
        assert res.fits(need, have[node])
    if strategy == STRICT_PACK:
        assert len(set(found.values())) == 1
    if strategy == STRICT_SPREAD:
        assert len(set(found.values())) == len(found)
    if strategy == PACK and _exists(wanted, STRICT_PACK, have):
        assert len(set(found.values())) == 1
    if strategy == SPREAD and _exists(wanted, STRICT_SPREAD, have):
        assert len(set(found.values())) == len(found)


@given(count=st.integers(1, 12), extra=st.integers(0, 3), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_node_for_each_is_found_for_many(count: int, extra: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    spare = data.draw(st.lists(st.integers(0, 5), min_size=extra, max_size=extra))
    rooms = data.draw(st.permutations(sizes + spare))
    have = {bytes([number]): {"CPU": amount} for number, amount in enumerate(rooms)}
    found = place(cpus(*sizes), STRICT_SPREAD, have)
    assert found is not None  # each has the node that is just large enough for it
    assert len(set(found.values())) == count
    assert all(have[node]["CPU"] >= sizes[index] for index, node in found.items())
