"""The faults of a plan, done to a real cluster; what is stopped is resumed, what is lost replaced."""

from __future__ import annotations

import contextlib
import heapq
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

from framework._node.control import Client
from framework._wire import messages as m
from framework.chaos import victims
from framework.chaos.plan import Fault
from framework.chaos.victims import Held
from framework.cluster_utils import Cluster, ClusterNode
from framework.exceptions import FrameworkError

STALE: Final = 15.0  # seconds in which a node that was declared dead must have ended after its return
SETTLED: Final = 2.0  # seconds after its return when one that is alive for the head is alive
ORPHANS: Final = 5.0  # seconds in which workers must have ended after their node process
FROZEN: Final = 30.0  # seconds after which what never returns is taken away
VERDICT: Final = 30.0  # seconds in which the head, if it is there, must have declared a frozen node dead
LOOK: Final = 0.25
ANSWER: Final = 1.0  # seconds for an answer of the head, for a question that is asked again


class Injector:
    """`note` is called with a line for each thing that happens. All methods are called by one thread.

    `failures`: what the cluster did that no fault explains."""

    def __init__(self, cluster: Cluster, nodes: int, note: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._note = note
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._next_look = 0.0
        self._stopped: dict[ClusterNode, Fault] = {}  # as long as they are
        self._returned: dict[ClusterNode, float] = {}  # since when they are resumed, until it is decided
        self._crashed: dict[ClusterNode, float] = {}  # whose process was killed: until when all must be gone
        self._frozen: dict[ClusterNode, float] = {}  # until when they must have been declared dead
        self._held: set[Held] = set()
        self._head_away = False
        self._head_stopped = False
        self.done: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.failures: list[str] = []

    # ---- time --------------------------------------------------------------------------------------------

    def next_due(self) -> float:
        """When `turn` has something to do, by the monotonic clock."""
        return min(self._next_look, self._later[0][0] if self._later else self._next_look)

    def turn(self) -> None:
        """Do what is due, and look after the nodes."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        if self._next_look <= time.monotonic():
            self._look()
            self._next_look = time.monotonic() + LOOK

    def _after(self, delay: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._later, (time.monotonic() + delay, self._count, what))

    # ---- faults ------------------------------------------------------------------------------------------

    def strike(self, fault: Fault) -> None:
        """One fault; nothing, if there is no victim for it at the moment."""
        what, _, how = fault.kind.name.partition(".")
        strike: Callable[[Fault, str], str] = getattr(self, f"_{what}")
        found = strike(fault, how)
        (self.done if found else self.skipped)[fault.kind.name] += 1
        self._note(f"{fault}: {found or 'nothing to strike'}")

    def _worker(self, fault: Fault, how: str) -> str:
        every = victims.processes()
        places = [(pid, node.pid) for node in self._running() for pid in victims.workers(every, node.pid)]
        return self._strike_one(fault, how, places)

    def _zygote(self, fault: Fault, how: str) -> str:
        every = victims.processes()
        places = [(pid, node.pid) for node in self._running() for pid in victims.zygotes(every, node.pid)]
        return self._strike_one(fault, how, places)

    def _strike_one(self, fault: Fault, how: str, places: list[tuple[int, int]]) -> str:
        if not places:
            return ""
        pid, group = places[int(fault.pick * len(places))]
        try:
            victim = Held(pid, group)
        except ProcessLookupError:
            return ""
        self._held.add(victim)
        if not victim.send(signal.SIGKILL if how == "kill" else signal.SIGSTOP):
            self._let_go(victim)
            return ""
        if how == "kill":
            self._let_go(victim)
        else:
            last = signal.SIGCONT if how == "stop" else signal.SIGKILL
            self._after(fault.hold, partial(self._let_go, victim, last))
        return f"process {pid} of node {group}"

    def _let_go(self, victim: Held, number: signal.Signals | None = None) -> None:
        if victim in self._held:
            if number is not None:
                victim.send(number)
            self._held.discard(victim)
            victim.close()

    def _node(self, fault: Fault, how: str) -> str:
        nodes = [node for node in self._fine() if not node.is_head]
        if not nodes:
            return ""
        node = nodes[int(fault.pick * len(nodes))]
        if how == "kill":
            self._remove(node, fault.delay)
        elif how == "crash":
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, signal.SIGKILL)
            self._crashed[node] = time.monotonic() + ORPHANS
            self._replace_after(fault.delay)
        elif how == "stall":
            self._stall(node, fault)
        else:
            node.stop()
            self._stopped[node] = fault
            if how == "freeze":
                self._frozen[node] = time.monotonic() + VERDICT
                self._replace_after(fault.delay)
            else:
                self._after(fault.hold, partial(self._resume, node))
        return f"node {node.pid}"

    def _home(self, fault: Fault, how: str) -> str:
        node = self._cluster.head_node
        if node is None or node in self._stopped:
            return ""
        self._stall(node, fault)
        return f"node {node.pid}"

    def _stall(self, node: ClusterNode, fault: Fault) -> None:
        os.kill(node.pid, signal.SIGSTOP)
        self._stopped[node] = fault
        self._after(fault.hold, partial(self._resume, node))

    def _resume(self, node: ClusterNode) -> None:
        if self._stopped.pop(node, None) is not None and node in self._cluster.list_all_nodes():
            node.cont()
            if not node.is_head:
                self._returned[node] = time.monotonic()

    def _head(self, fault: Fault, how: str) -> str:
        if self._head_away or self._head_stopped:
            return ""
        pid = self._cluster.head_pid
        if how == "kill":
            self._cluster.kill_head()
            self._head_away = True
            self._after(fault.hold, self._restart_head)
        else:
            os.kill(pid, signal.SIGSTOP)
            self._head_stopped = True
            self._after(fault.hold, self._resume_head)
        return f"process {pid}"

    def _restart_head(self) -> None:
        if self._head_away:
            begin = time.monotonic()
            self._cluster.restart_head()
            self._head_away = False
            self._note(
                f"the head is back as process {self._cluster.head_pid}, {time.monotonic() - begin:.2f} s"
            )

    def _resume_head(self) -> None:
        if self._head_stopped:
            self._head_stopped = False
            os.kill(self._cluster.head_pid, signal.SIGCONT)

    # ---- nodes -------------------------------------------------------------------------------------------

    def _fine(self) -> list[ClusterNode]:
        """The nodes that nothing is done to at the moment."""
        busy = self._stopped.keys() | self._crashed.keys() | self._returned.keys()
        return [node for node in self._cluster.list_all_nodes() if node not in busy]

    def _running(self) -> list[ClusterNode]:
        """Those whose node process is there, stopped or not."""
        return [node for node in self._cluster.list_all_nodes() if node not in self._crashed]

    def _remove(self, node: ClusterNode, delay: float | None) -> None:
        """SIGKILL for all of it; `delay`: after which another one comes, None for none."""
        self._stopped.pop(node, None)
        for table in (self._returned, self._crashed, self._frozen):
            table.pop(node, None)
        self._cluster.remove_node(node, allow_graceful=False)
        if delay is not None:
            self._replace_after(delay)

    def _replace_after(self, delay: float) -> None:
        self._after(delay, self._add)

    def _add(self) -> None:
        if self._head_away or self._head_stopped:  # nobody could let it in
            self._after(LOOK, self._add)
        else:
            self.add()

    def add(self, wait: bool = False) -> None:
        """One more node."""
        node = self._cluster.add_node(wait=wait, num_cpus=1)
        self.seen["nodes started"] += 1
        self._note(f"node {node.pid} ({node.node_id[:8]}) is started")

    def _look(self) -> None:
        now = time.monotonic()
        self._look_for_orphans(now)
        self._look_at_frozen(now)
        for node in self._cluster.list_all_nodes():
            if node in self._crashed or node.alive:
                continue
            if node in self._returned or node in self._stopped:
                self.seen["nodes that ended themselves after their return"] += 1
                self._note(f"node {node.pid} has ended itself: it had been declared dead")
            elif "this node cannot join" in _log_of(node):  # the head was struck at that moment
                self.seen["nodes that found no head when they were started"] += 1
                self._note(f"node {node.pid} has found no head")
            else:
                self.failures.append(f"{node!r} has ended without reason:\n{_log_of(node)[-2000:]}")
                if node.is_head:
                    continue
            self._remove(node, 0.0)
        if self._returned:
            self._look_at_returned(now)

    def _look_for_orphans(self, now: float) -> None:
        """A node process was killed: its workers must end by themselves."""
        every = victims.processes() if self._crashed else {}
        for node, until in list(self._crashed.items()):
            left = victims.members(every, node.pid)
            if not left:
                self.seen["nodes whose workers have ended with them"] += 1
                self._remove(node, None)
            elif now > until:
                found = victims.describe((process.pid, process.state) for process in left)
                self.failures.append(f"{found}: still there {ORPHANS:g} s after the end of node {node.pid}")
                self._remove(node, None)

    def _alive_ids(self) -> set[str] | None:
        """The nodes that the head takes for alive; None when it cannot be asked."""
        home = self._cluster.head_node
        if self._head_away or self._head_stopped or home is None:
            return None
        try:
            with Client(home.session_dir, "head") as head:
                head.timeout = ANSWER
                return {row["node_id"].hex() for row in head.call(m.NODES) if row["alive"]}
        except FrameworkError:
            return None

    def _look_at_frozen(self, now: float) -> None:
        waiting = [node for node in self._frozen if self._frozen[node]]
        alive = self._alive_ids() if waiting else None
        for node in waiting:
            if alive is None:
                self._frozen[node] = now + VERDICT
            elif node.node_id not in alive:
                self._frozen[node] = 0.0
                self.seen["frozen nodes declared dead"] += 1
                self._after(FROZEN, partial(self._take_away, node))
            elif now > self._frozen[node]:
                self.failures.append(f"{node!r} is stopped for {VERDICT:g} s and has not been declared dead")
                self._frozen[node] = 0.0

    def _take_away(self, node: ClusterNode) -> None:
        if node in self._frozen:
            self._remove(node, None)

    def _look_at_returned(self, now: float) -> None:
        alive = self._alive_ids()
        for node, since in list(self._returned.items()):
            if alive is None:
                self._returned[node] = now
            elif node.node_id in alive:
                if now - since > SETTLED:
                    del self._returned[node]
                    self.seen["nodes that came back and go on"] += 1
            elif now - since > STALE:
                del self._returned[node]
                self.failures.append(f"{node!r} was declared dead, is back since {STALE:g} s and lives on")

    # ---- the end -----------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Everything that was stopped goes on, the head is there, and so are all nodes. Blocks until then."""
        for victim in list(self._held):
            self._let_go(victim, signal.SIGCONT)
        self._resume_head()
        self._restart_head()
        for node in list(self._frozen):
            self._remove(node, None)
        for node in list(self._stopped):
            self._resume(node)
        until = time.monotonic() + STALE + SETTLED
        while not self._is_whole():
            if time.monotonic() > until:
                self.failures.append(
                    f"{self._cluster!r} is not whole {STALE + SETTLED:g} s after the last fault"
                )
                return
            self._look()
            self._later.clear()  # what would be started later comes now
            if len(self._cluster.worker_nodes) < self._nodes:
                self.add(wait=True)
            time.sleep(LOOK / 5)

    def _is_whole(self) -> bool:
        """Whether nothing is pending, and all nodes are there for the head."""
        nodes = self._cluster.list_all_nodes()
        if self._returned or self._crashed or len(nodes) <= self._nodes:
            return False
        return self._alive_ids() == {node.node_id for node in nodes}


def _log_of(node: ClusterNode) -> str:
    try:
        with open(os.path.join(node.session_dir, "logs", "node.log"), errors="replace") as file:
            return file.read()
    except OSError:
        return ""
