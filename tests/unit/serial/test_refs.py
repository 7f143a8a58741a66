from __future__ import annotations

import gc
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._serial import refs
from framework._serial.culprit import find_culprit
from framework._serial.functions import dump_function, load_function
from framework._serial.private import decode_private
from framework._serial.values import decode, decode_with_refs, encode, nested_refs
from framework.exceptions import SerializationError


class FakeRef:
    def __init__(self, object_id: bytes, owner: str = "unix:/owner") -> None:
        self.object_id, self.owner = object_id, owner

    def __reduce__(self) -> Any:
        return refs.reduce_ref(self)


class SubRef(FakeRef):
    pass


class StreamRef(FakeRef):
    pass


def describe(ref: FakeRef) -> tuple[bytes, str]:
    return ref.object_id, ref.owner


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeRef]]:
    monkeypatch.setattr(refs, "_describers", {})
    monkeypatch.setattr(refs, "_rebuilders", {})
    refs.register_ref_type(FakeRef, describe, FakeRef)
    refs.register_ref_type(StreamRef, describe, StreamRef, kind="stream")
    told: list[FakeRef] = []
    refs.set_out_of_band_hook(told.append)
    yield told
    refs.set_out_of_band_hook(None)


def new_ref(number: int) -> FakeRef:
    return FakeRef(number.to_bytes(28, "little"))


