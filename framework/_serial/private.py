"""Decoding into memory of one's own: what `get(copy=True)` gives.

A copy is made while the value is rebuilt, buffer by buffer, and not of the finished object: that would fail
for what cannot be copied (memoryviews) and leave read-only what copies by reference.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from framework._serial import values
from framework._serial.pickler import _rebuild_view
from framework._serial.refs import with_refs
from framework.exceptions import FrameworkError


def _writable(buffer: Any) -> Any:
    """The same bytes, as memory that belongs to the caller."""
    if isinstance(buffer, bytes):
        return bytearray(buffer)
    view = memoryview(buffer)
    return bytearray(view) if view.readonly else buffer


def _writable_view(buffer: Any, form: Any, shape: tuple[int, ...]) -> memoryview:
    view = memoryview(_writable(buffer))
    return view if form == "B" and len(shape) == 1 else view.cast(form, shape)


class _PrivateUnpickler(pickle.Unpickler):
    """Rebuilds arrays and memoryviews as writable ones, also those whose bytes are inside the pickle."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if name == "_frombuffer" and module.startswith("numpy"):
            return lambda buffer, *rest: found(_writable(buffer), *rest)
        return _writable_view if found is _rebuild_view else found


def decode_private(wire: Any, refs: list[Any] | None = None) -> Any:
    """As `values.decode`, into private, writable memory."""
    kind = type(wire)
    if kind in values.ATOM_TYPES:
        return wire
    buffers: list[Any] = []
    pickled = wire
    if kind is list or kind is tuple:
        if wire[0] != values.FORM_PICKLE:
            return values.decode(wire)  # says what is wrong with it
        pickled, buffers = wire[1], [bytearray(buffer) for buffer in wire[3:]]
        if refs is None and wire[2]:
            refs = values.make_refs(wire[2])
    try:
        return with_refs(_PrivateUnpickler(io.BytesIO(pickled), buffers=buffers).load, refs or [])
    except (FrameworkError, MemoryError):
        raise
    except Exception as error:
        raise values.undecodable("the value", error) from error
