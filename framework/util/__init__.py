"""Helpers with Ray's names."""

from __future__ import annotations

from framework.util.network import get_node_ip_address as get_node_ip_address

__all__ = ["get_node_ip_address"]
