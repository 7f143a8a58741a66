"""What a value of each option may be: one check per kind of value, which gives the value as it is kept.

Every check takes the option's name, as the user wrote it, and the value. A value of the wrong type is a
`TypeError`, a value that is not allowed a `ValueError`; each names the option, the value and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from framework._base import labels
from framework._base import resources as res
from framework._base.retry import RetryPolicy

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


retries = _integer("an integer >= -1 (-1: without end)", lambda n: n >= -1)
window = _integer("an integer >= 1, or -1 (no bound)", lambda n: n >= 1 or n == -1)
positive = _integer("an integer >= 1", lambda n: n >= 1)
priority = _integer("an integer from -2**31 to 2**31 - 1", lambda n: -(2**31) <= n < 2**31)
natural = _integer("an integer >= 0", lambda n: n >= 0)


def amount(name: str, value: object) -> object:
    res.to_units(value, name)
    return value


def resources(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise _type_error(name, value, "a dict from names to amounts")
    res.parse(0, None, None, value, default_cpus=0)
    return dict(value)


def boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _type_error(name, value, "True or False")
    return value


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _type_error(name, value, "a str")
    if not value:
        raise _value_error(name, value, "a str that is not empty")
    return value


def seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _type_error(name, value, "a number of seconds above 0")
    if not 0 < value < math.inf:
        raise _value_error(name, value, "a finite number of seconds above 0")
    return float(value)


def num_returns(name: str, value: object) -> int | str:
    allowed = "an integer >= 0, 'streaming' or 'dynamic'"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _type_error(name, value, allowed)
    if (value not in ("streaming", "dynamic")) if isinstance(value, str) else value < 0:
        raise _value_error(name, value, allowed)
    return value


def retry_exceptions(name: str, value: object) -> bool | tuple[type[BaseException], ...]:
    allowed = "True, False, or a list of exception classes"
    if isinstance(value, bool):
        return value
    if not isinstance(value, list | tuple):
        raise _type_error(name, value, allowed)
    for item in value:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise TypeError(f"option {name} must be {allowed}; {item!r} in it is no exception class")
    return tuple(value)


def retry_policy(name: str, value: object) -> RetryPolicy:
    if not isinstance(value, RetryPolicy):
        raise _type_error(name, value, "a RetryPolicy")
    return value


def text_dict(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _type_error(name, value, "a dict from str to str")
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str):
            raise TypeError(f"option {name} must be a dict from str to str, but it has {key!r}: {item!r}")
    return dict(value)


def runtime_env(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise _type_error(name, value, "a dict")
    supported = ", ".join(RUNTIME_ENV_KEYS)
    result: dict[str, object] = {}
    for key, item in value.items():
        if key == "env_vars":
            variables = text_dict(f"{name}['env_vars']", item if item is not None else {})
            for variable, text in variables.items():
                if not variable or "=" in variable or "\0" in variable or "\0" in text:
                    raise ValueError(f"option {name}: {variable!r}={text!r} is no valid environment variable")
            result[key] = variables
        elif key in _RUNTIME_ENV_LATER:
            raise ValueError(f"option {name}: the key {key!r} is not supported; supported: {supported}")
        else:
            raise ValueError(f"option {name}: unknown key {key!r}; supported: {supported}")
    return result


def strategy(name: str, value: object) -> object:
    allowed = "'DEFAULT', 'SPREAD', or a node-affinity, node-label or placement-group strategy"
    if isinstance(value, str):
        if value not in ("DEFAULT", "SPREAD"):
            raise _value_error(name, value, allowed)
    elif isinstance(value, type) or not any(
        hasattr(value, attribute) for attribute in ("node_id", "node_labels", "placement_group")
    ):
        raise _type_error(name, value, allowed)
    return value


def label_selector(name: str, value: object) -> dict[str, str]:
    labels.parse_selector(name, value)
    assert isinstance(value, Mapping)
    return dict(value)


def lifetime(name: str, value: object) -> str:
    if value not in ("detached", "non_detached"):
        make = _value_error if isinstance(value, str) else _type_error
        raise make(name, value, "'detached', 'non_detached' or None")
    return str(value)


def concurrency_groups(name: str, value: object) -> dict[str, int]:
    allowed = "a dict from names of groups to integers >= 1"
    if not isinstance(value, Mapping):
        raise _type_error(name, value, allowed)
    for group, limit in value.items():
        if not isinstance(group, str) or isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"option {name} must be {allowed}, but it has {group!r}: {limit!r}")
        if not group or limit < 1:
            raise ValueError(f"option {name} must be {allowed}, but it has {group!r}: {limit!r}")
    return dict(value)


def metadata(name: str, value: object) -> dict[object, object]:
    if not isinstance(value, Mapping):
        raise _type_error(name, value, "a dict")
    return dict(value)
