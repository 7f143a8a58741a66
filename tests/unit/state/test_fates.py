"""Calls under way at the death of an actor, against a simulated actor that runs one call at a time."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from framework._base.ids import SEVERAL_TASKS, UNIQUE_MASK
from framework._state.fates import Fate, fates


@given(
    base=st.integers(0, UNIQUE_MASK),
    mine=st.lists(st.booleans(), min_size=1, max_size=12),
    begun=st.integers(0, 12),
    answered=st.integers(0, 12),
)
def test_against_a_simulated_actor(base: int, mine: list[bool], begun: int, answered: int) -> None:
    """Calls of two callers arrive mixed; the actor begins some in that order and answers some of those."""
    other = iter(range(2**62, 2**62 + 100))
    own = iter(range(base, base + 100))
    queue = [(is_mine, (next(own) if is_mine else next(other) ^ base) & UNIQUE_MASK) for is_mine in mine]
    begun = min(begun, len(queue))
    answered = min(answered, max(begun - 1, 0))
    running = queue[begun - 1][1] if begun else 0
    numbers = [unique for is_mine, unique in queue if is_mine]
    assume(numbers and not {0, SEVERAL_TASKS} & {unique for _, unique in queue})
    sent = [unique for is_mine, unique in queue[answered:] if is_mine]
    started = {unique for _, unique in queue[:begun]}
    result = dict(zip(sent, fates(sent, running, numbers[0], numbers[-1]), strict=True))
    for unique, fate in result.items():
        if fate is Fate.UNTOUCHED:
            assert unique not in started, "a call that had begun would run twice"
        if unique == running:
            assert fate is Fate.STRUCK
        else:
            assert fate is not Fate.STRUCK
    if begun and queue[begun - 1][0]:  # it died in a call of ours: then we know it all
        assert {u for u, fate in result.items() if fate is not Fate.UNTOUCHED} == started & set(sent)


def test_nothing_had_begun() -> None:
    assert fates([5, 6], 0, 5, 6) == [Fate.UNTOUCHED, Fate.UNTOUCHED]


def test_many_at_a_time() -> None:
    assert fates([5, 6], SEVERAL_TASKS, 5, 6) == [Fate.STRUCK, Fate.STRUCK]


def test_died_in_the_call_of_another_caller() -> None:
    assert fates([5, 6], 99, 3, 6) == [Fate.BEGUN, Fate.BEGUN]


def test_the_last_one_begun_was_answered() -> None:
    assert fates([5, 6], 4, 3, 6) == [Fate.UNTOUCHED, Fate.UNTOUCHED]


def test_numbers_that_wrap_around() -> None:
    first, last = UNIQUE_MASK - 1, 1
    assert fates([UNIQUE_MASK, 1], 1, first, last) == [Fate.BEGUN, Fate.STRUCK]
    assert fates([1], UNIQUE_MASK - 1, first, last) == [Fate.UNTOUCHED]
