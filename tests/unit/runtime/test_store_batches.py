"""The order in which many stored values are read: a batch of pins at a time, none while waiting."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._base import limits
from framework._runtime.store import RuntimeStore
from framework._serial.values import FORM_STORED
from framework.exceptions import ObjectLostError


class View:
    """Stands for an array over a block."""


class Client:
    """Holds no view by itself; counts those that live."""

    def __init__(self) -> None:
        self.kept: dict[bytes, View] = {}

    def held(self, object_id: bytes) -> View | None:
        return self.kept.get(object_id)


class Store(RuntimeStore):
    """Whose node has some objects in memory."""

    def __init__(self, in_memory: set[bytes]) -> None:
        self.client: Any = Client()
        self._runtime: Any = self
        self.waiting: Any = self
        self.node_id = b""
        self.in_memory = in_memory
        self.batches: list[list[bytes]] = []
        self.pinned: set[bytes] = set()
        self.asked: list[bytes] = []
        self.restored: weakref.WeakSet[View] = weakref.WeakSet()

    def run_sync(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("it waits for something")

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        yield

    def _asked_for(self, wire: list[Any]) -> Future[Any]:
        """Every other one cannot be had."""
        object_id = wire[1]
        self.asked.append(object_id)
        future: Future[Any] = Future()
        if object_id[-1] % 2:
            future.set_exception(ObjectLostError(object_id.hex(), "gone"))
        else:
            view = View()
            self.restored.add(view)
            future.set_result(view)
        return future

    async def prepare_many(self, object_ids: list[bytes]) -> Any:
        self.batches.append(object_ids)
        return _Pins(self, {i for i in object_ids if i in self.in_memory})


class _Pins:
    def __init__(self, store: Store, ids: set[bytes]) -> None:
        self.store, self.ids = store, ids
        store.pinned = ids

    def __contains__(self, object_id: bytes) -> bool:
        return object_id in self.ids

    def __del__(self) -> None:
        self.store.pinned = set()


def stored(number: int) -> list[Any]:
    return [FORM_STORED, number.to_bytes(2, "big"), "owner", 1, [], b""]


@given(st.lists(st.one_of(st.none(), st.integers(0, 40)), max_size=60), st.sets(st.integers(0, 40)))
def test_each_position_once_and_no_pins_while_waiting(items: list[int | None], present: set[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "STORE_PIN_BATCH", 7)
        wires = [None if item is None else stored(item) for item in items]
        store = Store({number.to_bytes(2, "big") for number in present})
        positions = []
        for position in store.in_batches(wires):
            positions.append(position)
            wire = wires[position]
            if wire is not None and len(store.batches):
                object_id = wire[1]
                if object_id in store.in_memory:
                    assert object_id in store.pinned
                else:
                    assert not store.pinned
        assert sorted(positions) == list(range(len(items)))
        assert all(len(batch) <= 7 for batch in store.batches)
        assert not store.pinned


def test_one_stored_value_is_read_as_always() -> None:
    store = Store(set())
    assert list(store.in_batches([1, stored(1), None])) == [0, 2, 1]
    assert store.batches == []


def test_what_is_at_hand_costs_no_message() -> None:
    store = Store(set())
    store.client.kept = {stored(n)[1]: View() for n in range(3)}
    assert list(store.in_batches([stored(n) for n in (2, 0, 1, 2)])) == [0, 1, 2, 3]
    assert store.batches == []


def test_an_error_in_the_middle_lets_go_of_the_pins() -> None:
    store = Store({stored(n)[1] for n in range(3)})
    order = store.in_batches([stored(n) for n in range(3)])
    next(order)
    assert store.pinned
    del order
    assert not store.pinned


def test_spilled_ones_are_read_back_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STORE_RESTORE_AHEAD", 3)
    store = Store(set())
    ids = [stored(n)[1] for n in range(10)]
    for count, position in enumerate(store.in_batches([stored(n) for n in range(10)])):
        assert position == count  # in order, those that cannot be read back too
        assert store.asked == ids[: min(10, count + 3)]
        assert len(store.restored) <= 2  # of three at a time, half cannot be had
    assert store.asked == ids
    assert not store.restored
