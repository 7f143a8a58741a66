"""A cluster on this machine, for tests: every node is a process of its own, with its own object store and
workers, and can be ended, killed, or stopped in the middle of things.

    cluster = Cluster()
    cluster.add_node(num_cpus=1)                     # the first one is the head's node
    framework.init(address=cluster.address)
    node = cluster.add_node(num_cpus=2, resources={"oven": 1})
    cluster.wait_for_nodes()
    ...
    cluster.remove_node(node, allow_graceful=False)  # as if its machine had lost power
    framework.shutdown()
    cluster.shutdown()

Nothing of it outlives the process that made it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import time
from types import TracebackType
from typing import Any, Self

from framework._base import limits
from framework._init_checks import checked_labels, wanted_resources
from framework._node.control import Client
from framework._node.draining import drain
from framework._node.launching import HeadProcess, JoinedNode, end_in_order, new_facts
from framework._node.session import sweep_session
from framework._service.credentials import new_token
from framework._wire import messages as m
from framework.exceptions import FrameworkError

log = logging.getLogger("framework.cluster")

__all__ = ["Cluster", "ClusterNode"]

_IGNORED = frozenset(
    {
        # What Ray's helper takes and what has no meaning here.
        "dashboard_host",
        "dashboard_port",
        "enable_object_reconstruction",  # it is always on: `max_retries` of the task decides
        "include_dashboard",
        "min_worker_port",
        "max_worker_port",
        "node_name",
        "redis_port",
        "shutdown_at_exit",
    }
)


class ClusterNode:
    """One node of a `Cluster`: a node process with its workers, in a process group of its own."""

    def __init__(self, node: JoinedNode, is_head: bool) -> None:
        self._node = node
        self.is_head = is_head

    @property
    def node_id(self) -> str:
        """Hexadecimal, as in ``framework.nodes()``."""
        return self._node.node_id.hex()

    unique_id = node_id

    @property
    def session_dir(self) -> str:
        """The directory with its sockets and logs."""
        return self._node.session_dir

    @property
    def pid(self) -> int:
        """Of the node process, which leads the group of its workers."""
        return self._node.process.pid

    @property
    def alive(self) -> bool:
        """Whether its process has not ended (it may be stopped)."""
        return not self._node.process.poll()

    def _close(self) -> None:
        self._node.wait()
        self._node.forget()

    def kill(self) -> None:
        """SIGKILL for the node and all its workers at once; what they have left in its directory goes."""
        self._node.process.kill()
        self._close()

    def stop(self) -> None:
        """SIGSTOP for the node and all its workers: they neither answer nor end, as if a cable were cut."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """They go on where `stop` has held them."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _terminate(self) -> None:
        """Ask it to end in order."""
        self._signal(signal.SIGCONT)
        self._node.stop()

    def _wait(self) -> None:
        end_in_order(self._node.process)
        self._close()

    def __repr__(self) -> str:
        return f"<ClusterNode {self.node_id[:8]} pid={self.pid}{' (head)' if self.is_head else ''}>"


