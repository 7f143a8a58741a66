"""The pickler that is kept and used again: nothing of one value may get into another, whatever comes between
them."""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework._serial import pickler
from framework._serial.pickler import MAX_REUSED, MIN_BUFFER, pickle_in_band, pickle_value, why_not
from framework._serial.refs import contexts, reduce_ref, register_ref_type, set_out_of_band_hook


class Reference:
    """What the owner of a reference class registers."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return reduce_ref(self)


register_ref_type(
    Reference,
    lambda ref: (ref.number.to_bytes(28, "big"), "unix:owner"),
    lambda object_id, _: Reference(int.from_bytes(object_id, "big")),
    kind="pickler test",
)


def back(value: Any) -> Any:
    payload, buffers, _ = pickle_value(value)
    return pickle.loads(payload, buffers=[buffer.toreadonly() for buffer in buffers or ()])


class Calls:
    """Runs something while it is pickled."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return (str, (repr(self.what()),))


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=40)
@given(st.lists(VALUES, min_size=2, max_size=5))
def test_values_one_after_the_other(values: list[Any]) -> None:
    shared = [1, 2]
    for value in values:
        assert back([value, shared, shared]) == [value, shared, shared]
        one, _, same = back([shared, value, shared])
        assert one is same, "what was the same object stays one, within one value"


def test_the_pickler_is_taken_while_it_is_used() -> None:
    inner: list[Any] = []
    outer = ["before", Calls(lambda: inner.append(back({"in": "between"})) or "called"), "after"]
    assert back(outer) == ["before", "'called'", "after"]
    assert inner == [{"in": "between"}]


def test_a_pickler_that_failed_leaves_nothing_behind() -> None:
    marker = ["half", "written"]
    for _ in range(3):
        with pytest.raises(TypeError):
            pickle_value([marker, Reference(1), np.zeros(MIN_BUFFER), threading.Lock()])
        assert contexts.encoding is None
        payload, buffers, noted = pickle_value([marker])
        assert (pickle.loads(payload), buffers, noted) == ([marker], None, [])


def test_a_large_memo_is_not_kept() -> None:
    pickle_value([])
    kept = pickler._spare.encoder
    assert kept is not None
    pickle_value([str(number) for number in range(MAX_REUSED)])
    assert pickler._spare.encoder is None
    assert back([1]) == [1]


def test_values_are_not_kept_alive() -> None:
    value = [np.zeros(MIN_BUFFER), ["inner"]]
    before = sys.getrefcount(value[1])
    _, buffers, _ = pickle_value(value)
    after = sys.getrefcount(value[1])
    assert after == before
    assert buffers is not None
    encoder = pickler._spare.encoder
    assert encoder is not None
    assert encoder.buffers == [], "nor are their buffers"


def test_threads_do_not_share() -> None:
    wrong: list[Any] = []

    def run(name: str) -> None:
        for number in range(300):
            if back({"name": name, "number": number}) != {"name": name, "number": number}:
                wrong.append((name, number))

    threads = [threading.Thread(target=run, args=(f"thread {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_each_reference_is_noted_and_none_goes_to_the_hook() -> None:
    told: list[Any] = []
    set_out_of_band_hook(told.append)
    try:
        one, two = Reference(1), Reference(2)
        _, _, noted = pickle_value({"a": one, "b": [two, one]})
        assert {ref.number for ref, _, _ in noted} == {1, 2}
        assert {owner for _, _, owner in noted} == {"unix:owner"}
        payload, more = pickle_in_band([two])
        assert [ref for ref, _, _ in more] == [two]
        assert pickle.loads(payload)[0].number == 2
        assert why_not([one]) is None
        assert told == []
        pickle.dumps(one)
        assert told == [one], "only what the user pickles himself"
    finally:
        set_out_of_band_hook(None)


def test_a_value_that_is_pickled_inside_of_another_notes_for_itself() -> None:
    inner: list[Any] = []
    outer = [Reference(1), Calls(lambda: inner.extend(pickle_value(Reference(2))[2])), Reference(3)]
    _, _, noted = pickle_value(outer)
    assert [ref.number for ref, _, _ in noted] == [1, 3]
    assert [ref.number for ref, _, _ in inner] == [2]


@pytest.mark.parametrize("size", [0, 1, MIN_BUFFER - 1, MIN_BUFFER, 3 * MIN_BUFFER])
def test_only_large_buffers_go_beside_the_pickle(size: int) -> None:
    array = np.arange(size, dtype=np.uint8)
    payload, buffers, _ = pickle_value(array)
    assert (buffers is not None) == (size >= MIN_BUFFER)
    if buffers is not None:
        assert len(payload) < 1_000
        assert np.shares_memory(np.frombuffer(buffers[0], np.uint8), array), "the caller's memory, no copy"
    found = back(array)
    assert (found == array).all()
    assert not found.flags.writeable
    assert (pickle.loads(pickle_in_band(array)[0]) == array).all(), "in one piece too"


def test_arrays_of_every_layout_arrive_as_they_were() -> None:
    base = np.arange(40_000, dtype="f8").reshape(200, 200)
    for array in (base, base.T, base[::2, 1:], np.asfortranarray(base), base.astype("M8[s]"), base[0:0]):
        found = back(array)
        assert (found == array).all()
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        assert not found.flags.writeable


def test_views_of_memory() -> None:
    data = bytearray(range(200)) * 100
    for view in (memoryview(data), memoryview(data)[::3], memoryview(data).cast("I", (500, 10))):
        found = back(view)
        assert isinstance(found, memoryview)
        assert found.readonly
        assert (found.tobytes(), found.shape) == (view.tobytes(), view.shape)


def local_function() -> Callable[[int], int]:
    step = 3
    return lambda value: value + step


def test_what_an_import_finds_goes_by_name_and_the_rest_by_value() -> None:
    assert back(local_function())(4) == 7
    by_name, _ = pickle_in_band(np.linalg.norm)
    assert len(by_name) < 100
    assert back(np.linalg.norm) is np.linalg.norm

    class Local:
        answer = 42

    assert back(Local).answer == 42
    assert back(Local()).answer == 42
    assert back(io.StringIO) is io.StringIO


def test_types_that_are_registered_later_count() -> None:
    class Late:
        pass

    pickle_value([1])
    copyreg.pickle(Late, lambda _: "registered")  # type: ignore[arg-type, return-value]
    try:
        with pytest.raises(pickle.PicklingError):
            pickle_value(Late())  # a string names a global, which there is none of
    finally:
        del copyreg.dispatch_table[Late]


def test_open_files_are_refused_and_standard_streams_are_not() -> None:
    with open(__file__) as file:
        error = why_not({"file": file})
    assert isinstance(error, TypeError)
    assert "TextIOWrapper" in str(error)
    assert error.__traceback__ is None, "which would keep the value alive"
    assert why_not([1, "a", None]) is None
