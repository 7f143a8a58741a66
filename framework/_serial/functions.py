"""Functions and classes as bytes, named by their content.

Importable ones travel by reference (module and name), those of ``__main__``, of notebooks, lambdas and
closures by value. A function that a decorator has replaced in its module (``@framework.remote`` does) is
found through the decorator's ``__wrapped__``: by value it would take copies of the module's globals along,
locks included.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

try:
    from _blake2 import blake2b  # (`hashlib` has this one, and loads OpenSSL's for the others)
except ImportError:
    from hashlib import blake2b

from framework._serial.pickler import pickle_in_band
from framework._serial.values import undecodable, unserializable
from framework.exceptions import FrameworkError

HASH_SIZE = 16
"""Bytes of a function's content hash: 128 bits leave no chance to accidental collisions."""


def dump_function(target: Any, *, where: str | None = None) -> tuple[bytes, bytes, list[Any]]:
    """(16-byte content hash, payload, references captured) of a function or class.

    The holder of the payload keeps the references alive. `where` says in errors what is being pickled.
    Raises `SerializationError` with the path to what cannot be pickled, as in ``f.<closure 'lock'>``.
    """
    named = _wrapped_name(target)
    try:
        payload, noted = pickle_in_band(_Wrapped(*named) if named is not None else target)
    except MemoryError:
        raise
    except Exception as error:
        name = getattr(target, "__name__", "function")
        kind = "class" if isinstance(target, type) else "function"
        raise unserializable(target, where or f"the {kind} {name!r}", name, error) from error
    return blake2b(payload, digest_size=HASH_SIZE).digest(), payload, [ref for ref, _, _ in noted]


def load_function(payload: bytes) -> Any:
    """The function or class of a payload.

    Raises `SerializationError`, with the original exception as its cause and a hint (a module that is not
    installed here, for one).
    """
    try:
        return pickle.loads(payload)
    except (FrameworkError, MemoryError):
        raise
    except Exception as error:
        raise undecodable("a function", error) from error


def _look_up(module_name: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module_name)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _wrapped_name(target: Any) -> tuple[str, str] | None:
    """Where `target` is found as ``module.name.__wrapped__``, or None."""
    module_name, qualname = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(qualname, str) or module_name == "__main__":
        return None
    if "<" in qualname or getattr(sys.modules.get(module_name), "__spec__", None) is None:
        return None
    try:
        found = _look_up(module_name, qualname)
        replaced = found is not target and getattr(found, "__wrapped__", None) is target
    except Exception:  # the attributes of the decorator's object are code of the user's
        return None
    return (module_name, qualname) if replaced else None


class _Wrapped:
    """Stands in the pickle for a function that its module knows only inside a decorator's object."""

    __slots__ = ("module_name", "qualname")

    def __init__(self, module_name: str, qualname: str) -> None:
        self.module_name = module_name
        self.qualname = qualname

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return import_wrapped, (self.module_name, self.qualname)


def import_wrapped(module_name: str, qualname: str) -> Any:
    """Named by pickles: import ``module_name`` and take the function out of the decorator's object."""
    __import__(module_name)
    found = _look_up(module_name, qualname)
    if found is None:
        raise AttributeError(f"module {module_name!r} has no attribute {qualname!r}")
    return getattr(found, "__wrapped__", found)
