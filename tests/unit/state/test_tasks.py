"""The measured run time of a function, by which tasks are sent ahead; the record of a new task."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from framework._state.tasks import WAITING, TaskRecord, Template

MICROS = st.integers(0, 10**9)


def template() -> Template:
    return Template(1, "f", 1, b"hash", {}, None, None)


def after(*measured: int) -> float:
    found = template()
    for micros in measured:
        found.measured(micros)
    assert found.mean_us is not None
    return found.mean_us


def test_nothing_is_known_before_the_first_measurement() -> None:
    assert template().mean_us is None
    assert after(0) == 0.0
    assert after(70) == 70.0


@given(st.lists(MICROS, min_size=1, max_size=50))
def test_it_stays_between_the_fastest_and_the_slowest(measured: list[int]) -> None:
    mean = after(*measured)
    assert min(measured) * 0.999 <= mean <= max(measured) * 1.001


@given(MICROS, MICROS)
def test_a_slow_run_counts_more_than_a_fast_one(one: int, other: int) -> None:
    slow, fast = max(one, other), min(one, other)
    assert slow - after(fast, slow) <= after(slow, fast) - fast + 1
    if slow > fast + 10:
        assert after(fast, slow) - fast > slow - after(slow, fast), "up faster than down"


def test_a_function_that_has_become_fast_is_believed_in_the_end() -> None:
    assert after(1_000_000, *[10] * 200) < 20
    assert after(10, 1_000_000) > 400_000, "one slow run is enough"


def test_a_new_record_owes_nothing() -> None:
    task = TaskRecord(5, template(), [1], {"a": 2})
    assert (task.unique, task.args, task.kwargs, task.state) == (5, [1], {"a": 2}, WAITING)
    nothing = ("frame", "refs", "deps", "stored_deps", "actor", "stream", "lease", "cancelled", "deadline")
    assert [getattr(task, name) for name in nothing] == [None] * len(nothing)
    assert (task.lineage, task.again, task.stands_for) == (None, None, 0)
    assert (task.retries, task.app_failures, task.oom_failures) == (0, 0, 0)
    assert task.entries == []
    assert TaskRecord(6, template(), [], None).entries is not task.entries
