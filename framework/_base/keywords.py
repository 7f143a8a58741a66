"""The options of tasks, actors and methods for type checkers: what `options` checks at run time, as keywords.

Imported by annotations only. None means «not given», as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from framework._base.retry import RetryPolicy

Returns = int | Literal["streaming", "dynamic"]
"""How many references a call gives."""


class _Shared(TypedDict, total=False):
    """What tasks and actors have in common."""

    num_cpus: float | None
    num_gpus: float | None
    memory: float | None
    resources: Mapping[str, float] | None
    name: str | None
    runtime_env: Mapping[str, Any] | None
    scheduling_strategy: object
    accelerator_type: str | None
    label_selector: Mapping[str, str] | None
    priority: int | None
    enable_task_events: bool | None


class _OfTasks(TypedDict, total=False):
    num_returns: Returns | None
    max_retries: int | None
    retry_exceptions: bool | Sequence[type[BaseException]] | None
    retry_policy: RetryPolicy | None
    timeout: float | None
    max_calls: int | None
    generator_window: int | None
    _generator_backpressure_num_objects: int | None
    _metadata: Mapping[Any, Any] | None


class _OfActors(TypedDict, total=False):
    object_store_memory: float | None
    namespace: str | None
    lifetime: Literal["detached", "non_detached"] | None
    get_if_exists: bool | None
    max_restarts: int | None
    max_task_retries: int | None
    max_pending_calls: int | None
    save_every: int | None
    max_concurrency: int | None
    concurrency_groups: Mapping[str, int] | None
    allow_out_of_order_execution: bool | None


class TaskKeywords(_Shared, _OfTasks, total=False):
    """Options of remote functions, see `framework._base.options.TaskOptions`."""


class ActorKeywords(_Shared, _OfActors, total=False):
    """Options of actor classes, see `framework._base.options.ActorOptions`."""


class RemoteKeywords(_Shared, _OfTasks, _OfActors, total=False):
    """What ``@remote(...)`` takes before it is known what it decorates."""


class OneResultKeywords(TypedDict, total=False):
    """Options of actor methods, `num_returns` left out: those that do not change what a call gives."""

    name: str | None
    max_task_retries: int | None
    retry_exceptions: bool | Sequence[type[BaseException]] | None
    concurrency_group: str | None
    timeout: float | None
    generator_window: int | None
    _generator_backpressure_num_objects: int | None
    enable_task_events: bool | None


class MethodKeywords(OneResultKeywords, total=False):
    """Options of actor methods, see `framework._base.options.MethodOptions`."""

    num_returns: Returns | None
