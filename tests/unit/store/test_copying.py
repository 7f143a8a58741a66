"""Large copies by several threads: all of it arrives, and nobody is left writing to a block that is freed."""

from __future__ import annotations

import _thread
import os
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._base import limits
from framework._store import copying
from framework._store.arena import Arena, create_arena
from framework._store.copying import Copying, shares, usable_cpus

KIB = 1 << 10
MIB = 1 << 20
CAPACITY = 12 * MIB
WAIT = 20.0


@pytest.fixture
def arena() -> Arena:
    return Arena(create_arena(CAPACITY, tempfile.gettempdir()), CAPACITY)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STORE_SHARED_COPY", 1 * MIB)
    monkeypatch.setattr(limits, "STORE_COPY_PART", 256 * KIB)


class Slow:
    """An arena whose copies take as long as the test wants; `copied` has who did what."""

    def __init__(self) -> None:
        self.copied: list[tuple[int, int]] = []
        self.before: Callable[[int], object] = lambda offset: None
        self.prepared = True

    def prepare(self, offset: int, size: int) -> None:
        pass

    def is_prepared(self, offset: int, size: int) -> bool:
        return self.prepared

    def copy_in(self, offset: int, source: memoryview) -> None:
        self.before(offset)
        self.copied.append((offset, threading.get_ident()))


def views(*sizes: int) -> list[tuple[int, memoryview]]:
    copies, offset = [], 64
    for size in sizes:
        copies.append((offset, memoryview(os.urandom(size))))
        offset += size + 100
    return copies


@pytest.mark.parametrize("whole", [0, 600 * KIB, 900 * KIB, 2 * MIB])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("cpus", [1, 2, 3, 64])
def test_everything_arrives_where_it_belongs(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, cpus: int, prepared: bool, whole: int
) -> None:
    monkeypatch.setattr(copying, "copied_past_the_cache", lambda: whole)
    copies = views(3 * MIB + 17, 5, 900 * KIB, 0, 2 * MIB)
    if prepared:
        arena.prepare(0, CAPACITY)
    Copying(arena, copies, cpus).run()
    for offset, view in copies:
        assert arena.memory(offset, view.nbytes) == view
        assert arena.memory(offset - 1, 1)[0] == 0 == arena.memory(offset + view.nbytes, 1)[0]


def test_several_threads_take_part() -> None:
    arena, both = Slow(), threading.Barrier(2)

    def meet(offset: int) -> None:
        if len(seen) < 2:
            seen.add(threading.get_ident())
            both.wait(WAIT)

    seen: set[int] = set()
    arena.before = meet
    Copying(arena, views(2 * MIB), 2).run()
    assert len({who for _, who in arena.copied}) == 2


@pytest.mark.parametrize(
    ("size", "cpus", "prepared"), [(2 * MIB, 1, True), (1 * MIB - 1, 64, True), (2 * MIB, 64, False)]
)
def test_one_cpu_small_objects_and_new_memory_have_one_thread(
    monkeypatch: pytest.MonkeyPatch, size: int, cpus: int, prepared: bool
) -> None:
    def never(*_: Any) -> int:
        raise AssertionError("a thread was made")

    monkeypatch.setattr(_thread, "start_new_thread", never)
    arena = Slow()
    arena.prepared = prepared
    Copying(arena, views(size), cpus).run()
    assert {who for _, who in arena.copied} == {threading.get_ident()}


def test_without_threads_to_be_had_the_caller_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refused)
    arena, freed = Slow(), list[int]()
    task = Copying(arena, views(2 * MIB), 4)
    task.run()
    assert len(arena.copied) == 8 and {who for _, who in arena.copied} == {threading.get_ident()}
    task.abandon(lambda: freed.append(1))
    assert freed == [1]


