"""The worker's side of templates: the function to call, loaded once, and how to treat its result."""

from __future__ import annotations

import inspect
from typing import Any

from framework._serial.functions import load_function
from framework._serial.values import decode


class FunctionCache:
    """Functions by content hash: their definitions as they arrived, and loaded when first called."""

    def __init__(self) -> None:
        self._payloads: dict[bytes, bytes] = {}
        self._loaded: dict[bytes, Any] = {}

    def define(self, function_hash: bytes, payload: bytes) -> None:
        self._payloads.setdefault(function_hash, payload)

    def load(self, function_hash: bytes) -> Any:
        """The function or class; whatever its unpickling raises."""
        function = self._loaded.get(function_hash)
        if function is None:
            function = load_function(self._payloads[function_hash])
            self._loaded[function_hash] = function
        return function


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
        "strategy",
    )

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name: str = spec["name"]
        self.returns: int = spec["returns"]
        self.function_hash: bytes = spec["hash"]
        self.method: str | None = spec.get("method")
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
