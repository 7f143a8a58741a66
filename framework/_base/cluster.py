"""What a process must know of the cluster that it belongs to.

The node's process writes these facts into its session directory (``cluster.json``, mode 0600), where drivers
of the same user find them, and hands them to its workers. A session that nobody can join has none.
"""

from __future__ import annotations

from typing import Any, Self

from framework._base.secret import Secret, SecretText


class ClusterFacts:
    """The cluster, as one of its nodes tells its processes. The token is never shown."""

    __slots__ = ("bind", "certificate", "cluster_id", "head", "host", "key", "node_id", "token")

    def __init__(
        self,
        *,
        cluster_id: bytes,
        token: bytes,
        head: str,
        host: str,
        node_id: bytes,
        certificate: bytes | None = None,
        key: bytes | None = None,
        bind: str | None = None,
    ) -> None:
        self.cluster_id = cluster_id  #: 16 bytes, new for every cluster
        self.token = Secret(token)  #: the shared secret of all its processes
        self.head = head  #: address of the head: ``HOST:PORT``
        self.host = host  #: the address (no name) under which this node's processes listen and are reached
        self.node_id = node_id  #: of this node
        self.certificate = certificate  #: PEM; None: connections are not encrypted
        self.key = Secret(key) if key is not None else None  #: its private key, PEM
        self.bind = bind or host  #: the address at which they really listen, where that is another

    def to_dict(self) -> dict[str, Any]:
        """As what JSON and msgpack can hold. Contains the secrets."""
        return {
            "cluster_id": self.cluster_id.hex(),
            "token": SecretText(self.token.hex()),
            "head": self.head,
            "host": self.host,
            "node_id": self.node_id.hex(),
            "certificate": self.certificate.decode() if self.certificate is not None else None,
            "key": SecretText(self.key.decode()) if self.key is not None else None,
            "bind": self.bind,
        }

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Self:
        """The other way. `KeyError` or `ValueError` for what is not such a dictionary."""
        certificate, key = facts.get("certificate"), facts.get("key")
        return cls(
            cluster_id=bytes.fromhex(facts["cluster_id"]),
            token=bytes.fromhex(facts["token"]),
            head=facts["head"],
            host=facts["host"],
            node_id=bytes.fromhex(facts["node_id"]),
            certificate=certificate.encode() if certificate else None,
            key=key.encode() if key else None,
            bind=facts.get("bind"),
        )

    def __repr__(self) -> str:
        return f"<ClusterFacts {self.cluster_id.hex()[:8]} head={self.head} host={self.host}>"
