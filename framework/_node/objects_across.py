"""The objects of this node and those of others: who wants what from where, who is told that an object is not
needed any more, whose end frees what.

How an object goes. Its owner tells its own node, which tells the node of the primary copy (`OBJECT_FREE`,
`PRIMARY`), which tells those who have copies (`COPIES`). When the primary's node is dead, all nodes are told
(`ANYWHERE`). Frees are repeated until they are answered, or the node is dead.

Owners. A process of another node that owns objects here is known as ``(beginning of its node's id, its
ident)``; its node is asked to tell of its end (`OWNER_WATCH`), once per process, and again when the
connection was lost. A node that dies takes its owners along.

When the node of a primary copy dies, those who have a copy of it keep theirs as if it were the primary.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._base.ids import WORKER_ID_SIZE
from framework._net.connection import Connection, Frame, Handler
from framework._node.neighbours import Neighbours
from framework._node.store_service import StoreService
from framework._node.transfer_sender import Sender
from framework._node.transfer_service import TransferService
from framework._service.supervise import TaskGroupOfService
from framework._state.blocks import Block
from framework._state.transfers import ARGUMENT, GET, WAIT
from framework._wire import messages as m
from framework.exceptions import ConnectionFailedError

log = logging.getLogger("framework.store")

PRIMARY: Final = 0  #: free it; its writer may not even have reported it yet
COPIES: Final = 1  #: free what is a copy
ANYWHERE: Final = 2  #: free it if it is here

_BEGINNING = 8  #: bytes of a node's id that name it in owners and addresses

#: Waiters of pulls: (kind, connection, number of the call)
_PIN, _CALL, _KEEP, _AHEAD = "pin", "call", "keep", "ahead"


class ObjectsAcross:
    """Lives on the node's loop. `handlers` are for the processes of this node; those for other nodes are
    added to `neighbours.handlers`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        facts: ClusterFacts,
        store: StoreService,
        neighbours: Neighbours,
    ) -> None:
        self._loop = loop
        self.node_id = facts.node_id
        self._store = store
        self._neighbours = neighbours
        self.transfers = TransferService(
            loop, facts, store, neighbours, owner=self.owner, done=self._pulled, failed=self._not_pulled
        )
        self.sender = Sender(loop, facts, store, owner_name=self._name_of, coming=self.transfers.coming)
        self._tasks = TaskGroupOfService(loop, "objects")
        self._watched: set[tuple[bytes, bytes]] = set()  #: owners on other nodes
        self._watchers: dict[bytes, set[bytes]] = {}  #: ident of a process here -> nodes to tell of its end
        self._nodes: dict[bytes, bytes] = {}  #: beginning of an id -> the id, of all that were ever alive
        self._frees: dict[
            tuple[bytes, int], list[bytes]
        ] = {}  #: to be told in the next turn, by node and how
        self._freed_lately: OrderedDict[bytes, None] = OrderedDict()
        self._closed = False
        self._draining = False
        self._handed_over: set[bytes] = set()  #: objects of this node, which drains, that others have too
        self._no_room: dict[bytes, int] = {}  #: those of them that nobody else had room for, and their bytes
        self.on_handed_over: Callable[[], object] = lambda: None
        self.handlers: dict[int, Handler] = {
            m.STORE_PULL: self._pull,
            m.STORE_UNPULL: self._unpull,
            m.STORE_PREFETCH: self._prefetch,
            m.STORE_FREE_AT: self._free_at,
            m.STORE_REPLICATE: self._replicate,
        }
        self.head_handlers: dict[int, Handler] = {m.STORE_FREE: self._free_for_head}
        neighbours.handlers |= {
            m.OBJECT_FREE: self._free,
            m.OBJECT_WHO_HAS: self._who_has,
            m.OBJECT_COPIED: self._copied,
            m.OBJECT_KEEP: self._keep,
            m.OWNER_WATCH: self._watch,
            m.OWNER_ENDED: self._owner_ended,
        }
        neighbours.on_lost.append(lambda connection: self._compare_soon(connection.ident))
        neighbours.on_missed.append(self._compare_soon)
        neighbours.on_gone.append(self._node_gone)
        store.across = self

    def listen(self) -> int:
        """Accept data connections; the port."""
        return self.sender.listen()

    def close(self) -> None:
        """End everything."""
        self._closed = True
        self._tasks.cancel()
        self.transfers.close()
        self.sender.close()

    # ---- nodes ---------------------------------------------------------------------------------------

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Rows that are new or have changed."""
        for row in rows:
            node = row["node_id"]
            if node == self.node_id:
                if row.get("draining"):
                    self.drain()
            elif row.get("alive", True):
                self._nodes[node[:_BEGINNING]] = node
                self.transfers.state.node_up(node)

    def _node_gone(self, node: bytes, reason: str) -> None:
        state = self._store.state
        self.sender.node_gone(node)
        for object_id in [i for i, root in self.transfers.roots.items() if root == node]:
            del self.transfers.roots[object_id]
            self._store.run(state.keep_copy(object_id))
        beginning = node[:_BEGINNING]
        self._watched = {owner for owner in self._watched if owner[0] != beginning}
        for watchers in self._watchers.values():
            watchers.discard(node)
        self._store.run(state.owners_gone(lambda o: isinstance(o, tuple) and o[0] == beginning))
        self.transfers.node_gone(node)

    def _compare_soon(self, node: bytes) -> None:
        """Something that this node or that one has said may not have arrived."""
        if any(owner[0] == node[:_BEGINNING] for owner in self._watched) or (
            node in self.transfers.roots.values()
        ):
            self._loop.call_later(limits.PULL_RETRY, self._compare, node)

    def _compare(self, node: bytes) -> None:
        if self._closed or node not in self._neighbours.rows:
            return
        connection = self._neighbours.connection(node)
        if connection is None:
            self._loop.call_later(limits.PULL_RETRY, self._compare, node)
            return
        for object_id, root in self.transfers.roots.items():
            if root == node:
                connection.cast(m.OBJECT_COPIED, object_id, True)
        for beginning, ident in sorted(self._watched):
            if beginning == node[:_BEGINNING]:
                connection.cast(m.OWNER_WATCH, ident)

    # ---- owners --------------------------------------------------------------------------------------

    def owner(self, name: bytes) -> Hashable | None:
        """As an owner: the process of another node with this name; None when it has ended."""
        ident, beginning = name[:WORKER_ID_SIZE], name[WORKER_ID_SIZE:]
        if len(beginning) != _BEGINNING:
            return None
        if beginning == self.node_id[:_BEGINNING]:
            return self._store.process_of(ident)
        node = self._nodes.get(beginning)
        if node is not None and node not in self._neighbours.rows:
            return None
        found = (beginning, ident)
        if found not in self._watched:
            self._watched.add(found)
            connection = self._neighbours.connection(node) if node is not None else None
            if connection is not None:
                connection.cast(m.OWNER_WATCH, ident)
            else:
                self._loop.call_later(limits.PULL_RETRY, self._watch_late, found, 0.0)
        return found

    def _watch_late(self, owner: tuple[bytes, bytes], waited: float) -> None:
        """Its node was not known, or could not be reached, a moment ago."""
        if self._closed or owner not in self._watched:
            return
        node = self._nodes.get(owner[0])
        connection = self._neighbours.connection(node) if node is not None else None
        if connection is not None:
            connection.cast(m.OWNER_WATCH, owner[1])
        elif (node is None and waited > limits.UNKNOWN_NODE_GRACE) or (
            node is not None and node not in self._neighbours.rows
        ):
            self._watched.discard(owner)
            self._store.run(self._store.state.holder_gone(owner))
        else:
            self._loop.call_later(limits.PULL_RETRY, self._watch_late, owner, waited + limits.PULL_RETRY)

    def _name_of(self, owner: Any) -> bytes:
        if isinstance(owner, tuple):
            beginning, ident = owner
            return bytes(ident + beginning)
        if isinstance(owner, Connection):
            return owner.ident + self.node_id[:_BEGINNING]
        return b""  # the head: it outlives us all

    def _watch(self, connection: Connection, frame: Frame) -> None:
        ident = frame[1]
        if self._store.process_of(ident) is None:
            connection.cast(m.OWNER_ENDED, ident)
        else:
            self._watchers.setdefault(ident, set()).add(connection.ident)

    def _owner_ended(self, connection: Connection, frame: Frame) -> None:
        owner = (connection.ident[:_BEGINNING], frame[1])
        self._watched.discard(owner)
        self._store.run(self._store.state.holder_gone(owner))

    def process_ended(self, connection: Connection) -> None:
        """A process of this node is gone: what it waited for, and what it owned elsewhere."""
        for object_id, pull in list(self.transfers.state.pulls.items()):
            for waiter in [waiter for waiter in pull.waiters if waiter[1] is connection]:  # type: ignore[index]
                self.transfers.run(self.transfers.state.unwant(waiter, object_id))
        for node in sorted(self._watchers.pop(connection.ident, ())):
            neighbour = self._neighbours.connection(node)
            if neighbour is not None:
                neighbour.cast(m.OWNER_ENDED, connection.ident)

    # ---- wanted here ---------------------------------------------------------------------------------

    def wanted(self, connection: Connection, rid: int, object_id: bytes, node: bytes, size: int) -> None:
        """Somebody waits for an object that is not here, whose primary copy is on `node`."""
        self._want((_PIN, connection, rid), object_id, node, size, GET)

    def _want(self, waiter: Hashable, object_id: bytes, node: bytes, size: int, urgency: int) -> None:
        self.transfers.run(self.transfers.state.want(waiter, object_id, node, size, urgency))

    def _pull(self, connection: Connection, frame: Frame) -> None:
        _, rid, object_id, node, size = frame
        if node in (b"", self.node_id) or self._store.state.is_sealed(object_id):
            connection.reply(rid, None)
        else:
            self._want((_CALL, connection, rid), object_id, node, size, WAIT)

    def _unpull(self, connection: Connection, frame: Frame) -> None:
        object_id = frame[1]
        for waiter in self.transfers.state.waiters_of(object_id):
            found: Any = waiter
            if found[0] == _CALL and found[1] is connection:
                self.transfers.run(self.transfers.state.unwant(waiter, object_id))
                connection.reply(found[2], None)

    def _prefetch(self, connection: Connection, frame: Frame) -> None:
        for object_id, node, size in frame[1]:
            if node not in (b"", self.node_id) and not self._store.state.knows(object_id):
                self._want((_AHEAD, connection, 0), object_id, node, size, ARGUMENT)

    def _pulled(self, object_id: bytes, waiters: list[Any]) -> None:
        for kind, connection, rid in waiters:
            if kind == _KEEP:
                self._store.run(self._store.state.keep_copy(object_id))
            if kind in (_CALL, _KEEP) and not connection.closed:
                connection.reply(rid, None)

    def _not_pulled(self, object_id: bytes, waiters: list[Any], error: BaseException) -> None:
        for kind, connection, rid in waiters:
            if kind in (_CALL, _KEEP) and not connection.closed:
                connection.fail(rid, error)

    # ---- frees ---------------------------------------------------------------------------------------

    def freed(self, object_id: bytes) -> None:
        """It is not needed any more: tell those who have copies of ours."""
        self._freed_lately[object_id] = None
        while len(self._freed_lately) > limits.FREED_LATELY:
            self._freed_lately.popitem(last=False)
        self.transfers.roots.pop(object_id, None)
        for node in self.sender.copies.freed(object_id):
            self._tell_free(node, object_id, COPIES)
        self.transfers.run(self.transfers.state.freed(object_id))

    def dropped(self, object_id: bytes) -> None:
        """A copy had to make room."""
        root = self.transfers.roots.pop(object_id, None)
        connection = self._neighbours.connection(root) if root is not None else None
        if connection is not None:
            connection.cast(m.OBJECT_COPIED, object_id, False)

    def _free_at(self, connection: Connection, frame: Frame) -> None:
        """An owner of this node needs objects no more whose primary copies are elsewhere."""
        _, node, object_ids = frame
        state = self._store.state
        if node == self.node_id:
            for object_id in object_ids:
                self._store.run(state.free(object_id))
            return
        known = node in self._neighbours.rows
        for object_id in object_ids:
            # (The block here may be the next one of that name, if it was made again here.)
            self._store.run(state.free_copy(object_id) if known else state.free_known(object_id))
            self.transfers.run(self.transfers.state.freed(object_id))
            if known:
                self._tell_free(node, object_id, PRIMARY)
            else:
                for other in self._neighbours.others():
                    self._tell_free(other, object_id, ANYWHERE)

    def _free_for_head(self, connection: Connection, frame: Frame) -> None:
        """What the head keeps for actors may be where they were before."""
        for object_id in frame[1]:
            block = self._store.state.blocks.get(object_id)
            self._store.run(self._store.state.free_known(object_id))
            if block is None or block.is_copy:
                for other in self._neighbours.others():
                    self._tell_free(other, object_id, ANYWHERE)

    def _tell_free(self, node: bytes, object_id: bytes, how: int) -> None:
        waiting = self._frees.setdefault((node, how), [])
        if not waiting:
            self._loop.call_soon(self._send_frees, node, how)
        waiting.append(object_id)

    def _send_frees(self, node: bytes, how: int) -> None:
        object_ids = self._frees.pop((node, how), [])
        if object_ids and not self._closed:
            self._deliver_free(node, object_ids, how)

    def _deliver_free(self, node: bytes, object_ids: list[bytes], how: int) -> None:
        """Until it is answered, or the node is dead."""
        if self._closed:
            return
        if node not in self._neighbours.rows:
            if how == PRIMARY:  # it died meanwhile: others may have copies, and keep them
                for object_id in object_ids:
                    for other in self._neighbours.others():
                        self._tell_free(other, object_id, ANYWHERE)
            return
        connection = self._neighbours.connection(node)
        if connection is None:
            self._loop.call_later(limits.PULL_RETRY, self._deliver_free, node, object_ids, how)
            return

        def answered(future: asyncio.Future[Any]) -> None:
            if not future.cancelled() and isinstance(future.exception(), ConnectionFailedError):
                self._loop.call_later(limits.PULL_RETRY, self._deliver_free, node, object_ids, how)

        connection.call(m.OBJECT_FREE, object_ids, how).add_done_callback(answered)

    def _free(self, connection: Connection, frame: Frame) -> None:
        """Another node says so."""
        _, rid, object_ids, how = frame
        state = self._store.state
        for object_id in object_ids:
            if how == PRIMARY:
                self._store.run(state.free(object_id))
            elif how == COPIES:
                self._store.run(state.free_copy(object_id))
                if not state.knows(object_id):
                    self.freed(object_id)
            else:
                self._store.run(state.free_known(object_id))
                self.transfers.run(self.transfers.state.freed(object_id))
        connection.reply(rid, None)

    # ---- copies --------------------------------------------------------------------------------------

    def _who_has(self, connection: Connection, frame: Frame) -> None:
        connection.reply(frame[1], self._store.state.is_sealed(frame[2]))

    def _copied(self, connection: Connection, frame: Frame) -> None:
        _, object_id, here = frame
        if here and not self._store.state.knows(object_id):
            if object_id in self._freed_lately:
                self._tell_free(connection.ident, object_id, COPIES)
            return
        self.sender.copies.copied(object_id, connection.ident, here)

    def _keep(self, connection: Connection, frame: Frame) -> None:
        """Another node wants a second copy of an object of its own to be here, and to stay."""
        _, rid, object_id, size = frame
        if self._store.state.is_sealed(object_id):
            self._store.run(self._store.state.keep_copy(object_id))
            connection.reply(rid, None)
        else:
            self._want((_KEEP, connection, rid), object_id, connection.ident, size, WAIT)

    def _replicate(self, connection: Connection, frame: Frame) -> None:
        _, rid, object_id, size, copies = frame

        async def run() -> None:
            count = await self.replicate(object_id, size, copies)
            if not connection.closed:
                connection.reply(rid, count)

        self._tasks.start(run(), "making copies")

    async def replicate(self, object_id: bytes, size: int, copies: int) -> int:
        """Have copies of an object of this node on others, that stay; how many there are in the end."""
        rows = self._neighbours.rows
        nodes = [node for node in self._neighbours.others() if not rows[node].get("draining")]
        place = int.from_bytes(object_id[-4:], "little") % max(1, len(nodes))
        done = 0
        for node in nodes[place:] + nodes[:place]:
            if done >= copies:
                break
            neighbour = self._neighbours.connection(node)
            if neighbour is not None:
                with contextlib.suppress(Exception):  # full, dead, …: the next one
                    await neighbour.call(m.OBJECT_KEEP, object_id, size)
                    done += 1
        return done

    # ---- drains --------------------------------------------------------------------------------------

    def drain(self) -> None:
        """This node is to end: its objects go elsewhere."""
        if not self._draining:
            self._draining = True
            self._tasks.start(self._hand_over(), "handing over objects")

    def without_copy(self) -> dict[str, int]:
        """While this node drains: its objects that no other node has, and their bytes; how many found no room
        elsewhere is counted by itself."""
        alone = self._alone() if self._draining else ()
        lost = self._store.state.blocks.keys() & self._no_room.keys()
        return {
            "objects": len(alone),
            "bytes": sum(block.size for block in alone),
            "lost": len(lost),
            "lost_bytes": sum(self._no_room[object_id] for object_id in lost),
        }

    def _alone(self) -> list[Block]:
        return [
            block
            for block in self._store.state.blocks.values()
            if block.primary
            and block.sealed
            and not block.deleting
            and block.object_id not in self._handed_over
            and not (isinstance(block.owner, Connection) and block.owner.kind == "worker")  # ends here, too
        ]

    async def _hand_over(self) -> None:
        """This node is to end: have a copy of each of its objects on another, until it ends."""
        while not self._closed:
            before = len(self._no_room)
            for block in self._alone():
                sealed = self._store.state.is_sealed(block.object_id)
                if sealed and not await self.replicate(block.object_id, block.size, 1):
                    # What cannot be had elsewhere does not keep the node from ending.
                    self._no_room[block.object_id] = block.size
                self._handed_over.add(block.object_id)
            if len(self._no_room) > before:
                log.warning(
                    "%d objects of %d bytes find no room elsewhere: they end with this node, which drains",
                    len(self._no_room),
                    sum(self._no_room.values()),
                )
            self.on_handed_over()
            await asyncio.sleep(limits.PULL_RETRY)

    @property
    def stats(self) -> dict[str, int]:
        """Numbers for tests and for the curious."""
        return {
            "pulls": len(self.transfers.state.pulls),
            "objects_received": self.transfers.objects_received,
            "bytes_received": self.transfers.bytes_received,
            "bytes_sent": self.sender.bytes_sent,
            "copied_objects": len(self.sender.copies),
        }
