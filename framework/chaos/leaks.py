"""What must be as it was before: processes, descriptors, threads, shared memory, directories, resources."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import framework as fw
from framework._base import limits
from framework._node.control import Client
from framework._wire import messages as m
from framework.chaos import victims
from framework.cluster_utils import Cluster
from framework.util.placement_group import placement_group_table
from framework.util.state import list_objects

SETTLE: Final = 20.0  # seconds in which what was let go of must be gone
MORE_FDS: Final = 16  # descriptors that a process that lives on may have more, beside those for other nodes
PER_NODE: Final = 1 + 2 * limits.TRANSFER_SPARE  # connections that are kept to each of those


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of this process."""

    fds: dict[str, int]  # by what they are, without numbers
    threads: tuple[str, ...]
    shared: int  # bytes of memory files that are mapped

    @classmethod
    def now(cls) -> Footprint:
        """At this moment, after a garbage collection."""
        gc.collect()
        names = sorted(thread.name for thread in threading.enumerate())
        return cls(kinds_of_fds("self"), tuple(names), mapped_memory("self"))

    def leaks(self, before: Footprint) -> list[str]:
        """What there is more of than there was."""
        found = [
            f"{count - before.fds.get(kind, 0)} descriptors more of the kind {kind}"
            for kind, count in self.fds.items()
            if count > before.fds.get(kind, 0)
        ]
        new = Counter(self.threads) - Counter(before.threads)
        found += [f"thread {name} still runs" for name in new]
        if self.shared > before.shared:
            found.append(f"{self.shared - before.shared} bytes of shared memory are still mapped")
        return found


def kind_of(target: str) -> str:
    """What a descriptor is, from its link in /proc: without the numbers of sockets and pipes."""
    return re.sub(r":\[\d+\]$", "", target)


def kinds_of_fds(pid: int | str) -> dict[str, int]:
    """How many descriptors of each kind a process has; empty when it is gone."""
    found: Counter[str] = Counter()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return {}
    for name in names:
        try:
            found[kind_of(os.readlink(f"/proc/{pid}/fd/{name}"))] += 1
        except OSError:
            continue  # that of listdir itself, or closed meanwhile
    return dict(found)


_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .* (/memfd:\S+|/dev/shm/\S+)", re.MULTILINE)


def mapped_in(text: str) -> int:
    """Bytes of memory files in the text of /proc/<pid>/maps."""
    return sum(int(end, 16) - int(start, 16) for start, end, _ in _MAPPING.findall(text))


def mapped_memory(pid: int | str) -> int:
    """Bytes of memory files that a process has mapped."""
    try:
        with open(f"/proc/{pid}/maps", errors="replace") as file:
            return mapped_in(file.read())
    except OSError:
        return 0


def wait_for_none(look: Callable[[], list[str]], seconds: float = SETTLE) -> list[str]:
    """Until `look` finds nothing; what it finds after that time."""
    deadline = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
        gc.collect()
    return found


# ---- while the cluster runs, at rest ----------------------------------------------------------------------


def unreturned() -> list[str]:
    """Resources that nobody uses and that are not free."""
    total, free = fw.cluster_resources(), fw.available_resources()
    return [
        f"{total[name] - free.get(name, 0.0):g} of {total[name]:g} {name} are not free"
        for name in total
        if abs(total[name] - free.get(name, 0.0)) > 1e-6
    ] + [f"{name} is there, of no group" for name in total if "_group_" in name]


def unfreed() -> list[str]:
    """Objects that nobody can reach, as their owners have it."""
    return [
        f"object {row['object_id'][:16]} of {row['type']} {row['pid']}: {row['reference_type']}, "
        f"{row['local_references']} references, {row['borrowers']}, made at {row['call_site']}"
        for row in list_objects()
    ]


