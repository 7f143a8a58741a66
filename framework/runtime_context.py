"""What the running code can ask about where it runs."""

from __future__ import annotations

from typing import Any

from framework._base.ids import ActorID, JobID, NodeID, TaskID, WorkerID
from framework._base.resources import out_of_group, to_floats
from framework._runtime.context import current_task
from framework._runtime.current import current
from framework._service.blocking import outcome


class RuntimeContext:
    """The job, node, worker, task and actor that the calling code runs in. Ids are hexadecimal text."""

    def get_job_id(self) -> str:
        """The job's id."""
        return current().config.job.hex()

    def get_node_id(self) -> str:
        """The id of the node that this process runs on."""
        runtime = current()
        if runtime.config.is_driver:
            outcome(runtime.node_ready)
        return runtime.config.node_id.hex()

    def get_worker_id(self) -> str:
        """The id of this process."""
        return current().worker_id.hex()

    def get_task_id(self) -> str | None:
        """The id of the running task; None in a driver."""
        context = current_task.get()
        return context.task_id.hex() if context is not None else None

    def get_task_name(self) -> str | None:
        """The name of the running task; None in a driver."""
        context = current_task.get()
        return context.name if context is not None else None

    def get_task_function_name(self) -> str | None:
        """As `get_task_name`."""
        return self.get_task_name()

    def get_actor_id(self) -> str | None:
        """The id of the actor whose code runs; None elsewhere."""
        host = current().actor_host  # also for threads that the actor has started
        return None if host is None else host.actor_id.hex()

    def get_actor_name(self) -> str | None:
        """The name of the actor whose code runs; an empty string if it has none, None outside of actors."""
        host = current().actor_host
        return None if host is None else (host.name or "")

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the actor whose code runs has been restarted."""
        host = current().actor_host
        return host is not None and bool(host.restarted)

    def save_actor_state(self) -> None:
        """Save the state of the actor whose code runs: its ``__framework_save__()`` is called, and what that
        returns is handed to ``__framework_restore__(state)`` if the actor is restarted. Blocks for one round
        trip; in an async method, await `save_actor_state_async` instead.

        Raises `RuntimeError` outside of actors, `TypeError` for an actor class without the hook or a state
        that holds references, `SerializationError` for one that cannot be pickled.
        """
        self._actor_host().hooks.save()

    async def save_actor_state_async(self) -> None:
        """As `save_actor_state`, for the coroutine methods of async actors."""
        await self._actor_host().hooks.save_async()

    @staticmethod
    def _actor_host() -> Any:
        host = current().actor_host
        if host is None:
            raise RuntimeError("this code runs in a task or in the driver, not in an actor")
        return host

    @property
    def current_actor(self) -> Any:
        """A handle of the actor whose code runs. `RuntimeError` elsewhere."""
        host = current().actor_host
        if host is None:
            raise RuntimeError(
                "current_actor is only available inside an actor: this code runs in a task or in the driver"
            )
        from framework._handle import self_handle

        return self_handle(host)

    @property
    def namespace(self) -> str:
        """The namespace of the job."""
        return current().config.namespace

    def get_assigned_resources(self) -> dict[str, float]:
        """The resources that the running task holds; empty in a driver."""
        context = current_task.get()
        return to_floats(out_of_group(context.resources or {})) if context is not None else {}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The accelerators that the running code may use, by kind."""
        return {"GPU": [str(index) for index in gpu_ids()]}

    def get_runtime_env_string(self) -> str:
        """The runtime environment of the calling code, as JSON."""
        import json  # slow to load, and seldom needed

        return json.dumps(self.runtime_env)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """The runtime environment of the calling code; in a driver, the one given to `init`. Tasks started
        from here inherit its variables."""
        env = current().config.env
        return {"env_vars": dict(env)} if env else {}

    @property
    def gcs_address(self) -> str:
        """The address of the cluster's head."""
        return current().session_dir

    @property
    def job_id(self) -> JobID:
        return JobID(current().config.job)

    @property
    def node_id(self) -> NodeID:
        return NodeID.from_hex(self.get_node_id())

    @property
    def worker_id(self) -> WorkerID:
        return WorkerID(current().worker_id)

    @property
    def task_id(self) -> TaskID | None:
        text = self.get_task_id()
        return TaskID.from_hex(text) if text is not None else None

    @property
    def actor_id(self) -> ActorID | None:
        text = self.get_actor_id()
        return ActorID.from_hex(text) if text is not None else None

    def get(self) -> dict[str, Any]:
        """All ids in a dict."""
        return {
            "job_id": self.job_id,
            "node_id": self.node_id,
            "namespace": self.namespace,
            "task_id": self.task_id,
            "actor_id": self.actor_id,
        }


def gpu_ids() -> list[int]:
    """Indices of the GPUs that the running task or actor may use."""
    context = current_task.get()
    return list(context.gpus) if context is not None and context.gpus else []


_context = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """The context of the calling code; starts a session if there is none."""
    current()
    return _context
