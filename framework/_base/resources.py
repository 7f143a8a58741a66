"""Amounts of resources in exact fixed point: integers in units of 1/10000.

Ten tasks of 0.1 CPU are one CPU, exactly; sums of floats are not. On hot paths a set of resources is a plain
``dict[str, int]`` from name to units, without entries of zero. Ray uses the same resolution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from framework._base import limits

TYPE_CHECKING = False  # (until a node has been started, nothing loads `typing`: see `framework._session`)
if TYPE_CHECKING:
    from typing import Any

UNIT = 10_000
"""Units in one whole resource."""

CPU = "CPU"
GPU = "GPU"
MEMORY = "memory"

ACCELERATOR_PREFIX = "accelerator_type:"

_OPTION_OF = {CPU: "num_cpus", GPU: "num_gpus", MEMORY: "memory"}
_ORDER = {CPU: 0, GPU: 1, MEMORY: 2}

GROUP_HEX = 36
"""Length of the id of a placement group (18 bytes) as hexadecimal text."""


def to_units(amount: Any, name: str) -> int:
    """`amount` in units, rounded to the nearest.

    `name` is the option or resource named in errors; under ``num_gpus`` and ``GPU`` an amount above 1 must be
    whole. `TypeError` for what is no real number (bool included); `ValueError` for negative, NaN, infinite,
    or an amount above zero that is less than half a unit.
    """
    whole = type(amount) is int
    if not whole and type(amount) is not float:
        from numbers import Integral, Real  # slow to load, and seldom needed

        if isinstance(amount, bool) or not isinstance(amount, Real):
            kind = type(amount).__name__
            raise TypeError(f"{name} must be a number (int or float), not {amount!r} of type {kind}")
        whole = isinstance(amount, Integral)
    value: float
    if whole:
        value = int(amount)
        units = value * UNIT
    elif math.isnan(amount) or math.isinf(amount):
        raise ValueError(f"{name} must be a finite number, got {amount!r}")
    else:
        value = float(amount)
        # Whole numbers beyond 2**53 / UNIT would lose digits in the product.
        units = int(value) * UNIT if value.is_integer() else round(value * UNIT)
    if units < 0 or value < 0:
        raise ValueError(f"{name} must not be negative, got {amount!r}")
    if units == 0 and value > 0:
        raise ValueError(f"{name}={amount!r} is finer than the resolution of resources, {1 / UNIT}")
    if name in (GPU, "num_gpus") and units > UNIT and units % UNIT:
        raise ValueError(f"{name} must be a whole number when it is above 1, got {amount!r}")
    return units


def parse(
    num_cpus: object,
    num_gpus: object,
    memory: object,
    resources: Mapping[str, object] | None,
    *,
    default_cpus: float,
) -> dict[str, int]:
    """The set of resources that these options ask for; None means `default_cpus`, and otherwise nothing.

    `memory` is in bytes. Errors as in `to_units`; also `ValueError` when `resources` names CPU, GPU or
    memory, which have options of their own, and `TypeError` when it is no mapping from text.
    """
    units = {
        CPU: to_units(default_cpus if num_cpus is None else num_cpus, "num_cpus"),
        GPU: 0 if num_gpus is None else to_units(num_gpus, "num_gpus"),
        MEMORY: 0 if memory is None else to_units(memory, "memory"),
    }
    if resources is not None:
        if not isinstance(resources, Mapping):
            raise TypeError(f"resources must be a dict from names to amounts, not {resources!r}")
        for name, amount in resources.items():
            if not isinstance(name, str):
                raise TypeError(f"the names in resources must be str, not {name!r}")
            if not name:
                raise ValueError("a name in resources must not be empty")
            if name in _OPTION_OF:
                option = f"{_OPTION_OF[name]}={amount!r}"
                raise ValueError(f"resources must not contain {name!r}: use the option {option} instead")
            units[name] = to_units(amount, f"resources[{name!r}]")
    return {name: amount for name, amount in units.items() if amount}


def fits(need: Mapping[str, int], have: Mapping[str, int]) -> bool:
    """Whether `have` covers all of `need`."""
    for name, amount in need.items():  # noqa: SIM110 - half as fast again as all() over a generator
        if have.get(name, 0) < amount:
            return False
    return True


def subtract(have: dict[str, int], need: Mapping[str, int]) -> None:
    """Take `need` out of `have`, in place. It may go negative: whether that is meant is for the caller to
    say.
    """
    for name, amount in need.items():
        have[name] = have.get(name, 0) - amount


def add(have: dict[str, int], need: Mapping[str, int]) -> None:
    """Put `need` into `have`, in place."""
    for name, amount in need.items():
        have[name] = have.get(name, 0) + amount


def to_floats(units: Mapping[str, int]) -> dict[str, float]:
    """The amounts as users see them."""
    return {name: amount / UNIT for name, amount in units.items()}


def format_resources(units: Mapping[str, int]) -> str:
    """For messages: ``{CPU: 2, GPU: 0.5}``; CPU, GPU and memory (bytes) first, then the others by name."""
    names = sorted(units, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))
    return "{" + ", ".join(f"{name}: {_format_units(units[name])}" for name in names) + "}"


def _format_units(units: int) -> str:
    whole, rest = divmod(abs(units), UNIT)
    sign = "-" if units < 0 else ""
    return f"{sign}{whole}" + (f".{rest:04d}".rstrip("0") if rest else "")


def key(units: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Equal, and hashable, for equal sets."""
    return tuple(sorted(units.items()))


# ---- placement groups --------------------------------------------------------------------------------

