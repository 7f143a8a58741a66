"""The plan of faults: pure, endless, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.chaos.faults import Injector
from framework.chaos.plan import KINDS, TARGETS, plan

targets = st.sets(st.sampled_from(TARGETS), min_size=1)
seeds = st.integers(min_value=0, max_value=1 << 32)
distances = st.floats(min_value=0.01, max_value=100)


@given(seeds, distances, targets)
def test_the_same_seed_gives_the_same_plan(seed: int, every: float, of: set[str]) -> None:
    one, other = plan(seed, every, of), plan(seed, every, of)
    assert list(islice(one, 50)) == list(islice(other, 50))


def test_another_seed_gives_another_plan() -> None:
    assert list(islice(plan(1, 2.0), 20)) != list(islice(plan(2, 2.0), 20))


@given(seeds, distances, targets)
def test_what_a_fault_is(seed: int, every: float, of: set[str]) -> None:
    before = 0.0
    for number, fault in enumerate(islice(plan(seed, every, of), 50), 1):
        assert fault.number == number and fault.kind.target in of
        assert 0.1 * every <= fault.at - before + 1e-9 and fault.at - before <= 1.9 * every + 1e-9
        assert 0 <= fault.pick < 1 and 0 <= fault.delay <= 3
        assert fault.kind.hold[0] <= fault.hold <= fault.kind.hold[1]
        before = fault.at


def test_faults_come_as_often_as_was_asked_and_of_every_kind() -> None:
    faults = list(islice(plan(7, 2.0), 4000))
    assert 1.95 < faults[-1].at / len(faults) < 2.05
    seen = Counter(fault.kind.name for fault in faults)
    total = sum(kind.weight for kind in KINDS)
    for kind in KINDS:
        assert seen[kind.name] == pytest.approx(4000 * kind.weight / total, rel=0.3)


@pytest.mark.parametrize(("every", "of"), [(2.0, {"disks"}), (2.0, ()), (0.0, TARGETS), (-1.0, TARGETS)])
def test_what_makes_no_sense_is_refused(every: float, of: set[str]) -> None:
    with pytest.raises(ValueError):
        plan(1, every, of)


def test_each_kind_can_be_done() -> None:
    for kind in KINDS:
        assert hasattr(Injector, "_" + kind.name.partition(".")[0])
        assert kind.target in TARGETS and kind.weight > 0 and kind.text


def test_a_fault_as_text() -> None:
    shown = {fault.kind.name: str(fault) for fault in islice(plan(1, 2.0), 200)}
    assert (
        shown["worker.kill"].endswith("worker.kill") and " s" in shown["head.kill"].partition("head.kill")[2]
    )
