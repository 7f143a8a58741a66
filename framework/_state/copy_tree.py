"""Who gets the objects of a node from whom: a large broadcast spreads as a tree."""

from __future__ import annotations

from collections.abc import Iterable

from framework._base import limits


class _Copy:
    """A node that has a copy of an object, or is getting one."""

    __slots__ = ("children", "is_complete", "parent")

    def __init__(self) -> None:
        self.parent: bytes | None = None  #: whom it gets its copy from, while it does
        self.children = 0  #: how many are getting theirs from it
        self.is_complete = False


class Copies:
    """Who has got, or is getting, copies of the objects of this node: the root of a tree per object."""

    def __init__(self, node_id: bytes, fan_out: int = limits.COPY_FAN_OUT) -> None:
        self._node_id = node_id
        self._fan_out = fan_out
        self._objects: dict[bytes, dict[bytes, _Copy]] = {}

    def ask(
        self, object_id: bytes, requester: bytes, avoid: Iterable[bytes] = (), forced: bool = False
    ) -> bytes | None:
        """Who shall give it to `requester`: None, this node does, or another."""
        copies = self._objects.setdefault(object_id, {})
        own = copies.setdefault(self._node_id, _Copy())
        own.is_complete = True
        self._release(copies, requester)
        mine = copies.setdefault(requester, _Copy())
        mine.is_complete = False
        chosen = self._node_id
        if not forced and own.children >= self._fan_out:
            avoided = {*avoid, requester, self._node_id}
            best: tuple[int, int, bytes] | None = None
            for node, copy in copies.items():
                if node in avoided or copy.children >= self._fan_out:
                    continue
                depth = self._depth(copies, node, requester)
                if depth >= 0:
                    rank = (depth, copy.children, node)
                    best = rank if best is None or rank < best else best
            if best is not None:
                chosen = best[2]
        mine.parent = chosen
        copies[chosen].children += 1
        return None if chosen == self._node_id else chosen

    def _depth(self, copies: dict[bytes, _Copy], node: bytes, requester: bytes) -> int:
        """How many transfers a copy there waits for; -1 when it waits for `requester` itself, or for nobody
        knows what."""
        depth = 0
        while not copies[node].is_complete:
            parent = copies[node].parent
            if parent is None or parent == requester or parent not in copies:
                return -1
            node = parent
            depth += 1
        return depth

    @staticmethod
    def _release(copies: dict[bytes, _Copy], node: bytes) -> None:
        """It gets nothing from its parent any more."""
        copy = copies.get(node)
        if copy is not None and copy.parent is not None:
            parent = copies.get(copy.parent)
            if parent is not None:
                parent.children -= 1
            copy.parent = None

    def broken_off(self, object_id: bytes, node: bytes) -> None:
        """What this node was sending to that one was interrupted."""
        copies = self._objects.get(object_id, {})
        copy = copies.get(node)
        if copy is not None and copy.parent == self._node_id:
            self.copied(object_id, node, False)

    def copied(self, object_id: bytes, node: bytes, here: bool) -> None:
        """That node has a complete copy; or (not `here`) none, and will not get one."""
        copies = self._objects.get(object_id)
        if copies is None:
            if not here:
                return
            copies = self._objects.setdefault(object_id, {})
        self._release(copies, node)
        if here:
            copies.setdefault(node, _Copy()).is_complete = True
        elif node in copies:
            self._remove(copies, node)
        if not self._others(copies):
            del self._objects[object_id]

    def _remove(self, copies: dict[bytes, _Copy], node: bytes) -> None:
        del copies[node]
        for copy in copies.values():
            if copy.parent == node:
                copy.parent = None

    def _others(self, copies: dict[bytes, _Copy]) -> list[bytes]:
        return [node for node in copies if node != self._node_id]

    def holders(self, object_id: bytes) -> list[bytes]:
        """The other nodes that have a complete copy."""
        copies = self._objects.get(object_id, {})
        return [node for node in self._others(copies) if copies[node].is_complete]

    def freed(self, object_id: bytes) -> list[bytes]:
        """It is not needed any more: the nodes to tell."""
        return self._others(self._objects.pop(object_id, {}))

    def node_gone(self, node: bytes) -> None:
        """That node is dead."""
        for object_id, copies in list(self._objects.items()):
            if node in copies:
                self._release(copies, node)
                self._remove(copies, node)
                if not self._others(copies):
                    del self._objects[object_id]

    def __len__(self) -> int:
        return len(self._objects)
