"""Which task goes to which lease."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from framework._base import limits
from framework._state.leases import KeyState, Lease
from framework._state.tasks import QUEUED, SENT, TaskRecord, Template


def template(mean_us: float | None = None) -> Template:
    made = Template(1, "f", 1, b"h", {}, None, None)
    made.mean_us = mean_us
    return made


def key_with(leases: int, now: float = 0.0) -> tuple[KeyState, list[Lease]]:
    key = KeyState(1, {"CPU": 10_000}, None, None)
    made = [Lease(i, key, b"w%d" % i, "a", [], None, now) for i in range(leases)]
    for lease in made:
        key.granted(lease)
    return key, made


def tasks(count: int, of: Template, first: int = 1) -> list[TaskRecord]:
    return [TaskRecord(first + i, of, [], None) for i in range(count)]


def enqueue(key: KeyState, records: list[TaskRecord]) -> None:
    for record in records:
        key.enqueue(record)


def sent(key: KeyState) -> list[tuple[Lease, TaskRecord]]:
    """What is to be sent now."""
    sends = key.dispatch()
    assert all(sends.values()), "who gets nothing is not written to"
    return [(lease, task) for lease, some in sends.items() for task in some]


def test_unknown_functions_go_one_to_each_lease() -> None:
    key, _ = key_with(3)
    enqueue(key, tasks(5, template()))
    sends = sent(key)
    assert [(lease.lease_id, task.unique) for lease, task in sends] == [(0, 1), (1, 2), (2, 3)]
    assert len(key.pending) == 2
    assert key.wanted() == 2
    assert key.wanted() is None, "the node knows already"


def test_a_lease_that_has_run_empty_while_tasks_wait_is_used_by_the_next_dispatch() -> None:
    key, (lease,) = key_with(1)
    enqueue(key, tasks(2, template()))
    for unique in (1, 2):
        assert [(at, task.unique) for at, task in sent(key)] == [(lease, unique)]
        assert not key.free
        key.finished(lease.inflight[unique], 1.0)
    assert list(key.free) == [lease]


def test_spread_sends_nothing_ahead() -> None:
    key = KeyState(1, {"CPU": 10_000}, None, ["SPREAD"])
    leases = [Lease(i, key, b"w%d" % i, "a", [], None, 0.0) for i in range(2)]
    for lease in leases:
        key.granted(lease)
    enqueue(key, tasks(6, template(10.0)))
    assert len(sent(key)) == 2, "one each, although they are short"
    assert key.wanted() == 4


def test_a_lease_that_is_asked_back_takes_no_more() -> None:
    key, (lease,) = key_with(1)
    enqueue(key, tasks(1, template()))
    ((_, task),) = sent(key)
    lease.recalled = lease.retiring = True
    enqueue(key, tasks(1, template(), first=5))
    key.finished(task, 1.0)
    assert sent(key) == [] and not key.free, "it goes back"
    assert not key.withdraw(lease), "nobody can use it any more"
    assert key.wanted() == 1


def test_an_idle_lease_is_withdrawn_unless_a_thread_has_just_taken_it() -> None:
    key, (first, second) = key_with(2)
    taken = key.send_alone(tasks(1, template())[0])
    other = first if taken is second else second
    assert taken is not None and not key.withdraw(taken)
    assert key.withdraw(other) and not key.free


def test_a_worker_that_takes_nothing_gets_nothing_until_it_does() -> None:
    key, leases = key_with(2)
    leases[0].full = True
    enqueue(key, tasks(4, template(10.0)))
    assert {lease.lease_id for lease, _ in sent(key)} == {1}
    enqueue(key, tasks(2, template(), first=10))
    assert sent(key) == []
    leases[0].full = False
    assert [lease.lease_id for lease, _ in sent(key)] == [0]


def test_short_functions_go_in_batches_that_are_spread_evenly() -> None:
    key, leases = key_with(2)
    enqueue(key, tasks(100, template(10.0)))
    sent(key)
    assert [len(lease.inflight) for lease in leases] == [50, 50]
    assert not key.pending


def test_no_lease_gets_more_than_its_budget() -> None:
    key, leases = key_with(1)
    enqueue(key, tasks(20, template(1_000.0)))
    sent(key)
    assert len(leases[0].inflight) == limits.LEASE_BUDGET_US // 1_000
    assert leases[0].load <= limits.LEASE_BUDGET_US


def test_more_goes_ahead_where_more_waits_but_no_more_than_a_part_of_it() -> None:
    key, leases = key_with(2)
    enqueue(key, tasks(160, template(1_000.0)))
    sent(key)
    assert [len(lease.inflight) for lease in leases] == [160 // 2 // limits.LEASE_AHEAD_PART] * 2

    key, leases = key_with(1)
    enqueue(key, tasks(10_000, template(1_000.0)))
    sent(key)
    assert len(leases[0].inflight) == limits.LEASE_BUDGET_MOST_US // 1_000


def test_where_much_waits_a_worker_is_sent_more_when_half_of_it_is_done() -> None:
    key, (lease,) = key_with(1)
    enqueue(key, tasks(10_000, template(1_000.0)))
    first = [task for _, task in sent(key)]
    half = len(first) // 2
    for task in first[: half - 1]:
        key.finished(task, 1.0)
        assert not sent(key)
    key.finished(first[half - 1], 1.0)
    assert len(sent(key)) == half


def test_where_little_waits_each_gap_is_filled_at_once() -> None:
    key, (lease,) = key_with(1)
    enqueue(key, tasks(20, template(1_000.0)))
    ((_, first), *_) = sent(key)
    key.finished(first, 1.0)
    assert len(sent(key)) == 1


def test_blocked_and_retiring_leases_get_nothing() -> None:
    key, leases = key_with(3)
    leases[0].blocked = True
    leases[1].retiring = True
    enqueue(key, tasks(5, template()))
    assert [lease.lease_id for lease, _ in sent(key)] == [2]


def test_cancelled_tasks_are_passed_over() -> None:
    key, _ = key_with(1)
    first, second = tasks(2, template())
    enqueue(key, [first, second])
    first.state = SENT  # whatever is no longer queued
    assert [task for _, task in sent(key)] == [second]


def test_what_is_handed_back_keeps_its_order_and_its_place_at_the_front() -> None:
    key, leases = key_with(1)
    enqueue(key, tasks(4, template(1_000.0)))
    sent(key)
    enqueue(key, tasks(2, template(), first=5))
    back = key.handed_back(leases[0], [2, 3, 4, 99], 1.0)
    assert [task.unique for task in back] == [2, 3, 4]
    assert [task.unique for task in key.pending] == [2, 3, 4, 5, 6]
    assert list(leases[0].inflight) == [1]


def test_a_lost_lease_returns_its_tasks_in_order() -> None:
    key, leases = key_with(1)
    enqueue(key, tasks(3, template(10.0)))
    sent(key)
    assert [task.unique for task in key.lost(leases[0])] == [1, 2, 3]
    assert leases[0].dead
    assert not key.leases
    assert not key.free


def test_a_silent_lease_is_stalled_also_while_others_are_pending() -> None:
    """Those behind the slow task came first; and its worker may hold back replies."""
    key, leases = key_with(1)
    enqueue(key, tasks(50, template(1_000.0)))
    sent(key)
    assert key.pending
    assert key.stalled(limits.STALL / 2) == []
    assert key.stalled(limits.STALL * 2) == [leases[0]]
    leases[0].reclaiming = True
    assert key.stalled(limits.STALL * 2) == [], "asked once"
    key.finished(leases[0].inflight[1], 5.0)
    assert key.stalled(5.0 + limits.STALL * 2) == [leases[0]], "and again after an answer"


def test_idle_leases_are_taken_once() -> None:
    key, leases = key_with(2)
    assert key.take_idle(0.1, 0.25) == []
    assert key.take_idle(0.3, 0.25) == leases
    assert key.take_idle(0.3, 0.25) == []


def test_a_lone_task_takes_an_idle_lease() -> None:
    key, leases = key_with(1)
    (first, second) = tasks(2, template())
    assert key.send_alone(first) is leases[0]
    assert key.send_alone(second) is None
    assert first.state == SENT
    key.finished(first, 1.0)
    assert key.send_alone(second) is leases[0]


class LeasesMachine(RuleBasedStateMachine):
    """No task is lost, sent twice at a time, or both queued and sent, whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.key = KeyState(1, {"CPU": 10_000}, None, None)
        self.template = template()
        self.now = 0.0
        self.ids = 0
        self.open: dict[int, TaskRecord] = {}

    @rule(count=st.integers(1, 30))
    def submit(self, count: int) -> None:
        for _ in range(count):
            self.ids += 1
            record = TaskRecord(self.ids, self.template, [], None)
            self.open[record.unique] = record
            if self.key.pending or self.key.send_alone(record) is None:
                self.key.enqueue(record)

    @rule()
    def grant(self) -> None:
        self.ids += 1
        self.key.granted(Lease(self.ids, self.key, b"", "", [], None, self.now))

    @rule()
    def dispatch(self) -> None:
        for lease, task in sent(self.key):
            assert lease.usable
            assert task.lease is lease

    def pick(self, data: Any) -> Lease | None:
        leases = list(self.key.leases.values())
        return data.draw(st.sampled_from(leases)) if leases else None

    @rule(data=st.data(), micros=st.integers(0, 50_000))
    def finish(self, data: Any, micros: int) -> None:
        lease = self.pick(data)
        if lease is not None and lease.inflight:
            task = next(iter(lease.inflight.values()))
            self.template.measured(micros)
            self.key.finished(task, self.now)
            del self.open[task.unique]

    @rule(data=st.data(), blocked=st.booleans())
    def hand_back(self, data: Any, blocked: bool) -> None:
        lease = self.pick(data)
        if lease is not None and lease.inflight:
            self.key.handed_back(lease, list(lease.inflight)[1:], self.now)
            lease.blocked = blocked

    @rule(data=st.data())
    def lose(self, data: Any) -> None:
        lease = self.pick(data)
        if lease is not None:
            for task in reversed(self.key.lost(lease)):
                task.state = QUEUED
                self.key.pending.appendleft(task)

    @rule(seconds=st.floats(0.0, 1.0))
    def time(self, seconds: float) -> None:
        self.now += seconds
        for lease in self.key.take_idle(self.now, 0.25):
            assert not lease.inflight
            self.key.lost(lease)

    @invariant()
    def every_task_is_in_one_place(self) -> None:
        queued = [task.unique for task in self.key.pending]
        sent = [unique for lease in self.key.leases.values() for unique in lease.inflight]
        assert sorted(queued + sent) == sorted(self.open)

    @invariant()
    def free_leases_are_idle_and_known(self) -> None:
        assert len(set(map(id, self.key.free))) == len(self.key.free)
        for lease in self.key.free:
            assert not lease.inflight
            assert lease.lease_id in self.key.leases


LeasesMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestLeases = pytest.mark.slow(LeasesMachine.TestCase)
