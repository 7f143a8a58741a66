"""The owner table: what one process knows of the objects that it made or borrowed.

Every hold on an object in this process is a live ``ObjectRef``: the user's handles, those that a queued task
keeps for its arguments, those that an object keeps because its value contains them. So one number,
`Entry.local`, counts them all, and an entry may go when it is zero and no other process has borrowed the
object.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

PENDING = 0
READY = 1
FAILED = 2


class Entry:
    """One object. `value` is a wire value when READY; a wire error or an exception when FAILED.

    `done` and `value` are written by the runtime's loop only, `value` and `state` before `waiters` is looked
    at: a thread that waits appends itself to `waiters` first and looks at `state` second, so that no wake-up
    is lost.
    """

    __slots__ = (
        "__weakref__",
        "borrowers",
        "contained",
        "fetching",
        "freed",
        "id",
        "lineage",
        "local",
        "made_by_put",
        "owner",
        "registered",
        "seen",
        "site",
        "state",
        "task",
        "value",
        "waiters",
    )

    def __init__(
        self, object_id: bytes, owner: str | None = None, task: Any = None, site: Any = None
    ) -> None:
        self.id = object_id
        self.owner = owner  #: address of the owning process; None when that is this one
        self.local = 1  #: live references in this process
        self.state = PENDING
        self.value: Any = None
        #: those to be called when it is done; a tuple: one thread, that waits for many
        self.waiters: list[Any] | tuple[Any] | None = None
        self.contained: list[Any] | None = None  #: references that the value holds, kept alive with it
        self.borrowers: set[Hashable] | None = None  #: processes that keep a reference
        self.lineage: Any = None  #: how to make it again, if its value gets lost
        self.site = site  #: (code, instruction) of the line that made the reference
        self.made_by_put = False
        self.task = task  #: the task that makes it, until it is done
        self.seen = False  #: somebody looked at the outcome: an error need not be logged
        self.freed = False  #: nobody holds it any more: an outcome that still comes is dropped
        self.fetching = False  #: borrowed: a FETCH is on its way
        self.registered = False  #: borrowed: the owner knows of us

    @property
    def done(self) -> bool:
        return self.state != PENDING

    def __repr__(self) -> str:
        state = ("pending", "ready", "failed")[self.state]
        return f"<Entry {self.id.hex()} {state} local={self.local} borrowers={len(self.borrowers or ())}>"


class ObjectTable:
    """Entries by id. Additions come from any thread (one dict store); all else happens on the loop."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}

    def add(self, entry: Entry) -> Entry:
        self.entries[entry.id] = entry
        return entry

    def get(self, object_id: bytes) -> Entry | None:
        return self.entries.get(object_id)

    def dropped(self, entries: Iterable[Entry]) -> list[Entry]:
        """References were dropped: the entries that nothing in this process holds any more, each once."""
        gone = []
        for entry in entries:
            entry.local -= 1
            if entry.local == 0:
                gone.append(entry)
        return [entry for entry in gone if entry.local == 0]

    def free(self, entry: Entry) -> bool:
        """Forget `entry` if nobody holds it, here or elsewhere. True when it is gone."""
        if entry.local > 0 or entry.borrowers:
            return False
        entry.freed = True
        if self.entries.get(entry.id) is entry:
            del self.entries[entry.id]
        entry.contained = None
        return True

    def collect(self, drops: deque[Entry], most: int) -> list[Entry]:
        """Up to so many references were dropped: the entries that are gone for it, as by `dropped` and
        `free`."""
        free = []
        entries = self.entries
        for _ in range(min(most, len(drops))):
            entry = drops.popleft()
            local = entry.local = entry.local - 1
            if not local and not entry.borrowers:
                entry.freed = True
                object_id = entry.id
                if entries.get(object_id) is entry:
                    del entries[object_id]
                if entry.contained is not None:
                    entry.contained = None
                free.append(entry)
        return free

    def borrow(self, object_id: bytes, borrower: Hashable) -> bool:
        """Another process keeps a reference. False when the object is not known here (any more)."""
        entry = self.entries.get(object_id)
        if entry is None or entry.owner is not None:
            return False
        if entry.borrowers is None:
            entry.borrowers = set()
        entry.borrowers.add(borrower)
        return True

    def unborrow(self, object_id: bytes, borrower: Hashable) -> Entry | None:
        """That process dropped its last one. The entry, if it is now free to go."""
        entry = self.entries.get(object_id)
        if entry is None or not entry.borrowers:
            return None
        entry.borrowers.discard(borrower)
        return entry if not entry.borrowers and entry.local <= 0 else None

    def borrower_lost(self, borrower: Hashable) -> list[Entry]:
        """A process that had borrowed is gone: the entries that are now free to go."""
        return self.borrowed_again((), borrower)[1]

    def borrowed_again(self, ids: Sequence[bytes], borrower: Hashable) -> tuple[list[bytes], list[Entry]]:
        """A process whose connection was lost says all that it borrows: what it said before may not have
        arrived. Which of it is not known here (any more), and the entries that are now free to go.
        """
        said = set(ids)
        free = []
        for entry in list(self.entries.values()):
            if entry.borrowers and borrower in entry.borrowers and entry.id not in said:
                entry.borrowers.discard(borrower)
                if not entry.borrowers and entry.local <= 0:
                    free.append(entry)
        return [object_id for object_id in ids if not self.borrow(object_id, borrower)], free

    def of_owner(self, owner: str) -> list[Entry]:
        """What is borrowed from the process at this address."""
        return [entry for entry in list(self.entries.values()) if entry.owner == owner]
