"""How reference objects take part in pickling, without this package importing their classes.

Whoever defines a reference class registers it once (`register_ref_type`) and lets its ``__reduce__`` return
`reduce_ref(self)`. Each pickling or unpickling that the framework runs opens a context of its own in its
thread:

- while encoding, every reference met is noted, so that the holder of the bytes can keep the references alive
  and tell the receiver what it borrows;
- while decoding, every reference made is noted, so that the receiver can register as a borrower.

In a value that the framework pickles, a reference is no more than its place in the list of those that were
noted: the ids travel in that list alone. Whoever decodes has the list, and mostly the references too (an
object keeps those that are in its value): then unpickling takes them from there in C, without a call of ours
for each. Whatever else pickles a reference, `pickle.dumps` within a ``__reduce__`` for instance, gets the
whole of it (`reduce_ref`).

A reference pickled by the user himself (``pickle.dumps(ref)``) has no context. Nobody can know when those
bytes are gone, so the hook set by `set_out_of_band_hook` is told, which pins the object for good.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from framework.exceptions import SerializationError

Ref = TypeVar("Ref")
NotedRef = tuple[Any, bytes, str]
"""(reference object, object id of 28 bytes, address of the owner)"""


class _Contexts(threading.local):
    """The innermost contexts of this thread; None outside. Saved and restored by whoever opens one."""

    encoding: list[NotedRef] | None = None
    decoding: list[Any] | None = None
    at_hand: list[Any] | None = None  #: the references in the value that is being unpickled, by their places


contexts = _Contexts()

# Written at import time by the module that defines a reference class, read afterwards.
_describers: dict[type, tuple[Callable[[Any], tuple[bytes, str]], str]] = {}
_rebuilders: dict[str, Callable[[bytes, str], Any]] = {}


def _nobody_listens(ref: object) -> None:
    """The hook until a runtime sets one: without a runtime there is nothing to pin."""


_out_of_band: list[Callable[[Any], None]] = [_nobody_listens]


def register_ref_type(
    cls: type[Ref],
    describe: Callable[[Ref], tuple[bytes, str]],
    rebuild: Callable[[bytes, str], Ref],
    *,
    kind: str = "",
) -> None:
    """Let instances of `cls` (and of its subclasses) take part.

    `describe(ref)` gives (object id, owner address); `rebuild(object_id, owner)` makes a reference of them in
    the process that decodes. `kind` names the class in the bytes: "" for the usual one, another word for each
    further.
    """
    _describers[cls] = (describe, kind)
    _rebuilders[kind] = rebuild


def set_out_of_band_hook(hook: Callable[[Any], None] | None) -> None:
    """Call `hook(ref)` for references that are pickled outside the framework; None removes the hook.

    The hook runs inside the user's ``pickle.dumps`` in any thread: it must be quick and must not block.
    """
    _out_of_band[0] = hook if hook is not None else _nobody_listens


def on_out_of_band(ref: object) -> None:
    """Tell the hook that `ref` now also lives in bytes that nobody can follow."""
    _out_of_band[0](ref)


def _describer(cls: type) -> tuple[Callable[[Any], tuple[bytes, str]], str]:
    for base in cls.__mro__:
        found = _describers.get(base)
        if found is not None:
            return found
    raise SerializationError(f"{cls.__qualname__} is not registered as a reference class (register_ref_type)")


def reduce_ref(ref: object) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What ``__reduce__`` of a reference class returns; notes the reference where it belongs."""
    describe, kind = _describers.get(type(ref)) or _describer(type(ref))
    object_id, owner = describe(ref)
    noted = contexts.encoding
    if noted is not None:
        noted.append((ref, object_id, owner))
    else:
        _out_of_band[0](ref)
    return rebuild_ref, ((object_id, owner, kind) if kind else (object_id, owner))


def rebuild_ref(object_id: bytes, owner: str, kind: str = "") -> Any:
    """Named by pickles: makes the reference in this process.

    Raises `SerializationError` where no such class is registered (the bytes are read by a process that has
    not imported the framework's public package).
    """
    rebuild = _rebuilders.get(kind)
    if rebuild is None:
        raise SerializationError(f"no reference class of kind {kind!r}: import framework first")
    ref = rebuild(object_id, owner)
    made = contexts.decoding
    if made is not None:
        made.append(ref)
    return ref


class _AtHand:
    """Stands, in a pickle, for the references that are at hand where it is read."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return refs_at_hand, ()


_AT_HAND = _AtHand()
_by_place = operator.getitem


def reduce_by_place(ref: object) -> Any:
    """As `reduce_ref`, for a pickler whose context is the innermost one, and whose pickle will be read by
    `with_refs`; NotImplemented for what is no reference of the usual kind."""
    found = _describers.get(type(ref))
    noted = contexts.encoding
    if found is None or found[1] or noted is None:
        return NotImplemented
    place = len(noted)
    object_id, owner = found[0](ref)
    noted.append((ref, object_id, owner))
    return _by_place, (_AT_HAND, place)


def refs_at_hand() -> list[Any]:
    """Named by pickles: the references in the value that is being read, in this thread.

    Raises `SerializationError` where there are none: these bytes are read by something else.
    """
    found = contexts.at_hand
    if found is None:
        raise SerializationError("a value with references can only be read together with these")
    return found


def with_refs(load: Callable[[], Any], refs: list[Any]) -> Any:
    """What `load()` unpickles, with these references in their places."""
    outer = contexts.at_hand
    try:
        contexts.at_hand = refs
        return load()
    finally:
        contexts.at_hand = outer


@contextmanager
def noting() -> Iterator[list[NotedRef]]:
    """Note the references that are pickled inside the block (and do not tell the out-of-band hook)."""
    noted: list[NotedRef] = []
    outer = contexts.encoding
    try:
        contexts.encoding = noted
        yield noted
    finally:
        contexts.encoding = outer


@contextmanager
def collecting() -> Iterator[list[Any]]:
    """Collect the references that are made by unpickling inside the block."""
    made: list[Any] = []
    outer = contexts.decoding
    try:
        contexts.decoding = made
        yield made
    finally:
        contexts.decoding = outer
