"""What the tests of custody run in workers, in a module of its own: a worker that loads a function from a
test module first imports pytest and hypothesis, which takes ten times as long as to start it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import framework as fw

LIMIT = 20
LARGE = 30_000  # float64: 240 kB, which goes to the store


class Carrier(Exception):
    """An exception with references inside, and a constructor that takes something else than `args`."""

    def __init__(self, tag: int, refs: list[Any]) -> None:
        super().__init__(f"carrier {tag}")
        self.tag = tag
        self.refs = refs


def value(tag: int, large: bool, refs: list[Any]) -> dict[str, Any]:
    return {"tag": tag, "pad": np.full(LARGE if large else 3, tag, dtype=np.float64), "refs": refs}


def content(ref: Any) -> tuple[int, list[Any]]:
    """The tag of an object, value or error, and the references in it."""
    try:
        found = fw.get(ref, timeout=LIMIT)
    except Carrier as error:
        return error.tag, error.refs
    assert (found["pad"] == found["tag"]).all()
    return found["tag"], found["refs"]


@fw.remote(num_cpus=0)
def relay(tag: int, large: bool, refs: list[Any]) -> dict[str, Any]:
    """A result that contains what it was given."""
    return value(tag, large, refs)


@fw.remote(num_cpus=0, max_retries=0)
def throw(tag: int, refs: list[Any]) -> None:
    """An error that contains what it was given."""
    raise Carrier(tag, refs)


@fw.remote(num_cpus=0, max_retries=2, retry_exceptions=[Carrier])
def throw_again_and_again(tag: int, refs: list[Any]) -> None:
    """As `throw`, the last of several times, each with an object of its own."""
    mine = fw.put(value(-1, True, refs))
    error = Carrier(tag, refs)
    error.__context__ = Carrier(tag, [mine])
    error.args = (mine,)
    raise error


@fw.remote(num_cpus=0)
def nested(tag: int, refs: list[Any], depth: int) -> None:
    """An error that has passed through several tasks."""
    fw.get(throw.remote(tag, refs) if depth == 0 else nested.remote(tag, refs, depth - 1), timeout=LIMIT)


@fw.remote(num_cpus=0)
def look(tag: int, found: dict[str, Any], refs: list[Any]) -> bool:
    """The value of a reference as an argument, and what a task gets of references inside of a list."""
    tags = [fw.get(ref, timeout=LIMIT)["tag"] for ref in refs]
    return bool(found["tag"] == tag and (found["pad"] == tag).all() and tags == [tag])


@fw.remote(num_cpus=0, max_retries=0, generator_window=2)
def produce(tag: int, count: int, large: bool, refs: list[Any], fails: bool) -> Iterator[dict[str, Any]]:
    """Items that contain what the task was given; perhaps an error like that at the end."""
    for number in range(count):
        yield value(tag + number, large, refs)
    if fails:
        raise Carrier(tag + count, refs)


@fw.remote(num_cpus=0)
class Holder:
    """Keeps references, makes objects of its own and hands what it has to others."""

    def __init__(self) -> None:
        self.slots: dict[int, list[Any]] = {}

    def keep(self, slot: int, refs: list[Any]) -> None:
        self.slots.setdefault(slot, []).extend(refs)

    def keep_inner(self, slot: int, refs: list[Any]) -> None:
        """Keep what is inside of these objects, and not themselves."""
        for ref in refs:
            self.slots.setdefault(slot, []).extend(content(ref)[1])

    def drop(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def make(self, tag: int, large: bool, refs: list[Any]) -> list[Any]:
        return [fw.put(value(tag, large, refs))]

    def throw(self, tag: int, large: bool, refs: list[Any]) -> None:
        """An error with an object of its own."""
        raise Carrier(tag, [fw.put(value(tag + 1, large, refs))])

    def hand_over(self, slot: int, other: Any, other_slot: int) -> None:
        fw.get(other.keep.remote(other_slot, self.slots.pop(slot)), timeout=LIMIT)

    def read(self, slot: int) -> list[int]:
        return [content(ref)[0] for ref in self.slots[slot]]
