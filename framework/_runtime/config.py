"""Who a process is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework._base.cluster import ClusterFacts


class Config:
    """Who this process is, in which session."""

    __slots__ = (
        "cluster",
        "env",
        "is_driver",
        "job",
        "job_facts",
        "log_to_driver",
        "namespace",
        "node_id",
        "node_ip",
        "session_dir",
        "worker_id",
    )

    def __init__(self, *, session_dir: str, worker_id: bytes, is_driver: bool) -> None:
        self.session_dir = session_dir
        self.worker_id = worker_id
        self.is_driver = is_driver
        self.job = b""
        self.job_facts: dict[str, Any] = {}  #: sys.path, working directory and namespace of the driver
        self.env: dict[
            str, str
        ] = {}  #: environment variables that tasks and actors started from here inherit
        self.namespace = ""
        self.node_id = b"\xff" * 28
        self.node_ip = "127.0.0.1"
        self.log_to_driver = True
        self.cluster: ClusterFacts | None = None  #: None: a session of one machine

    def join(self, facts: ClusterFacts) -> None:
        """This process belongs to a cluster. To be told before its runtime is made."""
        self.cluster = facts
        self.node_id = facts.node_id
        self.node_ip = facts.host
