"""What a session must not leave behind: processes, descriptors, sockets, session directories."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def wait_until(condition: Callable[[], object], timeout: float = 10.0, what: str = "the condition") -> None:
    """Poll until `condition()` is true; AssertionError when it is not in time. (Not a sleep: returns as soon
    as it holds.)
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout} s"
        time.sleep(0.005)


def framework_processes(session_root: Path) -> list[str]:
    """Processes of sessions under this directory that still run, zombies included."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if ("framework._node" in line or "framework._head" in line) and str(session_root) in line:
            found.append(f"{process.info['pid']} {process.info['status']} {line[:120]}")
    return found


def session_remains(session_root: Path) -> list[str]:
    """What sessions under this directory have left beside their logs."""
    remains = []
    for path in session_root.rglob("*"):
        if path.is_dir() and path.name != "sockets":
            continue
        if "logs" not in path.relative_to(session_root).parts:
            remains.append(str(path.relative_to(session_root)))
    return remains


def open_descriptors() -> dict[int, str]:
    """The descriptors of this process, with what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found
