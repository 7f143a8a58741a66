"""The node's address, without a session."""

from __future__ import annotations

import framework as fw
from framework.util import get_node_ip_address


def test_without_a_session_it_is_loopback_and_starts_none() -> None:
    assert get_node_ip_address() == "127.0.0.1"
    assert not fw.is_initialized()
