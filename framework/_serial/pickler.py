"""The one pickler: cloudpickle's rules, made fast, with buffers out-of-band and references noted.

What differs from `cloudpickle.Pickler`:

- the type dispatch is one dict look-up; classes and functions that an import finds take a short cut
(cloudpickle
  walks through modules for each);
- numpy arrays always arrive read-only, small or large, contiguous or not: code that changes an argument in
place
  fails with the first small test, not with the first large input. datetime64 goes out-of-band too;
- memoryviews arrive as (read-only) memoryviews; open files are refused instead of being read into the pickle.

A pickler is kept per thread and used again, which saves half the time of a small value. It is taken away from
the thread while it is in use, so code that runs in the middle (a ``__reduce__``, a finalizer, a signal
handler) may pickle too: it gets another. A pickler that failed is dropped.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import cloudpickle

from framework._base.limits import PICKLE_BUFFER as MIN_BUFFER
from framework._base.limits import PICKLER_REUSED as MAX_REUSED
from framework._serial.refs import NotedRef, contexts, noting, reduce_by_place

PROTOCOL = 5

_base_dump = pickle.Pickler.dump
_registered_by_value: Callable[[], set[str]] = cloudpickle.list_registry_pickle_by_value


def _reduce_text_file(file: io.TextIOWrapper) -> Any:
    if file in (sys.stdout, sys.stderr):
        return _cloudpickle_text_file(file)
    raise TypeError(f"cannot pickle '{type(file).__module__}.{type(file).__qualname__}' object")


def _rebuild_view(buffer: Any, form: Any, shape: tuple[int, ...]) -> memoryview:
    view = memoryview(buffer).toreadonly()
    return view if form == "B" and len(shape) == 1 else view.cast(form, shape)


def _reduce_view(view: memoryview) -> Any:
    form: str = view.format
    shape: tuple[int, ...] = view.shape or ()
    # cast() knows one-letter native formats and non-empty shapes; of others the bytes arrive.
    if len(form.lstrip("@")) != 1 or 0 in shape:
        form, shape = "B", (view.nbytes,)
    content = pickle.PickleBuffer(view.toreadonly()) if view.c_contiguous else view.tobytes()
    return _rebuild_view, (content, form.lstrip("@"), shape)


def _view_as(array: Any, dtype: Any) -> Any:
    return array.view(dtype)


def _reduce_array(array: Any) -> Any:
    """Reduce an exact numpy.ndarray so that it arrives as a read-only view of one buffer."""
    dtype = array.dtype
    if dtype.hasobject:
        return NotImplemented
    if not array.flags.forc:
        array = array.copy(order="C")
    reduced = array.__reduce_ex__(PROTOCOL)
    arguments = reduced[1]
    if not isinstance(arguments[0], pickle.PickleBuffer):
        # numpy cannot export datetime64 and the like, and would copy them: send them as opaque items.
        return (_view_as, (array.view(f"V{dtype.itemsize}"), dtype)) if dtype.itemsize else reduced
    if array.nbytes < MIN_BUFFER:
        return (reduced[0], (bytes(arguments[0].raw()), *arguments[1:]), *reduced[2:])
    return reduced


_REDUCERS: dict[type, Callable[[Any], Any]] = dict(cloudpickle.Pickler.dispatch_table.maps[0])
_cloudpickle_text_file = _REDUCERS[io.TextIOWrapper]
_REDUCERS[io.TextIOWrapper] = _reduce_text_file
_REDUCERS[memoryview] = _reduce_view
_late_types = {"numpy": ("ndarray", _reduce_array)}
"""Types of packages that are not imported on our account; they move to _REDUCERS once somebody has."""


def _learn_late_types() -> None:
    for module_name, (type_name, reducer) in list(_late_types.items()):
        # A package in the middle of its import may lack the name: look again next time.
        found = getattr(sys.modules.get(module_name), type_name, None)
        if found is not None:
            _REDUCERS[found] = reducer
            _late_types.pop(module_name, None)


def _imported_as_named(thing: Any) -> bool:
    """Whether `thing` (a class or function) is certainly found by importing its module, by a quick look.

    False only means that cloudpickle has to take a closer look.
    """
    module_name = thing.__module__
    if type(module_name) is not str or module_name == "__main__":
        return False
    module = sys.modules.get(module_name)
    if module is None or getattr(module, "__dict__", _EMPTY).get(thing.__qualname__) is not thing:
        return False
    return not _registered_by_value()


_EMPTY: dict[str, object] = {}


class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """Writes by `write`; buffers of `MIN_BUFFER` bytes or more go to `buffers` when there is such a list."""

    # The plain dict (and not cloudpickle's ChainMap) is what the C pickler looks up without calling Python.
    # It is the live one, so later registrations count; cloudpickle's own entries are served by
    # reducer_override.
    dispatch_table = copyreg.dispatch_table

    def __init__(self, write: Callable[[bytes], object], buffers: list[memoryview] | None) -> None:
        def keep(buffer: pickle.PickleBuffer) -> bool:
            assert buffers is not None
            try:
                raw = buffer.raw()
            except BufferError:  # not contiguous
                return True
            if raw.nbytes < MIN_BUFFER:
                return True
            buffers.append(raw)
            return False

        self._by_place = buffers is not None  #: references are pickled by their places in what is noted
        super().__init__(_Sink(write), PROTOCOL, None if buffers is None else keep)

    def reducer_override(self, obj: Any) -> Any:
        """Called by C for all but the exact builtin types; NotImplemented leaves it to the usual rules."""
        kind = type(obj)
        if _late_types:
            _learn_late_types()
        reducer = _REDUCERS.get(kind)
        if reducer is not None:
            return reducer(obj)
        if kind is FunctionType:
            return NotImplemented if _imported_as_named(obj) else self._function_reduce(obj)
        if issubclass(kind, type):
            return NotImplemented if _imported_as_named(obj) else super().reducer_override(obj)
        return reduce_by_place(obj) if self._by_place else NotImplemented


class _Sink:
    """The file that a pickler writes to; takes whole frames, and large byte strings as they are."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write


