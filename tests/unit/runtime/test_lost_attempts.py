"""Results of tasks whose earlier attempts were lost, with what these may have put into a store."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from framework._runtime.streams import Streams
from framework._runtime.submit import Submitter
from framework._state.streams import StreamState
from framework._state.tasks import TaskRecord
from framework._wire import messages as m
from support.runtime import FakeConnection, FakeRuntime

RESULT = b"r" * 24 + (1).to_bytes(4, "little")
ITEM = RESULT[:24] + (2).to_bytes(4, "little")
HERE = [3, RESULT, "unix:me", 200_000, [], b"n" * 28]


class Process(FakeRuntime):
    def __init__(self, lost: bool) -> None:
        super().__init__()
        self.real: Any = Submitter(self)  # type: ignore[arg-type]
        self.connection: Any = FakeConnection("tcp:w")
        self.task = TaskRecord(7, mock.Mock(returns=1), [], None)
        self.task.template.options.max_retries = 0
        self.task.lost = lost
        self.ref = self.ref_of(self.objects.new(RESULT))
        self.task.entries = [self.ref._entry]
        self.real.tasks[7] = self.task


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_a_result(lost: bool, several: bool, stored: bool) -> None:
    process = Process(lost)
    value: Any = HERE if stored else 5
    opcode, result = (m.DONE_MANY, [value]) if several else (m.DONE, value)
    process.real.handlers[opcode](process.connection, [opcode, 7, 1, result])
    assert process.ref._entry.value == value
    store: Any = process.store
    assert store.made_again.mock_calls == ([mock.call(RESULT)] if lost and stored else [])
    assert store.free_anywhere.mock_calls == ([mock.call([RESULT])] if lost and not stored else [])


@pytest.mark.parametrize("lost", [False, True])
def test_an_item(lost: bool) -> None:
    process = Process(lost)
    streams = Streams(process)  # type: ignore[arg-type]
    process.task.stream = StreamState(-1)
    streams.add(process.task)
    wire = [3, ITEM, *HERE[2:]]
    streams.arrived(process.task, process.connection, 0, wire)
    store: Any = process.store
    assert store.made_again.mock_calls == ([mock.call(ITEM)] if lost else [])
