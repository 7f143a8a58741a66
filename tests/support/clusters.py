"""Facts of clusters that there are not: for tests of the network alone."""

from __future__ import annotations

import functools

import pytest

from framework._base.cluster import ClusterFacts

TOKEN = b"token of the cluster under test."
NODE_ID = bytes(range(28))


@functools.cache
def certificate(number: int = 0) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key; another one for each number."""
    pytest.importorskip("cryptography", reason="certificates for these tests are made by `cryptography`")
    from framework._service.credentials import make_certificate

    return make_certificate()


def cluster_facts(
    *,
    tls: bool = False,
    token: bytes = TOKEN,
    cluster_id: bytes = b"c" * 16,
    host: str = "127.0.0.1",
    head: str = "127.0.0.1:1",
    node_id: bytes = NODE_ID,
    number: int = 0,
) -> ClusterFacts:
    """Those of a cluster on this machine."""
    pem, key = certificate(number) if tls else (None, None)
    return ClusterFacts(
        cluster_id=cluster_id,
        token=token,
        head=head,
        host=host,
        node_id=node_id,
        certificate=pem,
        key=key,
    )
