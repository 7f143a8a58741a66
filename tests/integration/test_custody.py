"""Exact reference counts: random programs over several processes, checked against a model of reachability.

An object must be alive exactly as long as somebody can reach it: through a handle of the driver, a slot of a
live actor, or the value of an object that is itself alive. When a program has dropped everything, nothing is
left anywhere: no objects, no bytes, no pins, no borrowers.
"""

from __future__ import annotations

import gc
import os
import pickle
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import framework as fw
from framework._base import limits
from framework._runtime.current import current
from framework.exceptions import OwnerDiedError
from framework.util.state import list_objects, store_stats
from support.custody import (
    LARGE,
    LIMIT,
    Holder,
    content,
    look,
    nested,
    produce,
    relay,
    throw,
    throw_again_and_again,
    value,
)
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

#: programs that are tried; FRAMEWORK_LONG_TESTS=1 for many more
LONG = bool(os.environ.get("FRAMEWORK_LONG_TESTS"))


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


def live_rows() -> list[dict[str, Any]]:
    """All objects of all processes, besides those that stand for the actors themselves."""
    return [row for row in list_objects() if not row["object_id"].startswith("00" * 8)]


def remains() -> dict[str, int]:
    """What must be zero in the end."""
    gc.collect()
    rows, stats = live_rows(), store_stats()
    return {
        "owned": sum(row["reference_type"] == "OWNED" for row in rows),
        "borrowed": sum(row["reference_type"] == "BORROWED" for row in rows),
        "borrowers": sum(len(row["borrowers"]) for row in rows),
        "stored": stats["objects"],
        "bytes": stats["used"] - stats["region_bytes"],
        "pins": stats["pins"],
        "spilled": stats["spilled_bytes"],
        "waiting": stats["waiting"],
    }


def nothing_remains(timeout: float = 8) -> None:
    try:
        wait_until(lambda: not any(remains().values()), timeout)
    except AssertionError:
        raise AssertionError(f"left: {remains()} {live_rows()}") from None


@pytest.fixture(autouse=True)
def clean(session: object) -> Iterator[None]:
    yield
    nothing_remains()


class Pool:
    """Three actors, which programs use one after the other; those that a program has killed are replaced."""

    def __init__(self) -> None:
        self.actors = [Holder.remote() for _ in range(3)]

    def replace(self, place: int) -> None:
        fw.kill(self.actors[place])
        self.actors[place] = Holder.remote()
        get(self.actors[place].drop.remote(0))

    def drop_all(self) -> None:
        get([actor.drop.remote(slot) for actor in self.actors for slot in (0, 1)])


@pytest.fixture
def pool(session: object) -> Pool:
    return Pool()


