"""Carries out what the policy decides, again and again, in a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._node.control import RemoteHead, cluster_facts, sessions_of_cluster
from framework._node.draining import drain
from framework._wire import messages as m
from framework.autoscaler.policy import Decision, ScalingPolicy, demand_of, rooms_of
from framework.autoscaler.provider import NodeProvider, NodeType
from framework.exceptions import ConnectionFailedError

log = logging.getLogger("framework.autoscaler")


def local_facts(address: str) -> ClusterFacts:
    """What is needed to start nodes of the cluster with its head at `address` (``HOST:PORT``, or the
    directory of a session of it), from one of its nodes on this machine. `ConnectionFailedError` when there
    is none."""
    found = cluster_facts(address)
    if found is None and ":" in address:
        for session_dir in sessions_of_cluster(address):
            found = found or cluster_facts(session_dir)
    if found is None:
        raise ConnectionFailedError(f"no node of a cluster at {address} runs on this machine")
    return found


class Autoscaler:
    """Asks the head of a cluster what waits and what is there, every `interval` seconds, and has `provider`
    create and end nodes accordingly.

    `address`: as for `local_facts`. Nodes that are not needed are drained before they end. What the provider
    or the head raises is logged, and tried again. Use it with ``with``, or `start` and `stop`; `stop` ends
    all nodes of the provider unless ``keep_nodes=True``.
    """

    def __init__(
        self,
        address: str,
        types: Iterable[NodeType],
        provider: NodeProvider,
        *,
        idle_timeout: float = limits.AUTOSCALER_IDLE,
        interval: float = limits.AUTOSCALER_INTERVAL,
        max_nodes: int = 100,
    ) -> None:
        self.policy = ScalingPolicy(types, idle_timeout=idle_timeout, max_nodes=max_nodes)
        self.provider = provider
        self._facts = local_facts(address)
        self._interval = interval
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._told: set[str] = set()

    def start(self) -> None:
        """Begin."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="framework-autoscaler", daemon=True)
            self._thread.start()

    def stop(self, keep_nodes: bool = False) -> None:
        """End, and have the provider end its nodes."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if not keep_nodes:
            for node in self.provider.non_terminated_nodes():
                self._try("ending a node", self.provider.terminate_node, node.name)

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self._try("looking at the cluster", self.step)

    def step(self) -> Decision:
        """Look once, and do what there is to do; what was decided."""
        with RemoteHead(self._facts) as head:
            answer: dict[str, Any] = head.call(m.HEAD_DEMAND)
            provided = self.provider.non_terminated_nodes()
            decision = self.policy.decide(time.monotonic(), demand_of(answer), rooms_of(answer), provided)
            for shape in decision.infeasible:
                self._warn(
                    f"no node type could ever hold {dict(shape.units)} with labels {dict(shape.labels)}"
                )
            for name, count in decision.create.items():
                log.info("%d more nodes of type %s", count, name)
                for _ in range(count):
                    self._try("creating a node", self.provider.create_node, self.policy.types[name])
            ids = {node.name: node.node_id for node in provided}
            for name in decision.terminate:
                log.info("node %s has been idle and ends", name)
                with contextlib.suppress(Exception):  # it may be gone
                    if ids[name]:
                        _, rest = drain(
                            lambda: RemoteHead(self._facts),
                            bytes.fromhex(ids[name]),
                            "the autoscaler does not need it any more",
                            limits.CONNECT_TIMEOUT,
                        )
                        if rest:
                            log.warning("with the node %s are lost %s", name, rest)
                self._try("ending a node", self.provider.terminate_node, name)
        return decision

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)

    @staticmethod
    def _try(what: str, action: Callable[..., object], *arguments: object) -> None:
        try:
            action(*arguments)
        except ConnectionFailedError as error:
            log.warning("%s: %s", what, error)
        except Exception:
            log.exception("%s failed; it is tried again", what)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