class _Encoder:
    __slots__ = ("buffers", "parts", "pickler")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.buffers: list[memoryview] = []
        self.pickler = ValuePickler(self.parts.append, self.buffers)


class _Spare(threading.local):
    encoder: _Encoder | None = None


_spare = _Spare()


def pickle_value(value: object) -> tuple[bytes, list[memoryview] | None, list[NotedRef]]:
    """Pickle with large buffers out-of-band: (pickle, buffers or None, references met).

    The buffers are the caller's memory, not copies. Raises whatever the pickling raises.
    """
    encoder = _spare.encoder or _Encoder()
    _spare.encoder = None
    noted: list[NotedRef] = []
    outer = contexts.encoding
    try:
        contexts.encoding = noted
        _base_dump(encoder.pickler, value)
    finally:
        contexts.encoding = outer
    parts = encoder.parts
    payload = parts[0] if len(parts) == 1 else b"".join(parts)
    buffers = None
    if encoder.buffers:
        buffers = encoder.buffers[:]
        encoder.buffers.clear()
    if len(payload) <= MAX_REUSED:
        parts.clear()
        pickler = encoder.pickler
        pickler.clear_memo()
        if pickler.globals_ref:
            pickler.globals_ref.clear()
        _spare.encoder = encoder
    return payload, buffers, noted


def pickle_in_band(value: object) -> tuple[bytes, list[NotedRef]]:
    """Pickle into one byte string: (pickle, references met). Raises whatever the pickling raises."""
    parts: list[bytes] = []
    with noting() as noted:
        _base_dump(ValuePickler(parts.append, None), value)
    return b"".join(parts), noted


def _forget(written: object) -> None:
    """A file for pickles that nobody wants."""


def why_not(value: object) -> Exception | None:
    """The exception that pickling `value` raises, or None. Keeps neither the pickle nor references."""
    try:
        with noting():
            _base_dump(ValuePickler(_forget, None), value)
    except Exception as error:
        return error.with_traceback(None)
    return None
