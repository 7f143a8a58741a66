"""The methods of an actor class: ``@method``, and what handles know of them."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol

import cloudpickle

from framework._base import limits
from framework._base.options import MethodOptions
from framework._base.signature import CallSignature
from framework.remote_function import number_of_returns

_METHOD_OPTIONS = "__framework_method_options__"
SPECIAL = (
    "__ray_ready__",
    "__ray_call__",
    "__ray_terminate__",
    "__framework_ready__",
    "__framework_call__",
    "__framework_terminate__",
)
"""What every actor can be asked."""

_OF_PYTHON = frozenset((*vars(object), "__del__", "__getattr__", "__post_init__", "__class_getitem__"))
"""Dunder methods that are no calls for others: handles have them as all objects do, or Python alone calls
them.
"""
_LANGUAGE = frozenset((object, Generic, Protocol))


def _mark(function: Any = None, /, **options: Any) -> Any:
    """Mark a method of an actor class, with options or without: ``@method``, ``@method(num_returns=2)``.

    Without options it changes nothing at run time. In a class that extends `Actor` it tells type checkers
    that the method can be called through a handle: ``handle.f.remote(...)`` has the right type there, and
    ``self.f(...)`` inside of the class stays a plain call.

    Raises `ValueError` or `TypeError` for an option that does not exist or a value that it cannot have.
    """
    if function is not None:
        if options or not (callable(function) or isinstance(function, staticmethod | classmethod)):
            raise TypeError("use @method, or @method(option=value, ...) with options as keywords")
        return function
    MethodOptions.parse(options)

    def mark(function: Any) -> Any:
        setattr(function, _METHOD_OPTIONS, options)
        return function

    return mark


if TYPE_CHECKING:
    from framework._actor_types import method as method
else:
    method = _mark
    method.__name__ = method.__qualname__ = "method"


class MethodInfo:
    """What a handle knows of a method."""

    __slots__ = ("options", "returns", "signature")

    def __init__(self, signature: CallSignature | None, returns: int, options: dict[str, Any]) -> None:
        self.signature = signature
        self.returns = returns
        self.options = options

    def __reduce__(self) -> tuple[Any, ...]:
        return (MethodInfo, (self.signature, self.returns, self.options))


class MethodTable(dict[str, MethodInfo]):
    """The methods of an actor class by name. It goes with every pickled handle: it is packed once and,
    where it arrives, unpacked once for all handles of the class."""

    __slots__ = ("_packed",)
    _packed: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            packed = self._packed
        except AttributeError:
            packed = self._packed = cloudpickle.dumps(dict(self), protocol=5)
        return (_unpack, (packed,))


@functools.lru_cache(limits.METHOD_TABLES_KEPT)
def _unpack(packed: bytes) -> MethodTable:
    table = MethodTable(pickle.loads(packed))
    table._packed = packed
    return table


def methods_of(cls: type) -> MethodTable:
    """The methods of an actor class, those of its bases included."""
    found = MethodTable()
    for name, member in inspect.getmembers_static(cls):
        function: Callable[..., Any] = (
            member.__func__ if isinstance(member, staticmethod | classmethod) else member
        )
        if not inspect.isroutine(function) or (_is_dunder(name) and not _is_offered(cls, name)):
            continue
        options = _options_of(member, function)
        checked = MethodOptions.parse(options)
        try:
            signature = CallSignature(function, skip_first=not isinstance(member, staticmethod))
        except Exception:
            signature = None
        found[name] = MethodInfo(signature, number_of_returns(checked.num_returns, function), dict(options))
    return found


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_offered(cls: type, name: str) -> bool:
    """Whether a dunder method is one that the user's classes define, such as ``__len__``."""
    if name in _OF_PYTHON or name.startswith(("__framework_", "__ray_")):
        return False
    return any(name in vars(base) for base in cls.__mro__ if base not in _LANGUAGE)


def _options_of(member: Any, function: Any) -> dict[str, Any]:
    """`method` may stand above or below ``@staticmethod``."""
    options = getattr(member, _METHOD_OPTIONS, None)
    return options if options is not None else getattr(function, _METHOD_OPTIONS, {})