def test_a_block_is_freed_when_the_last_helper_is_done() -> None:
    """Ctrl-C in the thread that copies, while another is in the middle of a part."""
    arena, main = Slow(), threading.get_ident()
    inside, go_on, freed = threading.Event(), threading.Event(), threading.Event()

    def before(offset: int) -> None:
        if threading.get_ident() == main:
            assert inside.wait(WAIT)
            raise KeyboardInterrupt
        inside.set()
        assert go_on.wait(WAIT)

    arena.before = before
    task = Copying(arena, views(2 * MIB), 2)
    with pytest.raises(KeyboardInterrupt):
        task.run()
    task.abandon(freed.set)
    assert not freed.is_set() and arena.copied == []
    go_on.set()
    assert freed.wait(WAIT)
    assert len(arena.copied) == 1  # what had not begun was left out


def test_ctrl_c_while_the_others_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    arena, main = Slow(), threading.get_ident()
    inside, go_on, freed = threading.Event(), threading.Event(), threading.Event()

    def before(offset: int) -> None:
        if threading.get_ident() != main:
            inside.set()
            assert go_on.wait(WAIT)
        else:
            assert inside.wait(WAIT)

    class Interrupted:
        def __init__(self, lock: Any) -> None:
            self.acquire, self.release = lock.acquire, lock.release

        def __enter__(self) -> None:
            raise KeyboardInterrupt

        def __exit__(self, *_: object) -> None:
            pass

    arena.before = before
    task = Copying(arena, views(2 * MIB), 2)
    task._done = Interrupted(task._done)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        task.run()
    task.abandon(freed.set)
    assert not freed.is_set()
    go_on.set()
    assert freed.wait(WAIT)


def test_what_goes_wrong_in_a_helper_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    arena, main = Slow(), threading.get_ident()
    failed = threading.Event()

    def before(offset: int) -> None:
        if threading.get_ident() != main:
            failed.set()
            raise MemoryError("no room")
        assert failed.wait(WAIT)

    arena.before = before
    freed: list[int] = []
    task = Copying(arena, views(2 * MIB), 2)
    with pytest.raises(MemoryError, match="no room"):
        task.run()
    task.abandon(lambda: freed.append(1))
    assert freed == [1]


def test_what_never_ran_is_freed_at_once() -> None:
    freed: list[int] = []
    Copying(Slow(), [], 1).abandon(lambda: freed.append(1))
    assert freed == [1]


@given(st.integers(1, 64 * MIB), st.integers(2, 8), st.just(0) | st.integers(MIB, 16 * MIB))
def test_shares_are_few_and_as_large_as_they_should_be(size: int, threads: int, whole: int) -> None:
    found = shares(size, threads, whole)
    assert sum(found) == size and min(found) > 0
    assert len(found) <= 4 * threads
    if whole:
        slack = 4096 * len(found)  # parts are whole pages
        large = sum(part >= whole - slack for part in found)
        assert large >= min(threads, size // whole)


def test_the_size_from_which_memcpy_goes_past_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def cache(index: int, level: int, size: str, sharing: str) -> None:
        path = tmp_path / f"index{index}"
        path.mkdir()
        for name, text in (("level", str(level)), ("size", size), ("shared_cpu_map", sharing)):
            (path / name).write_text(text + "\n")

    copied_past_the_cache = copying.copied_past_the_cache.__wrapped__
    monkeypatch.setattr(copying, "_CACHES", str(tmp_path))
    assert copied_past_the_cache() == 0
    cache(2, 2, "2048K", "1")
    assert copied_past_the_cache() == 0
    cache(3, 3, "260M", "3")
    assert copied_past_the_cache() == 99 * MIB
    (tmp_path / "index3" / "shared_cpu_map").write_text("ffffffff,ffffffff\n")
    assert copied_past_the_cache() == 65 * MIB


def test_usable_cpus_are_those_of_this_process() -> None:
    if not hasattr(os, "sched_getaffinity"):
        assert usable_cpus() == (os.cpu_count() or 1)
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
