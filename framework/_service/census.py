"""What a process holds, in numbers: for whoever looks for what grows in a program that has run for long."""

from __future__ import annotations

import gc
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from types import GetSetDescriptorType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from framework._net.connection import Connection, Frame

_PACKAGE = __name__.partition(".")[0] + "."
_SIZED = frozenset(
    {
        dict,
        list,
        set,
        deque,
        bytearray,
        OrderedDict,
        defaultdict,
        Counter,
        WeakKeyDictionary,
        WeakSet,
        WeakValueDictionary,
    }
)
_FEW = 100  # objects of a type of which fewer live are not told


def census() -> dict[str, int]:
    """Any thread: how much of what lives in this process. It takes about 20 ms per 100,000 objects.

    ``blocks``: allocations of Python's allocator, ``objects``: those that the garbage collector follows, a
    type's name: its instances, if there are a hundred, ``module.Class.attribute``: the items in all tables
    of that name of instances of the framework's classes, together. What a zygote had before it forked, and
    what is empty, is left out.
    """
    _clear_caches()
    living = gc.get_objects()
    types = Counter(map(type, living))
    found = {"blocks": sys.getallocatedblocks(), "objects": len(living)}
    found |= {_name(kind): count for kind, count in types.items() if count >= _FEW}
    slots = {kind: tuple(_slots(kind)) for kind in types if _is_ours(kind)}
    sums: dict[tuple[type, str], int] = {}
    for thing in living:
        names = slots.get(type(thing))
        if names is None:
            continue
        for name, value in [*_attributes(thing, names)]:
            if type(value) in _SIZED and (size := len(value)):
                sums[type(thing), name] = sums.get((type(thing), name), 0) + size
    for (kind, name), size in sums.items():
        found[f"{_name(kind)}.{name}"] = size
    return found


def _clear_caches() -> None:
    """The interpreter's cache of attributes holds on to up to 4,096 names, and to many of the same text where
    they were put together (``getattr(x, "visit_" + kind)``): it fills up for hours, and looks like a leak."""
    clear = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache
    clear()


def answer_census(connection: Connection, frame: Frame) -> None:
    """CENSUS of a tool."""
    connection.reply(frame[1], census())


def _name(kind: type) -> str:
    module = kind.__module__
    name = kind.__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def _is_ours(kind: type) -> bool:
    module = kind.__module__
    return isinstance(module, str) and module.startswith(_PACKAGE)


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        own = vars(base).get("__slots__", ())
        yield from (own,) if isinstance(own, str) else own


def _attributes(thing: Any, slots: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name in slots:
        try:
            yield name, object.__getattribute__(thing, name)
        except Exception:  # (a mangled name, not set, or a property that raises what it likes)
            continue
    # (Not by name: a class may have put something that runs code in its place.)
    for base in type(thing).__mro__:
        found = vars(base).get("__dict__")
        if found is not None:
            if type(found) is GetSetDescriptorType:
                yield from found.__get__(thing).copy().items()  # a copy: other threads may add to it
            return
