"""Structured concurrency over remote tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Self, TypeVar, overload

from framework.object_ref import ObjectRef

T = TypeVar("T")


class TaskGroup(asyncio.TaskGroup):
    """``asyncio.TaskGroup``, whose `create_task` also takes references, and which cancels remote tasks with their siblings:
    when one member fails or the block is cancelled, all remote tasks of the group that still run are cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self._refs: dict[asyncio.Task[Any], ObjectRef[Any]] = {}

    @overload  # type: ignore[override]
    def create_task(self, work: ObjectRef[T], *, name: str | None = None, context: Context | None = None) -> asyncio.Task[T]: ...
    @overload
    def create_task(
        self, work: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]: ...
    def create_task(self, work: Any, *, name: str | None = None, context: Context | None = None) -> Any:
        """Add a reference (or a coroutine) to the group; returns an asyncio task with its outcome."""
        if not isinstance(work, ObjectRef):
            return super().create_task(work, name=name, context=context)
        task: asyncio.Task[Any] = super().create_task(work.as_coroutine(), name=name, context=context)
        self._refs[task] = work
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        ref = self._refs.pop(task)
        if task.cancelled() and not ref.done():
            ref._runtime.cancel(ref._entry, False, True)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self


def task_group() -> TaskGroup:
    """A group of remote tasks and coroutines, to be used with ``async with``:

        async with framework.task_group() as group:
            first = group.create_task(f.remote(1))
            second = group.create_task(g.remote(2))
        print(first.result(), second.result())

    If one fails, or the surrounding task is cancelled, the others are cancelled, the remote tasks behind them included.
    Errors are raised as an ``ExceptionGroup``, as by ``asyncio.TaskGroup``.
    """
    return TaskGroup()
