"""What the soak looks at: the processes of a cluster from outside (/proc), and what they answer."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framework._node.control import Client
from framework._wire import messages as m
from framework.benchmarks.processes import descendants
from framework.exceptions import FrameworkError

_KIB = 1024
_PRESENT = 0.6  #: part of the samples; many workers live shorter
_MEMORY = {"Rss": "rss", "Pss": "pss", "Anonymous": "heap", "Private_Dirty": "private"}
_STORE = {"used": "store", "spilled_bytes": "spilled", "objects": "objects in store", "pins": "pins"}


@dataclass(slots=True)
class Sample:
    """One look at everything. `processes`: by the name that a process keeps, its figures (bytes, or counts).
    `whole`: figures of the session. `latency`: seconds. `tables`: by process, what CENSUS says, where asked.
    """

    time: float
    operations: int
    processes: dict[str, dict[str, float]] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    latency: dict[str, float] = field(default_factory=dict)
    tables: dict[str, dict[str, int]] = field(default_factory=dict)

    def series(self) -> dict[tuple[str, str], float]:
        """All figures, by process (or "session", "latency") and name."""
        found = {
            (process, name): value
            for process, figures in self.processes.items()
            for name, value in figures.items()
        }
        found |= {("session", name): value for name, value in self.whole.items()}
        found |= {("latency", name): value for name, value in self.latency.items()}
        return found


def memory_of(smaps_rollup: str) -> dict[str, float]:
    """Bytes, from the text of /proc/<pid>/smaps_rollup. ``heap`` is memory without a file behind it, what
    is shared with a forked parent included."""
    found: dict[str, float] = {}
    for line in smaps_rollup.splitlines():
        name, _, rest = line.partition(":")
        if name in _MEMORY:
            found[_MEMORY[name]] = float(rest.split()[0]) * _KIB
    return found


def figures_of(pid: int) -> dict[str, float] | None:
    """Memory, descriptors and threads of a process; None when it has ended."""
    root = Path("/proc", str(pid))
    try:
        found = memory_of((root / "smaps_rollup").read_text())
        found["descriptors"] = float(len(os.listdir(root / "fd")))
        found["threads"] = float(len(os.listdir(root / "task")))
    except OSError:
        return None
    return found if "heap" in found else None


def size_below(path: str) -> int:
    """Bytes of all files below a directory."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total


class Watch:
    """Looks at a cluster whose processes are descendants of this one. `nodes`: session directory and pid by
    name; `head`: the same for the head; `others`: pids by name (the driver)."""

    def __init__(
        self, nodes: dict[str, tuple[str, int]], head: tuple[str, int], others: dict[str, int]
    ) -> None:
        self._nodes = nodes
        self._head = head
        self._others = others
        self._numbers: dict[str, int] = {}

    def look(self, sample: Sample, *, ask: bool) -> None:
        """Fill in the sample; with `ask`, tables too."""
        pids = {"head": self._head[1], **self._others}
        sockets = {"head": (self._head[0], "head")}
        known = set(pids.values())
        counts: Counter[str] = Counter()
        for name, (session_dir, pid) in self._nodes.items():
            pids[name], sockets[name] = pid, (session_dir, "node")
            rows, store = self._of_node(session_dir)
            for figure, meaning in _STORE.items():
                counts[meaning] += store[figure]
            workers = {row["pid"]: row for row in rows if row["kind"] == "worker"}
            for row in rows:
                if row["pid"] in self._others.values():
                    driver = next(n for n, other in self._others.items() if other == row["pid"])
                    sockets[driver] = (session_dir, _socket(row["address"]))
            for below in descendants(pid):
                kind = "worker" if below in workers else "zygote"
                # (A process that is just being forked looks like a zygote, once.)
                own = self._name(f"{name} {kind}", below)
                pids[own] = below
                counts[f"{name} {kind}s"] += 1
                if kind == "worker":
                    sockets[own] = (session_dir, _socket(workers[below]["address"]))
        for name, pid in pids.items():
            figures = figures_of(pid)
            if figures is not None:
                sample.processes[name] = figures
        known.update(pids.values())
        sample.whole["processes"] = float(len(known))
        sample.whole |= {name: float(count) for name, count in counts.items()}
        directories = {self._head[0], *(session_dir for session_dir, _ in self._nodes.values())}
        logs = sum(size_below(os.path.join(path, "logs")) for path in directories)
        sample.whole["logs"] = float(logs)
        sample.whole["files"] = float(sum(map(size_below, directories)) - logs)
        if ask:
            self._ask(sample, sockets)

    def _name(self, kind: str, pid: int) -> str:
        key = f"{kind} {pid}"
        if key not in self._numbers:
            self._numbers[key] = 1 + sum(other.startswith(f"{kind} ") for other in self._numbers)
        return f"{kind} {self._numbers[key]}"

    @staticmethod
    def _of_node(session_dir: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
        with Client(session_dir, "node") as node:
            rows = node.call(m.PROCESSES)
            store = node.call(m.STORE_LIST)
        return rows, store["stats"]

    @staticmethod
    def _ask(sample: Sample, sockets: dict[str, tuple[str, str]]) -> None:
        for name, (session_dir, service) in sockets.items():
            with contextlib.suppress(FrameworkError), Client(session_dir, service) as process:
                tables = process.call(m.CENSUS)
                sample.tables[name] = tables
                if name in sample.processes:
                    sample.processes[name]["blocks"] = float(tables["blocks"])


def _socket(address: str) -> str:
    """The name of the Unix socket of a process, from its address."""
    return address.rpartition("/")[2].rpartition(":")[2]


def lasting(samples: Sequence[Sample]) -> list[str]:
    """Processes that were there nearly all the time, until the end, by name."""
    names = {name for sample in samples for name in sample.processes}
    return sorted(
        name
        for name in names
        if sum(name in sample.processes for sample in samples) >= _PRESENT * len(samples)
        and name in samples[-1].processes
    )


def growth_of_tables(samples: Iterable[Sample], process: str, most: int = 12) -> list[tuple[str, int, int]]:
    """What has grown most in a process between two looks at its tables, at the middle and at the end of the
    run: (name, before, after)."""
    looks = [sample.tables[process] for sample in samples if process in sample.tables]
    if len(looks) < 2:
        return []
    before, after = looks[(len(looks) - 1) // 2], looks[-1]
    grown = [(name, before.get(name, 0), size) for name, size in after.items() if size > before.get(name, 0)]
    return sorted(grown, key=lambda row: row[1] - row[2])[:most]
