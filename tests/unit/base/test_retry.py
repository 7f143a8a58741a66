from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._base.retry import RetryPolicy


def is_transient(error: BaseException) -> bool:
    return isinstance(error, OSError)


policies = st.builds(
    RetryPolicy,
    initial_delay=st.floats(0, 1e6),
    multiplier=st.floats(1, 1e6),
    max_delay=st.floats(0, 1e9),
    jitter=st.floats(0, 1),
)
draws = st.floats(0, 1, exclude_max=True)


@given(policy=policies, attempt=st.integers(1, 10_000), draw=draws)
def test_a_delay_is_within_its_bounds(policy: RetryPolicy, attempt: int, draw: float) -> None:
    delay = policy.delay(attempt, draw)
    longest = policy.delay(attempt, 0.0)
    assert 0 <= delay <= longest <= policy.max_delay
    assert delay >= longest * (1 - policy.jitter) or math.isclose(delay, longest * (1 - policy.jitter))


@given(policy=policies, attempt=st.integers(1, 1000))
def test_delays_never_shrink_from_attempt_to_attempt(policy: RetryPolicy, attempt: int) -> None:
    assert policy.delay(attempt + 1, 0.0) >= policy.delay(attempt, 0.0)


def test_the_formula() -> None:
    policy = RetryPolicy(initial_delay=1, multiplier=3, max_delay=20, jitter=0.5)
    assert [policy.delay(attempt, 0.0) for attempt in (1, 2, 3, 4)] == [1, 3, 9, 20]
    assert policy.delay(3, 0.5) == 9 * 0.75
    assert RetryPolicy(jitter=0).delay(1, 0.99) == 0.1
    assert RetryPolicy(initial_delay=0).delay(10_000_000, 0.0) == 0
    assert RetryPolicy().delay(10_000_000, 0.0) == 30


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"initial_delay": -1}, ValueError),
        ({"initial_delay": math.nan}, ValueError),
        ({"initial_delay": math.inf}, ValueError),
        ({"multiplier": 0.5}, ValueError),
        ({"max_delay": math.inf}, ValueError),
        ({"jitter": 1.5}, ValueError),
        ({"jitter": -0.1}, ValueError),
        ({"initial_delay": "1"}, TypeError),
        ({"max_delay": True}, TypeError),
        ({"multiplier": None}, TypeError),
        ({"retry_if": 7}, TypeError),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        RetryPolicy(**arguments)  # type: ignore[arg-type]


def test_wrong_attempts_and_draws() -> None:
    for attempt, draw in ((0, 0.5), (1, 1.0), (1, -0.1), (1, math.nan)):
        with pytest.raises(ValueError):
            RetryPolicy().delay(attempt, draw)


def test_equality_repr_and_pickle() -> None:
    policy = RetryPolicy(1, 2, 3, 0.25, retry_if=is_transient)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(RetryPolicy()) == hash(RetryPolicy())
    assert policy != RetryPolicy(1, 2, 3, 0.25)
    assert policy != "policy"
    assert repr(RetryPolicy()) == (
        "RetryPolicy(initial_delay=0.1, multiplier=2.0, max_delay=30.0, jitter=0.5)"
    )
    assert "is_transient" in repr(policy)
