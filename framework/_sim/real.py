"""What is real and has no place in a simulation: called by simulated code, it raises where it is called."""

from __future__ import annotations

import _posixsubprocess
import _thread
import multiprocessing.process
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

#: the module and the names in it; what a system or a version of Python does not have is left out
_NAMES: Final[tuple[tuple[Any, tuple[str, ...]], ...]] = (
    (
        os,
        (
            *("fork", "forkpty", "posix_spawn", "posix_spawnp", "execv", "execve", "system", "abort"),
            *("pipe", "pipe2", "openpty"),
        ),
    ),
    (_posixsubprocess, ("fork_exec",)),
    (
        signal,
        ("alarm", "setitimer", "pause", "sigwait", "sigwaitinfo", "sigtimedwait", "raise_signal"),
    ),
    (select, ("select",)),
    (
        socket,
        (
            *("getaddrinfo", "create_connection", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"),
            *("getnameinfo", "getfqdn", "fromfd", "if_nameindex"),
        ),
    ),
    (_thread, ("start_new_thread", "start_new", "start_joinable_thread")),
    (threading, ("_start_new_thread", "_start_joinable_thread")),
)


def refused() -> Iterator[tuple[Any, str]]:
    """Owner and name of each. (Of classes their beginnings, as others may be derived from them.)"""
    for owner, names in _NAMES:
        for name in names:
            yield owner, name
    yield subprocess.Popen, "__init__"
    yield multiprocessing.process.BaseProcess, "start"
    yield socket.socket, "__init__"
    if "uvloop" in sys.modules:
        yield sys.modules["uvloop"], "new_event_loop"
