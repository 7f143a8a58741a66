"""The store client of this process, joined to its runtime: messages to the node, and what a stored value
looks like on the wire.

A stored value travels as ``[3, object id, owner, size, refs]``: whoever gets it asks the store of its own
node for a pin.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from framework._net.address import short_path
from framework._serial import values
from framework._store.arena import Arena, receive_arena
from framework._store.client import StoreClient, View
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework.exceptions import LocalNodeDiedError

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.pack = new_packer()


class RuntimeStore:
    """Store access for the runtime. Any thread but the loop's, unless a method says otherwise."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._thread = _PerThread()
        self.client = StoreClient(self)
        self.node_handlers = {m.STORE_RECALL: lambda _, frame: self.client.recall(frame[1])}

    # ---- what the client needs (NodeLink) --------------------------------------------------------------

    def node_call(self, opcode: int, *fields: object) -> Any:
        """A call to the node; blocks for its answer."""

        async def call() -> Any:
            node = self._runtime.node
            if node is None:
                raise self._runtime.dead or LocalNodeDiedError("there is no connection to the node")
            return await node.call(opcode, *fields)

        if self._runtime.node is None:
            self._runtime.node_ready.result()
        return self._runtime.run_sync(call())

    def node_cast(self, opcode: int, *fields: object) -> None:
        """Any thread: a message to the node."""
        node = self._runtime.node
        if node is not None and not node.closed:
            node.send(self._thread.pack((opcode, *fields)))

    def open_arena(self) -> Arena:
        """Map the node's arena."""
        self._runtime.node_ready.result()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(5.0)
            with short_path(os.path.join(self._runtime.socket_dir, "store")) as path:
                sock.connect(path)
            return Arena(*receive_arena(sock))

    # ---- values --------------------------------------------------------------------------------------

    def put(self, object_id: bytes, encoded: values.Encoded, owner_ident: bytes, owner: str) -> list[Any]:
        """Write an encoded value into the store for the process `owner_ident`; its wire form."""
        size = self.client.write(object_id, encoded.wire, owner_ident)
        refs = values.nested_refs(encoded.wire)
        return [values.FORM_STORED, object_id, owner, size, refs]

    async def prepare(self, object_id: bytes) -> list[Any]:
        """On the loop: wire form 0 of a stored value, as views that pin it. Raises `ObjectLostError`."""
        node = self._runtime.node
        if self.client.at_hand(object_id) or node is None:
            return self.client.read(object_id)
        offset, size = await node.call(m.STORE_PIN, object_id)
        return self.client.arrived(object_id, offset, size)

    def read(self, wire: list[Any]) -> Any:
        """The value of a stored object, as views of shared memory."""
        return values.decode(self.client.read(wire[1]))

    def seal_array(self, array: Any, owner_ident: bytes, owner: str) -> list[Any] | None:
        """If the array was made by `framework.empty`, seal it where it is, for that owner: its wire form.
        Else None.
        """
        if not self.client.has_unsealed:
            return None
        found = self.client.in_place(array, owner_ident, values.describe_array)
        if found is None:
            return None
        object_id, size = found
        return [values.FORM_STORED, object_id, owner, size, []]

    def reserve(self, object_id: bytes, nbytes: int) -> View:
        """Writable memory in the store."""
        return self.client.reserve(object_id, nbytes, self._runtime.worker_id)
