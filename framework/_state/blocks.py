"""What the store of a node knows of one object."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

IN_MEMORY = "in memory"
SPILLING = "spilling"
ON_DISK = "on disk"
RESTORING = "restoring"


class Block:
    """One object."""

    __slots__ = (
        "deleting",
        "object_id",
        "offset",
        "owner",
        "path",
        "pins",
        "primary",
        "sealed",
        "size",
        "state",
        "version",
        "waiting",
    )

    def __init__(self, object_id: bytes, size: int, offset: int, owner: Hashable) -> None:
        self.object_id = object_id
        self.size = size
        self.offset = offset
        self.owner = owner  #: the process that will free it; the object goes when that process goes
        self.state = IN_MEMORY
        self.sealed = False
        self.primary = True
        #: names the content: copies have that of what they are copies of; another number for each primary
        self.version: Hashable = None
        self.pins: dict[Hashable, int] = {}
        self.path: str | None = None
        self.deleting = False  #: freed by its owner, but still pinned or on its way to disk
        self.waiting: list[tuple[Any, Hashable]] = []  #: (token, holder) of pins that wait for a restore

    @property
    def is_copy(self) -> bool:
        """Whether it came from another node (even if it is kept like a primary since)."""
        return isinstance(self.version, bytes) if self.sealed else not self.primary

    @property
    def use(self) -> str:
        """Why it is where it is, in words."""
        if not self.sealed:
            return "being written"
        if self.pins:
            return f"read by {len(self.pins)} process{'es' if len(self.pins) > 1 else ''}"
        return self.state


class Request:
    """Room that somebody waits for."""

    __slots__ = ("block", "holder", "size", "token")

    def __init__(self, size: int, token: Any, holder: Hashable, block: Block | None) -> None:
        self.size = size
        self.token = token
        self.holder = holder
        self.block = block  #: what is to be created or restored; None for a region
