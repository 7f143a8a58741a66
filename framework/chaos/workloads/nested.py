"""Tasks that start tasks, and wait for them."""

from __future__ import annotations

import os
from typing import Any

import framework as fw
from framework.chaos.ledger import OWNER_GONE, Wrong
from framework.chaos.victims import identity
from framework.chaos.workload import Setting, Workload

_TREES, _WIDTH, _DEPTH, _BORROWED = 6, 3, 3, 6


@fw.remote(max_retries=-1)
def leaf(x: int) -> int:
    """The end of a branch."""
    return x + 1


@fw.remote(max_retries=-1)
def tree(x: int, width: int, depth: int) -> int:
    """The sum of `width` branches, each of which is a tree itself."""
    if depth == 0:
        return fw.get(leaf.remote(x))
    branches = [tree.remote(x * width + index, width, depth - 1) for index in range(width)]
    return sum(fw.get(branches))


@fw.remote(max_retries=-1)
def parent(x: int, width: int) -> tuple[str, list[Any]]:
    """References that this worker owns, and that live as long as it does; who it is."""
    return identity(os.getpid()), [leaf.remote(x + index) for index in range(width)]


def tree_alone(x: int, width: int, depth: int) -> int:
    """`tree`, in one process."""
    if depth == 0:
        return x + 1
    return sum(tree_alone(x * width + index, width, depth - 1) for index in range(width))


class Nested(Workload):
    """Trees of tasks, each of which waits for its branches; tasks that give references of theirs away."""

    name = "nested"
    text = "trees of tasks that wait for tasks; references to results of others"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._dead: set[str] = set()  #: owners that were said to be

    def round(self, number: int) -> None:
        """See the class."""
        roots = [self.random.randrange(1000) for _ in range(_TREES)]
        trees = [tree.remote(x, 2, _DEPTH) for x in roots]
        parents = [parent.remote(x, _WIDTH) for x in roots[:_BORROWED]]
        self.expect(trees, [tree_alone(x, 2, _DEPTH) for x in roots], "tree")
        self.ledger.asked += len(parents)
        for x, ref in zip(roots, parents, strict=False):
            ((owner, refs),) = self.get([ref])
            if len(refs) != _WIDTH:
                raise Wrong(f"{len(refs)} references instead of {_WIDTH}")
            self.ledger.answered += 1
            wanted = [x + index + 1 for index in range(_WIDTH)]
            good = self.expect_or(OWNER_GONE, refs, wanted, "result of a task that a task has started")
            if not all(good):
                self._dead.add(owner)

    def finish(self) -> None:
        """Who was said to be dead is."""
        alive = [owner for owner in self._dead if identity(int(owner.split()[0])) == owner]
        if alive:
            raise Wrong(f"processes that were said to be dead are alive: {alive}")
        self.ledger.notes["owners that were said to be dead, and were"] = len(self._dead)
