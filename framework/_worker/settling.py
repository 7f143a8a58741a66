"""What a zygote does to its memory before it forks.

A page that it shares with its workers is copied when one of them writes to it, which takes 2 to 3 µs, and
the first steps of a worker write to well over a thousand: that is a good part of what its start costs. Python
writes to what it merely reads (reference counts), but some of this can be avoided here, once for all workers.
"""

from __future__ import annotations

import gc
import sys
from itertools import pairwise, repeat
from typing import Final

_CLASSES: Final = range(16, 513, 16)  #: sizes of the blocks of Python's allocator for small objects
_POOL: Final = 16_384 - 48  #: bytes of blocks in each of its pools, which has blocks of one size
_MOST: Final = 512 * 1024  #: bytes per size, should this be another allocator

_fillers: list[list[object]] = []


def settle(*, fill: bool) -> None:
    """To be called when everything is loaded, before the first forks and again, with `fill`, when there is
    time: collecting what loading has left takes 7 to 11 ms (and copies of all pages that a node shares with
    its zygote), filling the gaps (see `fill_gaps`) 2. What there is at the first call is never looked at
    again; garbage in it are some 600 objects."""
    if fill:
        gc.collect()
    # Full of what loading modules has looked up. Each entry that another takes the place of is a write to the
    # name that it was about, on a page that would not be needed otherwise.
    clear = getattr(sys, "_clear_internal_caches", None) or getattr(sys, "_clear_type_cache", None)
    if clear is not None:
        clear()
    if fill:
        fill_gaps()
    gc.freeze()


def fill_gaps() -> int:
    """Use up the free blocks between the objects that there are: then new ones of a worker lie close together
    on pages of their own, not each on one that has to be copied for it. Returns how many blocks that were.

    It takes no memory but the pool that it stops at, one for each size."""
    count = 0
    for size in _CLASSES:
        of_a_pool = _POOL // size
        for _ in range(_MOST // _POOL):
            fillers = _blocks(size, of_a_pool)
            _fillers.append(fillers)
            count += of_a_pool
            places = sorted(map(id, fillers))
            steps = [after - before for before, after in pairwise(places)]
            if len(steps) - steps.count(size) <= max(1, of_a_pool // 64):  # a pool that was not in use
                break
    return count


def _blocks(size: int, count: int) -> list[object]:
    """So many objects of `size` bytes that the garbage collector does not look at."""
    if size == 16:
        return [object() for _ in repeat(None, count)]
    if size == 32:
        return list(range(1_000_000, 1_000_000 + count))
    return [bytes(size - 33) for _ in repeat(None, count)]  # (32 of them are its header, and a zero ends it)
