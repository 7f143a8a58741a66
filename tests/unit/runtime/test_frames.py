"""Tasks on their way out: in order, many in a frame where they may."""

from __future__ import annotations

from typing import Any

from framework._base import limits
from framework._runtime.encoding import is_light, is_plain
from framework._runtime.frames import NO_ARGUMENTS, frame_of, send_tasks
from framework._runtime.peers import PeerState
from framework._state.tasks import TaskRecord, Template
from framework._wire import messages as m
from framework._wire.codec import new_packer, unpack_frame


class FakeConnection:
    def __init__(self) -> None:
        self.state = PeerState("unix:worker")
        self.pack = new_packer()
        self.frames: list[list[Any]] = []

    def buffer(self, data: bytes) -> None:
        self.frames.append(unpack_frame(data))

    def flush(self) -> None:
        """Nothing is sent."""

    def read_by_loop(self) -> None:
        """Nobody else reads."""

    def prepare(self, _: Any, template: Template) -> None:
        self.state.templates.add(template.tid)
        self.frames.append([m.TEMPLATE, template.tid])


ONE, TWO = (Template(tid, "f", 1, b"", {}, None, None) for tid in (1, 2))


def buffered(*tasks: TaskRecord) -> list[list[Any]]:
    connection: Any = FakeConnection()
    send_tasks(connection, list(tasks), connection.prepare)
    for frame in connection.frames:
        if frame[0] != m.TEMPLATE:
            assert m.check(frame) == frame[0]
    return list(connection.frames)


def test_one_goes_in_a_frame_of_its_own() -> None:
    assert buffered(TaskRecord(7, ONE, [1], None)) == [[m.TEMPLATE, 1], [m.TASK, 7, 1, [1], None, None]]


def test_many_go_together_and_templates_go_before_them() -> None:
    records = [TaskRecord(n, ONE if n < 3 else TWO, [n], {"k": n} if n % 2 else None) for n in range(5)]
    assert buffered(*records) == [
        [m.TEMPLATE, 1],
        [m.TASKS, [[m.TASK, n, 1, [n], {"k": n} if n % 2 else None, None] for n in range(3)]],
        [m.TEMPLATE, 2],
        [m.TASKS, [[m.TASK, n, 2, [n], {"k": n} if n % 2 else None, None] for n in (3, 4)]],
    ]


def test_one_that_is_packed_already_keeps_its_place() -> None:
    records = [TaskRecord(n, ONE, [n], None) for n in range(3)]
    frame = frame_of(records[1], new_packer())
    assert records[1].frame == frame and frame_of(records[1], new_packer()) is frame
    assert records[1].args is NO_ARGUMENTS, "the frame has them"
    sent = [frame[1] for frame in buffered(*records)[1:]]
    assert sent == [0, 1, 2]


def test_a_frame_has_so_many_tasks_at_most() -> None:
    count = 2 * limits.TASKS_IN_FRAME + 1
    frames = buffered(*[TaskRecord(n, ONE, NO_ARGUMENTS, None) for n in range(count)])[1:]
    assert [len(frame[1]) for frame in frames[:2]] == [limits.TASKS_IN_FRAME] * 2
    assert frames[2] == [m.TASK, count - 1, 1, [], None, None]


def test_what_is_plain() -> None:
    assert is_plain([None, True, 2**64 - 1, -(2**63), 1.5, "text"])
    for value in (
        2**64,
        -(2**63) - 1,
        "ü",
        "x" * (limits.LIGHT_ARGUMENT + 1),
        b"",
        [],
        type("I", (int,), {})(),
    ):
        assert not is_plain([1, value])


def test_what_is_light() -> None:
    small, large = b"x" * limits.LIGHT_ARGUMENT, b"x" * (limits.LIGHT_ARGUMENT + 1)
    assert is_light([1, "a", small], {"k": small}) and is_light([], None)
    assert not is_light([large], None) and not is_light([], {"k": large}) and not is_light([[0, b""]], None)
    assert not is_light([1] * (limits.LIGHT_ARGUMENTS + 1), None)
