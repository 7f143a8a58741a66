"""Which worker is ended for want of memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from framework._state.memory import Candidate, choose, describe

MIB = 2**20


def candidate(number: int, **facts: object) -> Candidate:
    base = Candidate(bytes([number]), f"task{number}()", True, False, float(number), 500 * MIB)
    return base._replace(**facts)


def test_the_task_that_began_last_goes_first() -> None:
    assert choose([candidate(1), candidate(3), candidate(2)], 0) == candidate(3)


def test_what_cannot_be_retried_is_spared() -> None:
    spared = candidate(3, retriable=False)
    assert choose([candidate(1), spared], 0) == candidate(1)
    assert choose([spared], 0) == spared


def test_tasks_go_before_actors() -> None:
    assert choose([candidate(9, is_actor=True), candidate(1)], 0) == candidate(1)


def test_small_ones_are_left_alone() -> None:
    assert choose([candidate(1, rss=10 * MIB)], 64 * MIB) is None
    assert choose([], 0) is None


@given(
    st.lists(
        st.builds(
            Candidate,
            st.binary(min_size=1, max_size=4),
            st.just("f()"),
            st.booleans(),
            st.booleans(),
            st.floats(0, 1e6),
            st.integers(0, 2**40),
        )
    ),
    st.integers(0, 2**40),
)
def test_never_one_that_costs_more_than_another(candidates: list[Candidate], floor: int) -> None:
    victim = choose(candidates, floor)
    worth = [c for c in candidates if c.rss >= floor]
    assert (victim is None) == (not worth)
    if victim is not None:
        assert victim.retriable or not any(c.retriable for c in worth)


def test_the_message_names_the_task_and_the_top_consumers() -> None:
    victim = candidate(2, rss=900 * MIB)
    text = describe(victim, [candidate(1), victim], 23 * 1024 * MIB, 24 * 1024 * MIB, 0.95)
    assert "task2() used 900 MiB" in text
    assert "Top consumers: task2() 900 MiB, task1() 500 MiB" in text
    assert "threshold of 95%" in text
