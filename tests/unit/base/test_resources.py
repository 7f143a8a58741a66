from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._base import limits
from framework._base import resources as res
from framework._base.resources import UNIT, IndexedResource

sets = st.dictionaries(st.sampled_from(["CPU", "GPU", "memory", "a", "b"]), st.integers(1, 10 * UNIT))


@pytest.mark.parametrize(
    ("amount", "units"),
    [
        (0, 0),
        (1, UNIT),
        (0.5, UNIT // 2),
        (0.1, 1000),
        (0.0001, 1),
        (0.00006, 1),  # rounded to the nearest
        (2**60, 2**60 * UNIT),  # exact far beyond what a float product holds
        (1e15, 10**15 * UNIT),
        (Fraction(1, 4), UNIT // 4),
        (np.float64(0.25), UNIT // 4),
        (np.int64(3), 3 * UNIT),
    ],
)
def test_amounts(amount: object, units: int) -> None:
    assert res.to_units(amount, "num_cpus") == units


@pytest.mark.parametrize("amount", [True, False, "1", None, [1], 1j, Decimal(1), np.bool_(True)])
def test_what_is_no_number_is_a_type_error(amount: object) -> None:
    with pytest.raises(TypeError, match="num_cpus must be a number"):
        res.to_units(amount, "num_cpus")


@pytest.mark.parametrize("amount", [-1, -0.5, -0.00001, float("nan"), float("inf"), -float("inf"), 0.00001])
def test_what_is_no_amount_is_a_value_error(amount: float) -> None:
    with pytest.raises(ValueError, match="num_cpus"):
        res.to_units(amount, "num_cpus")


@pytest.mark.parametrize("name", ["GPU", "num_gpus"])
def test_gpus_above_one_are_whole(name: str) -> None:
    assert res.to_units(2.0, name) == 2 * UNIT
    assert res.to_units(0.3, name) == 3000
    with pytest.raises(ValueError, match="whole number"):
        res.to_units(1.5, name)
    assert res.to_units(1.5, "num_cpus") == 15_000


def test_sums_are_exact() -> None:
    assert res.to_units(0.1, "x") + res.to_units(0.2, "x") == res.to_units(0.3, "x")
    have = {"CPU": UNIT}
    for _ in range(10):
        assert res.fits({"CPU": 1000}, have)
        res.subtract(have, {"CPU": res.to_units(0.1, "CPU")})
    assert have == {"CPU": 0}


@given(st.integers(0, 10**12))
def test_units_survive_the_way_through_floats(units: int) -> None:
    assert res.to_units(res.to_floats({"x": units})["x"], "x") == units


def test_parse() -> None:
    assert res.parse(None, None, None, None, default_cpus=1) == {"CPU": UNIT}
    assert res.parse(None, None, None, None, default_cpus=0) == {}
    assert res.parse(0, 0, 0, {"x": 0}, default_cpus=1) == {}
    assert res.parse(2, 0.5, 1024, {"x": 1.5}, default_cpus=1) == {
        "CPU": 2 * UNIT,
        "GPU": UNIT // 2,
        "memory": 1024 * UNIT,
        "x": 15_000,
    }


@pytest.mark.parametrize(("name", "option"), [("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory")])
def test_resources_with_an_option_of_their_own(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"use the option {option}=2 instead"):
        res.parse(None, None, None, {name: 2}, default_cpus=1)


def test_parse_names_the_culprit() -> None:
    with pytest.raises(ValueError, match=r"resources\['x'\] must not be negative"):
        res.parse(None, None, None, {"x": -1}, default_cpus=1)
    with pytest.raises(TypeError, match="must be a dict"):
        res.parse(None, None, None, ["x"], default_cpus=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be str, not 7"):
        res.parse(None, None, None, {7: 1}, default_cpus=1)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="must not be empty"):
        res.parse(None, None, None, {"": 1}, default_cpus=1)


@given(have=sets, need=sets)
def test_fits_means_that_nothing_goes_negative(have: dict[str, int], need: dict[str, int]) -> None:
    before = dict(have)
    fitted = res.fits(need, have)
    res.subtract(have, need)
    assert fitted == all(amount >= 0 for amount in have.values())
    res.add(have, need)
    assert {name: amount for name, amount in have.items() if amount} == before


@given(sets)
def test_key_is_independent_of_order(units: dict[str, int]) -> None:
    reverse = dict(reversed(units.items()))
    assert res.key(units) == res.key(reverse)
    assert hash(res.key(units)) == hash(res.key(reverse))
    assert dict(res.key(units)) == units


def test_format() -> None:
    units = {"zeta": 1, "memory": 1024 * UNIT, "GPU": UNIT // 2, "CPU": 2 * UNIT, "alpha": -15_000}
    assert res.format_resources(units) == "{CPU: 2, GPU: 0.5, memory: 1024, alpha: -1.5, zeta: 0.0001}"
    assert res.format_resources({}) == "{}"


def test_whole_devices_are_the_lowest_free_and_unshared() -> None:
    devices = IndexedResource(3)
    assert devices.allocate(UNIT // 2) == [(0, UNIT // 2)]
    assert devices.allocate(2 * UNIT) == [(1, UNIT), (2, UNIT)]
    assert devices.allocate(UNIT) is None
    devices.free([(1, UNIT)])
    assert devices.allocate(UNIT) == [(1, UNIT)]


def test_shares_go_to_the_fullest_device_that_has_room() -> None:
    devices = IndexedResource(3)
    assert devices.allocate(3000) == [(0, 3000)]
    assert devices.allocate(8000) == [(1, 8000)]
    assert devices.allocate(2000) == [(1, 2000)]  # fills up 1, though 0 has room as well
    assert devices.allocate(7001) == [(2, 7001)]
    assert devices.allocate(7001) is None
    assert devices.available() == 7000 + 2999


def test_no_device_and_no_units() -> None:
    assert IndexedResource(0).allocate(1) is None
    assert IndexedResource(0).allocate(0) == []
    with pytest.raises(ValueError):
        IndexedResource(-1)
    for wrong in (-1, 15_000):
        with pytest.raises(ValueError, match="whole or in a share"):
            IndexedResource(2).allocate(wrong)


@pytest.mark.parametrize("wrong", [[(0, 5001)], [(1, UNIT)], [(-1, 1)], [(0, -1)], [(0, 3000), (0, 3000)]])
def test_what_was_not_allocated_cannot_be_freed(wrong: list[tuple[int, int]]) -> None:
    devices = IndexedResource(1)
    devices.allocate(5000)
    with pytest.raises(ValueError):
        devices.free(wrong)
    assert devices.available() == 5000  # unchanged


amounts = st.one_of(st.integers(0, UNIT), st.integers(1, 4).map(lambda n: n * UNIT))


@given(total=st.integers(0, 5), steps=st.lists(st.one_of(amounts, st.just(-1)), max_size=40), data=st.data())
def test_devices_are_never_over_allocated_and_always_reusable(
    total: int, steps: list[int], data: st.DataObject
) -> None:
    devices = IndexedResource(total)
    held: list[list[tuple[int, int]]] = []
    for step in steps:
        if step == -1:
            if held:
                devices.free(held.pop(data.draw(st.integers(0, len(held) - 1))))
        else:
            got = devices.allocate(step)
            if got is not None:
                assert sum(units for _, units in got) == step
                held.append(got)
        used = [0] * total
        for allocation in held:
            for index, units in allocation:
                used[index] += units
        assert all(units <= UNIT for units in used)
        assert devices.available() == total * UNIT - sum(used)
    for allocation in held:
        devices.free(allocation)
    assert devices.allocate(total * UNIT) == [(index, UNIT) for index in range(total)]


def test_names_of_groups_that_were_taken_apart_are_kept_up_to_a_bound() -> None:
    for number in range(limits.GROUP_NAMES_KEPT):
        for name in res.in_group({"CPU": UNIT}, f"{number:0{res.GROUP_HEX}x}", 0):
            assert res.split_group(name) is not None
    assert res.split_group.cache_info().currsize == limits.GROUP_NAMES_KEPT