class Model:
    """What there is, who can reach it, and the real thing beside it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.actors = pool.actors
        self.born = [0, 1, 2]  # which incarnation sits in each place: owners are named by these
        self.next_actor = 3
        self.next_tag = 0
        self.handles: dict[int, Any] = {}  # tag -> the driver's reference
        self.slots: dict[tuple[int, int], list[int]] = {}  # (place of the actor, slot) -> tags
        self.inside: dict[int, list[int]] = {}  # tag -> tags in its value, or error
        self.owner: dict[int, int] = {}  # tag -> the actor that made it; -1 for the driver
        self.ids: dict[int, str] = {}
        self.failed: set[int] = set()  # tags of errors
        self.streams: list[Stream] = []

    def alive(self) -> tuple[set[int], set[int]]:
        """(tags that must be alive, tags that may be): what hangs below an object whose owner is dead is kept
        by those who have read that object, and this model does not know who has; what a stream that has ended
        was given, until it is known to have ended."""
        living = {-1, *self.born}
        dead = {tag for tag, owner in self.owner.items() if owner not in living}
        going_on = [stream for stream in self.streams if stream.taken < stream.count + stream.fails]
        return self._reached(dead, going_on), self._reached(set(), self.streams) - dead

    def _reached(self, closed: set[int], streams: list[Stream]) -> set[int]:
        """What can be reached without passing through `closed`."""
        waiting = [*self.handles, *(tag for tags in self.slots.values() for tag in tags)]
        waiting += [tag for stream in streams for tag in stream.inside]
        found: set[int] = set()
        while waiting:
            tag = waiting.pop()
            if tag not in found and tag not in closed:
                found.add(tag)
                waiting += self.inside[tag]
        return found

    def readable(self, tag: int) -> bool:
        return self.owner[tag] in {-1, *self.born}

    def pick(self, number: int, count: int = 1) -> list[int]:
        """Some handles of the driver whose owners live."""
        tags = sorted(tag for tag in self.handles if self.readable(tag))
        return sorted({tags[(number + 7 * k) % len(tags)] for k in range(count)}) if tags else []

    def new(self, ref: Any, inside: list[int], owner: int, failed: bool = False) -> int:
        tag = self.next_tag
        self.next_tag += 1
        self.know(tag, ref.hex(), inside, owner)
        self.handles[tag] = ref
        if failed:
            self.failed.add(tag)
        return tag

    def know(self, tag: int, object_id: str, inside: list[int], owner: int) -> None:
        self.inside[tag] = inside
        self.owner[tag] = owner
        self.ids[tag] = object_id

    def refs(self, tags: list[int]) -> list[Any]:
        return [self.handles[tag] for tag in tags]

    # ---- what programs do ----------------------------------------------------------------------------

    def put(self, a: int, b: int) -> None:
        tags = self.pick(a, a % 3)
        self.new(fw.put(value(self.next_tag, b % 2 == 0, self.refs(tags))), tags, -1)

    def task(self, a: int, b: int) -> None:
        tags = self.pick(a, 1 + a % 2)
        self.new(relay.remote(self.next_tag, b % 2 == 0, self.refs(tags)), tags, -1)

    def throw(self, a: int, b: int) -> None:
        """The result of a task that fails, at once, at last, or because another has."""
        tags, tag = self.pick(a, 1 + a % 2), self.next_tag
        if b < 2:
            ref = throw.remote(tag, self.refs(tags))
        elif b < 4:
            ref = nested.remote(tag, self.refs(tags), b - 2)
        else:
            ref = throw_again_and_again.remote(tag, self.refs(tags))
        self.new(ref, tags, -1, failed=True)

    def throw_in_actor(self, a: int, b: int) -> None:
        place, tags = b % 3, self.pick(a, a % 3)
        ref = self.actors[place].throw.remote(self.next_tag, a % 2 == 0, self.refs(tags))
        _, (inner,) = content(ref)
        tag = self.new(ref, [self.next_tag + 1], -1, failed=True)
        self.know(tag + 1, inner.hex(), tags, self.born[place])
        self.next_tag += 1

    def read(self, a: int, b: int) -> None:
        for tag in self.pick(a):
            found, refs = content(self.handles[tag])
            assert found == tag
            pairs = zip(refs, self.inside[tag], strict=True)
            inner = [(content(r)[0], t) for r, t in pairs if self.readable(t)]
            assert all(found == t for found, t in inner)

    def look(self, a: int, b: int) -> None:
        for tag in self.pick(a):
            result = look.remote(tag, self.handles[tag], [self.handles[tag]])
            if tag not in self.failed:
                assert get(result)
            else:  # its argument's error is its own
                found, refs = content(result)
                assert (found, len(refs)) == (tag, len(self.inside[tag]))

    def produce(self, a: int, b: int) -> None:
        """A stream, which may be taken from, closed, or left alone."""
        if len(self.streams) < 3:
            tags, count, fails = self.pick(a, 1 + a % 2), a % 5, b % 2 == 0
            self.streams.append(Stream(self.next_tag, count, a % 3 == 0, self.refs(tags), tags, fails))
            self.next_tag += count + 1

    def take(self, a: int, b: int) -> None:
        for stream in self.streams[a % 3 : a % 3 + 1]:
            item = next(stream.generator, None)
            if item is not None:
                tag = stream.tag + stream.taken
                self.know(tag, item.hex(), stream.inside, -1)
                self.handles[tag] = item
                if stream.taken == stream.count:
                    self.failed.add(tag)
                stream.taken += 1
            else:
                assert stream.taken == stream.count + stream.fails
                self.streams.remove(stream)

    def close(self, a: int, b: int) -> None:
        del self.streams[a % 3 : a % 3 + 1]

    def make(self, a: int, b: int) -> None:
        place, tags = b % 3, self.pick(a, a % 3)
        (ref,) = get(self.actors[place].make.remote(self.next_tag, a % 2 == 0, self.refs(tags)))
        self.new(ref, tags, self.born[place])

    def keep(self, a: int, b: int) -> None:
        place, slot = b % 3, a % 2
        for tag in self.pick(a):
            get(self.actors[place].keep.remote(slot, [self.handles[tag]]))
            self.slots.setdefault((place, slot), []).append(tag)

    def keep_inner(self, a: int, b: int) -> None:
        place, slot = b % 3, a % 2
        for tag in self.pick(a):
            get(self.actors[place].keep_inner.remote(slot, [self.handles[tag]]))
            self.slots.setdefault((place, slot), []).extend(self.inside[tag])

    def hand_over(self, a: int, b: int) -> None:
        place, slot, other = b % 3, a % 2, (b + 1) % 3
        if (place, slot) in self.slots:
            get(self.actors[place].hand_over.remote(slot, self.actors[other], 1 - slot))
            self.slots.setdefault((other, 1 - slot), []).extend(self.slots.pop((place, slot)))

    def read_slot(self, a: int, b: int) -> None:
        place, slot = b % 3, a % 2
        tags = self.slots.get((place, slot), [])
        if tags and all(self.readable(tag) for tag in tags):
            assert get(self.actors[place].read.remote(slot)) == tags

    def drop(self, a: int, b: int) -> None:
        tags = sorted(self.handles)
        if tags:
            del self.handles[tags[a % len(tags)]]

    def drop_slot(self, a: int, b: int) -> None:
        place, slot = b % 3, a % 2
        get(self.actors[place].drop.remote(slot))
        self.slots.pop((place, slot), None)

    def kill(self, a: int, b: int) -> None:
        if a % 3:
            return  # not too often
        place = b % 3
        self.pool.replace(place)
        self.born[place], self.next_actor = self.next_actor, self.next_actor + 1
        for key in [key for key in self.slots if key[0] == place]:
            del self.slots[key]

    # ---- what must hold ------------------------------------------------------------------------------

    def check(self) -> None:
        """The objects that exist are those that can be reached."""
        must, may = self.alive()
        known = {object_id: tag for tag, object_id in self.ids.items()}

        def owned() -> set[int]:
            gc.collect()
            rows = [row for row in live_rows() if row["reference_type"] == "OWNED"]
            return {known[row["object_id"]] for row in rows if row["object_id"] in known}

        try:
            wait_until(lambda: must <= owned() <= must | may, 8)
        except AssertionError:
            raise AssertionError(f"there are {owned()}, must be {must}, may be {may}") from None
        for tag in must & set(self.handles):
            assert content(self.handles[tag])[0] == tag


class Stream:
    """A generator of the driver, and what will come from it."""

    def __init__(
        self, tag: int, count: int, large: bool, refs: list[Any], inside: list[int], fails: bool
    ) -> None:
        self.tag, self.count, self.inside, self.fails = tag, count, inside, fails
        self.taken = 0
        self.generator = produce.remote(tag, count, large, refs, fails)


OPERATIONS = [
    Model.put,
    Model.task,
    Model.throw,
    Model.throw_in_actor,
    Model.read,
    Model.look,
    Model.make,
    Model.produce,
    Model.take,
    Model.take,
    Model.close,
    Model.keep,
    Model.keep_inner,
    Model.hand_over,
    Model.read_slot,
    Model.drop,
    Model.drop,
    Model.drop_slot,
    Model.kill,
]
STEP = st.tuples(st.integers(0, len(OPERATIONS) - 1), st.integers(0, 60), st.integers(0, 5))


@given(program=st.lists(STEP, min_size=60, max_size=200 if LONG else 140))
@settings(
    max_examples=60 if LONG else 8,
    deadline=None,
    derandomize=not LONG,
    database=None,
    phases=[Phase.generate],  # not shrunk: each smaller failure waits for what never comes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.timeout(600 if LONG else 120)
def test_objects_live_exactly_as_long_as_they_can_be_reached(
    session: object, pool: Pool, program: list[tuple[int, int, int]]
) -> None:
    model = Model(pool)
    for number, (operation, a, b) in enumerate(program):
        OPERATIONS[operation](model, a, b)
        if number % 10 == 9:
            model.check()
    model.check()
    del model
    pool.drop_all()
    nothing_remains()


# ---- one way at a time -------------------------------------------------------------------------------


def owned_ids() -> set[str]:
    gc.collect()
    return {row["object_id"] for row in live_rows() if row["reference_type"] == "OWNED"}


def test_what_is_listed_says_where_it_is_and_who_holds_it(session: object) -> None:
    holder = Holder.remote()
    ref = fw.put(np.ones(LARGE))  # this line
    get(holder.keep.remote(0, [ref]))
    view = get(ref)
    (mine,) = [r for r in list_objects() if r["object_id"] == ref.hex() and r["reference_type"] == "OWNED"]
    (theirs,) = [
        r for r in list_objects() if r["object_id"] == ref.hex() and r["reference_type"] == "BORROWED"
    ]
    assert mine["object_size"] >= view.nbytes
    assert (mine["type"], theirs["type"]) == ("DRIVER", "WORKER")
    assert mine["owner"] == theirs["owner"] == current().address
    assert mine["stored"]
    assert mine["store_state"] == "in memory"
    assert mine["pins"] == 1
    assert len(mine["borrowers"]) == 1
    assert str(theirs["pid"]) in mine["borrowers"][0]
    assert "test_custody.py" in mine["call_site"]
    assert "in test_what_is_listed" in mine["call_site"]
    with open(__file__) as file:
        lines = file.read().splitlines()
    number = int(mine["call_site"].split(":")[1].split()[0])
    assert "# this line" in lines[number - 1]
    assert list_objects(filters=[("object_id", "=", ref.hex()), ("type", "!=", "WORKER")]) == [mine]
    with pytest.raises(ValueError, match="'=' or '!='"):
        list_objects(filters=[("type", "<", "WORKER")])
    with pytest.raises(ValueError, match="filters is a list of"):
        list_objects(filters="type=WORKER")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no key 'kind' to filter by; there are: object_id"):
        list_objects(filters=[("kind", "=", "WORKER")])


def test_references_put_inside_of_puts(session: object) -> None:
    inner = fw.put(np.ones(LARGE))
    ids = {inner.hex()}
    outer: Any = inner
    for large in (False, True, False, True):
        outer = fw.put({"refs": [outer], "pad": np.ones(LARGE if large else 1)})
        ids.add(outer.hex())
    del inner
    wait_until(lambda: owned_ids() == ids)
    found = outer
    for _ in range(4):
        found = get(found)["refs"][0]
    assert get(found).sum() == LARGE
    del outer
    left = {found.hex()}
    wait_until(lambda: owned_ids() == left)
    del found


def test_references_captured_by_functions_live_as_long_as_those(session: object) -> None:
    ref = fw.put(np.ones(LARGE))
    object_id = ref.hex()

    def make(inner: Any) -> Any:
        @fw.remote
        def use() -> float:
            return float(fw.get(inner).sum())

        return use

    def define(number: int) -> None:
        @fw.remote
        def other() -> int:
            return number

        assert get(other.remote()) == number

    use = make(ref)
    del ref
    for _ in range(3):
        assert get(use.remote()) == LARGE
    gc.collect()
    assert object_id in owned_ids()
    del use
    gc.collect()
    assert object_id in owned_ids()  # it is one of those that came last
    for number in range(limits.FUNCTIONS_KEPT):
        define(number)
    wait_until(lambda: object_id not in owned_ids())


def test_a_reference_pickled_by_the_user_is_pinned_for_good(session: object) -> None:
    ref = fw.put(np.ones(LARGE))
    object_id = ref.hex()
    data = pickle.dumps(ref)
    del ref
    gc.collect()
    get(relay.remote(0, False, []))
    assert object_id in owned_ids()
    assert get(pickle.loads(data)).sum() == LARGE
    assert object_id in owned_ids()
    current()._pinned.clear()
    wait_until(lambda: object_id not in owned_ids())


def test_items_of_generators_that_nobody_takes(session: object) -> None:
    @fw.remote(num_cpus=0)
    def produce() -> Iterator[Any]:
        for number in range(20):
            yield [fw.put(np.full(LARGE, number)), np.full(LARGE, number)]

    for take in (0, 1, 5, 20):
        generator = produce.remote()
        items = [next(generator) for _ in range(take)]
        del generator
        for number, item in enumerate(items):
            ref, array = get(item)
            assert array[0] == number
            assert get(ref)[0] == number
            del ref, array, item
        items.clear()
        nothing_remains()


def test_a_task_that_fails_half_way_leaves_nothing_in_the_store(session: object) -> None:
    @fw.remote(num_returns=2, max_retries=0)
    def second_fails() -> Any:
        return np.ones(LARGE), open(__file__)  # cannot be pickled

    @fw.remote(num_returns=3, max_retries=0)
    def too_few() -> Any:
        return np.ones(LARGE), 1

    for function in (second_fails, too_few):
        refs = function.remote()
        for ref in refs:
            with pytest.raises(Exception, match="second_fails|too_few"):
                get(ref)
        del refs, ref
        nothing_remains()


def test_borrowers_that_die_lose_their_counts(session: object) -> None:
    holders = [Holder.remote() for _ in range(3)]
    refs = [fw.put(np.ones(LARGE)) for _ in range(5)]
    for holder in holders:
        get(holder.keep.remote(0, refs))
        assert get(relay.remote(1, False, refs))["tag"] == 1
    ids = {ref.hex() for ref in refs}
    del refs
    fw.kill(holders[0])
    fw.kill(holders[1])
    wait_until(
        lambda: all(
            len(row["borrowers"]) == 1
            for row in live_rows()
            if row["object_id"] in ids and row["reference_type"] == "OWNED"
        )
    )
    assert owned_ids() == ids
    fw.kill(holders[2])
    nothing_remains()


def test_the_death_of_an_owner_frees_its_blocks(session: object) -> None:
    owner, keeper = Holder.remote(), Holder.remote()
    refs = [get(owner.make.remote(n, True, []))[0] for n in range(3)]
    view = get(refs[0])["pad"]
    get(keeper.keep.remote(0, refs))
    assert store_stats()["objects"] == 3
    fw.kill(owner)
    wait_until(lambda: store_stats()["objects"] - store_stats()["pins"] <= 0)
    assert (view == 0).all(), "what is being read stays as it is"
    with pytest.raises(OwnerDiedError, match=refs[1].hex()):
        get(refs[1])
    with pytest.raises(OwnerDiedError, match=refs[0].hex()):
        get(keeper.read.remote(0))
    del view
    wait_until(lambda: store_stats()["objects"] == 0)
    began = time.monotonic()
    with pytest.raises(OwnerDiedError, match=refs[0].hex()):
        get(refs[0])
    with pytest.raises(OwnerDiedError, match=refs[0].hex()):
        get(look.remote(0, refs[0], []))
    assert time.monotonic() - began < 5, "that is known at once, without waiting for the store"


def test_a_chain_of_thousands_of_tasks_fails_with_its_first(session: object) -> None:
    gate = Holder.remote()

    @fw.remote(num_cpus=0)
    def first(gate: Any) -> None:
        fw.get(gate.drop.remote(0))
        raise ValueError("the first")

    @fw.remote(num_cpus=0)
    def step(before: Any) -> Any:
        return before

    ref = first.remote(gate)
    for _ in range(3000):
        ref = step.remote(ref)
    with pytest.raises(ValueError, match="the first"):
        get(ref)


@fw.remote(num_cpus=0)
class Maker:
    """Has made what it hands out, and keeps nothing of it."""

    def make(self) -> list[Any]:
        return [fw.put(np.ones(200_000))]


@fw.remote(num_cpus=0)
class Relay:
    """Hands on what another one has made."""

    def __init__(self, maker: Any) -> None:
        self._maker = maker

    def relay(self) -> Any:
        return fw.get(self._maker.make.remote())


def test_a_reference_that_arrives_on_a_connection_that_a_task_has_opened(session: object) -> None:
    """Callbacks of a connection run in the context of whoever opened it: that is no task."""
    maker = Maker.remote()
    relay_actor = Relay.remote(maker)
    for _ in range(3):
        (ref,) = get(relay_actor.relay.remote())
        assert get(ref).sum() == 200_000
