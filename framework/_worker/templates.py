"""The worker's side of templates: the function to call, loaded once, and how to treat its result."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

from framework._serial.functions import load_function
from framework._serial.values import decode


class Source:
    """A function as it has arrived, loaded when it is first called."""

    __slots__ = ("__weakref__", "_function", "_payload")

    def __init__(self, payload: bytes) -> None:
        self._payload: bytes | None = payload
        self._function: Any = None

    def load(self) -> Any:
        """The function or class; whatever its unpickling raises."""
        payload = self._payload
        if payload is not None:
            self._function = load_function(payload)
            self._payload = None
        return self._function


class FunctionCache:
    """Functions by content hash, as long as somebody who has sent them may call them: callers that have the
    same one share it."""

    def __init__(self) -> None:
        self._sources: WeakValueDictionary[bytes, Source] = WeakValueDictionary()

    def define(self, function_hash: bytes, payload: bytes) -> Source:
        """One that has been sent."""
        source = self._sources.get(function_hash)
        if source is None:
            source = self._sources[function_hash] = Source(payload)
        return source


class ExecTemplate:
    """What a template number of one caller means here."""

    __slots__ = (
        "calls",
        "careful",
        "function",
        "function_hash",
        "group",
        "is_async",
        "is_generator",
        "max_calls",
        "method",
        "name",
        "resources",
        "retry",
        "returns",
        "scope",
        "source",
        "strategy",
    )

    def __init__(self, spec: dict[str, Any], sources: Mapping[bytes, Source]) -> None:
        self.name: str = spec["name"]
        self.returns: int = spec["returns"]
        self.function_hash: bytes = spec["hash"]
        self.method: str | None = spec.get("method")
        self.source: Source | None = sources.get(self.function_hash)  #: a method has none
        self.scope: bytes = spec["scope"]  #: the last 16 bytes of its task ids
        self.max_calls: int = spec.get("max_calls", 0)
        self.resources: dict[str, int] | None = spec.get("resources")
        self.strategy: list[Any] | None = spec.get("strategy")  #: in placement groups
        self.retry: bytes | None = spec.get("retry")  #: pickled (exceptions to retry for, predicate), if any
        self.careful: bool = spec.get(
            "careful", False
        )  #: never run twice: its reply leaves before the next task starts
        self.group: str | None = spec.get("group")
        self.calls = 0
        self.function: Any = None
        self.is_async = False
        self.is_generator = False

    def bind(self, function: Any) -> None:
        """The function is loaded."""
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.is_generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)

    def retryable(self, error: BaseException) -> bool:
        """Whether the owner asked for another attempt after such an exception."""
        if self.retry is None or not isinstance(error, Exception):
            return False
        wanted, predicate = decode(self.retry)
        if wanted is not True and not isinstance(error, tuple(wanted)):
            return False
        return predicate is None or bool(predicate(error))
