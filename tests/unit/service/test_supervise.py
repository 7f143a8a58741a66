"""Background tasks of a service: held, logged when they fail, cancelled together."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from framework._service.supervise import TaskGroupOfService


@pytest.fixture
async def group() -> TaskGroupOfService:
    return TaskGroupOfService(asyncio.get_running_loop(), "service")


async def test_a_task_is_held_as_long_as_it_runs(group: TaskGroupOfService) -> None:
    """asyncio itself would let the collector have it."""
    gate = asyncio.Event()

    async def wait() -> str:
        await gate.wait()
        return "done"

    held = weakref.ref(group.start(wait(), "waiting"))
    await asyncio.sleep(0)
    gc.collect()
    task = held()
    assert task is not None and task.get_name() == "service: waiting"
    gate.set()
    assert await task == "done"
    del task
    await asyncio.sleep(0)
    gc.collect()
    assert held() is None


async def test_failures_are_logged_with_what_failed(
    group: TaskGroupOfService, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("oops")

    task = group.start(fail(), "the division")
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert "service: the division failed" in caplog.text and "oops" in caplog.text


async def test_cancel_ends_all_quietly(group: TaskGroupOfService, caplog: pytest.LogCaptureFixture) -> None:
    tasks = [group.start(asyncio.sleep(1000), "sleeping") for _ in range(3)]
    await asyncio.sleep(0)
    group.cancel()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    assert all(task.cancelled() for task in tasks)
    assert caplog.text == ""
    again = group.start(asyncio.sleep(0, "still usable"), "after")
    assert await again == "still usable"


async def test_one_that_fails_does_not_end_the_others(group: TaskGroupOfService) -> None:
    async def fail() -> None:
        raise ValueError

    other = group.start(asyncio.sleep(0.01, "unharmed"), "other")
    group.start(fail(), "failing")
    assert await other == "unharmed"
