"""Staying awake for an answer: where it is worth while, and hardly ever where it is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from framework._base import limits
from framework._state.looking import Looking

QUICK = limits.SPIN // 2


def ask(looking: Looking, now: int, took: int) -> bool:
    """Something is expected, and comes after so long. Whether it was looked for."""
    looks = looking.expects(now)
    if looks:
        for look in range(0, took, 1000):
            if not looking.goes_on(now + look):
                break
    looking.has_come(now + took)
    return looks


def test_the_first_answer_that_comes_soon_makes_the_next_ones_be_looked_for() -> None:
    looking = Looking()
    assert [ask(looking, 10**9 + number, QUICK) for number in range(4)] == [False, True, True, True]


def test_waking_up_may_take_some_of_the_time() -> None:
    looking = Looking()
    assert not ask(looking, 1, limits.SPIN + limits.WAKE - 1)
    assert ask(looking, 2, QUICK)
    looking = Looking()
    assert not ask(looking, 1, limits.SPIN + limits.WAKE)
    assert not ask(looking, 2, QUICK)


def test_it_ends() -> None:
    looking = Looking()
    ask(looking, 1, QUICK)
    assert looking.expects(1000)
    assert looking.goes_on(1000 + limits.SPIN - 1)
    assert not looking.goes_on(1000 + limits.SPIN)
    assert not looking.expects(2000 + limits.SPIN), "it has not come at all, perhaps to somebody else"


def test_once_it_is_here_nobody_looks_on() -> None:
    looking = Looking()
    ask(looking, 1, QUICK)
    assert looking.expects(1000)
    looking.has_come(1001)
    assert not looking.goes_on(1002)
    looking.has_come(1003)  # what nobody has expected says nothing
    assert looking.expects(1004)


def test_in_vain_whenever_it_is_tried() -> None:
    """The other side needs this core: it answers as soon as one sleeps."""
    looking = Looking()
    now = tried = 0
    for _ in range(20_000):
        now += 10**6
        looks = looking.expects(now)
        if looks:
            tried += 1
            now += limits.SPIN
            assert not looking.goes_on(now)
        now += QUICK
        looking.has_come(now)
    assert tried <= 10 + 20_000 // limits.SPIN_AGAIN + 1


@given(st.lists(st.integers(0, 2 * limits.SPIN), max_size=200))
def test_it_is_tried_again_sooner_or_later(before: list[int]) -> None:
    """Whatever has been: where answers come soon again, they are looked for at last, and from then on."""
    looking = Looking()
    now = 10**9
    for took in before:
        now += 10**6
        ask(looking, now, took)
    looked = []
    for _ in range(limits.SPIN_AGAIN + 10):
        now += 10**6
        looked.append(ask(looking, now, QUICK))
    first = looked.index(True)
    assert all(looked[first:])
