"""Options of tasks, actors and actor methods: what exists, what is allowed, what the defaults are.

Names, defaults and meanings are those of Ray Core's reference; what it does not have is marked «ours».
Everywhere None means «not given». A value of the wrong type is a `TypeError`, a value that is not allowed a
`ValueError`, and each names the option, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from framework._base import option_checks as checks
from framework._base import resources as res
from framework._base.retry import RetryPolicy

ACCELERATOR_PREFIX = res.ACCELERATOR_PREFIX
ACCELERATOR_UNITS = 10
"""Units (0.001, as in Ray) of the resource ``accelerator_type:NAME`` that ask for a node with such a
device.
"""


#: older ways of Ray to name a placement group
_OF_GROUPS = ("placement_group", "placement_group_bundle_index", "placement_group_capture_child_tasks")


class _Options:
    """What the three kinds share. `_checks` also is the list of the options that exist."""

    __slots__ = ("_given",)
    _given: Mapping[str, object]
    _kind: ClassVar[str]
    _checks: ClassVar[Mapping[str, checks.Check]]
    _defaults: ClassVar[Mapping[str, object]]
    _aliases: ClassVar[Mapping[str, str]] = {"_generator_backpressure_num_objects": "generator_window"}

    @classmethod
    def parse(cls, options: Mapping[str, object]) -> Self:
        """Check options as the user wrote them. None means not given. Errors: see the module."""
        return cls._build({}, options)

    def merged(self, **overrides: object) -> Self:
        """A copy in which `overrides` replace what was given; an override of None restores the default."""
        return self._build(self._given, overrides)

    @classmethod
    def _build(cls, checked: Mapping[str, object], options: Mapping[str, object]) -> Self:
        given = dict(checked)
        for written, value in options.items():
            name = cls._aliases.get(written, written)
            check = cls._checks.get(name)
            if check is None:
                raise cls._unknown(written)
            twin = options.get(name) if name != written else None
            if twin is not None and value is not None and twin != value:
                raise ValueError(f"options {written}={value!r} and {name}={twin!r} mean the same but differ")
            if value is not None:
                given[name] = check(written, value)
            elif name == written or name not in options:
                given.pop(name, None)
        self = cls.__new__(cls)
        self._given = given
        for name in cls._checks:
            setattr(self, name, given[name] if name in given else cls._defaults.get(name))
        self._complete()
        return self

    def _complete(self) -> None:
        """Rules that concern several options."""

    @classmethod
    def _unknown(cls, name: str) -> ValueError:
        if name in _OF_GROUPS and cls is not MethodOptions:
            return ValueError(
                f"the option {name} is not supported: use scheduling_strategy="
                "PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=...), from "
                "framework.util.scheduling_strategies"
            )
        valid = sorted(name for name in cls._checks if not name.startswith("_"))
        text = f"Invalid option keyword {name!r} for {cls._kind}"
        others = [kind._kind for kind in (TaskOptions, ActorOptions, MethodOptions) if name in kind._checks]
        import difflib  # slow to load, and seldom needed

        close = difflib.get_close_matches(name, valid, n=1)
        if others:
            text += f" (it is an option of {' and '.join(others)})"
        text += f"; did you mean {close[0]!r}?" if close and not others else "."
        return ValueError(f"{text} Valid: {', '.join(valid)}")

    @property
    def given(self) -> Mapping[str, object]:
        """The options that were given, by their main names, checked."""
        return self._given

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._given == self._given

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._given.items())
        return f"{type(self).__name__}({given})"

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self).parse, (dict(self._given),))


def _units(options: TaskOptions | ActorOptions, default_cpus: float) -> dict[str, int]:
    units = res.parse(
        options.num_cpus, options.num_gpus, options.memory, options.resources, default_cpus=default_cpus
    )
    if options.accelerator_type is not None:
        units[ACCELERATOR_PREFIX + options.accelerator_type] = ACCELERATOR_UNITS
    return units


class TaskOptions(_Options):
    """Options of a remote function. Amounts may be fractional; memory is in bytes, times in seconds."""

    _kind = "remote functions"
    _checks: ClassVar[Mapping[str, checks.Check]] = {
        "num_cpus": checks.amount,
        "num_gpus": checks.amount,
        "memory": checks.amount,
        "resources": checks.resources,
        "name": checks.text,
        "num_returns": checks.num_returns,
        "max_retries": checks.retries,
        "retry_exceptions": checks.retry_exceptions,
        "retry_policy": checks.retry_policy,
        "timeout": checks.seconds,
        "max_calls": checks.natural,
        "runtime_env": checks.runtime_env,
        "scheduling_strategy": checks.strategy,
        "accelerator_type": checks.text,
        "label_selector": checks.label_selector,
        "priority": checks.priority,
        "enable_task_events": checks.boolean,
        "generator_window": checks.window,
        "_metadata": checks.metadata,
    }
    _defaults: ClassVar[Mapping[str, object]] = {
        "num_cpus": 1,
        "num_gpus": 0,
        "memory": 0,
        "max_retries": 3,
        "priority": 0,
        "retry_exceptions": False,
        "enable_task_events": True,
    }
    __slots__ = tuple(_checks)

    num_cpus: float
    num_gpus: float
    memory: float
    resources: dict[str, float] | None
    name: str | None
    num_returns: int | str | None  # None: 1, or streaming where the function is a generator
    max_retries: int  # -1: without end
    retry_exceptions: bool | tuple[type[BaseException], ...]
    retry_policy: RetryPolicy | None  # ours
    timeout: float | None  # ours
    max_calls: int  # 0: no limit. Not given: 1 with a GPU, so that its memory is released; else 0
    runtime_env: dict[str, object] | None
    scheduling_strategy: object | None
    accelerator_type: str | None
    label_selector: dict[str, str] | None
    priority: int  # ours: higher ones are served first
    enable_task_events: bool
    generator_window: int | None  # -1: no bound; None: the default window
    _metadata: dict[object, object] | None

    def _complete(self) -> None:
        if "max_calls" not in self._given:
            self.max_calls = 1 if self.num_gpus > 0 else 0

    @property
    def explicit_num_cpus(self) -> bool:
        """Whether num_cpus was given (and not just its default)."""
        return "num_cpus" in self._given

    def resources_units(self) -> dict[str, int]:
        """What the task needs, in units of `resources`."""
        return _units(self, 1)


class ActorOptions(_Options):
    """Options of an actor class. Amounts may be fractional; memory is in bytes."""

    _kind = "actors"
    _checks: ClassVar[Mapping[str, checks.Check]] = {
        "num_cpus": checks.amount,
        "num_gpus": checks.amount,
        "memory": checks.amount,
        "object_store_memory": checks.amount,
        "resources": checks.resources,
        "name": checks.text,
        "namespace": checks.text,
        "lifetime": checks.lifetime,
        "get_if_exists": checks.boolean,
        "max_restarts": checks.retries,
        "max_task_retries": checks.retries,
        "max_pending_calls": checks.window,
        "save_every": checks.positive,
        "max_concurrency": checks.positive,
        "concurrency_groups": checks.concurrency_groups,
        "runtime_env": checks.runtime_env,
        "scheduling_strategy": checks.strategy,
        "accelerator_type": checks.text,
        "label_selector": checks.label_selector,
        "priority": checks.priority,
        "allow_out_of_order_execution": checks.boolean,
        "enable_task_events": checks.boolean,
    }
    _aliases: ClassVar[Mapping[str, str]] = {}
    _defaults: ClassVar[Mapping[str, object]] = {
        "num_gpus": 0,
        "memory": 0,
        "get_if_exists": False,
        "max_restarts": 0,
        "max_task_retries": 0,
        "priority": 0,
        "max_pending_calls": -1,
        "enable_task_events": True,
    }
    __slots__ = tuple(_checks)

    num_cpus: float | None  # None: 1 for placing, 0 for running
    num_gpus: float
    memory: float
    object_store_memory: float | None
    resources: dict[str, float] | None
    name: str | None
    namespace: str | None
    lifetime: str | None  # None: as "non_detached"
    get_if_exists: bool
    max_restarts: int  # -1: without end
    max_task_retries: int  # -1: without end
    max_pending_calls: int  # -1: no limit
    save_every: int | None  # calls; None: only when asked
    max_concurrency: int | None  # None: 1, or 1000 for async actors
    concurrency_groups: dict[str, int] | None
    runtime_env: dict[str, object] | None
    scheduling_strategy: object | None
    accelerator_type: str | None
    label_selector: dict[str, str] | None
    priority: int  # ours
    allow_out_of_order_execution: bool | None  # None: only for async and threaded actors
    enable_task_events: bool

    def _complete(self) -> None:
        if self.get_if_exists and self.name is None:
            raise ValueError("option get_if_exists=True needs the option name: there is nothing to look for")

    @property
    def explicit_num_cpus(self) -> bool:
        """Whether num_cpus was given."""
        return self.num_cpus is not None

    def placement_units(self) -> dict[str, int]:
        """What a node must have free for the actor to be placed there."""
        return _units(self, 1)

    def running_units(self) -> dict[str, int]:
        """What the actor holds while it lives."""
        return _units(self, 0)


class MethodOptions(_Options):
    """Options of an actor method (`method`, and ``handle.f.options``)."""

    _kind = "actor methods"
    _checks: ClassVar[Mapping[str, checks.Check]] = {
        "num_returns": checks.num_returns,
        "name": checks.text,
        "max_task_retries": checks.retries,
        "retry_exceptions": checks.retry_exceptions,
        "concurrency_group": checks.text,
        "timeout": checks.seconds,
        "generator_window": checks.window,
        "enable_task_events": checks.boolean,
    }
    _defaults: ClassVar[Mapping[str, object]] = {"retry_exceptions": False, "enable_task_events": True}
    __slots__ = tuple(_checks)

    num_returns: int | str | None  # None: 1, or streaming where the method is a generator
    name: str | None
    max_task_retries: int | None  # None: the actor's
    retry_exceptions: bool | tuple[type[BaseException], ...]
    concurrency_group: str | None
    timeout: float | None  # ours
    generator_window: int | None
    enable_task_events: bool
