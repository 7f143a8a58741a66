"""Addresses of this machine."""

from __future__ import annotations

from framework._runtime.current import existing


def get_node_ip_address() -> str:
    """The address of the node that this code runs on, as other processes of the cluster reach it. A session
    on one machine listens on no network at all: then it is the loopback address."""
    runtime = existing()
    return runtime.config.node_ip if runtime is not None else "127.0.0.1"
