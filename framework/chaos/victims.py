"""The processes of a cluster, as /proc has them, and signals that hit the one that was meant (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc. `state` is a letter: R, S, T (stopped), Z (ended, not reaped), …"""

    pid: int
    parent: int
    group: int
    state: str


def parse_stat(pid: int, text: str) -> Process:
    """From the text of ``/proc/<pid>/stat``. The name of the program in it may hold anything."""
    state, parent, group = text.rpartition(")")[2].split()[:3]
    return Process(pid, int(parent), int(group), state)


def processes() -> dict[int, Process]:
    """All of the machine; those that end meanwhile may be missing."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with (
                contextlib.suppress(OSError, ValueError),
                open(f"/proc/{name}/stat", errors="replace") as file,
            ):
                found[int(name)] = parse_stat(int(name), file.read())
    return found


def zygotes(every: dict[int, Process], node: int) -> list[int]:
    """The zygotes of the node process `node`: its children in its group."""
    return sorted(p.pid for p in every.values() if p.parent == node == p.group and p.state != "Z")


def workers(every: dict[int, Process], node: int) -> list[int]:
    """The worker processes of the node process `node`: the children of its zygotes."""
    parents = set(zygotes(every, node))
    return sorted(p.pid for p in every.values() if p.parent in parents and p.group == node and p.state != "Z")


def members(every: dict[int, Process], group: int) -> list[Process]:
    """What runs in a process group, stopped or not."""
    return [p for p in every.values() if p.group == group and p.state not in "ZX"]


class Held:
    """A process that is to get signals, now and later: never another one that has got its number."""

    def __init__(self, pid: int, group: int) -> None:
        """`ProcessLookupError` when it has ended, or is not in that process group."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        try:
            if os.getpgid(pid) != group:
                raise ProcessLookupError(f"process {pid} is not in group {group}")
        except BaseException:
            os.close(self._fd)
            raise

    def send(self, number: signal.Signals) -> bool:
        """False when it has ended."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """No more signals to it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def identity(pid: int) -> str:
    """A name of a process that no other one ever has: its number and when it began. Empty when it has
    ended."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{pid} {fields[19]}"


def of_sessions_below(root: str) -> list[tuple[int, str]]:
    """Processes with sessions under this directory, by their command line: number and state. Also those that
    wait to be reaped, if they are ours."""
    found = []
    ours = os.getpid()
    wanted = os.fsencode(root)
    for pid, process in processes().items():
        if process.state == "Z":
            if process.parent == ours:
                found.append((pid, "Z"))
            continue
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read()
            if wanted in line and (b"framework._node" in line or b"framework._head" in line):
                found.append((pid, process.state))
    return found


def describe(found: Iterable[tuple[int, str]]) -> str:
    """For people."""
    return ", ".join(f"process {pid} ({state})" for pid, state in found)
