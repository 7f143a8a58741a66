"""The frames in which tasks travel: one of its own for each, or many in one.

A task with small arguments is packed when it is sent, together with those that are sent with it. Others are
packed one by one, by whoever submits them or puts their last argument in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from framework._base import limits
from framework._net.connection import Connection
from framework._state.tasks import TaskRecord, Template
from framework._wire import messages as m

NO_ARGUMENTS: list[Any] = []  #: of all tasks that have none


def frame_of(task: TaskRecord, pack: Callable[[Any], bytes]) -> bytes:
    """The frame of a task whose arguments are known; made now, and kept, if need be."""
    frame = task.frame
    if frame is None:
        frame = pack((m.TASK, task.unique, task.template.tid, task.args, task.kwargs, task.extra))
        task.frame = frame
        task.args, task.kwargs = NO_ARGUMENTS, None  # the frame has them
    return frame


def send_tasks(
    connection: Connection, tasks: list[TaskRecord], prepare: Callable[[Connection, Template], None]
) -> None:
    """Loop: send these, in this order. Those that are not packed yet go in frames of many. What comes
    of them is read by the loop."""
    connection.read_by_loop()
    known = connection.state.templates
    task_op = m.TASK
    together: list[tuple[Any, ...]] = []
    template: Template | None = None
    tid = 0
    for task in tasks:
        if task.template is not template:
            template = task.template
            tid = template.tid
            if tid not in known:
                _buffer(connection, together)
                prepare(connection, template)
        frame = task.frame
        if frame is None:
            together.append((task_op, task.unique, tid, task.args, task.kwargs, task.extra))
            if len(together) == limits.TASKS_IN_FRAME:
                _buffer(connection, together)
                connection.flush()  # its process may begin
        else:
            _buffer(connection, together)
            connection.buffer(frame)
    _buffer(connection, together)
    connection.flush()


def _buffer(connection: Connection, together: list[tuple[Any, ...]]) -> None:
    if len(together) > 1:
        connection.buffer(connection.pack((m.TASKS, together)))
    elif together:
        connection.buffer(connection.pack(together[0]))
    together.clear()
