from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._state.logdedup import Deduplicator, Output, canonical

A = ("10.0.0.1", 1)
B = ("10.0.0.1", 2)
C = ("10.0.0.2", 1)


def texts(outputs: list[Output]) -> list[str]:
    return [output.text for output in outputs]


def test_words_with_digits_do_not_count() -> None:
    assert canonical("step 12 of 0x7f took 3.5s  ok") == "step of took ok"
    assert canonical("no  digits\there") == "no digits here"
    assert canonical("1 2 3") == ""


def test_the_first_is_shown_at_once_and_the_rest_as_one_line() -> None:
    dedup = Deduplicator()
    assert texts(dedup.feed(0.0, A, "worker 1 ready")) == ["worker 1 ready"]
    for pid in range(2, 9):
        assert dedup.feed(1.0, ("h", pid), f"worker {pid} ready", name="f") == []
    assert dedup.next_due() == 5.0
    assert dedup.due(4.999) == []
    out = dedup.due(5.0)
    assert texts(out) == ["worker 8 ready [repeated 7x across cluster]"]
    assert (out[0].source, out[0].name, out[0].is_err) == (("h", 8), "f", False)


def test_one_process_may_repeat_itself() -> None:
    dedup = Deduplicator()
    for _ in range(5):
        assert texts(dedup.feed(0.0, A, "again")) == ["again"]
    assert dedup.next_due() is None
    assert dedup.drain() == []


def test_from_the_second_process_on_the_first_one_is_held_back_too() -> None:
    dedup = Deduplicator()
    dedup.feed(0.0, A, "x")
    assert dedup.feed(0.0, B, "x") == []
    assert dedup.feed(0.0, A, "x") == []
    assert texts(dedup.due(5.0)) == ["x [repeated 2x across cluster]"]


def test_equal_pids_of_two_machines_are_two_processes() -> None:
    dedup = Deduplicator()
    dedup.feed(0.0, A, "x")
    assert dedup.feed(0.0, C, "x") == []


def test_a_single_held_line_is_shown_as_it_is_and_forgotten() -> None:
    dedup = Deduplicator()
    dedup.feed(0.0, A, "at 1")
    dedup.feed(0.0, B, "at 2")
    assert texts(dedup.due(5.0)) == ["at 2"]
    assert texts(dedup.feed(5.0, B, "at 3")) == ["at 3"]


def test_a_pattern_that_repeated_stays_held_for_one_more_window() -> None:
    dedup = Deduplicator()
    for source in (A, B, C):
        dedup.feed(0.0, source, "x")
    assert texts(dedup.due(5.0)) == ["x [repeated 2x across cluster]"]
    assert dedup.next_due() is None
    assert dedup.feed(6.0, A, "x") == []
    assert dedup.feed(7.0, A, "x") == []
    assert dedup.next_due() == 10.0
    assert texts(dedup.due(10.0)) == ["x [repeated 2x across cluster]"]
    assert dedup.due(15.0) == []
    assert texts(dedup.feed(15.0, B, "x")) == ["x"]


def test_feed_ends_windows_that_are_over_first() -> None:
    dedup = Deduplicator(window=1.0)
    dedup.feed(0.0, A, "x")
    dedup.feed(0.0, B, "x")
    assert texts(dedup.feed(1.0, C, "x")) == ["x", "x"]


def test_error_output_is_apart_from_standard_output() -> None:
    dedup = Deduplicator()
    dedup.feed(0.0, A, "x")
    assert texts(dedup.feed(0.0, B, "x", is_err=True)) == ["x"]
    assert dedup.feed(0.0, C, "x", is_err=True) == []


@pytest.mark.parametrize("line", ["", "   ", "1", "10 20 30"])
def test_lines_without_a_pattern_are_always_shown(line: str) -> None:
    dedup = Deduplicator()
    for source in (A, B, C):
        assert texts(dedup.feed(0.0, source, line)) == [line]


def test_very_long_lines_are_always_shown() -> None:
    dedup = Deduplicator(max_line=10)
    dedup.feed(0.0, A, "x" * 10)
    assert dedup.feed(0.0, B, "x" * 10) == []
    for source in (A, B):
        assert texts(dedup.feed(0.0, source, "x" * 11)) == ["x" * 11]


def test_allow_and_skip() -> None:
    dedup = Deduplicator(allow=re.compile("keep"), skip=re.compile("noise"))
    for source in (A, B):
        assert texts(dedup.feed(0.0, source, "keep this")) == ["keep this"]
        assert texts(dedup.feed(0.0, source, "keep this noise")) == ["keep this noise"]
        assert dedup.feed(0.0, source, "more noise") == []
    assert dedup.drain() == []


def test_a_full_table_gives_out_its_oldest_pattern() -> None:
    dedup = Deduplicator(max_entries=2)
    for source in (A, B, C):
        dedup.feed(0.0, source, "a")
    dedup.feed(1.0, A, "b")
    assert texts(dedup.feed(2.0, A, "c")) == ["a [repeated 2x across cluster]", "c"]
    assert dedup.next_due() is None


def test_drain_gives_out_all_and_forgets() -> None:
    dedup = Deduplicator()
    for source in (A, B, C):
        dedup.feed(0.0, source, "a")
    for source in (A, B):
        dedup.feed(0.0, source, "b")
    assert texts(dedup.drain()) == ["a [repeated 2x across cluster]", "b"]
    assert dedup.drain() == []
    assert dedup.next_due() is None
    assert texts(dedup.feed(0.0, C, "a")) == ["a"]


@pytest.mark.parametrize("window", [0.0, -1.0, float("nan")])
def test_the_window_must_be_positive(window: float) -> None:
    with pytest.raises(ValueError, match="window must be a positive number"):
        Deduplicator(window)


def test_the_table_must_hold_something() -> None:
    with pytest.raises(ValueError, match="max_entries must be at least 1"):
        Deduplicator(max_entries=0)


steps = st.lists(
    st.tuples(
        st.floats(0, 3),
        st.sampled_from([A, B, C]),
        st.sampled_from(["a", "b 1", "b 2", "c", "7"]),
        st.booleans(),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 4))
def test_every_line_is_shown_or_counted_exactly_once(
    fed: list[tuple[float, tuple[str, int], str, bool]], max_entries: int
) -> None:
    dedup = Deduplicator(window=5.0, max_entries=max_entries)
    now = 0.0
    shown: list[Output] = []
    for delay, source, line, is_err in fed:
        now += delay
        due = dedup.next_due()
        if due is not None and due <= now:
            shown += dedup.due(due)
            following = dedup.next_due()
            assert following is None or following > due
        shown += dedup.feed(now, source, line, is_err=is_err)
        assert len(dedup._patterns) <= max_entries
        assert dedup._held == sum(pattern.count > 0 for pattern in dedup._patterns.values())
        deadlines = [pattern.deadline for pattern in dedup._patterns.values()]
        assert deadlines == sorted(deadlines)
    shown += dedup.drain()
    for pattern in ("a", "b", "c", ""):
        for stream in (False, True):
            came = sum(canonical(line) == pattern and is_err == stream for _, _, line, is_err in fed)
            stands_for = sum(
                output.repeats or 1
                for output in shown
                if canonical(output.line) == pattern and output.is_err == stream
            )
            assert stands_for == came
