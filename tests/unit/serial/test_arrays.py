from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pandas as pd
import pytest

from framework._serial.pickler import MIN_BUFFER
from framework._serial.values import decode, encode, wire_size

DTYPES: list[Any] = [
    "?", "i1", "u2", "<i4", ">i4", "i8", "f2", "f4", ">f8", "c8", "c16", "S5", "U3", "V7", "M8[ns]", "m8[s]",
    [("a", "i4"), ("b", "f8", (2,))], [("when", "M8[s]"), ("what", "S3")],
]  # fmt: skip


def layouts(dtype: Any, size: int) -> list[Any]:
    flat = np.frombuffer(bytes(np.dtype(dtype).itemsize * size), dtype=dtype).copy()
    cube = flat.reshape(2, 5, -1)
    return [
        flat, flat[:0], flat[:1].reshape(()), cube, np.asfortranarray(cube), cube.transpose(1, 2, 0),
        flat[::2], flat[::-1], cube[:, 1:3], flat.reshape(-1, 1, 1), np.broadcast_to(flat[:10], (50, 10)),
    ]  # fmt: skip


def round_trip(value: Any) -> Any:
    encoded = encode(value)
    assert encoded.size == wire_size(encoded.wire)
    return decode(msgpack.unpackb(msgpack.packb(encoded.wire)))


@pytest.mark.parametrize("size", [100, 20_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_layout_of_every_dtype(dtype: Any, size: int) -> None:
    for source in layouts(dtype, size):
        result = round_trip(source)
        assert type(result) is np.ndarray
        assert (result.dtype, result.shape) == (source.dtype, source.shape)
        assert result.tobytes() == source.tobytes()
        assert not result.flags.writeable
        assert not result.flags.owndata


def test_large_arrays_are_views_of_what_arrived() -> None:
    encoded = encode({"a": np.arange(10_000), "t": np.zeros(5_000, "M8[s]")})
    store = [memoryview(bytearray(buffer)) for buffer in encoded.wire[3:]]
    assert len(store) == 2
    result = decode([*encoded.wire[:3], *store])
    store[0][0] = 7
    assert result["a"][0] == 7
    assert not result["a"].flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        result["t"][0] = "2000-01-01"


def test_large_arrays_are_not_copied_when_encoded() -> None:
    source = np.zeros(10_000)
    encoded = encode(source)
    assert np.shares_memory(np.frombuffer(encoded.wire[3]), source)
    source[0] = 1
    encoded.own()
    source[0] = 2
    assert decode(encoded.wire)[0] == 1


def test_the_limit_of_out_of_band() -> None:
    assert type(encode(np.zeros(MIN_BUFFER - 1, "u1")).wire) is bytes
    assert len(encode(np.zeros(MIN_BUFFER, "u1")).wire) == 4


@pytest.mark.parametrize("size", [3, 5_000])
def test_object_arrays_and_subclasses(size: int) -> None:
    objects = np.array([{"n": n} for n in range(size)], dtype=object)
    assert (round_trip(objects) == objects).all()
    masked = np.ma.masked_greater(np.arange(size), size // 2)
    result = round_trip(masked)
    assert (result.mask == masked.mask).all()
    assert (result.compressed() == masked.compressed()).all()
    records = np.rec.fromarrays([np.arange(size), np.ones(size)], names="a,b")
    assert type(round_trip(records)) is np.recarray
    assert (round_trip(records).a == records.a).all()


def test_scalars_and_dtypes() -> None:
    for value in (np.float32(1.5), np.int64(3), np.bool_(True), np.datetime64("2020-01-01"), np.dtype("f4")):
        result = round_trip(value)
        assert result == value
        assert type(result) is type(value)


@pytest.mark.parametrize("rows", [0, 4, 2_000])
def test_pandas(rows: int) -> None:
    frame = pd.DataFrame(
        {
            "n": np.arange(rows),
            "x": np.linspace(0, 1, rows),
            "s": [f"row {n}" for n in range(rows)],
            "t": pd.date_range("2020-01-01", periods=rows, freq="h"),
            "c": pd.Categorical(["a", "b", "c", "d", "e"] * (rows // 5) + ["a"] * (rows % 5)),
        }
    )
    pd.testing.assert_frame_equal(round_trip(frame), frame)
    pd.testing.assert_series_equal(round_trip(frame["t"]), frame["t"])
    indexed = frame.set_index(["s", "n"])
    pd.testing.assert_frame_equal(round_trip(indexed), indexed)


def test_numbers_of_a_frame_travel_out_of_band() -> None:
    frame = pd.DataFrame(np.zeros((2_000, 3)))
    encoded = encode(frame)
    assert len(encoded.wire[1]) < 4_000
    assert round_trip(frame).shape == (2_000, 3)
