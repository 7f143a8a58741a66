"""Which nodes the bundles of a placement group go to: bin packing over what nodes have free.

Pure. A bundle is a set of resources that must be on one node. Nodes are given as what they have free (or, to
know whether a group could ever be placed, as all that they have). The answer is one node for each bundle, or
None. One node for all (STRICT_PACK) and one for each (STRICT_SPREAD) are found whenever they exist; for PACK
and SPREAD a good answer is looked for first, and then, for a bounded number of steps, any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from framework._base import resources as res
from framework._base.limits import PACKING_STEPS

PACK = "PACK"
SPREAD = "SPREAD"
STRICT_PACK = "STRICT_PACK"
STRICT_SPREAD = "STRICT_SPREAD"
STRATEGIES = (PACK, SPREAD, STRICT_PACK, STRICT_SPREAD)

Units = Mapping[str, int]
Free = dict[bytes, dict[str, int]]


def place(
    bundles: Mapping[int, Units],
    strategy: str,
    free: Mapping[bytes, Units],
    placed: Sequence[bytes] = (),
    allowed: Mapping[int, set[bytes]] | None = None,
) -> dict[int, bytes] | None:
    """A node for each of `bundles` (index -> units); None when there is none for all of them.

    `free`: node -> what it has. `placed`: the nodes of those bundles of the group that have one already.
    `allowed`: where a bundle may only go to some nodes, these.
    """
    if not bundles:
        return {}
    can = {
        index: [node for node, have in free.items() if _may(index, node, allowed) and res.fits(units, have)]
        for index, units in bundles.items()
    }
    if not all(can.values()):
        return None
    if strategy == STRICT_PACK:
        return _one_node(bundles, free, placed, can)
    if strategy == STRICT_SPREAD:
        return _matching(bundles, free, set(placed), can)
    if strategy == SPREAD:
        found = _matching(bundles, free, set(placed), can) or _evenly(bundles, free, placed, can)
    else:
        found = _one_node(bundles, free, placed, can) or _few_nodes(bundles, free, placed, can)
    return found or _any(bundles, free, can)


def _may(index: int, node: bytes, allowed: Mapping[int, set[bytes]] | None) -> bool:
    return allowed is None or index not in allowed or node in allowed[index]


def _leftover(have: Units, need: Units) -> float:
    """How much would be left of what is needed: the smaller, the better the fit."""
    parts = [(have[name] - amount) / have[name] for name, amount in need.items() if have.get(name)]
    return sum(parts) / len(parts) if parts else 0.0


def _size(units: Units) -> tuple[int, ...]:
    """Scarce devices first, then CPUs, then the rest."""
    rest = sum(amount for name, amount in units.items() if name not in (res.CPU, res.GPU, res.MEMORY))
    return (units.get(res.GPU, 0), rest, units.get(res.CPU, 0), units.get(res.MEMORY, 0))


def _largest_first(bundles: Mapping[int, Units]) -> list[int]:
    return sorted(bundles, key=lambda index: (_size(bundles[index]), -index), reverse=True)


def _one_node(
    bundles: Mapping[int, Units],
    free: Mapping[bytes, Units],
    placed: Sequence[bytes],
    can: Mapping[int, list[bytes]],
) -> dict[int, bytes] | None:
    need: dict[str, int] = {}
    for units in bundles.values():
        res.add(need, units)
    nodes = set.intersection(*(set(nodes) for nodes in can.values()))
    if placed:
        nodes &= set(placed)
    if len(set(placed)) > 1:
        return None
    fitting = [node for node in nodes if res.fits(need, free[node])]
    if not fitting:
        return None
    best = min(fitting, key=lambda node: (_leftover(free[node], need), node))
    return dict.fromkeys(bundles, best)


def _matching(
    bundles: Mapping[int, Units],
    free: Mapping[bytes, Units],
    taken: set[bytes],
    can: Mapping[int, list[bytes]],
) -> dict[int, bytes] | None:
    """Each bundle on a node of its own: augmenting paths (Kuhn)."""
    holder: dict[bytes, int] = {}
    options = {
        index: sorted(
            (node for node in can[index] if node not in taken),
            key=lambda node: (-_leftover(free[node], bundles[index]), node),  # the emptiest first
        )
        for index in bundles
    }
    for index in bundles:
        if not _augment(index, options, holder):
            return None
    return {index: node for node, index in holder.items()}


def _augment(start: int, options: Mapping[int, list[bytes]], holder: dict[bytes, int]) -> bool:
    """Find a node for `start`, moving others on; without recursion, as there may be many."""
    came_from: dict[bytes, int] = {}
    queue = [start]
    for index in queue:
        for node in options[index]:
            if node in came_from:
                continue
            came_from[node] = index
            if node in holder:
                queue.append(holder[node])
                continue
            # Give it to `index`, which gives its own to whoever wanted that, and so on back to the start.
            current: bytes | None = node
            while current is not None:
                owner = came_from[current]
                previous = next((n for n, held in holder.items() if held == owner), None)
                holder[current] = owner
                current = previous if owner != start else None
            return True
    return False


def _evenly(
    bundles: Mapping[int, Units],
    free: Mapping[bytes, Units],
    placed: Sequence[bytes],
    can: Mapping[int, list[bytes]],
) -> dict[int, bytes] | None:
    """Each bundle where the fewest of the group are."""
    rest = {node: dict(have) for node, have in free.items()}
    count = dict.fromkeys(rest, 0)
    for node in placed:
        count[node] = count.get(node, 0) + 1
    found: dict[int, bytes] = {}
    for index in _largest_first(bundles):
        units = bundles[index]
        nodes = [node for node in can[index] if res.fits(units, rest[node])]
        if not nodes:
            return None
        best = min(nodes, key=lambda node: (count[node], -_leftover(rest[node], units), node))
        found[index] = best
        count[best] += 1
        res.subtract(rest[best], units)
    return found


def _few_nodes(
    bundles: Mapping[int, Units],
    free: Mapping[bytes, Units],
    placed: Sequence[bytes],
    can: Mapping[int, list[bytes]],
) -> dict[int, bytes] | None:
    """Again and again the node that takes the most of those that are left; first the group's own."""
    left = {index: set(can[index]) for index in _largest_first(bundles)}
    own = set(placed)
    unused = dict(free)
    found: dict[int, bytes] = {}
    while left:
        best: tuple[tuple[bool, int, float], bytes, list[int]] | None = None
        for node, have in unused.items():
            rest, taken = dict(have), []
            need: dict[str, int] = {}
            for index, nodes in left.items():
                if node in nodes and res.fits(bundles[index], rest):
                    res.subtract(rest, bundles[index])
                    res.add(need, bundles[index])
                    taken.append(index)
            rank = (node in own, len(taken), -_leftover(have, need))
            if taken and (best is None or (rank, node) > (best[0], best[1])):
                best = rank, node, taken
        if best is None:
            return None
        _, node, taken = best
        del unused[node]
        for index in taken:
            found[index] = node
            del left[index]
    return found


def _any(
    bundles: Mapping[int, Units], free: Mapping[bytes, Units], can: Mapping[int, list[bytes]]
) -> dict[int, bytes] | None:
    """Any answer at all, by search, those with the fewest choices first; given up after a number of steps."""
    order = sorted(_largest_first(bundles), key=lambda index: len(can[index]))
    rest: Free = {node: dict(have) for node, have in free.items()}
    choice = [0] * len(order)
    found: list[bytes] = []
    for _ in range(PACKING_STEPS):
        depth = len(found)
        if depth == len(order):
            return dict(zip(order, found, strict=True))
        index = order[depth]
        nodes, units = can[index], bundles[index]
        while choice[depth] < len(nodes) and not res.fits(units, rest[nodes[choice[depth]]]):
            choice[depth] += 1
        if choice[depth] < len(nodes):
            node = nodes[choice[depth]]
            choice[depth] += 1
            res.subtract(rest[node], units)
            found.append(node)
            continue
        if not found:
            return None
        choice[depth] = 0
        res.add(rest[found.pop()], bundles[order[depth - 1]])
    return None
