"""Erlang's rules of supervision."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from framework._state.supervision import (
    ONE_FOR_ALL,
    ONE_FOR_ONE,
    PERMANENT,
    REST_FOR_ONE,
    STRATEGIES,
    TEMPORARY,
    TRANSIENT,
    Decision,
    SupervisorState,
)


def family(
    strategy: str, restart: str = PERMANENT, max_restarts: int = 3, period: float = 5.0
) -> SupervisorState:
    state = SupervisorState(strategy, max_restarts, period)
    for name in "abcd":
        state.add(name, restart)
    return state


def test_one_for_one_starts_that_one() -> None:
    assert family(ONE_FOR_ONE).ended("b", False, 0.0) == Decision(start="b", attempt=1)


def test_one_for_all_stops_the_others_last_first_and_starts_all_in_order() -> None:
    assert family(ONE_FOR_ALL).ended("b", False, 0.0) == Decision(stop="dca", start="abcd", attempt=1)


def test_rest_for_one_spares_those_before_it() -> None:
    assert family(REST_FOR_ONE).ended("b", False, 0.0) == Decision(stop="dc", start="bcd", attempt=1)


def test_a_transient_child_may_end_in_order() -> None:
    state = family(ONE_FOR_ALL, TRANSIENT)
    assert state.ended("b", True, 0.0) == Decision(forget=True)
    assert state.children == ["a", "c", "d"]
    assert state.ended("a", False, 0.0).start == ("a", "c", "d")


def test_a_permanent_child_may_not() -> None:
    assert family(ONE_FOR_ONE).ended("a", True, 0.0).start == ("a",)


def test_a_temporary_child_is_never_started_again() -> None:
    assert family(ONE_FOR_ALL, TEMPORARY).ended("a", False, 0.0) == Decision(forget=True)


def test_too_many_restarts_escalate() -> None:
    state = family(ONE_FOR_ONE, max_restarts=2, period=5.0)
    assert [state.ended("a", False, t).escalate for t in (0.0, 1.0, 2.0)] == [False, False, True]


def test_restarts_long_ago_do_not_count() -> None:
    state = family(ONE_FOR_ONE, max_restarts=2, period=5.0)
    assert not any(state.ended("a", False, t).escalate for t in (0.0, 3.0, 5.1, 8.1, 10.2))


def test_none_allowed() -> None:
    assert family(ONE_FOR_ONE, max_restarts=0).ended("a", False, 0.0).escalate


def test_an_unknown_child_is_nothing() -> None:
    assert family(ONE_FOR_ALL).ended("z", False, 0.0) == Decision()


@given(
    strategy=st.sampled_from(STRATEGIES),
    restarts=st.lists(st.sampled_from([PERMANENT, TRANSIENT, TEMPORARY]), min_size=1, max_size=6),
    max_restarts=st.integers(0, 5),
    events=st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.floats(0, 3)), max_size=30),
)
def test_invariants(
    strategy: str, restarts: list[str], max_restarts: int, events: list[tuple[int, bool, float]]
) -> None:
    state = SupervisorState(strategy, max_restarts, 5.0)
    kinds = {str(i): kind for i, kind in enumerate(restarts)}
    for name, kind in kinds.items():
        state.add(name, kind)
    now, happened = 0.0, []
    for index, orderly, pause in events:
        now += pause
        name = str(index)
        known = state.children
        decision = state.ended(name, orderly, now)
        if name not in known:
            assert decision == Decision()
            continue
        if kinds[name] == TEMPORARY or (kinds[name] == TRANSIENT and orderly):
            assert decision.forget and name not in state.children
            continue
        happened.append(now)
        recent = sum(1 for time in happened if time > now - 5.0)
        assert decision.escalate == (recent > max_restarts)
        if decision.escalate:
            return
        assert name in decision.start
        assert list(decision.start) == [child for child in known if child in decision.start], "in order"
        assert list(decision.stop) == [child for child in reversed(decision.start) if child != name]
