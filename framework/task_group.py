"""Structured concurrency over remote tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any, Self, TypeVar, cast, overload

from framework._base import limits
from framework.object_ref import ObjectRef

T = TypeVar("T")


class TaskGroup(asyncio.TaskGroup):
    """``asyncio.TaskGroup``, whose `create_task` also takes references, and which cancels remote tasks with
    their siblings: when one member fails or the block is cancelled, all remote tasks of the group that still
    run are cancelled, and the block ends when they have (at the latest 5 s after that: code that cannot be
    interrupted is not waited for)."""

    def __init__(self) -> None:
        super().__init__()
        self._refs: dict[asyncio.Task[Any], ObjectRef[Any]] = {}
        self._stopping: list[ObjectRef[Any]] = []

    @overload  # type: ignore[override]
    def create_task(
        self, work: ObjectRef[T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]: ...
    @overload
    def create_task(
        self, work: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]: ...
    def create_task(self, work: Any, *, name: str | None = None, context: Context | None = None) -> Any:
        """Add a reference (or a coroutine) to the group; returns an asyncio task with its outcome.

        Raises `RuntimeError` when the group has ended or is being cancelled; the remote task is cancelled
        then.
        """
        if not isinstance(work, ObjectRef):
            return super().create_task(work, name=name, context=context)
        coroutine = work.as_coroutine()
        try:
            task: asyncio.Task[Any] = super().create_task(coroutine, name=name, context=context)
        except BaseException:
            coroutine.close()
            self._cancel(work)
            raise
        self._refs[task] = work
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        ref = self._refs.pop(task)
        if task.cancelled():
            self._cancel(ref)

    def _cancel(self, ref: ObjectRef[Any]) -> None:
        if not ref.done():
            ref._runtime.cancel(ref._entry, False, True)
            self._stopping.append(ref)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, traceback)
        finally:
            if self._stopping:
                # What asyncio.wait needs of a future, references have.
                stopping = cast("list[asyncio.Future[Any]]", self._stopping)
                await asyncio.wait(stopping, timeout=limits.CANCEL_GRACE)
                self._stopping.clear()


def task_group() -> TaskGroup:
    """A group of remote tasks and coroutines, to be used with ``async with``:

        async with framework.task_group() as group:
            first = group.create_task(f.remote(1))
            second = group.create_task(g.remote(2))
        print(first.result(), second.result())

    If one fails, or the surrounding task is cancelled, the others are cancelled, the remote tasks behind them
    included. Errors are raised as an ``ExceptionGroup``, as by ``asyncio.TaskGroup``.
    """
    return TaskGroup()
