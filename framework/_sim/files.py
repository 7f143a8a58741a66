"""Real descriptors that simulated processes have open: what they do not close ends with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from framework._sim.kernel import Kernel
from framework._sim.process import Process


class RealFiles:
    """Whose they are. (Of files that Python's file objects open nothing is known: those close them.)"""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._owners: dict[int, tuple[Process, tuple[int, int]]] = {}

    def opened(self, fd: int) -> int:
        """The present process has it from now on."""
        process = self._kernel.process
        if process is not None:
            self._owners[fd] = process, _identity(fd)
        return fd

    def opening(self, function: Callable[..., int]) -> Callable[..., int]:
        """A function that opens one."""

        def call(*args: Any, **options: Any) -> int:
            return self.opened(function(*args, **options))

        return call

    def closing(self, fd: int) -> bool:
        """Somebody closes it: whether that is to be done. At the end of a run what was closed long ago is
        closed again, where dead threads come to their ends, and may be somebody else's by now."""
        found = self._owners.pop(fd, None)
        return found is not None or not self._kernel.closing

    def close(self, process: Process | None = None) -> None:
        """The process has ended (None: all have)."""
        for fd, (owner, identity) in list(self._owners.items()):
            if process is None or owner is process:
                del self._owners[fd]
                with contextlib.suppress(OSError):
                    if _identity(fd) == identity:
                        os.close(fd)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
