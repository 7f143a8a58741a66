"""The arguments of `init`: checked before anything is started."""

from __future__ import annotations

import os

from framework._base import limits
from framework._base import resources as res

TYPE_CHECKING = False  # (until a node has been started, nothing loads `typing`: see `framework._session`)
if TYPE_CHECKING:
    from typing import Any

#: arguments of Ray's `init` that have no meaning here, and why they are refused
_REFUSED = {
    "job_config": "it is not supported: use runtime_env, namespace and the logging arguments",
    "logging_config": "it is not supported: use logging_level and logging_format",
    "enable_resource_isolation": "isolation by control groups is not supported",
    "_temp_dir": "set the environment variable FRAMEWORK_TMPDIR instead",
}

#: Ray's documented defaults of `logging_level` and `logging_format`
_INFO = 20
_LOG_FORMAT = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"


def check_names(unknown: dict[str, Any], valid: list[str]) -> None:
    """`ValueError` for an argument that does not exist, with the one that was probably meant. What tunes
    Ray's own machinery (its dashboard, private names) is only warned about."""
    for name in unknown:
        if name in _REFUSED:
            raise ValueError(f"init(): {name!r}: {_REFUSED[name]}")
        if not name.startswith(("_", "dashboard_")):
            import difflib  # slow to load, and seldom needed

            close = difflib.get_close_matches(name, valid, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"init() has no argument {name!r}{hint}. Valid: {', '.join(valid)}")
    import warnings

    for name in unknown:
        what = "there is no dashboard" if name.startswith("dashboard_") else "it tunes the inside of Ray"
        warnings.warn(f"init() ignores {name!r}: {what}", UserWarning, stacklevel=3)


def check_flags(flags: dict[str, object], include_dashboard: bool | None, local_mode: bool) -> None:
    """`TypeError` for a switch that is no bool, `ValueError` for what does not exist here."""
    for name, value in {**flags, "local_mode": local_mode}.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} is True or False, got {value!r}")
    if include_dashboard is not None and not isinstance(include_dashboard, bool):
        raise TypeError(f"include_dashboard is True, False or None, got {include_dashboard!r}")
    if include_dashboard:
        raise ValueError(
            "include_dashboard=True: there is no dashboard yet. framework.util.state and "
            "`python -m framework status` tell what runs"
        )
    if local_mode:
        raise ValueError("local_mode is not supported: a session starts fast enough to be used in tests")


def check_namespace(namespace: str | None) -> None:
    """`ValueError` unless it is None or a non-empty str."""
    if namespace is not None and (not isinstance(namespace, str) or not namespace):
        raise ValueError(f"namespace is a non-empty str, got {namespace!r}")


def wanted_resources(
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: float | None = None,
    resources: dict[str, float] | None = None,
    object_store_memory: int | None = None,
    spill_directory: str | None = None,
    memory_usage_threshold: float | None = None,
    labels: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What a new node is to offer, as its process is told. Raises `ValueError` or `TypeError`, as `init`
    does."""
    if object_store_memory is not None and (
        isinstance(object_store_memory, bool)
        or not isinstance(object_store_memory, int | float)
        or object_store_memory <= 0
    ):
        raise ValueError(f"object_store_memory is a positive number of bytes, got {object_store_memory!r}")
    if object_store_memory is not None and object_store_memory < limits.STORE_SMALLEST:
        raise ValueError(
            f"object_store_memory={object_store_memory!r} bytes is too small for an object store: at least "
            f"{limits.STORE_SMALLEST} are needed"
        )
    wanted = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "memory": memory,
        "resources": resources,
        "object_store_memory": int(object_store_memory) if object_store_memory is not None else None,
        "spill_directory": _checked_spill_directory(spill_directory),
        "memory_threshold": _checked_threshold(memory_usage_threshold),
        "labels": labels or {},
    }
    res.parse(num_cpus, num_gpus, memory, resources, default_cpus=1)
    return wanted


_LABEL_VALUE = r"([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?"
_LABEL_KEY = r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?"


def checked_labels(labels: dict[str, str] | None) -> dict[str, str]:
    """Labels of a node: names and values as Ray (and Kubernetes) allow them; `ray.io/` names belong to the
    system. `TypeError` or `ValueError` for others."""
    if not labels:
        return {}
    import re

    if not isinstance(labels, dict):
        raise TypeError(f"labels is a dict of str to str, got {labels!r}")
    for name, value in labels.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"labels is a dict of str to str, got {name!r}: {value!r}")
        short = name.rpartition("/")[2]
        if len(short) > limits.LABEL_LENGTH or not re.fullmatch(_LABEL_KEY, name):
            raise ValueError(
                f"{name!r} is not the name of a label: letters, digits and '-_.', with an optional prefix "
                f"like 'example.com/', and at most {limits.LABEL_LENGTH} characters behind it"
            )
        if name.startswith("ray.io/"):
            raise ValueError(f"the label {name!r} is the system's own")
        if len(value) > limits.LABEL_LENGTH or not re.fullmatch(_LABEL_VALUE, value):
            raise ValueError(
                f"label {name!r}: {value!r} is not a value of a label: letters, digits and '-_.', at most "
                f"{limits.LABEL_LENGTH} characters"
            )
    return dict(labels)


def checked_env(runtime_env: dict[str, Any] | None) -> dict[str, str]:
    """The variables of the job's runtime environment."""
    if runtime_env is None:
        return {}
    from typing import cast

    from framework._base.options import TaskOptions

    checked = TaskOptions.parse({"runtime_env": runtime_env}).runtime_env or {}
    return cast("dict[str, str]", checked.get("env_vars", {}))


def checked_logging(configure: bool, level: int | str | None, text: str | None) -> list[Any] | None:
    """(level, format) of the logger ``framework``; None when `init` is to leave it alone."""
    if text is not None and not isinstance(text, str):
        raise TypeError(f"logging_format is a str, got {text!r}")
    if isinstance(level, bool) or not isinstance(level, int | str | None):
        raise TypeError(f"logging_level is a level of the logging module, got {level!r}")
    if level is None:
        level = _INFO
    elif isinstance(level, str):
        import logging  # slow to load: the node process is not started yet

        known = logging.getLevelNamesMapping()
        if level.upper() not in known:
            raise ValueError(f"logging_level {level!r} is unknown; known: {', '.join(known)}")
        level = known[level.upper()]
    return [level, text or _LOG_FORMAT] if configure else None


def _checked_threshold(threshold: float | None) -> float:
    if threshold is None:
        text = os.environ.get("FRAMEWORK_MEMORY_USAGE_THRESHOLD")
        threshold = float(text) if text else limits.MEMORY_THRESHOLD
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise ValueError(f"memory_usage_threshold is a share between 0 and 1, got {threshold!r}")
    return float(threshold)


def _checked_spill_directory(directory: str | None) -> str | None:
    directory = directory or os.environ.get("FRAMEWORK_SPILL_DIRECTORY") or None
    if directory is None:
        return None
    if "://" in directory:
        _check_spill_url(directory)
        return directory
    if not os.path.isdir(directory):
        raise ValueError(f"spill_directory {directory!r} is not a directory: create it first")
    return os.path.abspath(directory)


def _check_spill_url(url: str) -> None:
    try:
        from fsspec import get_filesystem_class
    except ImportError:
        raise ImportError(
            f"spill_directory {url!r} is a URL: that takes fsspec; install the extra: framework[spill]"
        ) from None
    try:
        get_filesystem_class(url.partition("://")[0].partition("::")[0])
    except (ImportError, ValueError) as error:
        raise type(error)(f"spill_directory {url!r} cannot be used: {error}") from None
