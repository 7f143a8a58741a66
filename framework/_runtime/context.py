"""The task that runs now, in this thread or asyncio task."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any


class TaskContext:
    """What a running task knows of itself."""

    __slots__ = (
        "actor_id",
        "attempt",
        "children",
        "deadline",
        "gpus",
        "name",
        "resources",
        "strategy",
        "task_id",
        "unique",
    )

    def __init__(
        self,
        unique: int,
        task_id: bytes,
        name: str,
        *,
        actor_id: bytes | None = None,
        deadline: float | None = None,
        resources: dict[str, int] | None = None,
        gpus: list[int] | None = None,
        strategy: list[Any] | None = None,
    ) -> None:
        self.unique = unique
        self.task_id = task_id
        self.name = name
        self.actor_id = actor_id
        self.deadline = deadline  #: on the clock of the runtime's loop
        self.resources = resources
        self.gpus = gpus
        self.strategy = strategy  #: where it was to run
        self.attempt = 0
        self.children: set[Any] | None = None  #: tasks that it has submitted and that are not done


current_task: ContextVar[TaskContext | None] = ContextVar("framework_task", default=None)
