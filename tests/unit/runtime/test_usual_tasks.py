"""The short way of submitting a task does what the long one does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from framework._base.ids import object_id_bytes, tail_of, task_id_bytes
from framework._runtime.context import TaskContext, current_task
from framework._runtime.sites import format_site
from framework._runtime.submit import Submitter
from framework._state.leases import KeyState
from framework._state.objects import FAILED
from framework._state.tasks import TaskRecord, Template
from framework.exceptions import LocalNodeDiedError
from support.runtime import FakeRuntime

SCOPE = b"s" * 16


class Process(FakeRuntime):
    def __init__(self) -> None:
        super().__init__()
        self.ref_class = type(None)
        self.woken: list[Any] = []
        self.wake = self.woken.append
        self.leasing = SimpleNamespace(dirty={})
        self.template = Template(1, "f", 1, b"", {}, mock.Mock(max_retries=0), KeyState(1, {}, None, None))
        self.real = Submitter(self)  # type: ignore[arg-type]

    def usual(self, *args: Any) -> TaskRecord:
        return self.real.submit_usual(self.template, args, tail_of(SCOPE), 3, None, "kept")

    def any(self, *args: Any) -> TaskRecord:
        return self.real.submit(self.template, args, {}, SCOPE, 3, keep="kept")


def seen(task: TaskRecord) -> Any:
    fields = {name: getattr(task, name) for name in TaskRecord.__slots__ if name not in ("entry", "template")}
    entry = {name: getattr(task.entry, name) for name in type(task.entry).__slots__ if name != "__weakref__"}
    assert entry.pop("task") is task
    return fields, {**entry, "site": None}


@pytest.mark.parametrize("args", [(), (1, "two", None), (b"bytes",), tuple(range(100)), ("x" * 5000,)])
def test_both_ways_make_the_same(args: tuple[Any, ...]) -> None:
    short, long = Process(), Process()
    for _ in range(3):
        task = short.usual(*args)
        assert seen(task) == seen(long.any(*args))
        assert short.real.tasks[task.unique] is task
        assert task.entry.id == object_id_bytes(task_id_bytes(task.unique, SCOPE), 1)
        assert short.objects.table.entries[task.entry.id] is task.entry
    assert len(short.woken) == 1
    assert list(short.real._submitted) == list(short.real.tasks.values())


def test_in_a_task_it_is_a_child_of_that() -> None:
    process = Process()
    context = TaskContext(5, 5, SCOPE, "outer")
    token = current_task.set(context)
    try:
        task = process.usual()
    finally:
        current_task.reset(token)
    assert task.parent == 5 and context.children == {task.unique}


def test_each_line_is_the_site_of_its_own() -> None:
    process = Process()

    def remote(*args: Any) -> TaskRecord:
        return process.real.submit_usual(process.template, args, tail_of(SCOPE), 0, None, None)

    in_a_loop = [remote() for _ in range(3)]
    here = remote()
    by_the_long_way = remote(b"bytes")
    sites = [format_site(task.entry.site) for task in (in_a_loop[0], here, by_the_long_way)]
    assert len(set(sites)) == 3 and all("test_usual_tasks.py" in site for site in sites)
    assert "remote" not in sites[1].rsplit(" in ", 1)[1] and sites[2].endswith(sites[1].rsplit(" in ", 1)[1])
    assert in_a_loop[0].entry.site is in_a_loop[2].entry.site


def test_what_becomes_ready_after_the_end_of_the_node_fails() -> None:
    """A task that makes a lost object again is new: the end of the node, which has failed all others, did
    not know of it."""
    process = Process()
    task = process.any()
    process.dead = LocalNodeDiedError("gone")
    process.real.ready(task)
    assert task.entry.state == FAILED and task.entry.value is process.dead
    assert not task.template.key.pending and not process.real.tasks
