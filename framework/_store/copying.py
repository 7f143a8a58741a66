"""Copying large buffers into the arena, by several threads at a time.

One core does not exhaust the memory: two copy at 1.2 to 2 times the speed of one. The threads are made for
the copy and end with it (50 µs each, of some ms). Where memory is yet to be provided, one thread copies: a
second one is at work in the node already, which provides it ahead, and a third would be in its way.

Where an exception strikes the thread that copies for itself (Ctrl-C), the others finish the part that they
are at. The block must not be given to anybody else before: whoever is the last there sees to it (`abandon`).
"""

from __future__ import annotations

import _thread
import functools
import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

from framework._base import limits

_PAGE = 4096
_CACHES = "/sys/devices/system/cpu/cpu0/cache"

Copy = tuple[int, memoryview]
"""Where in the arena, and what (contiguous bytes)."""


class Target(Protocol):
    """What is asked of an arena."""

    def prepare(self, offset: int, size: int) -> None: ...
    def is_prepared(self, offset: int, size: int) -> bool: ...
    def copy_in(self, offset: int, source: memoryview) -> None: ...


class Copying:
    """Some buffers on their way into a block. `run` it once; when that, or what came before it, has raised,
    say so to `abandon`."""

    __slots__ = ("_abandoned", "_arena", "_done", "_error", "_helpers", "_others", "_parts")

    def __init__(self, arena: Target, copies: list[Copy], cpus: int) -> None:
        """`cpus`: how many this process may use."""
        self._arena = arena
        self._parts: deque[Copy] = deque(copies)
        self._helpers = 0
        self._abandoned: Callable[[], object] | None = None
        self._error: BaseException | None = None
        total = sum(view.nbytes for _, view in copies)
        if (
            cpus > 1
            and total >= limits.STORE_SHARED_COPY
            and all(arena.is_prepared(offset, view.nbytes) for offset, view in copies)
        ):
            self._parts = deque(_cut(copies, min(cpus, limits.STORE_COPY_THREADS)))
            self._helpers = min(cpus, limits.STORE_COPY_THREADS, len(self._parts)) - 1
        self._others = deque(range(1, self._helpers))  #: one fewer than there are helpers: see `_leave`
        self._done = _thread.allocate_lock()  #: free when no helper is at work, and nobody is to be
        if self._helpers:
            self._done.acquire()

    def run(self) -> None:
        """Copy all of it; on return no other thread is at it any more."""
        for _ in range(self._helpers):
            try:
                _thread.start_new_thread(self._help, ())
            except RuntimeError:  # no more threads can be had
                self._leave()
        self._work()
        with self._done:  # (given back by whatever strikes here: see `abandon`)
            pass
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback has this object

    def abandon(self, free: Callable[[], object]) -> None:
        """The block is not needed. `free` is called by the last thread that writes to it: now, if that is
        this one. (Not at all where an exception had struck before it was known whether a helper had begun:
        then the block is freed with the process.)"""
        self._parts.clear()
        self._abandoned = free
        if self._done.acquire(False):
            free()

    def _work(self) -> None:
        arena, parts = self._arena, self._parts
        while parts:
            try:
                offset, view = parts.popleft()
            except IndexError:  # another one has had the last
                break
            arena.prepare(offset, view.nbytes)
            arena.copy_in(offset, view)

    def _help(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error
            self._parts.clear()
        finally:
            self._leave()

    def _leave(self) -> None:
        try:
            self._others.pop()
        except IndexError:
            # The last one. Either it finds that the copy was abandoned, or who abandons finds the lock free,
            # or both: one of them gets it.
            self._done.release()
            if self._abandoned is not None and self._done.acquire(False):
                self._abandoned()


def usable_cpus() -> int:
    """How many this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cut(copies: list[Copy], threads: int) -> list[Copy]:
    parts: list[Copy] = []
    for offset, view in copies:
        begin = 0
        for size in shares(view.nbytes, threads, copied_past_the_cache()):
            parts.append((offset + begin, view[begin : begin + size]))
            begin += size
    return parts


def shares(size: int, threads: int, whole: int) -> list[int]:
    """How to divide so many bytes among threads that take the next part when they are done with one; larger
    parts come first.

    The parts are few: a thread needs the interpreter between two of them, and may have to wait for that.
    `whole`: parts of at least this size are copied at nearly twice the speed (see `copied_past_the_cache`).
    Two threads with a part of that size each are the fastest; one such part and smaller ones for the other
    thread are next.
    """
    large = size // whole if whole else 0
    if large >= threads:
        count = min(large, 4 * threads)
        return _evenly(size, count - count % threads)
    rest = size - large * whole
    return [whole] * large + _evenly(rest, max(1, min(2 * threads, rest // limits.STORE_COPY_PART)))


def _evenly(size: int, count: int) -> list[int]:
    part = max(1, -(-size // count))
    part += -part % _PAGE
    return [min(part, size - begin) for begin in range(0, size, part)]


@functools.cache
def copied_past_the_cache() -> int:
    """The bytes from which on one call of memcpy writes to memory without reading it into the cache first
    (10.7 GB/s instead of 6.5, where this was measured); 0 when that is not known.

    glibc derives it from the sizes of the caches (sysdeps/x86/dl-cacheinfo.h): from three quarters of one
    CPU's share up to version 2.37, from a quarter of the whole last level since. The larger one serves both.
    """
    levels: dict[int, tuple[int, int]] = {}
    try:
        for name in os.listdir(_CACHES):
            if name.startswith("index"):
                level, size, sharing = (
                    _first_line(os.path.join(_CACHES, name, file))
                    for file in ("level", "size", "shared_cpu_map")
                )
                levels[int(level)] = _bytes(size), int(sharing.replace(",", ""), 16).bit_count()
        last, sharers = levels[3]
        return max((last // max(1, sharers) + levels[2][0]) * 3 // 4, last // 4)
    except (OSError, ValueError, KeyError):
        return 0


def _first_line(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.readline().strip()


def _bytes(text: str) -> int:
    units = {"K": 1024, "M": 1024**2, "G": 1024**3}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)