class Cluster:
    """A head and nodes, all processes on this machine.

    `initialize_head` adds the first node at once, with `head_node_args`; `connect` then also calls
    ``framework.init(address=self.address)``. With `shutdown_at_exit` (the default) the interpreter ends it
    when it exits; if this process is killed, the cluster ends by itself. To be used with ``with``, too.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: dict[str, Any] | None = None,
        shutdown_at_exit: bool = True,
        *,
        tls: bool = False,
    ) -> None:
        """`tls`: have connections encrypted, although they stay on this machine."""
        if connect and not initialize_head:
            raise ValueError("connect=True needs initialize_head=True: there is nothing to connect to")
        if head_node_args is not None and not isinstance(head_node_args, dict):
            raise TypeError(f"head_node_args is a dict of what add_node() takes, got {head_node_args!r}")
        self._tls = tls
        self._head: HeadProcess | None = None
        self._connected = False
        self.head_node: ClusterNode | None = None
        self.worker_nodes: list[ClusterNode] = []
        if shutdown_at_exit:
            atexit.register(self.shutdown)
        if initialize_head:
            self.add_node(**(head_node_args or {}))
            if connect:
                self.connect()

    # ---- nodes ---------------------------------------------------------------------------------------

    def add_node(self, wait: bool = True, **node_args: Any) -> ClusterNode:
        """Start a node; the first one also starts the cluster's head.

        `node_args`: num_cpus (1), num_gpus (0), resources, memory, object_store_memory (bytes), labels, as
        for ``framework.init``, and spill_directory, memory_usage_threshold; names of Ray's own machinery are
        ignored. With `wait` the node has joined when this returns; else see `wait_for_nodes`. Raises
        `TypeError` or `ValueError` for arguments that make no sense, `LocalNodeDiedError` when it does not
        come up.
        """
        wanted = _node_arguments(node_args)
        is_head = self._head is None
        if self._head is None:
            facts = new_facts(new_token(), "127.0.0.1", 0, self._tls)
            self._head = HeadProcess(facts, parent_pid=os.getpid())
        facts = self._head.facts
        try:
            started = JoinedNode.of(
                facts,
                wanted,
                session_dir=self._head.session_dir if is_head else None,
                parent_pid=os.getpid(),
            )
        except BaseException:
            if is_head:
                self._end_head()
            raise
        node = ClusterNode(started, is_head)
        if is_head:
            self.head_node = node
        else:
            self.worker_nodes.append(node)
        try:
            if wait:
                started.expect_ready()
        except BaseException:
            self._forget(node)
            if is_head:
                self._end_head()
            raise
        return node

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """End a node: in order, after its work has moved elsewhere, or (``allow_graceful=False``) by SIGKILL
        for all its processes at once. Returns when they are gone. The head's node takes the head along."""
        if node is None or node not in self.list_all_nodes():
            raise ValueError(f"{node!r} is not a node of this cluster")
        if allow_graceful:
            if not node.is_head:
                self._drain(node)
            node._terminate()
            node._wait()
        else:
            node.kill()
        self._forget(node)
        if node.is_head:
            self._end_head()

    def _drain(self, node: ClusterNode) -> None:
        why = "it is removed from the cluster"
        try:
            done, rest = drain(self._client, bytes.fromhex(node.node_id), why, limits.SHUTDOWN_GRACE)
        except FrameworkError as error:
            done, rest = False, str(error)
        if rest:
            before = "" if done else "before it was drained: "
            log.warning("node %s is removed, %slost are %s", node.node_id[:12], before, rest)

    def _forget(self, node: ClusterNode) -> None:
        if node is self.head_node:
            self.head_node = None
        elif node in self.worker_nodes:
            self.worker_nodes.remove(node)

    def list_all_nodes(self) -> list[ClusterNode]:
        """The head's node first; those that were removed are not in it."""
        return [*([self.head_node] if self.head_node is not None else []), *self.worker_nodes]

    def wait_for_nodes(self, timeout: float = 30.0) -> None:
        """Until all nodes that were added have joined, and those that were removed are known to be gone.
        `TimeoutError` when that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        wanted = {node.node_id for node in self.list_all_nodes()}
        while True:
            found: set[str] = set()
            with contextlib.suppress(FrameworkError), self._client() as head:
                while True:
                    found = {row["node_id"].hex() for row in head.call(m.NODES) if row.get("alive", True)}
                    if found == wanted:
                        return
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.01)
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"after {timeout:g} s the cluster has {len(found)} nodes instead of {len(wanted)}"
                )
            time.sleep(0.05)

    def _client(self) -> Client:
        return Client(self._present_head().session_dir, "head")

    def _present_head(self) -> HeadProcess:
        if self._head is None:
            raise ValueError("the cluster has no head yet: add_node() starts it with the first node")
        return self._head

    # ---- the head ------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """``HOST:PORT`` of the head, for ``framework.init(address=...)``."""
        return self._present_head().facts.head

    gcs_address = address

    @property
    def token(self) -> str:
        """What a process that is no child of this one needs in ``FRAMEWORK_TOKEN`` to join."""
        from framework._service.credentials import token_text

        facts = self._present_head().facts
        return token_text(facts.token, facts.certificate)

    @property
    def head_pid(self) -> int:
        """The number of the head's process."""
        return self._head.pid if self._head is not None else 0

    def kill_head(self) -> None:
        """SIGKILL for the head alone: its node and all others go on, and wait for its return."""
        self._present_head().kill()

    def restart_head(self) -> None:
        """Start the head again, at the same port, with what it has written down. Returns when it serves."""
        head = self._present_head()
        head.kill()
        head.start()

    def _end_head(self) -> None:
        if self._head is not None:
            self._head.stop()
            sweep_session(self._head.session_dir)
            self._head = None

    # ---- drivers -------------------------------------------------------------------------------------

    def connect(self, namespace: str | None = None, **init_args: Any) -> Any:
        """Make this process a driver of the cluster: what ``framework.init`` returns."""
        from framework._session import init

        context = init(address=self.address, namespace=namespace, **init_args)
        self._connected = True
        return context

    def shutdown(self) -> None:
        """End all of it, and wait until it is gone. May be called again."""
        atexit.unregister(self.shutdown)
        if self._connected:
            from framework._session import shutdown

            self._connected = False
            shutdown()
        nodes = self.list_all_nodes()
        for node in nodes:
            node._terminate()
        deadline = time.monotonic() + limits.SHUTDOWN_GRACE + limits.EXIT_GRACE
        for node in nodes:
            if not node._node.process.wait(max(0.0, deadline - time.monotonic())):
                node._node.process.kill()
            node._close()
            self._forget(node)
        self._end_head()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        where = self.address if self._head is not None else "without a head"
        return f"<Cluster {where}, {len(self.list_all_nodes())} nodes>"


def _node_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """What the node process is to offer."""
    known = {
        name: given.get(name)
        for name in (
            "num_cpus",
            "num_gpus",
            "memory",
            "resources",
            "object_store_memory",
            "spill_directory",
            "memory_usage_threshold",
        )
    }
    for name in given:
        if name not in known and name != "labels":
            if name not in _IGNORED and not name.startswith("_"):
                raise TypeError(f"add_node() has no argument {name!r}; known: {', '.join(known)}, labels")
    if known["num_cpus"] is None:
        known["num_cpus"] = 1  # as Ray's helper has it
    if known["num_gpus"] is None:
        known["num_gpus"] = 0
    if known["object_store_memory"] is None:
        known["object_store_memory"] = limits.TEST_STORE
    return wanted_resources(**known, labels=checked_labels(given.get("labels")))
