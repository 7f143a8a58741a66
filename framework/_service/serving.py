"""What processes that serve others have in common: their loop, their log, the end of who started them."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable

from framework._base import limits
from framework._service.private import open_private


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def log_into(path: str) -> None:
    """Have all that this process logs written to the end of this file."""
    handler = logging.StreamHandler(os.fdopen(open_private(path), "a"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def wake_at_end_of(parent: int) -> None:
    """If this process is stopped (SIGSTOP) when its parent ends, have the system let it go on, so that it
    notices."""
    if sys.platform == "linux" and os.getppid() == parent:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGCONT)  # PR_SET_PDEATHSIG


def keep_heap_small(loop: asyncio.AbstractEventLoop) -> None:
    """For a process that lives long: have its C library give back, now and then, the pages on which nothing
    lies any more. Frames and tables of all sizes leave holes, and new ones do not always go where holes are,
    so that a heap in which no more lives than before grows for hours (docs/design/endurance.md)."""
    loop.call_later(limits.TRIM_INTERVAL, _trim, loop)


def _trim(loop: asyncio.AbstractEventLoop) -> None:
    trim = _trimmer()
    if trim is not None:
        trim(0)
        keep_heap_small(loop)


@functools.cache
def _trimmer() -> Callable[[int], object] | None:
    """glibc's `malloc_trim`, which takes a millisecond; other C libraries have none."""
    if sys.platform != "linux":
        return None
    import ctypes  # only now: not while somebody waits for this process to be up

    trim: Callable[[int], object] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim
