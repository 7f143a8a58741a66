"""The rules by which random programs compute values: what a task must return is known from its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

_PRIME = 2_147_483_647


def mix(*numbers: int) -> int:
    """One number out of several; another for every order of them."""
    mixed = 17
    for number in numbers:
        mixed = (mixed * 48_271 + number * 7_919 + 11) % _PRIME
    return mixed


def block(seed: int, size: int) -> Any:
    """An array of `size` bytes."""
    start = np.uint8(seed & 255)
    return (np.arange(size, dtype=np.uint32) * np.uint32((seed >> 8 & 1023) | 1)).astype(np.uint8) + start


def block_sum(data: Any) -> int:
    """A number for the content of an array (or bytes)."""
    array = np.frombuffer(data, dtype=np.uint8)
    return mix(len(array), int(array.sum()), int(array[0]), int(array[-1]))


Tree = list[Any]
"""A task and the tasks that it starts: ``[task, how, seconds, max_retries, [trees]]``. how: "get" (it
blocks), "await", "one by one"."""


def tree_value(tree: Tree, x: int) -> int:
    """What the task at the root returns."""
    task, _, _, _, children = tree
    return mix(task, x, *(tree_value(child, x + 1) for child in children))


def tree_tasks(tree: Tree, parent: int = 0) -> list[tuple[int, int, int]]:
    """All tasks in it: (task, its parent, its max_retries)."""
    found = [(tree[0], parent, tree[3])]
    for child in tree[4]:
        found += tree_tasks(child, tree[0])
    return found


def item_value(task: int, index: int, size: int) -> Any:
    """What a generator yields at this place."""
    return block(mix(task, index), size) if size else mix(task, index)
