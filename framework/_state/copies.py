"""The store of a node in a cluster: what comes from other nodes, and what goes there."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from framework._state.blocks import IN_MEMORY, SPILLING, Block
from framework._state.store import Command, StoreState


class SharedStoreState(StoreState):
    """The same, with copies from and for other nodes."""

    def free(self, object_id: bytes) -> list[Command]:
        """As always, and ``("freed", object_id)``: for those who have copies."""
        return [*super().free(object_id), ("freed", object_id)]

    def is_sealed(self, object_id: bytes) -> bool:
        """Whether the object is here, complete."""
        block = self.blocks.get(object_id)
        return block is not None and block.sealed and not block.deleting

    def lend(self, holder: Hashable, object_id: bytes) -> Block | None:
        """For whoever sends it elsewhere: the block, pinned for `holder` if it is in memory, else to be read
        from its `path`. None when there is no complete one."""
        block = self.blocks.get(object_id)
        if block is None or block.deleting or not block.sealed:
            return None
        if block.state in (IN_MEMORY, SPILLING):
            self._add_pin(block, holder)
            self._unidle(object_id)
        return block

    def lend_part(self, holder: Hashable, object_id: bytes) -> Block | None:
        """As `lend`, of a copy that is still being written: pinned."""
        block = self.blocks.get(object_id)
        if block is None or block.deleting or block.sealed or block.primary:
            return None
        block.pins[holder] = block.pins.get(holder, 0) + 1
        return block

    def withdraw(self, object_id: bytes, offset: int, holder: Hashable) -> list[Command]:
        """The writer gives up, and somebody else may write it: whoever waits for the object goes on
        waiting."""
        block = self.at(object_id, offset)
        if block is None or block.sealed or holder not in block.pins:
            return []
        if self.blocks.get(object_id) is block:
            del self.blocks[object_id]
            self._zombies[block] = None
        block.deleting = True
        return self.unpin(object_id, offset, holder)

    def refuse_parked(self, object_id: bytes, kind: str, text: str) -> list[Command]:
        """The object will not come: tell whoever waits for it."""
        return [("refuse", token, kind, text) for token, _ in self._parked.pop(object_id, ())]

    def free_copy(self, object_id: bytes) -> list[Command]:
        """The primary has been freed."""
        block = self.blocks.get(object_id)
        return self.free(object_id) if block is not None and block.is_copy else []

    def free_known(self, object_id: bytes) -> list[Command]:
        """As `free`, by somebody who does not know whether it is here."""
        return self.free(object_id) if object_id in self.blocks else []

    def keep_copy(self, object_id: bytes) -> list[Command]:
        """From now on this copy is a primary."""
        block = self.blocks.get(object_id)
        if block is None or block.primary or not block.sealed:
            return []
        block.primary = True
        self._unidle(object_id)
        return self._settled(block)

    def owners_gone(self, gone: Callable[[Hashable], bool]) -> list[Command]:
        """Free the objects of all owners of which `gone(owner)` says that they have ended."""
        commands: list[Command] = []
        for owner in dict.fromkeys(block.owner for block in self.blocks.values()):
            if gone(owner):
                commands += self.holder_gone(owner)
        return commands
