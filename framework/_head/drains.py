"""What keeps a node that is to end from ending, for whoever waits for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from framework._net.connection import Connection, Frame
from framework._state.actor_records import ActorRecord
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._head.cluster import ClusterHead


def tell_what_is_left(head: ClusterHead, connection: Connection, frame: Frame) -> None:
    """NODE_HOLDS: the actors that the head knows of, and what the node itself says."""
    _, rid, node_id = frame
    actors = [_described(record) for record in head.records_on(node_id)]
    node = head.node_peer(node_id)
    if node is None:
        connection.reply(rid, {"actors": actors})
        return

    def answered(future: asyncio.Future[Any]) -> None:
        failed = future.cancelled() or future.exception() is not None
        if not connection.closed:
            connection.reply(rid, {**({} if failed else future.result()), "actors": actors})

    node.call(m.NODE_HOLDS, node_id).add_done_callback(answered)


def _described(record: ActorRecord) -> str:
    spec = record.spec
    name = f" {spec['name']!r}" if spec.get("name") else ""
    may_not = "" if spec.get("max_restarts") or record.supervised else " (it may not be restarted elsewhere)"
    return f"actor {spec.get('class_name', '?')}{name} {record.actor_id.hex()[:12]}{may_not}"
