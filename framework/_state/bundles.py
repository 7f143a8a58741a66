"""What a node holds for placement groups: the node's side of their two-phase reservation.

A *prepared* bundle has taken its resources out of the node's ledger. A *committed* one offers them again
under the group's names (`framework._base.resources.bundle_resources`), and what runs in the group takes
those. When it is given back, the group's names vanish at once; what it had taken returns to the ledger when
those who were using it have ended.

Pure. `Bundles` shares the ledger of the `NodeState` that it is part of. GPUs in a bundle are shares of
certain devices: what runs in the bundle gets those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from framework._base import resources as res
from framework._base.resources import GPU, IndexedResource

REMOVED = "its placement group was removed"
"""How the text begins that leases and actors end with when their bundle is taken back for good."""


class User(Protocol):
    """A lease or an actor (`framework._state.node.Allocation`)."""

    lease_id: int
    units: dict[str, int]


class Bundle:
    """One bundle on this node."""

    __slots__ = ("attempt", "committed", "devices", "group", "index", "shares", "units")

    def __init__(self, group: bytes, index: int, attempt: int, units: dict[str, int]) -> None:
        self.group = group
        self.index = index
        self.attempt = attempt
        self.units = units
        self.shares: list[tuple[int, int]] = []  #: of the node's GPUs
        self.devices: IndexedResource | None = None  #: the same, to be given out in the group
        self.committed = False


class Bundles:
    """The bundles of one node."""

    def __init__(self, total: dict[str, int], available: dict[str, int], gpus: IndexedResource) -> None:
        """The node's own ledger, which is changed in place."""
        self._total = total
        self._available = available
        self._gpus = gpus
        self.changes = 0  #: of the total, so far
        self.groups: dict[bytes, dict[int, Bundle]] = {}
        self._by_hex: dict[str, dict[int, Bundle]] = {}
        self._users: dict[str, dict[int, User]] = {}
        self._devices: dict[int, IndexedResource] = {}  #: lease -> the bundle's devices that it has shares of
        #: bundles that were given back, and the leases that still hold parts of them
        self._leaving: list[tuple[list[Bundle], set[int]]] = []

    # ---- reserving -----------------------------------------------------------------------------------

    def prepare(self, group: bytes, attempt: int, rows: Iterable[tuple[int, dict[str, int]]]) -> str | None:
        """Take the resources of these bundles, of all or of none. Why not, as text; None when it is done (or
        was before)."""
        held = self.groups.get(group, {})
        wanted = [
            Bundle(group, index, attempt, dict(units))
            for index, units in rows
            if index not in held or held[index].attempt != attempt
        ]
        for bundle in wanted:
            if bundle.index in held:
                return f"bundle {bundle.index} of an earlier attempt is still here"
        taken: list[Bundle] = []
        for bundle in wanted:
            shares = self._gpus.allocate(bundle.units.get(GPU, 0))
            if shares is None or not res.fits(bundle.units, self._available):
                if shares:
                    self._gpus.free(shares)
                for other in taken:
                    self._restore(other)
                return f"it has not enough free for bundle {bundle.index}"
            bundle.shares = shares
            res.subtract(self._available, bundle.units)
            taken.append(bundle)
        if taken:
            held = self.groups.setdefault(group, {})
            self._by_hex[group.hex()] = held
            for bundle in taken:
                held[bundle.index] = bundle
        return None

    def commit(self, group: bytes, attempt: int, indices: Iterable[int]) -> str | None:
        """Offer what was prepared to the group. Why not, as text; None when it is done (or was before)."""
        held = self.groups.get(group, {})
        wanted = list(indices)
        if not all(index in held and held[index].attempt == attempt for index in wanted):
            return "it does not hold the bundles that it was to offer"
        for index in wanted:
            bundle = held[index]
            if bundle.committed:
                continue
            bundle.committed = True
            self.changes += 1
            if bundle.shares:
                bundle.devices = IndexedResource(self._gpus.total, bundle.shares)
            named = res.bundle_resources(bundle.units, group.hex(), index)
            res.add(self._total, named)
            res.add(self._available, named)
        return None

    def give_back(self, group: bytes, attempt: int = -1) -> list[User]:
        """Return what is held for a group, or only what came with this attempt. The leases and actors that
        are in it: they must end."""
        held = self.groups.get(group, {})
        leaving = [bundle for bundle in held.values() if attempt in (-1, bundle.attempt)]
        if not leaving:
            return []
        users: dict[int, User] = {}
        if any(bundle.committed for bundle in leaving):
            users = dict(self._users.get(group.hex(), {}))
        for bundle in leaving:
            del held[bundle.index]
            if bundle.committed:
                self._withdraw(bundle)
        if not held:
            self.groups.pop(group, None)
            self._by_hex.pop(group.hex(), None)
        if users:
            self._leaving.append((leaving, set(users)))
        else:
            for bundle in leaving:
                self._restore(bundle)
        return list(users.values())

    def _withdraw(self, bundle: Bundle) -> None:
        self.changes += 1
        for name, amount in res.bundle_resources(bundle.units, bundle.group.hex(), bundle.index).items():
            self._total[name] -= amount
            self._available[name] -= amount  # negative as long as somebody uses it
            if not self._total[name]:
                del self._total[name]
            self._drop(name)

    def _drop(self, name: str) -> None:
        if name not in self._total and not self._available.get(name, 1):
            del self._available[name]

    def _restore(self, bundle: Bundle) -> None:
        res.add(self._available, bundle.units)
        if bundle.shares:
            self._gpus.free(bundle.shares)

    def held(self) -> list[list[Any]]:
        """What the head is told when the node joins: ``[[group, index, attempt, committed], ...]``."""
        return [
            [group, bundle.index, bundle.attempt, bundle.committed]
            for group, bundles in self.groups.items()
            for bundle in bundles.values()
        ]

    # ---- using ---------------------------------------------------------------------------------------

    def can_allocate(self, units: Mapping[str, int]) -> bool:
        """Whether there are devices for a request whose amounts fit the ledger."""
        if GPU in units and not self._gpus.can_allocate(units[GPU]):
            return False
        return not self.groups or self._pool(units) is not None

    def _pool(self, units: Mapping[str, int]) -> tuple[IndexedResource, int] | None:
        """The devices of the group that a request is to have some of, and how much; None when they are in
        use. Who needs nothing of the kind finds nothing in no devices."""
        where = res.group_of(units)
        if where is None:
            return _NOTHING
        group, index = where
        amount = units.get(f"{GPU}_group_{group}", 0)
        if not amount:
            return _NOTHING
        bundles = self._by_hex.get(group, {})
        for bundle in bundles.values():
            if index in (-1, bundle.index) and bundle.devices is not None:
                if bundle.devices.can_allocate(amount):
                    return bundle.devices, amount
        return None

    def take(self, user: User) -> list[tuple[int, int]]:
        """Somebody has got resources (the ledger is the caller's business): the shares of the node's devices
        that are his."""
        units = user.units
        if GPU in units:
            shares = self._gpus.allocate(units[GPU])
            assert shares is not None, "can_allocate said yes"
            return shares
        where = res.group_of(units) if self.groups else None
        if where is None:
            return []
        self._users.setdefault(where[0], {})[user.lease_id] = user
        pool = self._pool(units)
        assert pool is not None, "can_allocate said yes"
        devices, amount = pool
        if not amount:
            return []
        shares = devices.allocate(amount)
        assert shares is not None
        self._devices[user.lease_id] = devices
        return shares

    def release(self, user: User, shares: list[tuple[int, int]]) -> None:
        """He has given them back, in the ledger too."""
        if shares:
            self._devices.pop(user.lease_id, self._gpus).free(shares)
        where = res.group_of(user.units) if self._users else None
        if where is None:
            return
        users = self._users.get(where[0], {})
        users.pop(user.lease_id, None)
        if not users:
            self._users.pop(where[0], None)
        for name in user.units:
            self._drop(name)
        for entry in self._leaving[:]:
            bundles, left = entry
            left.discard(user.lease_id)
            if not left:
                self._leaving.remove(entry)
                for bundle in bundles:
                    self._restore(bundle)


_NOTHING = (IndexedResource(0), 0)
