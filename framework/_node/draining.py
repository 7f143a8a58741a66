"""Waiting, from outside, for a node that is to end: until nothing is left there, or for so long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from framework._base import limits
from framework._node.control import Client, RemoteHead
from framework._wire import messages as m
from framework.exceptions import ConnectionFailedError, FrameworkError


def drain(
    open_client: Callable[[], Client | RemoteHead],
    node_id: bytes,
    reason: str,
    seconds: float,
    tell: Callable[[str], object] = lambda text: None,
) -> tuple[bool, str]:
    """Have a node's work and objects moved elsewhere. ``(True, "")``, or (True, the objects that found no
    room elsewhere), or (False, what is left there) when `seconds` are over, to which the objects' bytes add
    (`limits.DRAIN_RATE`). `tell(text)` hears what it waits for when that has
    changed. Raises `FrameworkError` when the node dies meanwhile, or is not known; `ConnectionFailedError`
    when there is no head."""
    begun = time.monotonic()
    left: dict[str, Any] = {}
    most, told = 0, ""
    while True:
        remaining = begun + seconds + most / limits.DRAIN_RATE - time.monotonic()
        with open_client() as head:
            head.timeout = max(min(remaining, limits.DRAIN_LOOK), 0.001)
            try:
                answer: dict[str, Any] = head.call(m.NODE_DRAIN, node_id, reason) or {}
            except ConnectionFailedError:
                answer = {"drained": None}  # not yet
        if answer.get("drained", True):
            left = _left(open_client, node_id)
            lost = left.get("lost")
            if not lost:
                return True, ""
            size = left.get("lost_bytes", 0) / 2**20
            return True, f"{lost} objects of {size:.1f} MiB found no room on other nodes"
        if answer["drained"] is False:
            raise FrameworkError(f"node {node_id.hex()[:12]} is not drained: {answer.get('reason')}")
        left = _left(open_client, node_id) or left
        most = max(most, left.get("bytes", 0))
        text = described(left) or "the node does not say what"
        if time.monotonic() >= begun + seconds + most / limits.DRAIN_RATE:
            return False, text
        if text != told:
            told = text
            tell(text)


def _left(open_client: Callable[[], Client | RemoteHead], node_id: bytes) -> dict[str, Any]:
    with open_client() as head:
        try:
            found: dict[str, Any] = head.call(m.NODE_HOLDS, node_id)
        except ConnectionFailedError:
            return {}
    return found


def described(left: dict[str, Any]) -> str:
    """What is left on a node (the answer to NODE_HOLDS), in words."""
    parts = list(left.get("actors", ()))
    tasks, objects = left.get("tasks", 0), left.get("objects", 0)
    if tasks:
        parts.append("1 running task" if tasks == 1 else f"{tasks} running tasks")
    if objects:
        what = "1 object" if objects == 1 else f"{objects} objects"
        parts.append(f"{what} of {left.get('bytes', 0) / 2**20:.1f} MiB without a copy elsewhere")
    return ", ".join(parts)
