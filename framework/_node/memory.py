"""How much memory is in use: of the control group if it has a limit, else of the machine; and of one
process.
"""

from __future__ import annotations

import contextlib
import os

_PAGE = os.sysconf("SC_PAGE_SIZE")
_UNLIMITED = 1 << 60


def _number(path: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        with open(path) as file:
            return int(file.read())
    return None


def _group_use() -> tuple[int, int] | None:
    """(used, limit) of this process's control group, without its reclaimable file cache."""
    for use, limit, stat, cache in (
        (
            "/sys/fs/cgroup/memory.current",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory.stat",
            "inactive_file",
        ),
        (
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        most, used = _number(limit), _number(use)
        if most is None or used is None or most >= _UNLIMITED:
            continue
        with contextlib.suppress(OSError, ValueError):
            with open(stat) as file:
                for line in file:
                    name, _, value = line.partition(" ")
                    if name == cache:
                        used -= int(value)
        return used, most
    return None


def memory_use() -> tuple[int, int]:
    """(bytes in use, bytes there are). (0, 0) where the system does not tell."""
    group = _group_use()
    facts = {}
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/meminfo") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name in ("MemTotal", "MemAvailable"):
                    facts[name] = int(rest.split()[0]) * 1024
    machine = (facts["MemTotal"] - facts["MemAvailable"], facts["MemTotal"]) if len(facts) == 2 else (0, 0)
    if group is not None and (machine[1] == 0 or group[1] < machine[1]):
        return group
    return machine


def private_memory(pid: int) -> int:
    """Bytes of memory that a process has for itself (resident, less what it shares, such as the object
    store).
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{pid}/statm") as file:
            parts = file.read().split()
        return (int(parts[1]) - int(parts[2])) * _PAGE
    return 0
