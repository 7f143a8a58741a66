"""What callers are told about the end of an actor, and of their calls with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework._serial.errors import error_from_wire
from framework._state.actor_records import OWNER_ENDED
from framework._state.tasks import TaskRecord
from framework.exceptions import (
    ActorDiedError,
    ActorOutOfMemoryError,
    ActorPlacementGroupRemoved,
    ActorUnavailableError,
    FrameworkError,
    LocalNodeDiedError,
)

if TYPE_CHECKING:
    from framework._runtime.actor_client import ActorClient


def death_error(client: ActorClient, detail: dict[str, Any]) -> BaseException:
    """Of an actor that is dead, from what the head says of it."""
    text = detail.get("text") or "it has ended"
    if text == OWNER_ENDED and client.creation is not None:  # as we have not, it is us who were given up
        return LocalNodeDiedError(
            f"the actor {client.class_name} (actor_id={client.actor_id.hex()}) has ended, as it belongs to "
            "this process, and this process counts as ended: the head of the cluster has declared its node "
            "dead, of which it heard nothing for too long. Call framework.shutdown() and framework.init() to "
            "start anew"
        )
    error = detail.get("error")
    cause: BaseException | None = None
    if error is not None:
        cause = error_from_wire(error)
        if isinstance(cause, FrameworkError) and type(cause).__name__ == "ActorUnschedulableError":
            return cause
        if isinstance(cause, ActorPlacementGroupRemoved):
            return ActorPlacementGroupRemoved(
                text, actor_id=client.actor_id.hex(), class_name=client.class_name
            )
        text = f"{text}:\n{cause}"
    died = ActorOutOfMemoryError if detail.get("kind") == "memory" else ActorDiedError
    return died(
        text, actor_id=client.actor_id.hex(), class_name=client.class_name, pid=detail.get("pid") or None
    )


def unavailable_error(client: ActorClient, task: TaskRecord) -> ActorUnavailableError:
    """Of a call that was under way, and may not be made again."""
    if not client.text:
        why = "the connection to its actor was lost"
    else:
        why = f"its actor is being restarted because its process has ended ({client.text})"
    return ActorUnavailableError(
        f"the call {task.template.name}() may or may not have run: {why}. With max_task_retries such calls "
        "are made again",
        actor_id=client.actor_id.hex(),
    )


def poison_error(client: ActorClient, task: TaskRecord) -> ActorDiedError:
    """Of a call that has ended its actor's process too often."""
    return ActorDiedError(
        f"the call {task.template.name}() is not tried again: {task.strikes} times the actor's process has "
        f"ended in its middle (the last time: {client.text}). The actor itself may have been restarted. Look "
        "at the arguments of this call, and at the worker's log",
        actor_id=client.actor_id.hex(),
        class_name=client.class_name,
    )
