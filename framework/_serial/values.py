"""Values on the wire: one form for arguments, returns, puts and fetches. All of it is msgpack-able.

=======================================================  =====================================================
None, bool, int of 64 bits, float, ascii str             the value itself (an «atom»)
bytes                                                    in-band pickle of the value
[0, pickle, [[object id, owner], ...], buf, ...]         pickle, references nested in it, out-of-band buffers
[1, object id, owner]                                    a reference that the receiver must fetch itself
[2, ...]                                                 an error, perhaps with references (errors.py)
[3, object id, owner, size, [[id, owner], ...], node]    a value in the store of a node, with the references
                                                         nested in it; `node`: the id of the node that has its
                                                         primary copy, b"" in a session of one machine
=======================================================  =====================================================

A bare ``bytes`` always is a pickle, so bytes of the user are pickled too.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from typing import Any

from framework._base.limits import INLINE_LIMIT, MAX_ATOM_STR
from framework._base.limits import PICKLE_BUFFER as MIN_BUFFER
from framework._serial.culprit import advice_for, find_culprit
from framework._serial.pickler import PROTOCOL, pickle_value
from framework._serial.refs import contexts, rebuild_ref, with_refs
from framework.exceptions import FrameworkError, SerializationError

FORM_PICKLE = 0
FORM_REFERENCE = 1
FORM_ERROR = 2
FORM_STORED = 3

#: kind of an error -> the place of its references, if it has any: see errors.py
_REFS_IN_ERROR = {0: 10, 1: 5}

MIN_INT, MAX_INT = -(2**63), 2**64 - 1
"""What msgpack can hold."""

ATOM_SIZE = 9
"""Bytes that a number takes on the wire at most."""

ATOM_TYPES: frozenset[type] = frozenset((type(None), bool, int, float, str))
"""Exact types whose instances may be atoms; `is_atom` also looks at range and length."""

# Reads one out-of-band buffer as bytes: proto 5, builtins.bytes, NEXT_BUFFER, TUPLE1, REDUCE, STOP.
_BYTES_OF_BUFFER = b"\x80\x05cbuiltins\nbytes\n\x97\x85R."

_dumps, _loads = pickle.dumps, pickle.loads


class Encoded:
    """An encoded value.

    `wire` is its form on the wire, `size` the bytes of its payload, `refs` the reference objects found nested
    in it: the holder keeps them alive for as long as the bytes may be decoded.

    The out-of-band buffers in `wire` are views of the caller's memory. Whoever keeps an Encoded beyond the
    call in which the user handed over the value must call `own` (or copy the buffers into the store) before
    it returns to the user.
    """

    __slots__ = ("refs", "size", "wire")

    def __init__(self, wire: Any, size: int, refs: list[Any]) -> None:
        self.wire = wire
        self.size = size
        self.refs = refs

    def own(self) -> Encoded:
        """Replace buffers that somebody could still write to by copies; returns itself."""
        wire = self.wire
        if type(wire) is list and wire[0] == FORM_PICKLE:
            for place in range(3, len(wire)):
                buffer = base = wire[place]
                while type(base) is memoryview:
                    base = base.obj
                if type(base) is not bytes:
                    wire[place] = bytes(buffer)
        return self

    def __repr__(self) -> str:
        form = type(self.wire).__name__ if type(self.wire) is not list else f"form {self.wire[0]}"
        return f"<Encoded {form} size={self.size} refs={len(self.refs)}>"


def is_atom(value: Any) -> bool:
    """Whether `encode` passes this value on as it is."""
    kind = type(value)
    if kind is str:
        return bool(value.isascii()) and len(value) <= MAX_ATOM_STR
    if kind is int:
        return bool(MIN_INT <= value <= MAX_INT)
    return kind in ATOM_TYPES


def encode(value: Any, *, where: str = "the value", name: str | None = None) -> Encoded:
    """Encode any value.

    `where` says in errors what is being encoded, as in ``the argument 'f' of read_file()``; `name` is what
    the path to a culprit starts with (by default, what stands in quotes in `where`).

    Raises `SerializationError`, with the path to the smallest part that cannot be pickled and the original
    exception as its cause. MemoryError and exceptions that are not `Exception` pass through.
    """
    kind = type(value)
    if kind is str:
        if value.isascii() and len(value) <= MAX_ATOM_STR:
            return Encoded(value, len(value), [])
        payload = _dumps(value, PROTOCOL)
        return Encoded(payload, len(payload), [])
    if kind is int:
        if MIN_INT <= value <= MAX_INT:
            return Encoded(value, ATOM_SIZE, [])
    elif kind in ATOM_TYPES:
        return Encoded(value, ATOM_SIZE, [])
    elif kind is bytes:
        if len(value) >= MIN_BUFFER:  # immutable: no copy needed here, and none at the receiver if inline
            return Encoded([FORM_PICKLE, _BYTES_OF_BUFFER, [], value], len(value) + len(_BYTES_OF_BUFFER), [])
        payload = _dumps(value, PROTOCOL)
        return Encoded(payload, len(payload), [])
    try:
        payload, buffers, noted = pickle_value(value)
    except MemoryError:
        raise
    except Exception as error:
        raise unserializable(value, where, name, error) from error
    if buffers is None and not noted:
        return Encoded(payload, len(payload), [])
    size = len(payload)
    wire: list[Any] = [FORM_PICKLE, payload, [[object_id, owner] for _, object_id, owner in noted]]
    if buffers is not None:
        wire += buffers
        for buffer in buffers:
            size += buffer.nbytes
    return Encoded(wire, size, [ref for ref, _, _ in noted])


def unserializable(value: Any, where: str, name: str | None, error: Exception) -> SerializationError:
    """The error to raise for a value whose pickling raised `error`."""
    if name is None:
        quoted = re.search(r"'([^']+)'", where)
        name = quoted.group(1) if quoted else "value"
    found = find_culprit(value, name, error)
    place = "" if found.path == name else f"at {found.path}: "
    return SerializationError(f"cannot serialize {where}: {place}{found.reason}. {advice_for(found.reason)}")


def decode(wire: Any, refs: list[Any] | None = None) -> Any:
    """The value of an atom, a pickle or form 0. `refs`: those in it (`nested_refs`), where they are at hand;
    else they are made.

    Out-of-band buffers (bytes or memoryviews) are not copied: what is made of them is read-only and keeps
    them alive. Raises `SerializationError`, with the original exception as its cause and a hint, when the
    value cannot be rebuilt, and for references and errors, which the caller handles first.
    """
    kind = type(wire)
    if kind in ATOM_TYPES:
        return wire
    try:
        if kind is bytes:
            return _loads(wire)
        if kind is not list and kind is not tuple:
            return _loads(wire)  # a pickle in a view of the store
        if wire[0] == FORM_PICKLE:
            buffers = [_read_only(buffer) for buffer in wire[3:]]
            if refs is None:
                if not wire[2]:
                    return _loads(wire[1], buffers=buffers)
                refs = make_refs(wire[2])
            return with_refs(lambda: _loads(wire[1], buffers=buffers), refs)
    except FrameworkError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise undecodable("the value", error) from error
    raise SerializationError(f"this wire value is of form {wire[0]!r}: only values can be decoded")


def make_refs(nested: list[Any]) -> list[Any]:
    """References for these entries of `nested_refs`."""
    return [rebuild_ref(bytes(object_id), owner) for object_id, owner in nested]


def decode_all(wires: Iterable[Any]) -> list[Any]:
    """As `decode` for each of these atoms and pickles."""
    atoms, loads = ATOM_TYPES, _loads
    try:
        return [wire if type(wire) in atoms else loads(wire) for wire in wires]
    except FrameworkError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise undecodable("the value", error) from error


def _read_only(buffer: Any) -> Any:
    return buffer if type(buffer) is bytes else memoryview(buffer).toreadonly()


def undecodable(what: str, error: Exception) -> SerializationError:
    """The error to raise when rebuilding `what` raised `error`."""
    hint = "A class whose __init__ needs arguments may have to define __reduce__."
    if isinstance(error, ModuleNotFoundError):
        hint = (
            f"The module {error.name!r} cannot be imported in this process: install it there,"
            " or put its directory on sys.path before init()."
        )
    elif isinstance(error, (AttributeError, ImportError)):
        hint = "The module that is imported here may be another version than where the value was made."
    elif isinstance(error, (pickle.UnpicklingError, EOFError, IndexError, KeyError)):
        hint = "The bytes are damaged, or were written by another version of Python or of a library."
    text = f"{type(error).__name__}: {_safe_text(error)}"
    return SerializationError(f"cannot rebuild {what} in this process: {text}. {hint}")


def _safe_text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its text cannot be shown)"


def decode_with_refs(wire: Any) -> tuple[Any, list[Any]]:
    """As `decode`, and the reference objects that were made on the way (one per entry of `nested_refs`,
    and more where they were not pickled by us, or are of another kind)."""
    if type(wire) in ATOM_TYPES:
        return wire, []
    made: list[Any] = []
    outer = contexts.decoding
    try:
        contexts.decoding = made
        return decode(wire), made
    finally:
        contexts.decoding = outer


def nested_refs(wire: Any) -> list[Any]:
    """``[object id, owner address]`` of each reference nested in the value or error; [] for all other
    forms."""
    if type(wire) is list or type(wire) is tuple:
        refs: list[Any]
        if wire[0] == FORM_PICKLE:
            refs = wire[2]
            return refs
        if wire[0] == FORM_STORED:
            refs = wire[4]
            return refs
        if wire[0] == FORM_ERROR:
            place = _REFS_IN_ERROR.get(wire[1], len(wire))
            refs = wire[place] if place < len(wire) else []
            return refs
    return []


def stored(object_id: bytes, owner: str, size: int, refs: list[Any], node: bytes) -> list[Any]:
    """The wire form of a value in the store (form 3)."""
    return [FORM_STORED, object_id, owner, size, refs, node]


def is_stored(wire: Any) -> bool:
    """Whether this is a value in the store of a node (form 3)."""
    return type(wire) is list and wire[0] == FORM_STORED


def node_of(wire: Any) -> bytes:
    """The id of the node that has the primary copy of a stored value; b"" for all that is no stored value,
    and in a session of one machine."""
    if type(wire) is list and wire[0] == FORM_STORED:
        node: bytes = wire[5]
        return node
    return b""


def must_be_fetched(wire: Any) -> bool:
    """Whether a value is handed on by reference rather than copied into a message: large ones, and those that
    hold references. One in the store is small on the wire: the receiver finds it there."""
    if type(wire) is list and wire[0] == FORM_STORED:
        return False
    return wire_size(wire) > INLINE_LIMIT or bool(nested_refs(wire))


def describe_array(array: Any) -> bytes:
    """The pickle of a contiguous numpy array, all of whose data is one out-of-band buffer.
    `SerializationError` for others.
    """
    buffers: list[Any] = []
    pickled = _dumps(array, PROTOCOL, buffer_callback=buffers.append)
    if len(buffers) != 1:
        raise SerializationError("only contiguous arrays of plain numbers can be sealed in place")
    return pickled


def is_error(wire: Any) -> bool:
    """Whether this is an error (form 2)."""
    return (type(wire) is list or type(wire) is tuple) and wire[0] == FORM_ERROR


def wire_size(wire: Any) -> int:
    """Bytes of payload, as `Encoded.size` has them."""
    kind = type(wire)
    if kind is str:
        return len(wire)
    if kind in ATOM_TYPES:
        return ATOM_SIZE
    if kind is list or kind is tuple:
        if wire[0] == FORM_PICKLE:
            return len(wire[1]) + sum(_length(buffer) for buffer in wire[3:])
        return sum(_length(part) for part in wire[1:])
    return _length(wire)


def _length(part: Any) -> int:
    if type(part) is memoryview:
        return part.nbytes
    return len(part) if isinstance(part, (bytes, bytearray, str)) else ATOM_SIZE
