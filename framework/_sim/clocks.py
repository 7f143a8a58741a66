"""Virtual time behind the names of the module `time`."""

from __future__ import annotations

import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from framework._sim.kernel import Kernel

#: what the wall clock shows at the beginning: 2030-01-01, so that nobody takes it for the real one
EPOCH: Final = 1_893_456_000.0
_GIVING_WAY: Final = 1e-6  #: seconds


class Clocks(ABC):
    """Those of the present process."""

    kernel: Kernel

    @abstractmethod
    def _either(self, owner: Any, name: str, inside: Callable[..., Any]) -> None:
        """In simulated code `inside`, elsewhere what was there."""

    def monotonic(self) -> float:
        process = self.kernel.process
        return self.kernel.now + (process.clock_offset if process is not None else 0.0)

    def wall(self) -> float:
        process = self.kernel.process
        return EPOCH + self.kernel.now + (process.wall_offset if process is not None else 0.0)

    def sleep(self, seconds: float) -> None:
        kernel = self.kernel
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")
        if seconds == 0:
            kernel.pause()
            return
        end = kernel.now + seconds
        while kernel.now < end and kernel.block(end, "time.sleep"):
            pass

    def _patch_time(self) -> None:
        for name in ("monotonic", "perf_counter"):
            self._either(time, name, self.monotonic)
            self._either(time, f"{name}_ns", lambda: int(self.monotonic() * 1e9))
        self._either(time, "time", self.wall)
        self._either(time, "time_ns", lambda: int(self.wall() * 1e9))
        self._either(time, "sleep", self.sleep)
        # (Whoever gives way looks for something again and again: it must come to its end.)
        self._either(os, "sched_yield", lambda: self.sleep(_GIVING_WAY))
        for name in ("process_time", "thread_time"):  # (nobody computes anything in virtual time)
            self._either(time, name, self.monotonic)
            self._either(time, f"{name}_ns", lambda: int(self.monotonic() * 1e9))
        self._either(time, "clock_gettime", self._clock)
        self._either(time, "clock_gettime_ns", lambda number: int(self._clock(number) * 1e9))
        for name in ("localtime", "gmtime", "ctime"):
            self._at_present(name, 0)
        self._at_present("strftime", 1)
        self._at_present("asctime", 0)
        for owner, name in ((threading, "_time"), (queue, "time")):
            self._either(owner, name, self.monotonic)

    def _clock(self, number: int) -> float:
        return self.wall() if number == time.CLOCK_REALTIME else self.monotonic()

    def _at_present(self, name: str, place: int) -> None:
        """A function that takes the present time when it is not given one as its argument at `place`."""
        outside, localtime = getattr(time, name), time.localtime

        def inside(*args: Any) -> Any:
            if len(args) > place and args[place] is not None:
                return outside(*args)
            now = self.wall()
            return outside(*args[:place], now if name in ("localtime", "gmtime", "ctime") else localtime(now))

        self._either(time, name, inside)
