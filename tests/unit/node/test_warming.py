"""Memory ahead of use: only where the store grows, within bounds, in steps, and then nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._base import limits
from framework._node.warming import Warmer, reserve

MIB = 1 << 20
GIB = 1 << 30


class Machine:
    """A loop whose thread works when it is told to, and an arena that notes what was provided."""

    def __init__(self, capacity: int = GIB, free: int = 64 * GIB) -> None:
        self.provided: list[tuple[int, int]] = []
        self.waiting: list[tuple[Future[bool], int, int]] = []
        self.works = True
        self.warmer = Warmer(self, capacity, lambda: self, lambda: free)  # type: ignore[arg-type, return-value]

    def run_in_executor(
        self, _: Any, function: Callable[[int, int], bool], offset: int, size: int
    ) -> Future[bool]:
        assert function == self.populate
        future: Future[bool] = Future()
        self.waiting.append((future, offset, size))
        return future

    def populate(self, offset: int, size: int) -> bool:
        self.provided.append((offset, size))
        return self.works

    def work(self, steps: int = 1_000_000) -> None:
        while self.waiting and steps:
            future, offset, size = self.waiting.pop(0)
            future.set_result(self.populate(offset, size))
            steps -= 1


def test_a_store_that_is_not_used_takes_nothing() -> None:
    machine = Machine()
    machine.warmer.used(0)
    machine.work()
    assert machine.provided == []


def test_as_much_again_as_is_used_and_not_more_than_the_reserve() -> None:
    machine = Machine()
    machine.warmer.used(20 * MIB)
    machine.work()
    assert machine.warmer.ready == 40 * MIB
    machine.warmer.used(600 * MIB)
    machine.work()
    assert machine.warmer.ready == 600 * MIB + limits.STORE_WARM_RESERVE
    assert all(size <= limits.STORE_WARM_STEP for _, size in machine.provided)


def test_it_rests_until_half_of_the_reserve_is_gone() -> None:
    machine = Machine()
    machine.warmer.used(100 * MIB)
    machine.work()
    count = len(machine.provided)
    for high in range(100, 133, 4):
        machine.warmer.used(high * MIB)
    assert not machine.waiting and len(machine.provided) == count
    machine.warmer.used(160 * MIB)
    assert machine.waiting


def test_what_is_used_meanwhile_is_not_provided_again() -> None:
    machine = Machine()
    machine.warmer.used(64 * MIB)
    machine.work(1)
    machine.warmer.used(120 * MIB)
    machine.work()
    beyond = [offset for offset, _ in machine.provided[2:]]  # one was under way
    assert min(beyond) == 120 * MIB


def test_not_beyond_the_end() -> None:
    machine = Machine(capacity=100 * MIB)
    machine.warmer.used(90 * MIB)
    machine.work()
    assert machine.warmer.ready == 100 * MIB
    machine.warmer.used(100 * MIB)
    assert not machine.waiting


def test_not_where_memory_is_short() -> None:
    machine = Machine(free=16 * MIB)
    machine.warmer.used(90 * MIB)
    machine.work()
    assert machine.warmer.ready <= 91 * MIB


def test_a_system_that_cannot_is_not_asked_again() -> None:
    machine = Machine()
    machine.works = False
    machine.warmer.used(90 * MIB)
    machine.work()
    machine.warmer.used(300 * MIB)
    assert not machine.waiting and len(machine.provided) == 1


def test_the_end_comes_between_two_steps() -> None:
    machine = Machine()
    machine.warmer.used(90 * MIB)
    machine.warmer.close()
    machine.work()
    machine.warmer.used(300 * MIB)
    assert len(machine.provided) == 1 and not machine.waiting


@given(st.integers(0, 2**50), st.integers(-(2**40), 2**50))
def test_the_reserve_is_bounded(high: int, free: int) -> None:
    assert 0 <= reserve(high, free) <= min(high, limits.STORE_WARM_RESERVE)
    assert reserve(high, free) <= max(0, free)


@pytest.mark.slow
def test_a_real_arena_in_a_real_thread() -> None:
    import asyncio
    import tempfile

    from framework._store.arena import Arena, create_arena

    async def run() -> int:
        arena = Arena(create_arena(64 * MIB, tempfile.gettempdir()), 64 * MIB)
        warmer = Warmer(asyncio.get_running_loop(), 64 * MIB, lambda: arena, lambda: GIB)
        warmer.used(16 * MIB)
        async with asyncio.timeout(20):
            while warmer.ready < 32 * MIB:
                if warmer._closed:
                    pytest.skip("this system does not provide memory ahead of use")
                await asyncio.sleep(0)
        warmer.close()
        return warmer.ready

    assert asyncio.run(run()) == 32 * MIB


def test_nothing_is_provided_while_it_is_held() -> None:
    machine = Machine()
    machine.warmer.used(100 * MIB)
    machine.work(1)
    machine.warmer.hold()
    machine.work()
    provided = len(machine.provided)
    assert provided == 2, "the step that was under way, and no more"
    machine.warmer.used(120 * MIB)
    machine.work()
    assert len(machine.provided) == provided
    machine.warmer.resume()
    machine.work()
    assert machine.warmer.ready == 240 * MIB
    assert all(offset >= 100 * MIB for offset, _ in machine.provided)
    machine.warmer.resume()
    assert not machine.waiting, "twice is as once"
