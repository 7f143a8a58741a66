"""What was asked, answered and excused."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.chaos.ledger import ACTOR_GONE, AT_MOST_ONCE, RULES, Ledger, Wrong, latencies, percentile
from framework.exceptions import (
    ActorDiedError,
    ActorOutOfMemoryError,
    GetTimeoutError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)


def test_a_round_is_done_when_all_is_answered_or_excused() -> None:
    ledger = Ledger()
    ledger.asked, ledger.answered = 3, 2
    ledger.excuse(AT_MOST_ONCE, WorkerCrashedError())
    ledger.round_done(0.5)
    assert (ledger.open, ledger.rounds, list(ledger.seconds)) == (0, 1, [0.5])
    assert ledger.permitted == {"task, max_retries=0": 1}


def test_an_answer_that_is_missing_is_found() -> None:
    ledger = Ledger()
    ledger.asked, ledger.answered = 3, 2
    with pytest.raises(Wrong, match="1 of 3 answers are missing after round 1"):
        ledger.round_done(0.5)


def test_answers_beyond_what_was_asked_are_found() -> None:
    ledger = Ledger()
    ledger.asked, ledger.answered = 1, 2
    with pytest.raises(Wrong):
        ledger.round_done(0.5)


def test_only_what_the_rule_says_is_excused() -> None:
    ledger = Ledger()
    ledger.excuse(ACTOR_GONE, ActorOutOfMemoryError())  # is an ActorDiedError
    for error in (GetTimeoutError(), TaskPlacementGroupRemoved(), ActorDiedError(), ValueError("x")):
        with pytest.raises(Wrong, match="not permitted"):
            ledger.excuse(AT_MOST_ONCE, error)
    assert ledger.permitted.total() == 1


def test_where_no_worker_is_struck_nothing_is_excused() -> None:
    with pytest.raises(Wrong, match="no process that runs tasks was struck"):
        Ledger(lenient=False).excuse(AT_MOST_ONCE, WorkerCrashedError())


def test_no_rule_permits_that_nothing_comes() -> None:
    assert not any(issubclass(GetTimeoutError, rule.errors) for rule in RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_runs_are_counted() -> None:
    ledger = Ledger()
    ledger.count_runs(["a", "b", "c"], Counter(a=1, b=3))
    assert ledger.repeated == 2
    ledger.count_runs(["a"], Counter(a=4), 4)
    assert ledger.repeated == 5
    with pytest.raises(Wrong, match="'a' has run 2 times; it may 1"):
        ledger.count_runs(["a"], Counter(a=2), 1)
    with pytest.raises(Wrong, match="not asked for"):
        ledger.count_runs(["a"], Counter(z=1))


@given(st.lists(st.floats(min_value=0, max_value=1e6), min_size=1))
def test_percentiles(values: list[float]) -> None:
    found = latencies(values)
    assert found["p50"] <= found["p99"] <= found["max"] == max(values)
    assert sum(value <= found["p50"] for value in values) >= len(values) / 2
    assert percentile(sorted(values), 0.0) == min(values)


def test_percentiles_of_nothing() -> None:
    assert latencies([]) == {} and math.isnan(percentile([], 0.5))
