"""Which lost objects are made again, by which tasks, how often, and what is said of the others."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest

from framework._base import limits
from framework._base.ids import object_id_bytes
from framework._state.objects import FAILED, PENDING, READY, Entry
from framework._state.tasks import STREAMING, TaskRecord, Template
from framework._wire import messages as m
from framework._wire.codec import unpack_frame
from framework.exceptions import (
    ActorDiedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectReconstructionFailedLineageEvictedError,
    ObjectReconstructionFailedMaxAttemptsExceededError,
)
from support.runtime import FakeConnection, FakeRuntime

KEY = object()


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


def stored(object_id: bytes, owner: str = "unix:me") -> list[Any]:
    return [3, object_id, owner, 10, [], b""]


def result_id(number: int, index: int = 1) -> bytes:
    return object_id_bytes(number.to_bytes(8, "little") + b"s" * 16, index)


class Run:
    """A task that has been run: its references, and what it is known by."""

    def __init__(
        self,
        runtime: FakeRuntime,
        number: int,
        *,
        returns: int = 1,
        retries: int = 3,
        args: tuple[Any, ...] = (),
        actor: Any = None,
    ) -> None:
        options = SimpleNamespace(max_retries=retries)
        template = Template(number, f"task{number}", returns, b"", {}, options, None if actor else KEY)
        self.task = TaskRecord(number, template, [], None)
        wires = [ref._entry.value for ref in args]
        self.task.frame = runtime.pack((m.TASK, number, number, wires, None, {"deadline": 1.0}))
        self.task.stored_deps = [ref._entry for ref in args]
        self.task.retries = retries
        self.task.actor = actor
        self.entries = [runtime.objects.new(result_id(number, index + 1)) for index in range(returns)]
        self.task.entries = self.entries
        self.refs = [runtime.ref_of(entry) for entry in self.entries]
        runtime.submitter.tasks[number] = self.task
        runtime.submitter.done(self.task, [stored(entry.id) for entry in self.entries])


def lose(runtime: FakeRuntime, entry: Entry) -> None:
    runtime.lineage.recover(entry)


def finish(runtime: FakeRuntime, name: str = "") -> TaskRecord:
    """The next task that is ready returns; it."""
    task = runtime.submitter.ready_tasks.pop(0)
    assert name in ("", task.template.name)
    runtime.submitter.done(task, [stored(entry.id) for entry in task.entries])
    runtime.turn()
    return task


def error(entry: Entry) -> BaseException:
    assert entry.state == FAILED
    assert isinstance(entry.value, BaseException)
    return entry.value


def test_all_results_of_a_task_are_made_again_by_one_run(runtime: FakeRuntime) -> None:
    run = Run(runtime, 1, returns=2)
    for entry in run.entries:
        lose(runtime, entry)
        assert entry.state == PENDING
    (task,) = runtime.submitter.ready_tasks
    frame = unpack_frame(task.frame)
    assert frame[1] == task.unique != 1, "under a number of its own"
    assert frame[5] == {"as": 1}, "with the ids of the first run, and without its deadline"
    finish(runtime)
    assert [entry.state for entry in run.entries] == [READY, READY]


def test_a_sibling_that_nobody_holds_is_dropped_when_it_comes_again(runtime: FakeRuntime) -> None:
    run = Run(runtime, 1, returns=2)
    del run.refs[1], run.entries[1]
    runtime.turn()
    gc.collect()
    runtime.discarded.clear()
    lose(runtime, run.entries[0])
    task = runtime.submitter.ready_tasks[0]
    assert [entry.freed for entry in task.entries] == [False, True]
    runtime.submitter.done(task, [stored(result_id(1, 1)), stored(result_id(1, 2))])
    assert runtime.discarded == [stored(result_id(1, 2))]
    assert run.entries[0].state == READY


def test_attempts_are_counted(runtime: FakeRuntime) -> None:
    run = Run(runtime, 1, retries=2)
    for _ in range(2):
        lose(runtime, run.entries[0])
        finish(runtime)
    lose(runtime, run.entries[0])
    found = error(run.entries[0])
    assert type(found) is ObjectReconstructionFailedMaxAttemptsExceededError
    assert "task1() was run again as often as it may be (max_retries=2)" in str(found)
    assert runtime.submitter.ready_tasks == []


def test_without_end(runtime: FakeRuntime) -> None:
    run = Run(runtime, 1, retries=-1)
    for _ in range(20):
        lose(runtime, run.entries[0])
        finish(runtime)
    assert run.entries[0].state == READY


def test_what_is_never_made_again(runtime: FakeRuntime) -> None:
    put = runtime.objects.new(result_id(9))
    put.made_by_put, put.value, put.state = True, stored(put.id), READY
    once, method = Run(runtime, 1, retries=0), Run(runtime, 2, retries=0, actor=object())
    texts = (
        "made by put()",
        "task1(), which is not run again (max_retries=0)",
        "task2(), a method of an actor",
    )
    for entry, text in zip((put, once.entries[0], method.entries[0]), texts, strict=True):
        lose(runtime, entry)
        found = error(entry)
        assert type(found) is ObjectLostError
        assert text in str(found)
        assert entry.id.hex() in str(found)


def test_a_lost_argument_that_was_freed_is_made_first(runtime: FakeRuntime) -> None:
    first = Run(runtime, 1)
    second = Run(runtime, 2, args=(first.refs[0],))
    argument = first.entries[0]
    first.refs.clear()
    runtime.turn()
    assert argument.freed
    lose(runtime, second.entries[0])
    assert [task.template.name for task in runtime.submitter.ready_tasks] == ["task1"]
    finish(runtime, "task1")
    assert not argument.freed, "the second run holds it"
    finish(runtime, "task2")
    runtime.turn()
    assert second.entries[0].state == READY
    assert argument.freed


def test_a_chain_of_thousands(runtime: FakeRuntime) -> None:
    runs = [Run(runtime, 1)]
    for number in range(2, 3_000):
        runs.append(Run(runtime, number, args=(runs[-1].refs[0],)))
    for run in runs[:-1]:
        run.refs.clear()
    runtime.turn()
    lose(runtime, runs[-1].entries[0])
    order = []
    while runtime.submitter.ready_tasks:
        order.append(finish(runtime).template.name)
    assert order == [f"task{number}" for number in range(1, 3_000)]
    assert runs[-1].entries[0].state == READY


def test_an_argument_that_cannot_be_made_again(runtime: FakeRuntime) -> None:
    once = Run(runtime, 1, retries=0)
    run = Run(runtime, 2, args=(once.refs[0],))
    once.refs.clear()
    runtime.turn()
    lose(runtime, run.entries[0])
    found = error(run.entries[0])
    assert type(found) is ObjectReconstructionFailedError
    assert "An argument of task2(), which made it, is lost: " in str(found)
    assert "task1(), which is not run again" in str(found)


def test_records_are_bounded_and_the_oldest_goes_first(
    runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINEAGE_BYTES", 3_000)
    runs = [Run(runtime, number) for number in range(1, 30)]
    assert 0 < runtime.lineage.bytes <= 3_000
    lose(runtime, runs[0].entries[0])
    assert type(error(runs[0].entries[0])) is ObjectReconstructionFailedLineageEvictedError
    lose(runtime, runs[-1].entries[0])
    finish(runtime, "task29")
    runs.clear()
    runtime.turn()
    gc.collect()
    Run(runtime, 100)
    assert runtime.lineage.bytes < 1_500, "what is gone is not counted"


# ---- generators --------------------------------------------------------------------------------------


class Stream:
    """A generator task with items in the store."""

    def __init__(self, runtime: FakeRuntime, number: int, items: int, retries: int = 3) -> None:
        options = SimpleNamespace(max_retries=retries)
        template = Template(number, f"stream{number}", STREAMING, b"", {}, options, KEY)
        self.task = TaskRecord(number, template, [], None)
        self.task.frame = runtime.pack((m.TASK, number, number, [], None, {"window": 2}))
        self.task.retries = retries
        runtime.submitter.tasks[number] = self.task
        self.entries = [runtime.objects.new(result_id(number, index + 2)) for index in range(items)]
        self.refs = [runtime.ref_of(entry) for entry in self.entries]
        for index, entry in enumerate(self.entries):
            runtime.objects.complete(entry, stored(entry.id))
            runtime.lineage.remember_item(self.task, index, entry)


def only(task: TaskRecord) -> Any:
    return unpack_frame(task.frame)[5]["only"]


def test_items_that_are_alive_are_made_again_by_one_run(runtime: FakeRuntime) -> None:
    stream = Stream(runtime, 1, 5)
    del stream.refs[3]
    runtime.turn()
    lose(runtime, stream.entries[0])
    lose(runtime, stream.entries[4])
    (task,) = runtime.submitter.ready_tasks
    assert task.unique != 1, "the generator may still be running"
    assert only(task) == [0, 1, 2, 4]
    for index in only(task):
        runtime.lineage.made_item(task, index, stored(stream.entries[index].id))
    finish(runtime)
    assert [entry.state for entry in stream.entries] == [READY] * 5
    assert runtime.discarded == []


def test_an_item_that_was_dropped_meanwhile(runtime: FakeRuntime) -> None:
    stream = Stream(runtime, 1, 2)
    lose(runtime, stream.entries[0])
    del stream.refs[1]
    runtime.turn()
    (task,) = runtime.submitter.ready_tasks
    runtime.lineage.made_item(task, 1, stored(stream.entries[1].id))
    assert runtime.discarded == [stored(stream.entries[1].id)]


def test_an_item_that_is_lost_behind_the_back_of_a_run_gets_another(runtime: FakeRuntime) -> None:
    stream = Stream(runtime, 1, 2)
    lose(runtime, stream.entries[1])
    task = runtime.submitter.ready_tasks[0]
    runtime.lineage.made_item(task, 0, stored(stream.entries[0].id))
    lose(runtime, stream.entries[0])
    runtime.lineage.made_item(task, 1, stored(stream.entries[1].id))
    finish(runtime)
    assert [entry.state for entry in stream.entries] == [PENDING, READY]
    (again,) = runtime.submitter.ready_tasks
    runtime.lineage.made_item(again, 0, stored(stream.entries[0].id))
    finish(runtime)
    assert [entry.state for entry in stream.entries] == [READY, READY]


def test_a_generator_that_makes_less_and_one_that_fails(runtime: FakeRuntime) -> None:
    fewer, fails = Stream(runtime, 1, 2), Stream(runtime, 2, 2)
    lose(runtime, fewer.entries[1])
    finish(runtime)
    found = error(fewer.entries[1])
    assert type(found) is ObjectReconstructionFailedError
    assert "stream1() did not make this item when it was run again" in str(found)
    lose(runtime, fails.entries[0])
    task = runtime.submitter.ready_tasks.pop()
    lose(runtime, fails.entries[1])
    runtime.submitter.fail(task, ValueError("not again"))
    assert [str(error(entry)) for entry in fails.entries] == ["not again"] * 2


def test_attempts_of_a_generator_are_counted(runtime: FakeRuntime) -> None:
    stream, never = Stream(runtime, 1, 1, retries=1), Stream(runtime, 2, 1, retries=0)
    lose(runtime, stream.entries[0])
    runtime.lineage.made_item(runtime.submitter.ready_tasks[0], 0, stored(stream.entries[0].id))
    finish(runtime)
    lose(runtime, stream.entries[0])
    assert type(error(stream.entries[0])) is ObjectReconstructionFailedMaxAttemptsExceededError
    lose(runtime, never.entries[0])
    assert "max_retries=0" in str(error(never.entries[0]))


# ---- actors ------------------------------------------------------------------------------------------


def test_a_method_is_called_again_while_its_actor_lives(runtime: FakeRuntime) -> None:
    actor = SimpleNamespace(ended=False, death=lambda: ActorDiedError("kill() was called"))
    run = Run(runtime, 1, retries=5, actor=actor)
    lose(runtime, run.entries[0])
    assert finish(runtime).actor is actor
    assert run.entries[0].state == READY
    actor.ended = True
    lose(runtime, run.entries[0])
    found = error(run.entries[0])
    assert type(found) is ObjectReconstructionFailedError
    assert "The actor whose method task1() made it is dead: " in str(found)
    assert "kill() was called" in str(found)


# ---- borrowers ---------------------------------------------------------------------------------------


def test_a_borrower_asks_for_what_it_could_not_find(runtime: FakeRuntime) -> None:
    run = Run(runtime, 1)
    recover = runtime.lineage.handlers[m.RECOVER]
    borrower: Any = FakeConnection("borrower")
    entry = run.entries[0]
    recover(borrower, [m.RECOVER, 1, entry.id, b"a name that it had before", b""])
    assert borrower.replies == {1: stored(entry.id)}, "it has been made again meanwhile"
    assert runtime.submitter.ready_tasks == []
    recover(borrower, [m.RECOVER, 2, entry.id, entry.id, b""])
    recover(borrower, [m.RECOVER, 3, entry.id, entry.id, b""])
    assert set(borrower.replies) == {1}
    finish(runtime)
    assert borrower.replies == dict.fromkeys((1, 2, 3), stored(entry.id))
    recover(borrower, [m.RECOVER, 4, b"u" * 28, b"u" * 28, b""])
    assert isinstance(borrower.replies[4], ObjectLostError)
