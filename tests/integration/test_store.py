"""The object store: views of shared memory, private copies, arrays made in place, and what must come back
unchanged whatever its shape.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework._runtime.current import current
from framework.exceptions import SerializationError
from framework.util.state import store_stats
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MIB = 1 << 20
LIMIT = 30


@pytest.fixture(scope="module")
def store(session_root: Path) -> Iterator[object]:
    with fw.init(num_cpus=2, log_to_driver=False, object_store_memory=256 * MIB) as context:
        yield context


@pytest.fixture(autouse=True)
def nothing_is_left(store: object) -> Iterator[None]:
    yield
    gc.collect()
    assert_empty()


def assert_empty() -> None:
    def empty() -> bool:
        stats = store_stats()
        return not (stats["objects"] or stats["pins"] or stats["spilled_bytes"] or stats["waiting"])

    wait_until(empty, 10, "an empty store")


def get(what: Any, **options: Any) -> Any:
    return fw.get(what, timeout=LIMIT, **options)


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


@fw.remote
def place_of(array: Any) -> tuple[bool, bool, int]:
    """(owns its data, writable, offset in the arena)."""
    arena = current().store.client._opened()
    return array.flags.owndata, array.flags.writeable, address(array) - arena.address()


# ---- zero copy ---------------------------------------------------------------------------------------


def test_two_processes_see_the_same_memory(store: object) -> None:
    ref = fw.put(np.arange(1_000_000))
    first, second = get(ref), get([ref])[0]
    assert np.shares_memory(first, second)
    assert not first.flags.owndata and not first.flags.writeable
    here = address(first) - current().store.client._opened().address()
    assert get(place_of.remote(ref)) == (False, False, here)
    assert get([place_of.remote(ref) for _ in range(4)]) == [(False, False, here)] * 4


def test_arguments_and_results_are_views_too(store: object) -> None:
    @fw.remote
    def make() -> Any:
        return np.full(500_000, 7.0)

    result = get(make.remote())
    assert not result.flags.owndata and not result.flags.writeable and result[-1] == 7
    owns, writable, _ = get(place_of.remote(np.ones(500_000)))
    assert not owns and not writable


class Carrier:
    """A class with an out-of-band buffer of its own."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Carrier, (pickle.PickleBuffer(self.data),)


@dataclasses.dataclass
class Holder:
    name: str
    array: Any


def test_frames_tables_buffers_and_objects_are_views(store: object) -> None:
    pandas = pytest.importorskip("pandas")
    arena = current().store.client._opened()

    def inside(array: Any) -> bool:
        return arena.address() <= address(array) < arena.address() + arena.capacity

    frame = pandas.DataFrame({"a": np.arange(100_000), "b": np.arange(100_000) * 0.5})
    found = get(fw.put(frame))
    pandas.testing.assert_frame_equal(found, frame)
    assert inside(found["a"].to_numpy()) and inside(found["b"].to_numpy())
    with pytest.raises(ValueError, match="read-only"):
        found.iloc[0, 0] = 1

    data = bytes(range(256)) * 1000
    view = get(fw.put(memoryview(data)))
    assert isinstance(view, memoryview) and view.readonly and view == data
    assert inside(np.frombuffer(view, np.uint8))
    assert get(fw.put(data)) == data and get(fw.put(bytearray(data))) == bytearray(data)

    carrier = get(fw.put(Carrier(data)))
    assert bytes(carrier.data) == data and inside(np.frombuffer(carrier.data, np.uint8))
    holder = get(fw.put([Holder("x", np.arange(50_000))]))[0]
    assert holder.name == "x" and inside(holder.array)


def test_arrow_tables_are_views(store: object) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"x": np.arange(200_000), "y": ["text"] * 200_000})
    found = get(fw.put(table))
    assert found.equals(table)
    arena = current().store.client._opened()
    place = found["x"].chunk(0).buffers()[1].address
    assert arena.address() <= place < arena.address() + arena.capacity