BUNDLE = "bundle"
BUNDLE_TOTAL = 1000 * UNIT
"""Of the resource ``bundle`` that each committed bundle adds (as in Ray): it ties what needs nothing else to
the bundle's node."""
BUNDLE_USE = UNIT // 1000
"""What everything that runs in a group takes of it."""

_GROUP = "_group_"
_CPU_IN_GROUP = CPU + _GROUP


def bundle_resources(units: Mapping[str, int], group_hex: str, index: int) -> dict[str, int]:
    """What the committed bundle `index` of a group adds to its node: each resource under its name in the
    bundle, ``CPU_group_<index>_<hex>``, and in the group as a whole, ``CPU_group_<hex>``."""
    named: dict[str, int] = {}
    for name, amount in (*units.items(), (BUNDLE, BUNDLE_TOTAL)):
        named[f"{name}{_GROUP}{index}_{group_hex}"] = amount
        named[f"{name}{_GROUP}{group_hex}"] = amount
    return named


def in_group(units: Mapping[str, int], group_hex: str, index: int) -> dict[str, int]:
    """What a task or actor that needs `units` asks for in a placement group: in bundle `index`, or, with -1,
    in any bundle of it."""
    named: dict[str, int] = {}
    for name, amount in (*units.items(), (BUNDLE, BUNDLE_USE)):
        named[f"{name}{_GROUP}{group_hex}"] = amount
        if index >= 0:
            named[f"{name}{_GROUP}{index}_{group_hex}"] = amount
    return named


@functools.lru_cache(limits.GROUP_NAMES_KEPT)
def split_group(name: str) -> tuple[str, str, int] | None:
    """``(resource, hexadecimal group, index or -1)`` of a resource of a placement group; None for others."""
    base, mark, rest = name.rpartition(_GROUP)
    if not mark or not base:
        return None
    index, separator, group = rest.rpartition("_")
    if len(group) != GROUP_HEX or (separator and not index.isdecimal()):
        return None
    return base, group, int(index) if separator else -1


def group_of(units: Mapping[str, int]) -> tuple[str, int] | None:
    """``(hexadecimal group, index or -1)`` that a request is for; None outside of groups."""
    found: tuple[str, int] | None = None
    for name in units:
        if _GROUP in name:
            parts = split_group(name)
            if parts is not None:
                if parts[2] >= 0:
                    return parts[1], parts[2]
                found = parts[1], -1
    return found


def out_of_group(units: Mapping[str, int]) -> dict[str, int]:
    """`units` as the user gave them: the other way of `in_group`; what is in no group stays as it is."""
    plain: dict[str, int] = {}
    for name, amount in units.items():
        parts = split_group(name) if _GROUP in name else None
        if parts is None:
            plain[name] = amount
        elif parts[0] != BUNDLE:
            plain[parts[0]] = amount
    return plain


def lendable(units: Mapping[str, int]) -> dict[str, int]:
    """What a worker that waits gives back for a while: its CPUs, by whatever name it has them."""
    if not units:
        return {}
    return {name: amount for name, amount in units.items() if name == CPU or name.startswith(_CPU_IN_GROUP)}


def without_groups(units: Mapping[str, int]) -> dict[str, int]:
    """`units` less the resources of placement groups: what those are made of is counted already."""
    return {name: amount for name, amount in units.items() if _GROUP not in name or not split_group(name)}


class IndexedResource:
    """Devices with numbers (GPUs), handed out whole or in shares.

    Not bound to the counts in a ledger: a count may fit while no single device has room for the share, so
    callers ask here before they grant.
    """

    __slots__ = ("_free", "_most", "total")

    def __init__(self, total: int, shares: list[tuple[int, int]] | None = None) -> None:
        """`total` whole devices, or only these `shares` of them (``[(index, units), ...]``)."""
        if total < 0:
            raise ValueError(f"a number of devices must not be negative, got {total}")
        self.total = total
        self._most = [UNIT] * total if shares is None else [0] * total
        for index, units in shares or ():
            self._most[index] = units
        self._free = self._most.copy()

    def allocate(self, units: int) -> list[tuple[int, int]] | None:
        """``[(index, units), ...]`` for this many units, or None when that is not free now.

        One unit or more means that many whole, unshared devices, the lowest numbers first. Less than one
        means a share of the device with the least room that suffices. `ValueError` when negative, or above
        one and not whole.
        """
        if units < 0 or (units > UNIT and units % UNIT):
            raise ValueError(f"devices are given out whole or in a share of one, not {_format_units(units)}")
        free = self._free
        if units >= UNIT:
            count = units // UNIT
            whole = [index for index, room in enumerate(free) if room == UNIT][:count]
            if len(whole) < count:
                return None
            for index in whole:
                free[index] = 0
            return [(index, UNIT) for index in whole]
        if units == 0:
            return []
        candidates = [(room, index) for index, room in enumerate(free) if room >= units]
        if not candidates:
            return None
        _, best = min(candidates)
        free[best] -= units
        return [(best, units)]

    def free(self, allocation: list[tuple[int, int]]) -> None:
        """Take back what `allocate` gave. `ValueError`, and no change, for what cannot have come from it."""
        after = self._free.copy()
        for index, units in allocation:
            if not 0 <= index < self.total or units < 0 or after[index] + units > self._most[index]:
                raise ValueError(f"device {index} cannot take back {_format_units(units)}: not allocated")
            after[index] += units
        self._free = after

    def available(self) -> int:
        """Units that are free, over all devices."""
        return sum(self._free)

    def can_allocate(self, units: int) -> bool:
        """Whether `allocate` would find room now."""
        if units == 0:
            return True
        if units >= UNIT:
            return sum(1 for room in self._free if room == UNIT) * UNIT >= units
        return any(room >= units for room in self._free)