def stored(cluster: Cluster) -> list[str]:
    """What the nodes have in their stores."""
    found = []
    for node in cluster.list_all_nodes():
        with Client(node.session_dir, "node") as client:
            listing: dict[str, Any] = client.call(m.STORE_LIST)
        stats = listing["stats"]
        if stats["objects"] or stats["pins"] or stats["spilled_objects"] or stats["waiting"]:
            found.append(f"{node!r} has {stats}: {listing['objects'][:3]}")
        elif stats["used"] != stats["region_bytes"]:
            found.append(f"{node!r}: {stats['used'] - stats['region_bytes']} bytes of its store are lost")
    return found


def groups_left() -> list[str]:
    """Placement groups that were not removed."""
    return [
        f"group {key} is {row['state']}"
        for key, row in placement_group_table().items()
        if row["state"] != "REMOVED"
    ]


def workers_left(cluster: Cluster) -> list[str]:
    """Worker processes beyond the idle ones that a node keeps, one per CPU."""
    every = victims.processes()
    found = []
    for node in cluster.list_all_nodes():
        kept = 2 if node.is_head else 1
        pids = victims.workers(every, node.pid)
        if len(pids) > kept:
            found.append(f"{node!r} has {len(pids)} workers, of which {kept} may be idle")
    return found


def strangers(cluster: Cluster, root: str) -> list[str]:
    """Processes of the run that belong to no node that there is."""
    groups = {node.pid for node in cluster.list_all_nodes()} | {cluster.head_pid}
    every = victims.processes()
    return [
        f"process {pid} ({state}) belongs to no node"
        for pid, state in victims.of_sessions_below(root)
        if pid not in every or every[pid].group not in groups
    ]


def open_fds(cluster: Cluster) -> dict[str, int]:
    """How many descriptors those processes have that live through the whole run."""
    home = cluster.head_node
    assert home is not None
    pids: dict[str, int | str] = {"driver": "self", "node of the driver": home.pid}
    return {name: sum(kinds_of_fds(pid).values()) for name, pid in pids.items()}


def more_fds(cluster: Cluster, before: dict[str, int]) -> list[str]:
    """Those that have many more than before: each process that was killed had connections to them."""
    most = MORE_FDS + PER_NODE * len(cluster.worker_nodes)
    return [
        f"the {name} has {count} descriptors, {before[name]} before"
        for name, count in open_fds(cluster).items()
        if count > before[name] + most
    ]


def at_rest(cluster: Cluster, root: str, fds: dict[str, int]) -> list[str]:
    """All of that; empty when it is gone within `SETTLE` seconds each. `fds`: see `open_fds`, before."""
    found: list[str] = []
    for look in (
        lambda: more_fds(cluster, fds),
        unfreed,
        lambda: stored(cluster),
        unreturned,
        groups_left,
        lambda: workers_left(cluster),
        lambda: strangers(cluster, root),
    ):
        found += wait_for_none(look)[:10]
    return found


# ---- afterwards -----------------------------------------------------------------------------------------


def remains(root: str) -> list[str]:
    """Files and directories of sessions beside their logs."""
    found = []
    for path, directories, files in os.walk(root):
        parts = os.path.relpath(path, root).split(os.sep)
        if "logs" in parts:
            continue
        found += [os.path.join(path, name) for name in files]
        found += [os.path.join(path, name) for name in directories if name == "sockets"]
    return found


def after(root: str, before: Footprint) -> list[str]:
    """What is left when everything was shut down; empty when it is gone within `SETTLE` seconds."""
    found = [
        f"process {pid} ({state}) still runs" if state != "Z" else f"process {pid} is not reaped"
        for pid, state in wait_for_processes(root)
    ]
    found += [f"{path} is left" for path in remains(root)]
    return found + wait_for_none(lambda: Footprint.now().leaks(before), 5.0)


def wait_for_processes(root: str) -> list[tuple[int, str]]:
    """Those that there still are."""
    deadline = time.monotonic() + SETTLE
    while (left := victims.of_sessions_below(root)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left
