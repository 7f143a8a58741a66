"""A frame of many results does what their own frames do."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from framework._runtime.submit import Submitter
from framework._runtime.waiters import ThreadWaiter, register, register_all
from framework._state.leases import KeyState, Lease
from framework._state.objects import READY
from framework._state.streams import StreamState
from framework._state.tasks import FINISHED, TaskRecord, Template
from framework._wire import messages as m
from framework.exceptions import ProtocolError
from support.runtime import FakeConnection, FakeRuntime, Ref

COUNT = 6


class Process(FakeRuntime):
    """With tasks on a lease, two of which are special."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.loop.time = lambda: 9.0
        self.leasing = SimpleNamespace(dirty={}, end_retired=mock.Mock())
        self.real: Any = Submitter(self)  # type: ignore[arg-type]
        self.key = KeyState(1, {}, None, None)
        self.template = Template(1, "f", 1, b"", {}, mock.Mock(max_retries=0), self.key)
        self.connection: Any = FakeConnection("unix:w")
        self.lease = Lease(1, self.key, b"w", "unix:w", [], self.connection, 0.0)
        self.key.granted(self.lease)
        self.records = [TaskRecord(n, self.template, [], None) for n in range(COUNT)]
        self.refs: list[Ref] = []
        for record in self.records:
            ref = self.ref_of(self.objects.new(record.unique.to_bytes(28, "little")))
            self.refs.append(ref)
            record.entry, ref._entry.task = ref._entry, record
            self.real.tasks[record.unique] = record
            self.key.enqueue(record)
        self.template.mean_us = 10.0
        assert sum(map(len, self.key.dispatch().values())) == COUNT
        self.lease.blocked = True
        self.records[2].children = {2}
        self.records[3].stream = StreamState(1)
        self.key.pending.extend(TaskRecord(100 + n, self.template, [], None) for n in range(extra))

    def outcome(self) -> Any:
        lease, key = self.lease, self.key
        return (
            [(ref._entry.state, ref._entry.value, ref._entry.task) for ref in self.refs],
            [(task.state, task.lease, task.frame, task.refs) for task in self.records],
            (dict(lease.inflight), lease.load, lease.idle_since, lease.progress, lease.blocked),
            (list(self.real.tasks), self.template.mean_us, len(key.free), list(self.leasing.dirty) == [key]),
            [call.args[1:] for call in self.streams.finished.mock_calls],
        )


def strip(process: Process) -> Any:
    """The outcome, without what is another object in another process."""
    entries, records, *rest = process.outcome()
    return [entry[:2] for entry in entries], [(r[0], r[1] is None) for r in records], rest


@pytest.mark.parametrize("count", [COUNT, COUNT - 1])
@pytest.mark.parametrize("extra", [0, 3])
def test_many_are_as_one_by_one(count: int, extra: int) -> None:
    together, apart = Process(extra), Process(extra)
    values: list[Any] = [None, 1, "two", 3, [0, b"four", []], b"five"]
    fields: list[Any] = []
    for number in range(count):
        fields += [number, 10 * number, values[number]]
        apart.real.handlers[m.DONE](apart.connection, [m.DONE, number, 10 * number, values[number]])
    together.real.handlers[m.DONES](together.connection, [m.DONES, fields])
    seen, wanted = strip(together), strip(apart)
    for one in (seen, wanted):
        one[2][0][0].pop(5, None)  # the record of the task that still runs
    assert seen == wanted
    assert together.refs[0]._entry.state == READY
    assert together.records[0].state == FINISHED


def test_results_of_tasks_that_nobody_knows_are_discarded() -> None:
    process = Process(0)
    process.real.handlers[m.DONES](process.connection, [m.DONES, [77, 0, 1, 0, 0, 2]])
    assert process.discarded == [1]
    assert process.refs[0]._entry.value == 2


def test_a_waiter_that_raises_does_not_cost_the_others_their_results() -> None:
    process = Process(0)
    process.refs[0]._entry.waiters = [mock.Mock(side_effect=RuntimeError("a waiter's own mistake"))]
    process.real.handlers[m.DONES](process.connection, [m.DONES, [0, 0, 1, 1, 0, 2]])
    assert [ref._entry.value for ref in process.refs[:2]] == [1, 2]


@pytest.mark.parametrize("end", [[], ["none", 0, 1]])
def test_threads_that_wait_for_many_hear_of_all(end: list[Any]) -> None:
    process = Process(0)
    entries = [ref._entry for ref in process.refs]
    waiter, other, alone = (
        ThreadWaiter(entries[:3], 3, True),
        ThreadWaiter(entries[4:5], 1, True),
        mock.Mock(),
    )
    register_all(entries[:3], waiter)
    register_all(entries[4:5], other)
    register(entries[1], alone)
    process.records[2].rare = process.records[3].stream = None
    fields = [field for number in (4, 0, 1, 2) for field in (number, 0, None)]
    with contextlib.suppress(TypeError, ValueError):
        process.real.handlers[m.DONES](process.connection, [m.DONES, [*fields, *end, *end[:1]]])
    assert waiter.wait(0) and other.wait(0)
    alone.assert_called_once_with(entries[1])
    assert all(entries[number].waiters is None for number in (0, 1, 2, 4))


@pytest.mark.parametrize("fields", [[0], [0, 0], ["a", 0, 1], [0, None, 1], [[], 0, 1], [0, 0, 1, 1]])
def test_frames_that_are_none(fields: list[Any]) -> None:
    process = Process(0)
    with pytest.raises((ValueError, TypeError, ProtocolError)):
        process.real.handlers[m.DONES](process.connection, [m.DONES, fields])
        m.blame([m.DONES, fields])
    with pytest.raises(ProtocolError):
        m.blame([m.DONES, fields])
