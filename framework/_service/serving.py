"""What processes that serve others have in common: their loop, their log, the end of who started them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

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
