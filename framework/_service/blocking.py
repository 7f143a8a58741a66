"""Waiting in a thread that Ctrl-C is to wake.

A signal ends a wait only if it comes while the thread sleeps. If it comes in the moment before that, after
the interpreter has last looked for signals, nobody looks again until the wait is over: with nothing to wake
it, never. (That moment is long where another thread is woken in it and takes the core: on two busy cores, 1
Ctrl-C of 70 was lost.) So threads look up every `limits.SIGNAL_LOOK` seconds.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from framework._base import limits

T = TypeVar("T")


def patiently(wait: Callable[[float], bool], timeout: float | None) -> bool:
    """Call `wait` with short times until it returns True; False when `timeout` seconds (None: no limit) have
    passed."""
    end = None if timeout is None else time.monotonic() + timeout
    left = limits.SIGNAL_LOOK if timeout is None else timeout
    while not wait(min(max(left, 0.0), limits.SIGNAL_LOOK)):
        if end is not None:
            left = end - time.monotonic()
            if left <= 0:
                return False
    return True


def acquire(lock: threading.Lock, timeout: float | None = None) -> bool:
    """As `lock.acquire`."""
    return lock.acquire(False) or patiently(lambda seconds: lock.acquire(timeout=seconds), timeout)


def outcome(future: concurrent.futures.Future[T]) -> T:
    """As `future.result()`."""
    if not future.done():
        patiently(lambda seconds: bool(concurrent.futures.wait([future], seconds).done), None)
    return future.result()
