from __future__ import annotations

import functools
import io
import socket
import threading
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._serial import culprit
from framework._serial.culprit import find_culprit
from framework._serial.values import encode
from framework.exceptions import SerializationError

LOCK = threading.Lock()


class Holder:
    def __init__(self, handle: Any = None, **more: Any) -> None:
        self.handle = handle
        self.__dict__.update(more)

    def method(self) -> Any:
        return self.handle


class Slots:
    __slots__ = ("__private", "bad", "good", "unset")

    def __init__(self, bad: Any, private: Any = None) -> None:
        self.good, self.bad, self.__private = 1, bad, private


class HasState:
    def __getstate__(self) -> Any:
        return {"made_up": {"x": threading.Lock()}}


class Opaque:
    def __reduce__(self) -> Any:
        raise ValueError("I will not go")


class Hostile:
    def __reduce__(self) -> Any:
        raise ValueError("no")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no attributes either")

    def __repr__(self) -> str:
        raise RuntimeError("no text either")


def uses_global() -> Any:
    return LOCK


uses_global.__module__ = "__main__"  # so that it goes by value


def with_closure() -> Any:
    lock, unbound = threading.Lock(), 1
    del unbound

    def inner() -> Any:
        return [lock for _ in range(2)], unbound  # noqa: F821

    return inner


def with_default() -> Any:
    def inner(a: int, b: Any = LOCK, *, c: int = 1) -> None: ...

    return inner


def local_class() -> Any:
    class Local:
        shared = LOCK

    return Local


class Failure(Exception):
    pass


def failure() -> Failure:
    error = Failure("text", 1)
    error.where = LOCK  # type: ignore[attr-defined]
    return error


CASES: list[tuple[Any, str]] = [
    (LOCK, "x"),
    ([1, LOCK], "x[1]"),
    ((LOCK,), "x[0]"),
    (deque([1, 2, LOCK]), "x[2]"),
    ({"log": Holder(LOCK)}, "x['log'].handle"),
    ([{"log": Holder([LOCK])}], "x[0]['log'].handle[0]"),
    ({LOCK: 1}.copy(), f"x.<key {repr(LOCK)[:37]}...>"),
    ({1, 2, Slots(LOCK)}, None),
    (Slots(LOCK), "x.bad"),
    (Slots(1, LOCK), "x.__private"),
    (HasState(), "x.made_up['x']"),
    (Opaque(), "x"),
    ([Hostile()], "x[0]"),
    ({Hostile(): Hostile()}, "x[<Hostile>]"),
    (Holder(LOCK).method, "x.__self__.handle"),
    (functools.partial(print, 1, LOCK), "x.args[1]"),
    (functools.partial(print, sep=[LOCK]), "x.keywords['sep'][0]"),
    (functools.partial(with_closure()), "x.func.<closure 'lock'>"),
    (with_closure(), "x.<closure 'lock'>"),
    (uses_global, "x.<global 'LOCK'>"),
    (with_default(), "x.<default of 'b'>"),
    (local_class(), "x.shared"),
    (failure(), "x.where"),
    (Failure(1, [LOCK]), "x.args[1][0]"),
    (np.array([1, 2, LOCK], dtype=object), "x.flat[2]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "path"),
    CASES,
    ids=lambda part: part.partition(" at 0x")[0] if isinstance(part, str) else "",
)
def test_paths(value: Any, path: str | None) -> None:
    found = find_culprit(value, "x")
    if path is not None:
        assert found.path == path
    assert found.reason


def test_reasons() -> None:
    assert find_culprit([LOCK], "x").reason == "cannot pickle '_thread.lock' object"
    assert find_culprit(Opaque(), "x").reason == "ValueError: I will not go"
    assert find_culprit([1, "a"], "x").reason == "nothing: it can be pickled"


def test_cycles_end() -> None:
    ring: list[Any] = []
    ring.append({"ring": ring, "bad": Holder(ring, lock=LOCK)})
    assert find_culprit(ring, "x").path == "x[0]['bad'].lock"


def test_a_million_children_take_few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = 0

    def counted(value: object) -> Exception | None:
        nonlocal probes
        probes += 1
        return original(value)

    original = culprit.why_not
    monkeypatch.setattr(culprit, "why_not", counted)
    assert find_culprit([0] * 30_000 + [LOCK] + [0] * 30_000, "x").path == "x[30000]"
    assert probes < 50


def test_depth_is_bounded() -> None:
    value: Any = LOCK
    for _ in range(culprit.MAX_DEPTH * 2):
        value = [value]
    found = find_culprit(value, "x")
    assert found.path == "x" + "[0]" * culprit.MAX_DEPTH
    assert found.reason == "cannot pickle '_thread.lock' object"


def test_endless_recursion_in_a_part_is_found() -> None:
    class Endless:
        def __getattr__(self, name: str) -> Any:
            return getattr(self, name + "_")

    path = find_culprit({"ok": 1, "bad": Endless()}, "x").path
    assert path in ("x", "x['bad']")


@pytest.mark.slow
@given(st.recursive(st.none(), lambda inner: st.lists(inner, max_size=4), max_leaves=10), st.data())
def test_a_planted_lock_is_found_where_it_is(value: Any, data: st.DataObject) -> None:
    root: list[Any] = [value]
    path, place = "[0]", root
    key = 0
    while isinstance(place[key], list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.integers(0, len(place) - 1))
        path += f"[{key}]"
    place[key] = LOCK
    assert find_culprit(root, "x").path == "x" + path


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: open(__file__), "pass its path"),
        (lambda: open(__file__, "rb"), "pass its path"),
        (threading.RLock, "one process only"),
        (lambda: (n for n in "a"), "num_returns='streaming'"),
        (lambda: socket.socket(), "belongs to its process"),
        (Opaque, "__reduce__"),
    ],
)
def test_messages_say_where_and_what_to_do(make: Any, advice: str) -> None:
    thing = make()
    try:
        with pytest.raises(SerializationError) as caught:
            encode({"log": Holder(thing)}, where="the argument 'f' of read_file()")
    finally:
        if isinstance(thing, (io.IOBase, socket.socket)):
            thing.close()
    text = str(caught.value)
    assert text.startswith("cannot serialize the argument 'f' of read_file(): at f['log'].handle: ")
    assert advice in text
    assert caught.value.__cause__ is not None
    assert isinstance(caught.value, TypeError)
