"""The object store of one node: which object is where, who reads it, what to spill when it is full.

Pure: every method returns commands for the shell, tuples that start with a word:

``("placed", token, offset)``                 answer to `create` or `lease`
``("view", token, offset, size)``             answer to `pin`
``("refuse", token, kind, text)``             the request cannot be met; `kind` names the exception
``("spill", object_id, offset, size)``        write the block to disk, then call `spilled` or `spill_failed`
``("restore", object_id, path, offset, size)``  read it back, then call `restored` or `restore_failed`
``("unlink", path)``                          the file is not needed any more
``("recall", holder, object_ids)``            ask a client to let go of views of these that it keeps
                                              without need; with no ids, of all that it keeps, and of
                                              the rest of its region
``("dropped", object_id)``                    a copy had to make room

A block is *primary*, or a *copy* of one on another node: copies are dropped for want of room, never written
to disk (copies.py).

A *pin* is one process's right to read a block: while there is one, the block is neither reused, nor spilled,
nor moved. A block is named by its object *and* its offset, because an object that is made again may have two
for a while: the new one, and the old one that somebody still reads, writes or spills.

Requests for space are served strictly in order, so that a large one is not starved by small ones.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Any

from framework._base.limits import MAX_FREED_EARLY
from framework._state.allocator import Allocator, aligned
from framework._state.blocks import IN_MEMORY, ON_DISK, RESTORING, SPILLING, Request
from framework._state.blocks import Block as Block

Command = tuple[Any, ...]


class StoreState:
    """Index, pins, regions and the queue for space."""

    def __init__(self, capacity: int) -> None:
        self.allocator = Allocator(capacity)
        self.blocks: dict[bytes, Block] = {}
        self.spilled_bytes = 0
        self.spilled_objects = 0
        self.restored_objects = 0
        #: sealed and unpinned, the longest unused first: primaries, and copies
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        self._idle_copies: OrderedDict[bytes, None] = OrderedDict()
        self._versions = 0
        self._zombies: dict[Block, None] = {}  #: replaced under their id while still pinned
        self._placed: dict[int, Block] = {}  #: all that are in memory, replaced ones too, by offset
        self._readers: dict[Hashable, int] = {}  #: pins of sealed blocks, by client
        self._queue: deque[Request] = deque()
        self._regions: dict[int, Hashable] = {}  #: offset of the unused rest of a leased region -> its client
        #: Messages about one object come on several connections, in any order: a reader may ask before the
        #: writer has reported, and an owner may free before that.
        self._parked: dict[bytes, list[tuple[Any, Hashable]]] = {}
        self._freed_early: OrderedDict[bytes, None] = OrderedDict()
        self._spilling = 0  #: bytes that are on their way to disk
        self._disk_trouble: str | None = None
        self._recalled: set[Hashable] = (
            set()
        )  #: clients that were asked, since the queue began, and have pinned nothing since

    # ---- space ---------------------------------------------------------------------------------------

    def create(
        self,
        token: Any,
        holder: Hashable,
        object_id: bytes,
        size: int,
        owner: Hashable,
        *,
        primary: bool = True,
        patient: bool = True,
    ) -> list[Command]:
        """A client wants to write an object of `size` bytes. It holds a pin until it seals or aborts.

        A copy is refused (`FileExistsError`) when the object is here by then. Who is not `patient` is refused
        when the answer would have to wait for room.
        """
        if aligned(size) > self.allocator.capacity:
            return [("refuse", token, "ObjectStoreFullError", self._too_large(size))]
        commands: list[Command] = []
        if not patient and (self._queue or not self._fits(size, commands)):
            return [*commands, ("refuse", token, "ObjectStoreFullError", "no room without waiting")]
        block = Block(object_id, size, -1, owner)
        block.primary = primary
        self._queue.append(Request(size, token, holder, block))
        return commands + self.serve()

    def lease(self, token: Any, holder: Hashable, size: int) -> list[Command]:
        """A client wants a region in which it places small objects itself. Refused, not queued, when there is
        no room.
        """
        if self._queue:
            return [("refuse", token, "ObjectStoreFullError", "others wait for space")]
        commands: list[Command] = []
        offset = self._allocate(size, commands)
        if offset is None:
            return [*commands, ("refuse", token, "ObjectStoreFullError", "no room for a region")]
        self._regions[offset] = holder
        return [*commands, ("placed", token, offset)]

    def adopt(
        self, holder: Hashable, object_id: bytes, offset: int, size: int, owner: Hashable
    ) -> list[Command]:
        """A client has placed and sealed an object at the beginning of the rest of its region."""
        if self._regions.pop(offset, None) != holder:
            raise ValueError(f"no region of this client begins at {offset}")
        rest = self.allocator.carve(offset, size)
        if rest >= 0:
            self._regions[rest] = holder
        block = Block(object_id, size, offset, owner)
        self._placed[offset] = block
        commands: list[Command] = []
        self._enter(block, commands)
        return commands + self.seal(object_id, offset)

    def give_back(self, holder: Hashable, offset: int) -> list[Command]:
        """A client returns the rest of its region."""
        if self._regions.get(offset) == holder:
            del self._regions[offset]
            self.allocator.free(offset)
        return self.serve()

    def serve(self) -> list[Command]:
        """Meet requests for space, in order; spill to make room for the first that does not fit."""
        commands: list[Command] = []
        while self._queue:
            request = self._queue[0]
            block = request.block
            if block is not None and block.deleting:
                self._queue.popleft()  # freed while it waited
                self._drop(block, commands)
                continue
            if block is not None and not block.primary and self.knows(block.object_id):
                self._queue.popleft()
                text = f"object {block.object_id.hex()} is here already"
                commands.append(("refuse", request.token, "FileExistsError", text))
                continue
            offset = self._allocate(request.size, commands)
            if offset is None:
                if not self._make_room(request.size, commands):
                    self._queue.popleft()
                    self._refuse(request, commands)
                    continue
                break
            self._queue.popleft()
            assert block is not None
            block.offset = offset
            self._placed[offset] = block
            if block.state == RESTORING:
                commands.append(("restore", block.object_id, block.path, offset, block.size))
            else:
                self._enter(block, commands)
                block.pins[request.holder] = 1
                commands.append(("placed", request.token, offset))
        else:
            self._recalled.clear()
        return commands

    def knows(self, object_id: bytes) -> bool:
        """Whether the object is here, or is being written here, and has not been freed."""
        block = self.blocks.get(object_id)
        return block is not None and not block.deleting

    def _allocate(self, size: int, commands: list[Command]) -> int | None:
        """A place, for which copies that nobody reads may have to go."""
        offset = self.allocator.allocate(size)
        while offset is None and self._idle_copies:
            self._drop_copy(commands)
            offset = self.allocator.allocate(size)
        return offset

    def _fits(self, size: int, commands: list[Command]) -> bool:
        while self.allocator.largest < aligned(size):
            if not self._idle_copies:
                return False
            self._drop_copy(commands)
        return True

    def _drop_copy(self, commands: list[Command]) -> None:
        object_id, _ = self._idle_copies.popitem(last=False)
        self._drop(self.blocks[object_id], commands)
        commands.append(("dropped", object_id))

    def _unidle(self, object_id: bytes) -> None:
        """It is in use, or gone."""
        if self._idle.pop(object_id, self) is self:
            self._idle_copies.pop(object_id, None)

    def _make_room(self, size: int, commands: list[Command]) -> bool:
        """Begin to spill until `size` bytes may fit. False when the disk has failed."""
        while self._idle and self.allocator.available + self._spilling < aligned(size):
            self._spill_one(commands)
        if not self._spilling and self._idle:
            self._spill_one(commands)  # there is room, but not in one piece
        if not self._spilling:
            holders = dict.fromkeys([*self._regions.values(), *self._readers])
            commands.extend(("recall", holder, []) for holder in holders if holder not in self._recalled)
            self._recalled.update(holders)
        # All else is being read or written: that passes, or the shell gives up after a while.
        return self._disk_trouble is None

    def _spill_one(self, commands: list[Command]) -> None:
        object_id, _ = self._idle.popitem(last=False)
        block = self.blocks[object_id]
        block.state = SPILLING
        self._spilling += aligned(block.size)
        commands.append(("spill", object_id, block.offset, block.size))

    def give_up(self, token: Any) -> list[Command]:
        """A request has waited long enough: refuse it, if it still waits."""
        commands: list[Command] = []
        for object_id, parked in list(self._parked.items()):
            for pair in [pair for pair in parked if pair[0] == token]:
                parked.remove(pair)
                commands.append(self._lost(token, object_id))
            if not parked:
                del self._parked[object_id]
        for request in list(self._queue):
            block = request.block
            waiting = [pair for pair in block.waiting if pair[0] == token] if block is not None else []
            if request.token == token and token is not None:
                self._queue.remove(request)
                commands.append(("refuse", token, "ObjectStoreFullError", self._full(request.size)))
            elif waiting and block is not None and block.offset < 0:
                commands.append(("refuse", token, "ObjectStoreFullError", self._full(request.size)))
                block.waiting.remove(waiting[0])
                if not block.waiting:
                    self._queue.remove(request)
                    block.state = ON_DISK
        return commands + self.serve()

    def _refuse(self, request: Request, commands: list[Command]) -> None:
        kind = "OutOfDiskError" if self._disk_trouble else "ObjectStoreFullError"
        text = self._full(request.size)
        if self._disk_trouble:
            text = f"{text}. Spilling to disk failed: {self._disk_trouble}"
        block = request.block
        if block is not None and block.state == RESTORING:
            block.state = ON_DISK
            for token, _ in block.waiting:
                commands.append(("refuse", token, kind, text))
            block.waiting = []
        else:
            commands.append(("refuse", request.token, kind, text))
        self._disk_trouble = None

    def _too_large(self, size: int) -> str:
        return (
            f"an object of {size} bytes does not fit into an object store of {self.allocator.capacity} "
            "bytes: "
            "start with a larger object_store_memory, or split the object"
        )

    def _full(self, size: int) -> str:
        biggest = sorted((b for b in self.blocks.values() if b.offset >= 0), key=lambda b: -b.size)[:5]
        holders = ", ".join(f"{b.object_id.hex()} of {b.size} bytes ({b.use})" for b in biggest)
        return (
            f"no room for {size} bytes: {self.allocator.used} of {self.allocator.capacity} are in use and "
            f"cannot be spilled; the largest free piece has {self.allocator.largest}. "
            f"The biggest: {holders or 'none'}. Drop references and arrays that you no longer need, or start "
            "with a "
            "larger object_store_memory"
        )

    # ---- objects -------------------------------------------------------------------------------------

    def _enter(self, block: Block, commands: list[Command]) -> None:
        old = self.blocks.get(block.object_id)
        if old is not None:
            # A task that is run again makes its results again.
            del self.blocks[block.object_id]
            self._unidle(block.object_id)
            if old.waiting:  # for its file to be read back: they get the new one
                self._parked.setdefault(block.object_id, []).extend(old.waiting)
                old.waiting = []
            if old.pins or old.state in (SPILLING, RESTORING):
                old.deleting = True
                self._zombies[old] = None
            else:
                self._drop(old, commands)
        self.blocks[block.object_id] = block
        if self._freed_early.pop(block.object_id, self) is None:
            block.deleting = True

    def at(self, object_id: bytes, offset: int) -> Block | None:
        """The block of this object at this place."""
        block = self._placed.get(offset)
        return block if block is not None and block.object_id == object_id else None

    def seal(
        self,
        object_id: bytes,
        offset: int,
        holder: Hashable = None,
        owner: Hashable = None,
        keep: bool = False,
        version: Hashable = None,
    ) -> list[Command]:
        """The object is complete and will not change; the writer's pin, if it had one, ends (or, with `keep`,
        becomes a reader's). `owner`: who owns it from now on, where that is not who was named at its
        creation. `version`: of what it is a copy of.
        """
        block = self.at(object_id, offset)
        if block is None or block.sealed:
            return []
        if owner is not None:
            block.owner = owner
        block.sealed = True
        block.version = version
        if version is None:
            self._versions += 1
            block.version = self._versions
        mine = block.pins.pop(holder, None)
        for other, count in block.pins.items():  # of those who send it on while it is being written
            self._readers[other] = self._readers.get(other, 0) + count
        if mine and keep:
            self._add_pin(block, holder)
        commands: list[Command] = []
        if self.blocks.get(object_id) is block:
            for token, reader in self._parked.pop(object_id, ()):
                commands += self.pin(token, reader, object_id)
        return commands + self._settled(block)

    def abort(self, object_id: bytes, offset: int, holder: Hashable) -> list[Command]:
        """The writer gives up."""
        block = self.at(object_id, offset)
        if block is None or block.sealed or holder not in block.pins:
            return []
        commands = self.free(object_id) if self.blocks.get(object_id) is block else []
        return commands + self.unpin(object_id, offset, holder)

    def _add_pin(self, block: Block, holder: Hashable) -> None:
        """One more pin of a sealed block."""
        block.pins[holder] = block.pins.get(holder, 0) + 1
        self._readers[holder] = self._readers.get(holder, 0) + 1

    def _end_pins(self, block: Block, holder: Hashable, count: int) -> None:
        left = block.pins.pop(holder) - count
        if left:
            block.pins[holder] = left
        if block.sealed:
            left = self._readers.pop(holder) - count
            if left:
                self._readers[holder] = left

    def pin(self, token: Any, holder: Hashable, object_id: bytes) -> list[Command]:
        """A process wants to read an object. If it is not known (yet), the answer waits for its writer, or
        for `give_up`.
        """
        block = self.blocks.get(object_id)
        if block is not None and block.deleting:
            return [self._lost(token, object_id)]
        if block is None or not block.sealed:
            self._parked.setdefault(object_id, []).append((token, holder))
            return []
        if block.state in (IN_MEMORY, SPILLING):
            # A block on its way to disk is still whole: `spilled` sees the pin, and keeps it in memory.
            self._add_pin(block, holder)
            self._unidle(object_id)
            self._recalled.discard(holder)
            return [("view", token, block.offset, block.size), *(self.serve() if self._queue else ())]
        block.waiting.append((token, holder))
        if block.state == ON_DISK:
            block.state = RESTORING
            self._queue.append(Request(block.size, None, None, block))
            return self.serve()
        return []

    def pin_at_once(self, holder: Hashable, object_id: bytes) -> tuple[int, int] | None:
        """As `pin`, for whoever reads many: (offset, size), or None when the answer would have to wait."""
        block = self.blocks.get(object_id)
        if block is None or block.deleting or not block.sealed or block.state not in (IN_MEMORY, SPILLING):
            return None
        self._add_pin(block, holder)
        self._unidle(object_id)
        self._recalled.discard(holder)
        return block.offset, block.size

    @staticmethod
    def _lost(token: Any, object_id: bytes) -> Command:
        return (
            "refuse",
            token,
            "ObjectLostError",
            f"object {object_id.hex()} is not in the store of this node",
        )

    def unpin(self, object_id: bytes, offset: int, holder: Hashable) -> list[Command]:
        """A process has let go of one view of the block at this place."""
        block = self.at(object_id, offset)
        if block is None or holder not in block.pins:
            return []
        self._end_pins(block, holder, 1)
        return self._settled(block)

    def free(self, object_id: bytes) -> list[Command]:
        """The owner does not need it any more: gone when the last reader is."""
        block = self.blocks.get(object_id)
        if block is None:
            self._freed_early[object_id] = None
            while len(self._freed_early) > MAX_FREED_EARLY:
                self._freed_early.popitem(last=False)
            return []
        if block.deleting:
            return []
        block.deleting = True
        commands: list[Command] = [
            self._lost(token, object_id) for token, _ in self._parked.pop(object_id, ())
        ]
        for token, _ in block.waiting:
            commands.append(
                ("refuse", token, "ObjectLostError", f"object {object_id.hex()} has been freed by its owner")
            )
        block.waiting = []
        commands.extend(("recall", holder, [object_id]) for holder in block.pins if block.sealed)
        return commands + self._settled(block)

    def _settled(self, block: Block) -> list[Command]:
        """Pins or state have changed: what becomes of the block?"""
        commands: list[Command] = []
        if block.pins or block.state in (SPILLING, RESTORING):
            return commands
        if block.deleting:
            self._drop(block, commands)
            return commands + self.serve()
        if block.sealed and block.state == IN_MEMORY:
            (self._idle if block.primary else self._idle_copies)[block.object_id] = None
            if self._queue:
                return self.serve()
        return commands

    def _drop(self, block: Block, commands: list[Command]) -> None:
        if self.blocks.get(block.object_id) is block:
            del self.blocks[block.object_id]
            self._unidle(block.object_id)
        self._zombies.pop(block, None)
        self._forget_space(block)
        if block.path is not None:
            commands.append(("unlink", block.path))
            self.spilled_bytes -= block.size
            block.path = None

    def _forget_space(self, block: Block) -> None:
        if block.offset >= 0:
            del self._placed[block.offset]
            self.allocator.free(block.offset)
            block.offset = -1

    # ---- disk ----------------------------------------------------------------------------------------

    def _moving(self, object_id: bytes, offset: int, state: str) -> Block | None:
        block = self.at(object_id, offset)
        return block if block is not None and block.state == state else None

    def spilled(self, object_id: bytes, offset: int, path: str) -> list[Command]:
        """The block has been written to `path`."""
        block = self._moving(object_id, offset, SPILLING)
        if block is None:
            return [("unlink", path)]
        self._spilling -= aligned(block.size)
        if block.pins or block.deleting:
            block.state = IN_MEMORY
            return [("unlink", path), *self._settled(block), *self.serve()]
        block.path = path
        block.state = ON_DISK
        self.spilled_bytes += block.size
        self.spilled_objects += 1
        self._forget_space(block)
        return self.serve()

    def spill_failed(self, object_id: bytes, offset: int, text: str) -> list[Command]:
        """It could not be written: it stays in memory, and whoever waits for space is told why."""
        block = self._moving(object_id, offset, SPILLING)
        if block is None:
            return []
        self._spilling -= aligned(block.size)
        block.state = IN_MEMORY
        commands: list[Command] = []
        if self._queue and not self._spilling:
            self._disk_trouble = text
            self._refuse(self._queue.popleft(), commands)
        return commands + self._settled(block)

    def restored(self, object_id: bytes, offset: int) -> list[Command]:
        """The block has been read back into memory."""
        block = self._moving(object_id, offset, RESTORING)
        if block is None:
            return []
        block.state = IN_MEMORY
        self.restored_objects += 1
        commands: list[Command] = []
        if block.path is not None:
            commands.append(("unlink", block.path))
            self.spilled_bytes -= block.size
            block.path = None
        for token, holder in block.waiting:
            self._add_pin(block, holder)
            commands.append(("view", token, block.offset, block.size))
        block.waiting = []
        return commands + self._settled(block)

    def restore_failed(self, object_id: bytes, offset: int, text: str) -> list[Command]:
        """The file cannot be read: this copy is lost."""
        block = self._moving(object_id, offset, RESTORING)
        if block is None:
            return []
        commands: list[Command] = [
            (
                "refuse",
                token,
                "ObjectLostError",
                f"the spilled copy of object {object_id.hex()} cannot be read: {text}",
            )
            for token, _ in block.waiting
        ]
        block.waiting = []
        block.state = ON_DISK
        self._drop(block, commands)
        return commands + self.serve()

    # ---- clients -------------------------------------------------------------------------------------

    def holder_gone(self, holder: Hashable) -> list[Command]:
        """A process has ended: its pins, unsealed objects, regions and the objects that it owned go with
        it.
        """
        commands: list[Command] = []
        for offset in [o for o, h in self._regions.items() if h == holder]:
            del self._regions[offset]
            self.allocator.free(offset)
        queue, self._queue = self._queue, deque()
        for request in queue:
            block = request.block
            if block is None or block.state == RESTORING:
                self._queue.append(request)
            elif request.holder != holder:
                if block.owner == holder:
                    text = "the process that this value is for has ended"
                    commands.append(("refuse", request.token, "OwnerDiedError", text))
                else:
                    self._queue.append(request)
        for object_id, parked in list(self._parked.items()):
            parked[:] = [pair for pair in parked if pair[1] != holder]
            if not parked:
                del self._parked[object_id]
        for block in [*self.blocks.values(), *self._zombies]:
            block.waiting = [pair for pair in block.waiting if pair[1] != holder]
            if holder in block.pins:
                if not block.sealed:
                    block.deleting = True
                self._end_pins(block, holder, block.pins[holder])
                commands += self._settled(block)
            if block.owner == holder and self.blocks.get(block.object_id) is block:
                commands += self.free(block.object_id)
        return commands + self.serve()

    def describe(self) -> list[dict[str, Any]]:
        """All objects, for whoever wants to list them."""
        return [
            {
                "object_id": block.object_id,
                "size": block.size,
                "state": block.state,
                "sealed": block.sealed,
                "primary": block.primary,
                "pins": sum(block.pins.values()),
            }
            for block in self.blocks.values()
        ]

    @property
    def stats(self) -> dict[str, int]:
        """Numbers for tests and for the curious."""
        return {
            "capacity": self.allocator.capacity,
            "used": self.allocator.used,
            "objects": len(self.blocks),
            "copies": sum(not block.primary for block in self.blocks.values()),
            "pins": sum(sum(b.pins.values()) for b in [*self.blocks.values(), *self._zombies]),
            "spilled_bytes": self.spilled_bytes,
            "spilled_objects": self.spilled_objects,
            "restored_objects": self.restored_objects,
            "regions": len(self._regions),
            "region_bytes": sum(self.allocator.size_of(offset) for offset in self._regions),
            "waiting": len(self._queue),
        }
