from __future__ import annotations

import datetime
import math
import pickle
import signal
import sys
import threading
from array import array
from collections import OrderedDict, deque
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from framework import exceptions
from framework._serial import pickler, values
from framework._serial.pickler import MAX_REUSED, MIN_BUFFER, pickle_value
from framework._serial.values import decode, encode, is_atom, is_error, nested_refs, wire_size


def over_the_wire(wire: Any) -> Any:
    return msgpack.unpackb(msgpack.packb(wire), strict_map_key=False)


def round_trip(value: Any) -> Any:
    encoded = encode(value)
    assert encoded.size == wire_size(encoded.wire)
    return decode(over_the_wire(encoded.wire))


atoms = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
hashable = atoms | st.tuples(atoms, atoms) | st.frozensets(atoms, max_size=3)
builtins = st.recursive(
    atoms | st.complex_numbers(allow_nan=False) | st.datetimes() | st.decimals(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(hashable, inner)
        | st.tuples(inner, inner)
        | st.sets(hashable)
        | st.builds(deque, st.lists(inner))
        | st.builds(OrderedDict, st.dictionaries(hashable, inner))
        | st.builds(bytearray, st.binary())
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(builtins)
def test_nested_builtins_round_trip(value: Any) -> None:
    result = round_trip(value)
    assert result == value
    assert type(result) is type(value)


@given(atoms)
def test_the_wire_form_tells_atoms_from_pickles(value: Any) -> None:
    wire = encode(value).wire
    assert (wire is value) == is_atom(value)
    assert is_atom(value) or type(wire) is bytes


@pytest.mark.parametrize(
    "value", [-(2**63), 2**64 - 1, True, None, 1.5, math.inf, "", "a" * values.MAX_ATOM_STR]
)
def test_atoms_at_their_limits(value: Any) -> None:
    assert is_atom(value)
    assert encode(value).wire is value
    assert round_trip(value) == value


@pytest.mark.parametrize(
    "value", [-(2**63) - 1, 2**64, "é", "\ud800", "a" * (values.MAX_ATOM_STR + 1), b"", b"x"]
)
def test_just_beyond_atoms(value: Any) -> None:
    assert not is_atom(value)
    assert type(encode(value).wire) is bytes
    assert round_trip(value) == value


class Number(int):
    pass


class Text(str):
    pass


@pytest.mark.parametrize("value", [Number(3), Text("a"), signal.SIGINT])
def test_subclasses_of_atoms_keep_their_class(value: Any) -> None:
    assert not is_atom(value)
    assert type(round_trip(value)) is type(value)


def test_large_bytes_are_neither_copied_nor_pickled() -> None:
    value = bytes(MIN_BUFFER)
    encoded = encode(value)
    assert encoded.wire[3] is value
    assert decode(encoded.wire) is value
    assert round_trip(value) == value
    from_store = decode([0, encoded.wire[1], [], memoryview(bytearray(value))])
    assert type(from_store) is bytes
    assert from_store == value


@pytest.mark.parametrize("size", [0, 1, 100, MIN_BUFFER, 100_000])
def test_buffers_of_the_standard_library(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert round_trip(bytearray(data)) == bytearray(data)
    assert round_trip(array("d", [1.0] * size)) == array("d", [1.0] * size)
    view = round_trip([memoryview(bytearray(data))])[0]
    assert type(view) is memoryview
    assert view == data
    assert view.readonly
    assert round_trip(pickle.PickleBuffer(data)) == data


def test_views_keep_format_and_shape() -> None:
    grid = memoryview(bytes(4 * 6 * 8)).cast("d", [4, 6])
    result = round_trip(grid)
    assert (result.format, result.shape) == ("d", (4, 6))
    assert round_trip(memoryview(b"abcdef")[::2]).tobytes() == b"ace"
    scalar = round_trip(memoryview(bytes(8)).cast("q", []))
    assert (scalar.format, scalar.shape, scalar.tolist()) == ("q", (), 0)


def test_own_copies_what_the_user_can_still_change() -> None:
    data, constant = bytearray(b"a" * MIN_BUFFER), bytes(MIN_BUFFER)
    encoded = encode([memoryview(data), memoryview(constant), constant])
    kept = encoded.wire[4]
    assert encoded.own() is encoded
    data[0] = 0
    assert decode(encoded.wire)[0][0] == ord("a")
    assert encoded.wire[4] is kept
    assert encode(3).own().wire == 3


class Nests:
    """Encodes in the middle of being pickled, as user code that calls .remote() in a __reduce__ would."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def __reduce__(self) -> Any:
        inner = encode({"depth": Nests(self.depth - 1)} if self.depth else "end", where="inner")
        return decode, (inner.wire,)


def test_encode_inside_reduce() -> None:
    assert round_trip([Nests(3), Nests(0)]) == [{"depth": {"depth": {"depth": "end"}}}, "end"]


class Fails:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def test_encode_works_after_failures() -> None:
    for error in (ValueError("no"), KeyboardInterrupt(), MemoryError()):
        with pytest.raises(BaseException):
            encode([bytearray(100), memoryview(bytes(MIN_BUFFER)), Fails(error)])
        assert round_trip([1, (2,)]) == [1, (2,)]


def test_interrupts_and_lack_of_memory_pass_through() -> None:
    for error in (KeyboardInterrupt(), SystemExit(), MemoryError()):
        with pytest.raises(type(error)):
            encode(Fails(error))


def test_what_was_pickled_is_not_kept_alive() -> None:
    class Local:
        pass

    local = Local()
    before = sys.getrefcount(local)
    encode([local])
    encode([local, bytes(MAX_REUSED * 2)])
    assert sys.getrefcount(local) == before


def test_same_object_in_one_value_stays_the_same_but_not_across_values() -> None:
    shared = [1]
    first, second = round_trip([shared, shared])
    assert first is second
    assert decode(encode([shared]).wire) == decode(encode([shared]).wire) == [[1]]


def test_threads_do_not_disturb_each_other() -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        for step in range(200):
            value = {"n": number, "step": [step] * 5, "d": datetime.timedelta(step)}
            if decode(encode(value).wire) != value:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_functions_and_classes_by_value() -> None:
    factor = 3

    class Local:
        def times(self, x: int) -> int:
            return x * factor

    assert round_trip(lambda x: x + factor)(1) == 4
    assert round_trip(Local)().times(2) == 6
    assert round_trip(Local()).times(2) == 6
    assert round_trip([Local().times])[0](5) == 15


def test_functions_and_classes_by_reference() -> None:
    assert round_trip([Number, round_trip, math.sin, len, type(None), type(...)]) == [
        Number, round_trip, math.sin, len, type(None), type(...),
    ]  # fmt: skip
    assert len(encode(Number).wire) < 200


def test_main_functions_share_their_globals_within_one_value() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("count = 0\ndef up():\n    global count\n    count += 1\ndef get():\n    return count", space)
    up, get = round_trip((space["up"], space["get"]))
    up()
    assert get() == 1
    again, _ = pickle_value(space["get"])[:2]
    assert pickle.loads(again)() == 0


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def test_deep_recursion_is_an_error_and_no_crash() -> None:
    with pytest.raises(exceptions.SerializationError, match="nested too deeply") as caught:
        encode(deep(20_000), where="the argument 'tree' of walk()")
    assert "'tree' of walk()" in str(caught.value)
    assert round_trip(deep(100)) == deep(100)


class NeedsArguments(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} {b}")


def test_what_cannot_be_rebuilt_says_why() -> None:
    with pytest.raises(exceptions.SerializationError, match="__reduce__") as caught:
        round_trip(NeedsArguments(1, 2))
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(exceptions.SerializationError, match="'no_such_module_here' cannot be imported"):
        decode(b"cno_such_module_here\nname\n.")
    with pytest.raises(exceptions.SerializationError, match="another version"):
        decode(b"cmath\nno_such_name\n.")


@given(st.binary(max_size=30))
@example(b"\x8e\x00\x00\x00\x00\x00\x00\x00\x01")
def test_damaged_bytes_never_raise_anything_else(junk: bytes) -> None:
    # Without GLOBAL, INST, STACK_GLOBAL, EXT: those would import what the junk names.
    junk = junk.translate(None, b"ci\x93\x82\x83\x84")
    for wire in (junk, [0, junk, []], [0, junk, [], b"x"]):
        try:
            decode(wire)
        except (exceptions.SerializationError, MemoryError):  # damage can make a length of 8 bytes huge
            pass


@pytest.mark.parametrize("wire", [[1, bytes(28), "owner"], [2, 1, b"", "", ""], [9], []])
def test_other_forms_are_not_values(wire: list[Any]) -> None:
    with pytest.raises(exceptions.SerializationError):
        decode(wire)


def test_tuples_serve_as_well_as_lists() -> None:
    wire = encode([memoryview(bytes(MIN_BUFFER)), 1]).wire
    assert decode(tuple(wire))[1] == 1
    assert decode(memoryview(encode((1, 2)).wire)) == (1, 2)


def test_questions_about_wire_values() -> None:
    assert not is_error(encode([1]).wire)
    assert not is_error(3)
    assert is_error([2, 0])
    assert nested_refs(b"") == nested_refs(None) == nested_refs([1, b"", ""]) == []
    assert nested_refs([0, b"", [[b"id", "owner"]]]) == [[b"id", "owner"]]
    assert wire_size("abc") == 3
    assert wire_size([1, bytes(28), "addr"]) == 32
    assert "form 0" in repr(encode(bytes(MIN_BUFFER)))
    assert "int" in repr(encode(1))


def test_a_kept_pickler_remembers_no_globals() -> None:
    # They are known by id(): the next module's globals may get the id of some that are gone.
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("def f():\n    return 1", space)
    encode([space["f"]])
    encoder = pickler._spare.encoder
    assert encoder is not None
    assert not encoder.pickler.globals_ref


def test_many_are_decoded_as_one_by_one() -> None:
    given: list[Any] = [None, 1, "two", 3.0, True, b"bytes", {"a": [1, 2]}, "x" * 10_000]
    wires = [encode(value, where="here").own().wire for value in given]
    assert values.decode_all(iter(wires)) == given == [decode(wire) for wire in wires]
    wrong = pickle.dumps(Unloadable())
    for wire in (b"", b"no pickle", wrong):
        with pytest.raises(exceptions.SerializationError) as apart:
            decode(wire)
        with pytest.raises(exceptions.SerializationError) as together:
            values.decode_all([*wires, wire])
        assert str(apart.value) == str(together.value)
        assert type(apart.value.__cause__) is type(together.value.__cause__)


def _raise() -> None:
    raise LookupError("it cannot be made again")


class Unloadable:
    def __reduce__(self) -> Any:
        return _raise, ()