def test_writing_to_a_view_is_numpys_error(store: object) -> None:
    view = get(fw.put(np.zeros(100_000)))
    with pytest.raises(ValueError, match="assignment destination is read-only"):
        view[0] = 1
    with pytest.raises(ValueError):
        view += 1
    with pytest.raises(ValueError):
        view.flags.writeable = True

    @fw.remote
    def write(array: Any) -> None:
        array[0] = 1

    with pytest.raises(ValueError, match="read-only"):
        get(write.remote(view))


def test_a_copy_is_private_and_writable(store: object) -> None:
    for size in (10, 100_000):
        times = np.arange(size).astype("M8[s]")
        ref = fw.put({"a": np.arange(size), "v": memoryview(bytes(size)), "t": times})
        for copy in (get(ref, copy=True), get([ref], copy=True)[0]):
            copy["a"][:] = -1
            copy["v"][0] = 7
            copy["t"][0] = copy["t"][1]
            assert (copy["a"] == -1).all() and copy["v"][0] == 7
        kept = get(ref)
        assert (kept["a"] == np.arange(size)).all() and kept["v"][0] == 0
        assert kept["t"][0] != kept["t"][1]
        same = np.arange(size)
        twice = get(fw.put([same, same]), copy=True)
        assert twice[0] is twice[1]


def test_a_copied_frame_is_writable(store: object) -> None:
    pandas = pytest.importorskip("pandas")
    for size in (10, 100_000):
        ref = fw.put(pandas.DataFrame({"a": np.arange(size), "s": ["x"] * size}))
        copy = get(ref, copy=True)
        copy.iloc[0, 0] = 99
        copy["a"].to_numpy()
        assert copy.iloc[0, 0] == 99 and get(ref).iloc[0, 0] == 0


def test_a_view_outlives_its_reference(store: object) -> None:
    pandas = pytest.importorskip("pandas")
    ref = fw.put(np.arange(1_000_000))
    part = get(ref)[500_000:][::2].reshape(10, -1)
    frame = pandas.DataFrame({"a": get(ref)}, copy=False)
    del ref
    churn = [fw.put(np.full(1_000_000, n)) for n in range(40)]  # more than the store holds
    assert get(churn[-1])[0] == 39
    assert part[0, 0] == 500_000 and part.sum() == np.arange(500_000, 1_000_000, 2).sum()
    assert (frame["a"].to_numpy() == np.arange(1_000_000)).all()
    del churn
    wait_until(lambda: store_stats()["objects"] == 1, 10, "the end of all but the viewed object")
    del part
    gc.collect()
    assert store_stats()["objects"] == 1  # the frame
    del frame


def test_getting_what_is_there_does_not_touch_its_bytes(store: object) -> None:
    ref = fw.put(np.zeros(128 * MIB, dtype=np.uint8))
    assert not get(ref)[0]
    began = time.perf_counter()
    for _ in range(100):
        get(ref)
    print(f"get of 128 MiB, again: {(time.perf_counter() - began) * 1e4:.1f} us")


def test_await_does_not_block_the_loop(store: object) -> None:
    """While the node cannot answer, the loop runs on."""

    async def main() -> None:
        @fw.remote
        def make(n: int) -> Any:
            return np.full(200_000, n)

        refs = [make.remote(n) for n in range(5)]
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        client = current().store.client
        thread = threading.get_ident()
        call = client._link.node_call

        def checked(*args: Any) -> Any:
            assert threading.get_ident() != thread, "a blocking call on the user's loop"
            return call(*args)

        client._link.node_call = checked
        counter = asyncio.create_task(count())
        try:
            values = await asyncio.wait_for(asyncio.gather(*refs), LIMIT)
            assert [int(v[0]) for v in values] == list(range(5))
            big = np.arange(3_000_000)
            total = await place_of.remote(big)
            assert not total[1]
            ref = fw.put(big)
            assert (await ref == big).all()
            assert not (await place_of.remote(ref))[1]
        finally:
            counter.cancel()
            del client._link.node_call
        assert turns > 10

    asyncio.run(main())


