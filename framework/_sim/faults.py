"""What goes wrong in a simulation: when, and what of it, the seed decides."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from framework._base import limits
from framework._sim.sockets import SimSocket

if TYPE_CHECKING:
    from framework._sim.cluster import SimCluster, SimNode
    from framework._sim.process import Process
    from framework._sim.world import Happening


@dataclasses.dataclass
class Faults:
    """How much goes wrong. Rates are occurrences per virtual second, in the whole cluster; 0 means never."""

    crash_worker: float = 0.0  #: kill -9 of a worker
    crash_node: float = 0.0  #: kill -9 of a node's process; its workers go with it
    power_cut: float = 0.0  #: of a whole machine, which says nothing any more
    crash_head: float = 0.0  #: kill -9 of the head, which its node starts again
    partition: float = 0.0  #: two machines do not reach each other for some seconds
    reset: float = 0.0  #: a connection between two machines breaks, with what was under way
    delay: float = 0.0  #: share of deliveries between machines that take up to 50 ms
    slow: float = 0.0  #: a process takes up to 20 ms for each step, for some seconds
    stop: float = 0.0  #: a process is stopped (SIGSTOP), for up to some seconds
    clock_jump: float = 0.0  #: the clocks of a process jump forward, by up to a second
    disk_full: float = 0.0  #: a machine's disk takes no writes, for some seconds
    disk_lost: float = 0.0  #: something that was written is not there
    add_node: float = 0.0  #: a machine more joins
    longest: float = 8.0  #: seconds that a partition, a stop, slowness or a full disk lasts at most

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or value < 0:
                raise ValueError(f"{field.name} is a rate, 0 or more; got {value!r}")
        if self.delay > 1:
            raise ValueError(f"delay is a share, from 0 to 1; got {self.delay!r}")

    def any(self) -> bool:
        """Whether anything can go wrong at all."""
        return any(getattr(self, name) for name in RATES) or self.delay > 0


#: the kinds that come at random moments
RATES: Final = (
    "crash_worker",
    "crash_node",
    "power_cut",
    "crash_head",
    "partition",
    "reset",
    "slow",
    "stop",
    "clock_jump",
    "disk_full",
    "disk_lost",
    "add_node",
)

#: that an object takes to be written to disk, or read from it, at most
DISK_SECONDS: Final = 0.01


class Injector:
    """Makes the faults happen, from `start` to `end`, and keeps a record (`happened`) of what did.

    `spared` are processes that must live: the drivers.
    """

    def __init__(
        self, cluster: SimCluster, faults: Faults, happened: list[Happening], most: int = 40
    ) -> None:
        self.cluster = cluster
        self.kernel = cluster.kernel
        self.choices = cluster.kernel.choices
        self.faults = faults
        self.happened = happened
        self.counts: dict[str, int] = {}
        self._left = most
        self._ended = False
        self._undo: list[Callable[[], object]] = []
        self._full: dict[str, float] = {}  #: machines whose disk is full, until when
        network = cluster.system.network
        network.spike = faults.delay
        self._rates = [(name, getattr(faults, name)) for name in RATES if getattr(faults, name) > 0]
        self._total = sum(rate for _, rate in self._rates)
        self._lost_transactions = LostWrites()
        self._head_crashes: list[float] = []

    # ---- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """From now on things go wrong."""
        if self._total:
            self._arm()

    def _arm(self) -> None:
        if not self._ended and self._left > 0:
            delay = -math.log(1.0 - self.choices.unit()) / self._total
            self.kernel.call_later(delay, self._strike)

    def _strike(self) -> None:
        if self._ended:
            return
        self._left -= 1
        at = self.choices.unit() * self._total
        kind = self._rates[-1][0]
        for name, rate in self._rates:
            at -= rate
            if at < 0:
                kind = name
                break
        getattr(self, f"_{kind}")()
        self._arm()

    def end(self) -> None:
        """No more; what is cut heals, what stands still goes on."""
        self._ended = True
        network = self.cluster.system.network
        network.spike = 0.0
        if network.delayed:
            self.counts["delay"] = network.delayed
        self._full.clear()
        undo, self._undo = self._undo, []
        for function in undo:
            function()

    def note(self, kind: str, /, **facts: Any) -> dict[str, Any]:
        """It has happened."""
        self.happened.append((self.kernel.now, kind, facts))
        name = f"crash of a {facts['process']}" if kind == "crash" else kind
        self.counts[name] = self.counts.get(name, 0) + 1
        shown = ", ".join(f"{key}={value}" for key, value in facts.items() if key != "node")
        self.kernel.log.add(f"{self.kernel.now:.6f} fault: {kind} {shown}")
        return facts

    # ---- targets -------------------------------------------------------------------------------------

    def _nodes(self, but_home: bool) -> list[SimNode]:
        """Those that may be hit. The head's is the drivers' home: without it there is nobody to ask."""
        return [n for n in self.cluster.nodes.values() if n.alive and not (but_home and n.host == self._home)]

    @property
    def _home(self) -> str:
        return self.cluster._head_host

    def _processes(self) -> list[Process]:
        spared = {process.pid for process in self.cluster.drivers}
        kernel = self.kernel
        return [
            p for p in kernel.processes.values() if p.alive and p.pid not in spared and "zygote" not in p.name
        ]

    def _facts_of(self, process: Process) -> dict[str, Any]:
        kind = process.name.rstrip("0123456789")
        node = next((n for n in self.cluster.nodes.values() if n.host == process.host), None)
        return {
            "process": kind,
            "pid": process.pid,
            "node": node.node_id if node is not None else "",
            "home": process.host == self._home,
        }

    # ---- faults --------------------------------------------------------------------------------------

    def _crash_worker(self) -> None:
        workers = [p for p in self.cluster.workers.values() if p.alive]
        if workers:
            victim = self.choices.pick(workers)
            self.note("crash", **self._facts_of(victim))
            self.cluster.exit_process(victim, signal.SIGKILL)

    def _crash_node(self) -> None:
        nodes = self._nodes(True)
        if nodes:
            node = self.choices.pick(nodes)
            self.note("crash", **self._facts_of(node.process))
            self.cluster.exit_process(node.process, signal.SIGKILL)

    def _power_cut(self) -> None:
        nodes = self._nodes(True)
        if nodes:
            node = self.choices.pick(nodes)
            self.note("crash", **self._facts_of(node.process))
            self.counts["power_cut"] = self.counts.get("power_cut", 0) + 1
            self.cluster.system.network.down[node.host] = None
            self.cluster.exit_process(node.process, signal.SIGKILL)

    def _crash_head(self) -> None:
        head, now = self.cluster.head, self.kernel.now
        # (One that dies too often is not started again.)
        recent = [when for when in self._head_crashes if when > now - limits.HEAD_RETURN_TIMEOUT]
        if head is not None and head.alive and len(recent) < limits.HEAD_RESTARTS:
            self._head_crashes.append(now)
            self.note("crash", **self._facts_of(head))
            self.note("head_restart")
            if self.choices.chance(min(1.0, self.faults.disk_lost)) and self._lost_transactions.undo(
                self.choices.below(3) + 1
            ):
                self.note("disk_lost", node="", home=True, head=True)
            self.cluster.exit_process(head, signal.SIGKILL)

    def _partition(self) -> None:
        hosts = [node.host for node in self._nodes(False)]
        if len(hosts) < 2:
            return
        one = self.choices.pick(hosts)
        other = self.choices.pick([host for host in hosts if host != one])
        network = self.cluster.system.network
        if frozenset((one, other)) in network.cut:
            return
        network.partition(one, other)
        ids = {node.host: node.node_id for node in self.cluster.nodes.values()}
        facts = self.note("partition", node=ids[one], other=ids[other], home=self._home in (one, other))
        self._for_a_while(facts, lambda: network.heal(one, other))

    def _reset(self) -> None:
        network = self.cluster.system.network
        open_ones = [sock for sock in network.connections if not sock.closed and not sock.error]
        if not open_ones:
            return
        sock: SimSocket = self.choices.pick(open_ones)
        self.note("reset", node="", hosts=f"{sock.host}-{sock.peer.host if sock.peer else ''}")
        # Most often both sides are told at once. But a system that has lost its memory of a connection tells
        # the other side when that says something.
        only_here = self.choices.chance(0.25)
        if only_here and sock.peer is not None and self.choices.chance(0.5):
            sock = sock.peer
        # Before what is under way has arrived, while it is dealt with, or after it was answered.
        moment = self.choices.below(3)
        if moment == 0:
            sock.reset(only_here)
        else:
            delay = self.choices.uniform(5e-5, 1e-3) if moment == 1 else self.choices.uniform(1e-3, 1e-2)
            self.kernel.call_later(delay, sock.reset, only_here)

    def _slow(self) -> None:
        """A process, or all of a machine."""
        processes = self._processes()
        if not processes:
            return
        process = self.choices.pick(processes)
        whole = self.choices.chance(0.5)
        slowness, seconds = self.choices.unit() * 0.02, self.choices.unit() * self.faults.longest
        for other in self._processes():
            if other is process or (whole and other.host == process.host):
                other.slowness = slowness
                other.slow_until = self.kernel.now + seconds
        self.note("slow", **self._facts_of(process), until=self.kernel.now + seconds, machine=whole)

    def _stop(self) -> None:
        processes = [process for process in self._processes() if not process.stopped]
        if not processes:
            return
        process = self.choices.pick(processes)
        self.kernel.stop(process)
        facts = self.note("stop", **self._facts_of(process))
        self._for_a_while(facts, lambda: self.kernel.resume(process))

    def _clock_jump(self) -> None:
        processes = self._processes()
        if not processes:
            return
        process = self.choices.pick(processes)
        seconds = self.choices.unit()
        process.wall_offset += self.choices.uniform(-3600, 3600)
        self.kernel.jump_clock(process, seconds)
        self.note("clock_jump", **self._facts_of(process), seconds=round(seconds, 3))

    def _disk_full(self) -> None:
        nodes = self._nodes(False)
        if not nodes:
            return
        node = self.choices.pick(nodes)
        self._full[node.host] = self.kernel.now + self.faults.longest
        facts = self.note("disk_full", node=node.node_id, home=node.host == self._home)
        self._for_a_while(facts, lambda: self._full.pop(node.host, None))

    def _disk_lost(self) -> None:
        nodes = self._nodes(False)
        if not nodes:
            return
        node = self.choices.pick(nodes)
        place = os.path.join(node.session_dir, "spill")
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(place))
            if names:
                os.unlink(os.path.join(place, self.choices.pick(names)))
                self.note("disk_lost", node=node.node_id, home=node.host == self._home)

    def _add_node(self) -> None:
        if len(self._nodes(False)) < 6:
            node = self.cluster.add_node()
            self.note("node_added", node=node.node_id)

    def _for_a_while(self, facts: dict[str, Any], undo: Callable[[], object]) -> None:
        def over() -> None:
            if undo in self._undo:
                self._undo.remove(undo)
                facts["until"] = self.kernel.now
                undo()

        self._undo.append(undo)
        self.kernel.call_later(self.choices.unit() * self.faults.longest, over)

    # ---- the disk ------------------------------------------------------------------------------------

    def patch_disks(self) -> None:
        """Within `System.installed`: a disk takes its time, and refuses what is written while it is full."""
        from framework._head.storage import Storage
        from framework._node.spill import LocalDisk

        system = self.cluster.system
        write_block, write_rows, lost = LocalDisk.write, Storage._write, self._lost_transactions
        read_block = LocalDisk.read

        def spill(disk: LocalDisk, name: str, memory: memoryview) -> None:
            system.sleep(self.choices.unit() * DISK_SECONDS)
            if self._is_full():
                raise OSError(28, f"No space left on device (spilling to {disk.directory})")
            write_block(disk, name, memory)

        def restore(disk: LocalDisk, name: str, memory: memoryview) -> None:
            system.sleep(self.choices.unit() * DISK_SECONDS)
            read_block(disk, name, memory)

        def keep(storage: Storage, pending: Any) -> None:
            if self._is_full():
                raise sqlite3.OperationalError("database or disk is full")
            lost.about_to_write(storage, pending)
            write_rows(storage, pending)

        system._set(LocalDisk, "write", spill)
        system._set(LocalDisk, "read", restore)
        system._set(Storage, "_write", keep)

    def _is_full(self) -> bool:
        process = self.kernel.process
        full = process is not None and self._full.get(process.host, 0.0) > self.kernel.now
        if full:
            self.counts["disk refused a write"] = self.counts.get("disk refused a write", 0) + 1
        return full


class LostWrites:
    """The last transactions of the head's storage, to be undone: a machine without power forgets what had not
    reached its disk (``synchronous=NORMAL`` promises no more)."""

    def __init__(self) -> None:
        self._path = ""
        self._before: list[list[tuple[str, bytes, bytes | None]]] = []

    def about_to_write(self, storage: Any, pending: dict[tuple[str, bytes], bytes | None]) -> None:
        """Remember what was there."""
        if storage.path is None:
            return
        if storage.path != self._path:
            self._path, self._before = storage.path, []
        query = "SELECT value FROM kept WHERE kind = ? AND key = ?"
        rows = []
        for table, key in pending:
            found = storage._db.execute(query, (table, key)).fetchone()
            rows.append((table, key, None if found is None else bytes(found[0])))
        self._before.append(rows)
        del self._before[:-4]

    def undo(self, count: int) -> bool:
        """Forget the last `count` transactions; whether there were any."""
        undone, self._before = self._before[-count:], self._before[:-count]
        if not undone:
            return False
        db = sqlite3.connect(self._path, isolation_level=None)
        try:
            for rows in reversed(undone):
                for table, key, value in rows:
                    if value is None:
                        db.execute("DELETE FROM kept WHERE kind = ? AND key = ?", (table, key))
                    else:
                        db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (table, key, value))
        finally:
            db.close()
        return True