structures = st.recursive(
    st.integers(0, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=20,
)


def with_refs(shape: Any, pool: list[FakeRef], used: list[FakeRef]) -> Any:
    """The structure with references of the pool in place of its numbers."""
    if isinstance(shape, int):
        used.append(pool[shape])
        return pool[shape]
    if isinstance(shape, dict):
        return {key: with_refs(part, pool, used) for key, part in shape.items()}
    if isinstance(shape, (list, tuple)):
        return type(shape)(with_refs(part, pool, used) for part in shape)
    return shape


@pytest.mark.slow
@given(structures)
def test_counted_exactly(shape: Any) -> None:
    used: list[FakeRef] = []
    value = with_refs(shape, [new_ref(number) for number in range(6)], used)
    encoded = encode(value)
    distinct = list({id(ref): ref for ref in used}.values())
    assert encoded.refs == distinct
    assert nested_refs(encoded.wire) == [[ref.object_id, ref.owner] for ref in distinct]
    _, made = decode_with_refs(encoded.wire)
    assert [ref.object_id for ref in made] == [ref.object_id for ref in distinct]


def test_two_handles_of_one_object_are_two() -> None:
    encoded = encode([new_ref(1), new_ref(1)])
    assert len(encoded.refs) == len(nested_refs(encoded.wire)) == 2
    assert len(decode_with_refs(encoded.wire)[1]) == 2


def test_encoded_holds_the_references(registered: list[FakeRef]) -> None:
    ref = new_ref(1)
    gone = weakref.ref(ref)
    encoded = encode([ref])
    del ref
    gc.collect()
    assert gone() is encoded.refs[0]
    del encoded
    gc.collect()
    assert gone() is None
    assert registered == []


def test_subclasses_and_other_kinds() -> None:
    value, made = decode_with_refs(encode([SubRef(bytes(28)), StreamRef(bytes(28))]).wire)
    assert [type(ref) for ref in value] == [FakeRef, StreamRef]
    assert all(ref in made for ref in value)


def test_pickled_by_the_user(registered: list[FakeRef]) -> None:
    ref = new_ref(1)
    assert pickle.loads(pickle.dumps(ref)).object_id == ref.object_id
    assert registered == [ref]
    cloudpickle.dumps([ref])
    assert registered == [ref, ref]


def test_decode_without_collecting() -> None:
    assert decode(encode([new_ref(4)]).wire)[0].object_id == new_ref(4).object_id
    assert decode_with_refs(5) == (5, [])


@pytest.mark.parametrize("read", [decode, decode_private])
def test_references_at_hand_are_not_made_again(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = new_ref(1), new_ref(2)
    encoded = encode({"a": [first, second], "b": (first, 5), "c": np.zeros(3)})
    monkeypatch.setattr(refs, "_rebuilders", {})
    value = read(encoded.wire, encoded.refs)
    assert value["a"][0] is first and value["a"][1] is second and value["b"][0] is first
    assert refs.contexts.at_hand is None


def test_ids_travel_once() -> None:
    encoded = encode([new_ref(number) for number in range(100)])
    assert new_ref(7).object_id not in encoded.wire[1]
    assert len(encoded.wire[1]) < 100 * 12


class Inner:
    """Carries a pickle that the user has made, and reads it when it is asked to."""

    def __init__(self, ref: FakeRef) -> None:
        self.ref = ref

    def __reduce__(self) -> Any:
        return bytes, (pickle.dumps([self.ref]),)


def test_what_the_user_pickles_within_a_value_can_be_read_by_itself() -> None:
    one, other = new_ref(1), new_ref(2)
    encoded = encode([one, Inner(other), one])
    assert [ref.object_id for ref in encoded.refs] == [one.object_id, other.object_id]
    value = decode(encoded.wire, encoded.refs)
    assert value[0] is value[2] is one
    assert pickle.loads(value[1])[0].object_id == other.object_id


def test_a_value_with_references_is_not_read_without_them() -> None:
    payload = encode([new_ref(1)]).wire[1]
    with pytest.raises(SerializationError, match="together with"):
        decode(payload)
    with pytest.raises(SerializationError):
        decode([0, b"junk", []], [new_ref(1)])
    assert refs.contexts.at_hand is None


class Wraps:
    """Carries an inner encoding, made while the outer one runs."""

    def __init__(self, ref: FakeRef) -> None:
        self.ref = ref
        self.inner: Any = None

    def __reduce__(self) -> Any:
        self.inner = encode([self.ref])
        return decode, (self.inner.wire,)


def test_nested_encodes_note_their_own(registered: list[FakeRef]) -> None:
    inner, before, after = new_ref(1), new_ref(2), new_ref(3)
    wraps = Wraps(inner)
    encoded = encode([before, wraps, after])
    assert encoded.refs == [before, after]
    assert wraps.inner.refs == [inner]
    value, made = decode_with_refs(encoded.wire)
    assert [ref.object_id for ref in made] == [ref.object_id for ref in (before, after, inner)]
    assert value[0] is made[0] and value[1][0] is made[2] and value[2] is made[1]
    assert registered == []


class Broken:
    def __reduce__(self) -> Any:
        raise ValueError("no")


def test_a_failed_encode_leaves_no_context(registered: list[FakeRef]) -> None:
    ref = new_ref(1)
    with pytest.raises(SerializationError):
        encode([ref, Broken()])
    assert registered == []  # neither by the attempt nor by the search for the culprit
    pickle.dumps(ref)
    assert registered == [ref]
    assert encode([Broken]).refs == []


def test_the_search_for_a_culprit_pins_nothing(registered: list[FakeRef]) -> None:
    assert find_culprit([new_ref(1), threading.Lock()], "x").path == "x[1]"
    assert registered == []


def test_contexts_are_per_thread(registered: list[FakeRef]) -> None:
    ref = new_ref(1)
    with refs.noting() as noted:
        thread = threading.Thread(target=pickle.dumps, args=(ref,))
        thread.start()
        thread.join()
    assert noted == []
    assert registered == [ref]


def test_a_process_without_the_class_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = encode([new_ref(1)]).wire
    monkeypatch.setattr(refs, "_rebuilders", {})
    with pytest.raises(SerializationError, match="import framework"):
        decode(wire)
    monkeypatch.setattr(refs, "_describers", {})
    with pytest.raises(SerializationError, match="not registered"):
        encode([new_ref(1)])


def test_captured_by_functions() -> None:
    ref = new_ref(3)
    _, payload, captured = dump_function(lambda: ref)
    assert captured == [ref]
    with refs.collecting() as made:
        assert load_function(payload)() is made[0]


def test_decoding_leaves_no_context() -> None:
    decode_with_refs(encode([new_ref(1)]).wire)
    assert refs.contexts.decoding is None
    with pytest.raises(SerializationError):
        decode_with_refs(b"junk")
    assert refs.contexts.decoding is None
