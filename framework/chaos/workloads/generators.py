"""Streams of results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import framework as fw
from framework.chaos.ledger import Wrong
from framework.chaos.marks import mark
from framework.chaos.workload import Workload

_STREAMS, _ITEMS, _BLOBS, _WEIGHT = 3, 60, 8, 30_000


@fw.remote(max_retries=-1)
def count(path: str, key: str, items: int, pause: float) -> Iterator[int]:
    """Small items."""
    mark(path, key)
    for item in range(items):
        time.sleep(pause)
        yield item


@fw.remote(max_retries=-1, generator_window=3)
def blobs(path: str, key: str, items: int, first: int) -> Iterator[Any]:
    """Items that lie in the object store: 240 KB each."""
    mark(path, key)
    for item in range(items):
        yield np.full(_WEIGHT, first + item)


@fw.remote(max_retries=-1, num_returns="dynamic")
def all_at_once(items: int) -> Iterator[int]:
    """One reference, to a generator over all items."""
    yield from range(items)


class Generators(Workload):
    """Streams of small and large items: all of them, once and in order. The large ones are read twice, at
    once and at the end of the round, when their node may have died."""

    name = "generators"
    text = "streams of small and large items, in order, none missing and none twice"

    def round(self, number: int) -> None:
        """See the class."""
        path = self.marks.new(f"runs-{number}")
        pause = self.random.uniform(0.0, 0.003)
        first = self.random.randrange(1000)
        keys = [str(index) for index in range(_STREAMS)]
        streams = [count.remote(path, key, _ITEMS, pause) for key in keys]
        large = blobs.remote(path, "large", _BLOBS, first)
        dynamic = all_at_once.remote(_ITEMS)
        for stream in streams:
            self.expect(self._items(stream, _ITEMS), range(_ITEMS), "item")
        kept = self._items(large, _BLOBS, read=first)
        (every,) = self.get([dynamic])
        self.expect(list(every), range(_ITEMS), "item of a dynamic generator")
        self._weigh(kept, first)
        self.ledger.count_runs([*keys, "large"], self.marks.take(path))

    def _items(self, stream: Any, items: int, read: int | None = None) -> list[Any]:
        """The references of a stream, which has so many. With `read` each is read when it comes: the first
        has this value."""
        found: list[Any] = []
        while True:
            ready, _ = fw.wait([stream], timeout=self.left())
            if not ready:
                raise self.hung((), f"a stream has given {len(found)} of {items} items")
            try:
                found.append(next(stream))
            except StopIteration:
                break
            if read is not None:
                self._weigh(found[-1:], read + len(found) - 1)
        if len(found) != items:
            raise Wrong(f"a stream has given {len(found)} of {items} items")
        return found

    def _weigh(self, refs: list[Any], first: int) -> None:
        self.ledger.asked += len(refs)
        for item, array in enumerate(self.get(refs)):
            if len(array) != _WEIGHT or int(array[0]) != first + item or int(array[-1]) != first + item:
                raise Wrong(f"item {item} of a stream is {array[:3]!r}… instead of {first + item}")
            self.ledger.answered += 1
