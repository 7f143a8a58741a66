"""A shuffle: map, partition, reduce, over blocks in the object store that die with their nodes."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

import framework as fw
from framework.chaos.ledger import Wrong
from framework.chaos.marks import mark
from framework.chaos.workload import Setting, Workload

_MAPS, _PARTS, _ROWS = 6, 4, 60_000
_KEPT = 3  # rounds whose results are read again later


def make_block(seed: int) -> Any:
    """Rows of random numbers: 480 KB."""
    return np.random.default_rng(seed).integers(0, 1 << 40, _ROWS)


def split(block: Any, parts: int) -> list[Any]:
    """The rows of each part, by their remainder."""
    return [block[block % parts == part] for part in range(parts)]


def merge(*pieces: Any) -> Any:
    """The rows of all pieces, in order."""
    return np.sort(np.concatenate(pieces))


@fw.remote(max_retries=-1)
def map_block(path: str, seed: int) -> Any:
    """See `make_block`."""
    mark(path, f"map {seed}")
    return make_block(seed)


@fw.remote(max_retries=-1, num_returns=_PARTS)
def partition(path: str, key: int, block: Any) -> Any:
    """See `split`."""
    mark(path, f"partition {key}")
    return tuple(split(block, _PARTS))


@fw.remote(max_retries=-1)
def reduce_part(path: str, key: int, *pieces: Any) -> Any:
    """See `merge`."""
    mark(path, f"reduce {key}")
    return merge(*pieces)


class Shuffle(Workload):
    """Every result is compared with that of one process. Results of earlier rounds are read again: those
    whose node has died meanwhile are made again, with all that they were made of."""

    name = "shuffle"
    text = "map, partition and reduce over numpy blocks, with lineage"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._kept: deque[tuple[str, list[str], list[Any], list[Any]]] = deque()

    def round(self, number: int) -> None:
        """See the class."""
        seeds = [self.random.randrange(1 << 30) for _ in range(_MAPS)]
        path = self.marks.new(f"runs-{number}")
        blocks = [map_block.remote(path, seed) for seed in seeds]
        parts = [partition.remote(path, index, block) for index, block in enumerate(blocks)]
        results = [
            reduce_part.remote(path, part, *(pieces[part] for pieces in parts)) for part in range(_PARTS)
        ]
        del blocks, parts
        alone = [split(make_block(seed), _PARTS) for seed in seeds]
        wanted = [merge(*(pieces[part] for pieces in alone)) for part in range(_PARTS)]
        self._compare(results, wanted, "part")
        keys = [f"map {seed}" for seed in seeds] + [f"partition {index}" for index in range(_MAPS)]
        keys += [f"reduce {part}" for part in range(_PARTS)]
        self._kept.append((path, keys, results, wanted))
        if len(self._kept) > _KEPT:
            self._read_again()

    def _compare(self, refs: list[Any], wanted: list[Any], what: str) -> None:
        self.ledger.asked += len(refs)
        for part, (found, right) in enumerate(zip(self.get(refs), wanted, strict=True)):
            if not np.array_equal(found, right):
                raise Wrong(f"{what} {part} differs: {len(found)} rows, in one process {len(right)}")
            self.ledger.answered += 1

    def _read_again(self) -> None:
        path, keys, refs, wanted = self._kept.popleft()
        self._compare(refs, wanted, "an earlier round's part")
        self.ledger.count_runs(keys, self.marks.take(path))

    def finish(self) -> None:
        """What is kept is read for the last time."""
        while self._kept:
            self._read_again()