@fw.remote
def several(count: int) -> list[Any]:
    return [fw.put(np.full(20_000, n)) for n in range(count)]


def test_gathered_values_are_pinned_together(store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = current()
    asked: list[int] = []
    many = runtime.store.prepare_many

    async def counted(object_ids: list[bytes]) -> Any:
        asked.append(len(object_ids))
        return await many(object_ids)

    monkeypatch.setattr(runtime.store, "prepare_many", counted)

    async def main() -> None:
        refs = await several.remote(500)
        await asyncio.gather(*(asyncio.wait([ref]) for ref in refs))  # their owner has said where they are
        for ref in refs:
            runtime.store.client.forget(ref._entry.value[1])
        gc.collect()
        asked.clear()
        # All of them ask before the runtime's loop gets to it: it is kept busy until then.
        held, go = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            go.wait(LIMIT)

        runtime.post(hold)
        held.wait(LIMIT)
        waiting = asyncio.gather(*refs)
        for _ in range(3):
            await asyncio.sleep(0)
        go.set()
        values = await asyncio.wait_for(waiting, LIMIT)
        assert [int(value[0]) for value in values] == list(range(500))

    asyncio.run(main())
    assert len(asked) <= 2 and sum(asked) == 500


def test_whoever_stops_waiting_leaves_no_pin(store: object) -> None:
    async def main() -> None:
        refs = await several.remote(50)
        for ref in refs:
            task = asyncio.ensure_future(ref)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    gc.collect()
    assert_empty()


# ---- arrays in place ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [fw.empty, fw.zeros])
def test_put_seals_in_place(store: object, make: Any) -> None:
    array = make((100, 200, 10), np.float32)
    array[:] = 3
    old = address(array)
    ref = fw.put(array)
    view = get(ref)
    assert np.shares_memory(array, view) and address(view) == old
    assert view.shape == (100, 200, 10) and view.dtype == np.float32 and (view == 3).all()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    assert get(place_of.remote(ref))[:2] == (False, False)


def test_zeros_and_empty_like(store: object) -> None:
    filled = [fw.put(np.full(1_000_000, 255, np.uint8)) for _ in range(5)]
    del filled
    assert not fw.zeros(1_000_000, np.uint8).any()
    like = fw.empty_like(np.zeros((300, 400), np.int16))
    assert like.shape == (300, 400) and like.dtype == np.int16 and like.flags.writeable
    assert fw.empty_like([1, 2, 3], dtype="f4").dtype == np.float32
    assert fw.empty(()).shape == () and fw.empty((0, 5)).shape == (0, 5)
    assert fw.empty(10, [("a", "i4"), ("b", "f8")]).dtype.names == ("a", "b")


def test_sealing_costs_no_copy(store: object) -> None:
    """By the bytes that the store gains, not by the clock."""
    array = fw.empty(150 * MIB, np.uint8)
    array[::4096] = 1
    before = store_stats()["used"]
    ref = fw.put(array)
    assert get(ref)[0] == 1
    assert store_stats()["used"] == before  # a copy would not fit beside it, either


def test_put_twice_gives_two_objects_with_the_same_value(store: object) -> None:
    array = fw.zeros(100_000)
    first = fw.put(array)
    second = fw.put(array)
    assert first != second
    assert np.shares_memory(get(first), array) and not np.shares_memory(get(second), array)
    assert (get(second) == get(first)).all()


def test_other_views_make_it_a_copy(store: object) -> None:
    array = fw.zeros(100_000)
    other = array[10:]
    ref = fw.put(array)
    other[0] = 99
    assert array.flags.writeable and array[10] == 99 and get(ref)[10] == 0


def test_a_slice_or_a_list_is_copied(store: object) -> None:
    array = fw.zeros(200_000)
    part, nested = fw.put(array[50_000:]), fw.put({"x": [array, array]})
    array[:] = 5
    assert get(part).shape == (150_000,) and not get(part).any()
    assert not get(nested)["x"][0].any()
    both = get(nested)["x"]
    assert both[0] is both[1]
    ref = fw.put(array)
    assert (get(ref) == 5).all()


def test_fortran_order_and_other_dtypes_of_it(store: object) -> None:
    array = fw.zeros((300, 400))
    array[2, 3] = 7
    turned = fw.put(array.T)
    assert get(turned)[3, 2] == 7 and get(turned).shape == (400, 300)
    assert get(fw.put(array.view(np.uint8))).shape == (300, 3200)


def test_an_abandoned_array_is_freed(store: object) -> None:
    array = fw.empty(10 * MIB, np.uint8)
    assert store_stats()["objects"] == 1
    del array
    assert_empty()


def test_tasks_and_actors_return_in_place(store: object) -> None:
    @fw.remote
    def one(n: int) -> Any:
        array = fw.empty(500_000)
        array[:] = n
        return array

    @fw.remote(num_returns=2)
    def two() -> Any:
        first, second = fw.zeros(200_000), fw.zeros(300_000)
        first[:], second[:] = 1, 2
        return first, second

    @fw.remote
    class Actor:
        def make(self) -> Any:
            self.kept = fw.zeros(400_000)
            self.kept[:] = 4
            return self.kept

        def write(self) -> None:
            self.kept[0] = 0

        def drop(self) -> None:
            fw.empty(300_000)  # abandoned

    assert [get(one.remote(n))[7] for n in range(4)] == [0, 1, 2, 3]
    first, second = get(list(two.remote()))
    assert first.sum() == 200_000 and second.sum() == 600_000
    actor = Actor.remote()
    made = actor.make.remote()
    assert get(made).sum() == 1_600_000
    get(actor.drop.remote())
    with pytest.raises(ValueError, match="read-only"):  # what it keeps is the object itself
        get(actor.write.remote())
    assert get(made).sum() == 1_600_000
    fw.kill(actor)


def test_wrong_shapes_and_dtypes(store: object) -> None:
    with pytest.raises(TypeError, match="object"):
        fw.empty(10, object)
    with pytest.raises(TypeError):
        fw.empty(10, "no such type")
    for shape in (-1, (3, -1), (2.5,), "ab"):
        with pytest.raises((ValueError, TypeError), match="shape"):
            fw.empty(shape)  # type: ignore[arg-type]
    for shape in (2.5, None):
        with pytest.raises((ValueError, TypeError)):
            fw.empty(shape)  # type: ignore[arg-type]
    with pytest.raises(fw.exceptions.ObjectStoreFullError, match="object_store_memory"):
        fw.empty(10**15)
    with pytest.raises(ValueError, match="addressed"):
        fw.empty((2**62, 2**62))


# ---- any input ---------------------------------------------------------------------------------------

BIG = 60_000


def odd_arrays() -> dict[str, Any]:
    base = np.arange(BIG * 4, dtype=np.float64)
    return {
        "zero size": np.zeros((0, 5, 3)),
        "zero of many": np.zeros((1000, 0, 1000)),
        "32 dimensions": np.arange(2**16).reshape((2,) * 16 + (1,) * 16),
        "scalar array": np.array(3.5),
        "strided": base[::3],
        "backwards": base[::-1],
        "transposed": base.reshape(400, -1).T,
        "middle axis": base.reshape(10, 60, -1)[:, ::2, :],
        "fortran": np.asfortranarray(base.reshape(400, -1)),
        "broadcast": np.broadcast_to(np.arange(300.0), (300, 300)),
        "structured": np.zeros(BIG, dtype=[("a", "i4"), ("b", "f8", (2,)), ("s", "U5")]),
        "big endian": base.astype(">f8"),
        "datetime": np.arange(BIG).astype("M8[ms]"),
        "complex": base.astype(complex),
        "bool": base > 5,
        "text": np.array(["text", "über"] * BIG),
        "bytes": np.array([b"x", b"yz"] * BIG * 2),
        "float16": (base % 1000).astype(np.float16),
        "records": np.rec.array(np.zeros(BIG, dtype=[("a", "i4"), ("b", "f8")])),
        "matrix-like": base.reshape(2, -1).view(np.ndarray),
    }


@pytest.mark.parametrize("name", list(odd_arrays()))
def test_odd_arrays_come_back(store: object, name: str) -> None:
    array = odd_arrays()[name]

    @fw.remote
    def echo(x: Any) -> Any:
        return x

    for found in (get(fw.put(array)), get(echo.remote(array)), get(fw.put(array), copy=True)):
        assert type(found) is type(array) and found.dtype == array.dtype and found.shape == array.shape
        assert np.array_equal(found, array)


def test_objects_masks_and_subclasses(store: object) -> None:
    objects = np.array([{"n": n} for n in range(20_000)], dtype=object)
    assert (get(fw.put(objects)) == objects).all()
    masked = np.ma.masked_array(np.arange(BIG), mask=np.arange(BIG) % 2 == 0)
    found = get(fw.put(masked))
    assert type(found) is type(masked) and found.sum() == masked.sum() and (found.mask == masked.mask).all()


def test_memoryviews_of_all_kinds(store: object) -> None:
    data = np.arange(60_000)
    assert (np.asarray(get(fw.put(memoryview(data)))) == data).all()
    assert get(fw.put(memoryview(bytes(range(250)) * 1000)[::2])) == bytes(range(0, 250, 2)) * 1000
    cast = memoryview(bytearray(240_000)).cast("i", (200, 300))
    found = get(fw.put(cast))
    assert found.shape == (200, 300) and found.format == "i"


def test_large_values_without_buffers(store: object) -> None:
    value = {str(n): [n, float(n), ("x" * 10, None)] for n in range(20_000)}
    assert get(fw.put(value)) == value
    assert get(fw.put("ü" * 200_000)) == "ü" * 200_000
    assert get(fw.put(2**2_000_000)) == 2**2_000_000


def test_deep_recursion_is_a_clear_error(store: object) -> None:
    deep: Any = [np.zeros(50_000)]
    for _ in range(sys.getrecursionlimit() * 20):
        deep = [deep]
    with pytest.raises(SerializationError, match="recursion|deep|nested"):
        fw.put(deep)
    while deep and isinstance(deep[0], list):
        deep = deep[0]
    assert get(fw.put(1)) == 1


def test_what_cannot_be_pickled_leaves_nothing(store: object) -> None:
    with pytest.raises(SerializationError, match="lock"):
        fw.put([np.zeros(100_000), threading.Lock()])

    class Traitor:
        def __reduce__(self) -> Any:
            raise RuntimeError("no")

    with pytest.raises(SerializationError):
        fw.put((np.zeros(100_000), Traitor()))


def test_references_inside_of_stored_values(store: object) -> None:
    inner = fw.put(np.arange(100_000))
    outer = fw.put([np.zeros(100_000), inner])
    del inner

    @fw.remote
    def total(box: Any) -> int:
        return int(fw.get(box[1]).sum())

    assert get(total.remote(outer)) == sum(range(100_000))
    assert get(get(outer)[1])[-1] == 99_999
    copy = get(outer, copy=True)
    assert get(copy[1])[5] == 5


def test_a_reference_of_another_session(store: object, tmp_path: Path) -> None:
    code = (
        "import framework as fw, numpy as np, pickle\n"
        "fw.init(num_cpus=1)\n"
        "print(pickle.dumps(fw.put(np.zeros(100_000))).hex())\n"
    )
    env = {**os.environ, "FRAMEWORK_TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, env=env, capture_output=True, timeout=LIMIT, check=True)
    foreign = pickle.loads(bytes.fromhex(other.stdout.decode().split()[-1]))
    with pytest.raises(fw.exceptions.ObjectLostError):
        get(foreign)
    assert get(fw.put(np.ones(100_000)))[0] == 1
