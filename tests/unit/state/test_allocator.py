"""The allocator against a model: no overlap, no leak, all free space is found again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from framework._state.allocator import ALIGNMENT, Allocator, aligned

CAPACITY = 64 * ALIGNMENT


class AllocatorMachine(RuleBasedStateMachine):
    blocks: Bundle[int] = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(CAPACITY)
        self.model: dict[int, int] = {}

    @rule(target=blocks, size=st.integers(1, 20 * ALIGNMENT))
    def allocate(self, size: int) -> int:
        largest = self.allocator.largest
        offset = self.allocator.allocate(size)
        if offset is None:
            assert aligned(size) > largest
            return -1
        assert aligned(size) <= largest
        self.model[offset] = aligned(size)
        return offset

    @rule(block=consumes(blocks))
    def free(self, block: int) -> None:
        if block in self.model:
            assert self.allocator.free(block) == self.model.pop(block)

    @rule(target=blocks, block=blocks, share=st.floats(0.01, 1.0))
    def carve(self, block: int, share: float) -> int:
        if block not in self.model:
            return -1
        whole = self.model[block]
        size = aligned(max(1, int(whole * share)))
        rest = self.allocator.carve(block, size)
        self.model[block] = size
        if rest < 0:
            assert size == whole
            return -1
        self.model[rest] = whole - size
        return rest

    @invariant()
    def no_overlap_and_nothing_lost(self) -> None:
        assert self.allocator.blocks() == self.model
        assert self.allocator.used == sum(self.model.values())
        everything = sorted([*self.model.items(), *self.allocator.free_blocks()])
        position = 0
        for offset, size in everything:
            assert offset == position and offset % ALIGNMENT == 0
            position += size
        assert position == self.allocator.high <= CAPACITY

    @invariant()
    def neighbours_are_joined(self) -> None:
        free = self.allocator.free_blocks()
        for (offset, size), (after, _) in zip(free, free[1:], strict=False):
            assert offset + size < after

    def teardown(self) -> None:
        for offset in list(self.model):
            self.allocator.free(offset)
        assert self.allocator.largest == CAPACITY


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAllocator = pytest.mark.slow(TestAllocator)


def test_warm_blocks_come_first() -> None:
    allocator = Allocator(CAPACITY)
    first = allocator.allocate(4 * ALIGNMENT)
    keep = allocator.allocate(ALIGNMENT)
    assert first is not None and keep is not None
    allocator.free(first)
    high = allocator.high
    assert allocator.allocate(2 * ALIGNMENT) == first
    assert allocator.allocate(2 * ALIGNMENT) == first + 2 * ALIGNMENT
    assert allocator.high == high


def test_the_smallest_block_that_suffices_is_taken() -> None:
    allocator = Allocator(CAPACITY)
    offsets = [allocator.allocate(size * ALIGNMENT) for size in (8, 1, 3, 1, 5, 1)]
    for place in (0, 2, 4):
        allocator.free(offsets[place])  # type: ignore[arg-type]
    assert allocator.allocate(3 * ALIGNMENT) == offsets[2]
    assert allocator.allocate(4 * ALIGNMENT) == offsets[4]


def test_a_block_as_large_as_the_arena() -> None:
    allocator = Allocator(CAPACITY)
    part = allocator.allocate(ALIGNMENT)
    assert allocator.allocate(CAPACITY) is None
    allocator.free(part)  # type: ignore[arg-type]
    assert allocator.allocate(CAPACITY) == 0
    assert allocator.allocate(1) is None


@given(st.lists(st.integers(1, 3 * ALIGNMENT), min_size=1, max_size=30))
def test_freeing_in_any_order_gives_one_block(sizes: list[int]) -> None:
    allocator = Allocator(CAPACITY * 4)
    offsets = [allocator.allocate(size) for size in sizes]
    for offset in offsets[::2] + offsets[1::2]:
        allocator.free(offset)  # type: ignore[arg-type]
    assert len(allocator.free_blocks()) == 1
    assert allocator.used == 0


def test_freeing_what_was_not_allocated_is_an_error() -> None:
    allocator = Allocator(CAPACITY)
    with pytest.raises(KeyError):
        allocator.free(0)
