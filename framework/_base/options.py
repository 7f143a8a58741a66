"""Options of tasks, actors and actor methods: what exists, what is allowed, what the defaults are.

Names, defaults and meanings are those of Ray Core's reference; what it does not have is marked «ours».
Everywhere None means «not given». A value of the wrong type is a `TypeError`, a value that is not allowed a
`ValueError`, and each names the option, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Self

from framework._base import resources as res
from framework._base.retry import RetryPolicy

ACCELERATOR_PREFIX = "accelerator_type:"
ACCELERATOR_UNITS = 10
"""Units (0.001, as in Ray) of the resource ``accelerator_type:NAME`` that ask for a node with such a
device.
"""

RUNTIME_ENV_KEYS = ("env_vars",)
_RUNTIME_ENV_LATER = frozenset(
    ("py_modules", "py_executable", "working_dir", "pip", "uv", "conda", "container", "image_uri", "excludes")
    + ("config", "worker_process_setup_hook", "nsight", "java_jars")
)

Check = Callable[[str, object], object]


def _type_error(name: str, value: object, allowed: str) -> TypeError:
    return TypeError(f"option {name} must be {allowed}, not {value!r} of type {type(value).__name__}")


def _value_error(name: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"option {name} must be {allowed}, got {value!r}")


def _integer(allowed: str, accept: Callable[[int], bool]) -> Check:
    def check(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _type_error(name, value, allowed)
        if not accept(value):
            raise _value_error(name, value, allowed)
        return value

    return check


_retries = _integer("an integer >= -1 (-1: without end)", lambda n: n >= -1)
_window = _integer("an integer >= 1, or -1 (no bound)", lambda n: n >= 1 or n == -1)
_positive = _integer("an integer >= 1", lambda n: n >= 1)
_natural = _integer("an integer >= 0", lambda n: n >= 0)


def _amount(name: str, value: object) -> object:
    res.to_units(value, name)
    return value


def _resources(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise _type_error(name, value, "a dict from names to amounts")
    res.parse(0, None, None, value, default_cpus=0)
    return dict(value)


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _type_error(name, value, "True or False")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _type_error(name, value, "a str")
    if not value:
        raise _value_error(name, value, "a str that is not empty")
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _type_error(name, value, "a number of seconds above 0")
    if not 0 < value < math.inf:
        raise _value_error(name, value, "a finite number of seconds above 0")
    return float(value)


def _num_returns(name: str, value: object) -> int | str:
    allowed = "an integer >= 0, 'streaming' or 'dynamic'"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _type_error(name, value, allowed)
    if (value not in ("streaming", "dynamic")) if isinstance(value, str) else value < 0:
        raise _value_error(name, value, allowed)
    return value


def _retry_exceptions(name: str, value: object) -> bool | tuple[type[BaseException], ...]:
    allowed = "True, False, or a list of exception classes"
    if isinstance(value, bool):
        return value
    if not isinstance(value, list | tuple):
        raise _type_error(name, value, allowed)
    for item in value:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise TypeError(f"option {name} must be {allowed}; {item!r} in it is no exception class")
    return tuple(value)


def _retry_policy(name: str, value: object) -> RetryPolicy:
    if not isinstance(value, RetryPolicy):
        raise _type_error(name, value, "a RetryPolicy")
    return value


def _text_dict(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _type_error(name, value, "a dict from str to str")
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str):
            raise TypeError(f"option {name} must be a dict from str to str, but it has {key!r}: {item!r}")
    return dict(value)


def _runtime_env(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise _type_error(name, value, "a dict")
    supported = ", ".join(RUNTIME_ENV_KEYS)
    result: dict[str, object] = {}
    for key, item in value.items():
        if key == "env_vars":
            variables = _text_dict(f"{name}['env_vars']", item if item is not None else {})
            for variable, text in variables.items():
                if not variable or "=" in variable or "\0" in variable or "\0" in text:
                    raise ValueError(f"option {name}: {variable!r}={text!r} is no valid environment variable")
            result[key] = variables
        elif key in _RUNTIME_ENV_LATER:
            raise ValueError(f"option {name}: the key {key!r} is not supported; supported: {supported}")
        else:
            raise ValueError(f"option {name}: unknown key {key!r}; supported: {supported}")
    return result


def _strategy(name: str, value: object) -> object:
    allowed = "'DEFAULT', 'SPREAD', or a node-affinity, node-label or placement-group strategy"
    if isinstance(value, str):
        if value not in ("DEFAULT", "SPREAD"):
            raise _value_error(name, value, allowed)
    elif isinstance(value, type) or not any(
        hasattr(value, attribute) for attribute in ("node_id", "node_labels", "placement_group")
    ):
        raise _type_error(name, value, allowed)
    return value


def _lifetime(name: str, value: object) -> str:
    if value not in ("detached", "non_detached"):
        make = _value_error if isinstance(value, str) else _type_error
        raise make(name, value, "'detached', 'non_detached' or None")
    return str(value)


def _concurrency_groups(name: str, value: object) -> dict[str, int]:
    allowed = "a dict from names of groups to integers >= 1"
    if not isinstance(value, Mapping):
        raise _type_error(name, value, allowed)
    for group, limit in value.items():
        if not isinstance(group, str) or isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"option {name} must be {allowed}, but it has {group!r}: {limit!r}")
        if not group or limit < 1:
            raise ValueError(f"option {name} must be {allowed}, but it has {group!r}: {limit!r}")
    return dict(value)


def _metadata(name: str, value: object) -> dict[object, object]:
    if not isinstance(value, Mapping):
        raise _type_error(name, value, "a dict")
    return dict(value)


class _Options:
    """What the three kinds share. `_checks` also is the list of the options that exist."""

    __slots__ = ("_given",)
    _given: Mapping[str, object]
    _kind: ClassVar[str]
    _checks: ClassVar[Mapping[str, Check]]
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
        valid = sorted(name for name in cls._checks if not name.startswith("_"))
        text = f"Invalid option keyword {name!r} for {cls._kind}"
        others = [kind._kind for kind in (TaskOptions, ActorOptions, MethodOptions) if name in kind._checks]
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
    _checks: ClassVar[Mapping[str, Check]] = {
        "num_cpus": _amount,
        "num_gpus": _amount,
        "memory": _amount,
        "resources": _resources,
        "name": _text,
        "num_returns": _num_returns,
        "max_retries": _retries,
        "retry_exceptions": _retry_exceptions,
        "retry_policy": _retry_policy,
        "timeout": _seconds,
        "max_calls": _natural,
        "runtime_env": _runtime_env,
        "scheduling_strategy": _strategy,
        "accelerator_type": _text,
        "label_selector": _text_dict,
        "enable_task_events": _boolean,
        "generator_window": _window,
        "_metadata": _metadata,
    }
    _defaults: ClassVar[Mapping[str, object]] = {
        "num_cpus": 1,
        "num_gpus": 0,
        "memory": 0,
        "max_retries": 3,
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
    _checks: ClassVar[Mapping[str, Check]] = {
        "num_cpus": _amount,
        "num_gpus": _amount,
        "memory": _amount,
        "object_store_memory": _amount,
        "resources": _resources,
        "name": _text,
        "namespace": _text,
        "lifetime": _lifetime,
        "get_if_exists": _boolean,
        "max_restarts": _retries,
        "max_task_retries": _retries,
        "max_pending_calls": _window,
        "max_concurrency": _positive,
        "concurrency_groups": _concurrency_groups,
        "runtime_env": _runtime_env,
        "scheduling_strategy": _strategy,
        "accelerator_type": _text,
        "allow_out_of_order_execution": _boolean,
        "enable_task_events": _boolean,
    }
    _aliases: ClassVar[Mapping[str, str]] = {}
    _defaults: ClassVar[Mapping[str, object]] = {
        "num_gpus": 0,
        "memory": 0,
        "get_if_exists": False,
        "max_restarts": 0,
        "max_task_retries": 0,
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
    max_concurrency: int | None  # None: 1, or 1000 for async actors
    concurrency_groups: dict[str, int] | None
    runtime_env: dict[str, object] | None
    scheduling_strategy: object | None
    accelerator_type: str | None
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
    _checks: ClassVar[Mapping[str, Check]] = {
        "num_returns": _num_returns,
        "name": _text,
        "max_task_retries": _retries,
        "retry_exceptions": _retry_exceptions,
        "concurrency_group": _text,
        "timeout": _seconds,
        "generator_window": _window,
        "enable_task_events": _boolean,
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
