"""The errors of tasks that did not come to an end of their own."""

from __future__ import annotations

from framework._state.tasks import QUEUED, WAITING, TaskRecord
from framework.exceptions import (
    FrameworkError,
    TaskPlacementGroupRemoved,
    TaskTimeoutError,
    TaskUnschedulableError,
    WorkerCrashedError,
)


def crashed(task: TaskRecord, pid: int, detail: str) -> WorkerCrashedError:
    attempts = task.app_failures + 1
    times = "once" if attempts == 1 else f"{attempts} times"
    most = task.template.options.max_retries
    return WorkerCrashedError(
        f"{task.template.name}() was tried {times} (max_retries={most})", pid=pid or None, exit_detail=detail
    )


def timeout_error(task: TaskRecord, task_id: str | None) -> TaskTimeoutError:
    where = {
        WAITING: "its arguments were not ready yet",
        QUEUED: "it was still waiting for a free worker",
    }.get(task.state, "it was running")
    own = task.timeout
    if own is not None:
        text = f"{task.template.name}() did not finish within its timeout of {own:g} s: {where}"
    else:
        text = f"{task.template.name}() did not finish within the timeout of the task that called it: {where}"
    return TaskTimeoutError(text, task_id=task_id, timeout=own)


def group_removed(task: TaskRecord, text: str) -> TaskPlacementGroupRemoved:
    return TaskPlacementGroupRemoved(f"{task.template.name}() cannot run, or not to its end: {text}")


def unschedulable(task: TaskRecord, text: str) -> FrameworkError:
    if (task.key or task.template.key).gone:
        return group_removed(task, text)
    return TaskUnschedulableError(
        f"{task.template.name}() can never be scheduled: {text}. Ask for less, or start the cluster with more"
    )
