"""The task that runs now, in this thread or asyncio task."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from framework._base.ids import task_id_bytes


class TaskContext:
    """What a running task knows of itself."""

    __slots__ = (
        "_scope",
        "actor_id",
        "children",
        "deadline",
        "gpus",
        "id_unique",
        "made_for",
        "name",
        "resources",
        "strategy",
        "unique",
    )

    def __init__(
        self,
        unique: int,
        id_unique: int,
        scope: bytes,
        name: str,
        actor_id: bytes | None = None,
        resources: dict[str, int] | None = None,
        gpus: list[int] | None = None,
        strategy: list[Any] | None = None,
    ) -> None:
        self.unique = unique
        self.id_unique = id_unique  #: the number in its id: another one, if it makes lost results again
        self._scope = scope
        self.name = name
        self.actor_id = actor_id
        self.deadline: float | None = None  #: on the clock of the runtime's loop
        self.resources = resources
        self.gpus = gpus
        self.strategy = strategy  #: where it was to run
        self.children: set[Any] | None = None  #: tasks that it has submitted and that are not done
        #: the template of the tasks of which this may be the context, one after the other
        self.made_for: Any = None

    @property
    def task_id(self) -> bytes:
        """Its 24 bytes."""
        return task_id_bytes(self.id_unique, self._scope)


current_task: ContextVar[TaskContext | None] = ContextVar("framework_task", default=None)
