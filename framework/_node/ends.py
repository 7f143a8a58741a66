"""The end of a node's processes: all of them are gone before the session directory is swept, so that none can
leave a file behind it.

Workers are children of the zygote, not of the node. The node therefore adopts what the zygote's end orphans
(Linux; elsewhere the parent-death watch of the workers has to do).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on, processes below this one whose parent ends become children of this one."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children(timeout: float) -> bool:
    """Kill and reap all children of this process that are in its process group. False when some have not
    ended within `timeout` seconds. Blocks."""
    group = os.getpgrp()
    deadline = time.monotonic() + timeout
    while True:
        try:
            # The children of those that end become ours, and are seen in the next turn.
            while os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG) is not None:
                pass
        except ChildProcessError:
            return True
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(pid) == group:
                    os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.001)


def _children() -> list[int]:
    """The children of all threads of this process; none where the system does not list them."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found
