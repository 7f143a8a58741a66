"""Objects and references: values, get and wait, borrowing between processes, and that nothing is left in the
end.
"""

from __future__ import annotations

import array
import asyncio
import collections
import dataclasses
import datetime
import decimal
import enum
import gc
import os
import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework._runtime.current import current
from framework.exceptions import GetTimeoutError, OwnerDiedError
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LIMIT = 20


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


def census(before: frozenset[bytes] = frozenset()) -> dict[str, int]:
    """What the owner table of this process holds, besides what makes actors, and what was there before."""
    gc.collect()
    runtime: Any = current()
    objects = runtime.objects
    entries = [entry for entry in list(objects.table.entries.values()) if entry.id[:8] != bytes(8)]
    entries = [entry for entry in entries if entry.id not in before]
    return {
        "entries": len(entries),
        "borrowed": sum(1 for entry in entries if entry.owner is not None),
        "lent": sum(len(entry.borrowers or ()) for entry in entries),
        "held": len(objects._held),
        "provisional": len(objects._provisional),
        "waiting": len(objects._after_registering) + len(objects._registering),
    }


NOTHING = {"entries": 0, "borrowed": 0, "lent": 0, "held": 0, "provisional": 0, "waiting": 0}


@pytest.fixture(autouse=True)
def nothing_is_left(session: object) -> Iterator[None]:
    """Every test leaves the driver's table as it was."""
    yield
    try:
        wait_until(lambda: census() == NOTHING, 5)
    except AssertionError:
        raise AssertionError(
            f"left in the driver: {census()} {list(current().objects.table.entries.values())}"
        ) from None


@fw.remote
class Box:
    """Keeps things, and can tell what its process holds."""

    def __init__(self) -> None:
        self.things: dict[str, Any] = {}
        # The process may have run tasks before, whose functions have captured references.
        self.before = frozenset(current().objects.table.entries)

    def keep(self, name: str, thing: Any) -> None:
        self.things[name] = thing

    def keep_inner(self, name: str, outer: list[Any]) -> None:
        self.things[name] = fw.get(outer[0])

    def drop(self, name: str) -> None:
        del self.things[name]

    def give(self, name: str) -> Any:
        return self.things[name]

    def read(self, name: str) -> Any:
        thing = self.things[name]
        return fw.get(thing[0] if isinstance(thing, list) else thing, timeout=LIMIT)

    def make(self, value: Any) -> list[Any]:
        return [fw.put(value)]

    def call(self, other: Any, name: str, *args: Any) -> Any:
        return fw.get(getattr(other, name).remote(*args), timeout=LIMIT)

    def pid(self) -> int:
        return os.getpid()

    def census(self) -> dict[str, int]:
        return census(self.before)


def wait_empty(*boxes: Any) -> None:
    for box in boxes:
        try:
            wait_until(lambda box=box: get(box.census.remote()) == NOTHING, 5)
        except AssertionError:
            raise AssertionError(f"left in {box}: {get(box.census.remote())}") from None


def is_known(object_id: bytes) -> bool:
    return object_id in current().objects.table.entries


@fw.remote
def echo(value: Any) -> Any:
    return value


# ---- values ------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


Pair = collections.namedtuple("Pair", "a b")

ODD = [
    None,
    True,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    2**64,
    -(2**63) - 1,
    10**100,
    0.0,
    float("inf"),
    1e-320,
    "",
    "ascii",
    "žluťoučký \U0001f600",
    "\ud800",
    "x" * 100_000,
    "a\x00b",
    b"",
    b"\x80\x05.",
    b"x" * 200_000,
    bytearray(b"abc"),
    (),
    (1,),
    [],
    [[[]]],
    {},
    {1: 2, (1, 2): [3], None: 4},
    set(),
    frozenset({1, 2}),
    range(5),
    slice(1, 2, 3),
    1 + 2j,
    Ellipsis,
    NotImplemented,
    int,
    len,
    os.path.join,
    Colour.RED,
    Point(1, [2]),
    Pair(1, 2),
    decimal.Decimal("1.5"),
    datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    array.array("d", [1.0, 2.0]),
    collections.OrderedDict(a=1),
    collections.deque([1, 2], 5),
    [0, b"pickle", []],
    [1, b"x" * 28, "unix:nobody"],
    [2, 0, "not an error"],
    (2, "neither"),
    {"nested": [{"deep": [(1, {2})]}]},
]


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value).partition(" at 0x")[0][:30])
def test_values_come_back_as_they_were(session: object, value: Any) -> None:
    for copy in (get(fw.put(value)), get(echo.remote(value)), get(echo.remote(fw.put(value)))):
        assert type(copy) is type(value)
        assert copy == value


def test_nan_lambdas_and_self_reference(session: object) -> None:
    assert get(echo.remote(float("nan"))) != get(fw.put(float("nan")))
    assert get(echo.remote(lambda n: n + 1))(1) == 2
    loop: list[Any] = [1]
    loop.append(loop)
    copy = get(echo.remote(loop))
    assert copy[1] is copy


def test_put_copies(session: object) -> None:
    value = [1, 2]
    data = np.arange(100_000)
    refs = fw.put(value), fw.put(data)
    value.append(3)
    data[:] = 0
    assert get(refs[0]) == [1, 2]
    assert get(refs[1])[-1] == 99_999
    assert not get(refs[1]).flags.writeable


@pytest.mark.parametrize("size", [10, 25])
def test_large_values_between_processes(session: object, size: int) -> None:
    data = np.arange(size * 2**17)
    ref = fw.put(data)
    assert (get(echo.remote(ref))[-1], get(echo.remote(data)).nbytes) == (data[-1], size * 2**20)

    @fw.remote
    def total(box: list[Any]) -> int:
        return int(fw.get(box[0]).sum())

    assert get(total.remote([ref])) == int(data.sum())


# ---- get and wait ------------------------------------------------------------------------------------


@fw.remote
class Gate:
    def __init__(self) -> None:
        self.events: dict[int, asyncio.Event] = {}

    async def wait(self, n: int = 0) -> int:
        await self.events.setdefault(n, asyncio.Event()).wait()
        return n

    async def open(self, n: int = 0) -> None:
        self.events.setdefault(n, asyncio.Event()).set()


def test_get_of_lists_and_timeouts(session: object) -> None:
    gate = Gate.remote()
    get(gate.__ray_ready__.remote())
    ref, ready = gate.wait.remote(), fw.put(1)
    assert get([]) == []
    assert get([ready, ready]) == [1, 1]
    assert fw.get(ready, timeout=0) == 1
    for timeout in (0, 0.05):
        started = time.monotonic()
        with pytest.raises(GetTimeoutError, match=r"1 of 2 objects are not ready .*Gate\.wait"):
            fw.get([ready, ref], timeout=timeout)
        assert time.monotonic() - started < 2
    with pytest.raises(TimeoutError):
        fw.get(ref, timeout=0)
    for wrong in (1, None, [1], [ready, None], "x", {ready}):
        with pytest.raises(TypeError, match=r"get\(\) takes"):
            fw.get(wrong)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="timeout must not be negative"):
        fw.get(ready, timeout=-1)
    with pytest.raises(TypeError, match="timeout is a number"):
        fw.get(ready, timeout="1")  # type: ignore[call-overload]
    get(gate.open.remote())
    assert get(ref) == 0


def test_get_of_a_list_raises_the_first_failure_without_waiting_for_others(session: object) -> None:
    gate = Gate.remote()

    @fw.remote
    def fail() -> None:
        raise LookupError("now")

    pending = gate.wait.remote()
    with pytest.raises(LookupError, match="now"):
        get([pending, fail.remote()])
    get(gate.open.remote())
    get(pending)


def test_wait(session: object) -> None:
    gate = Gate.remote()
    refs = [gate.wait.remote(n) for n in range(5)]
    assert fw.wait(refs, timeout=0) == ([], refs)
    assert fw.wait(refs, num_returns=5, timeout=0.05) == ([], refs)
    get([gate.open.remote(3), gate.open.remote(1)])
    get([refs[3], refs[1]])
    assert fw.wait(refs, timeout=LIMIT) == ([refs[1]], [refs[0], *refs[2:]])
    assert fw.wait(refs, num_returns=2) == ([refs[1], refs[3]], [refs[0], refs[2], refs[4]])
    assert fw.wait(refs, num_returns=3, timeout=0.05) == ([refs[1], refs[3]], [refs[0], refs[2], refs[4]])
    waiter = threading.Timer(0.05, lambda: [gate.open.remote(n) for n in (0, 2, 4)])
    waiter.start()
    assert fw.wait(refs, num_returns=5, timeout=LIMIT, fetch_local=False) == (refs, [])
    waiter.join()
    for wrong, error in (
        ([], ValueError),
        (refs[0], TypeError),
        ([refs[0], refs[0]], ValueError),
        ([1], TypeError),
    ):
        with pytest.raises(error, match=r"wait\(\)"):
            fw.wait(wrong)  # type: ignore[arg-type]
    for number in (0, 6, -1):
        with pytest.raises(ValueError, match="num_returns must be between 1 and .*5"):
            fw.wait(refs, num_returns=number)


def test_wait_finds_duplicates_in_what_an_earlier_one_has_left(session: object) -> None:
    refs = [fw.put(n) for n in range(5)]
    for _ in range(2):
        done, rest = fw.wait(refs)
        assert (done, rest) == (refs[:1], refs[1:])
        for twice in ([*rest, rest[0]], [rest[1], *rest[1:]], [rest[0]] * 4):
            with pytest.raises(ValueError, match="duplicates"):
                fw.wait(twice)
        assert fw.wait(rest, num_returns=4) == (rest, [])


def test_wait_keeps_nothing_of_what_it_has_left(session: object) -> None:
    runtime = current()
    _, rest = fw.wait([fw.put(n) for n in range(5)])
    left = weakref.ref(rest[0]._entry)
    del rest
    wait_until(lambda: left() is None)
    assert runtime.waiting.distinct == []


@fw.remote
def container(count: int) -> list[Any]:
    return [fw.put(number) for number in range(count)]


@pytest.mark.parametrize("count", [3, 15_000], ids=["inline", "stored"])
@pytest.mark.parametrize("copy", [False, True])
def test_references_in_a_value_are_those_that_it_keeps(session: object, count: int, copy: bool) -> None:
    ref = container.remote(count)
    first, second = fw.get(ref, copy=copy), fw.get(ref, copy=copy)
    assert first is not second and len(first) == count
    assert all(one is other for one, other in zip(first, second, strict=True))
    assert get(first[:3]) == [0, 1, 2]
    keep = first[1]
    del ref, first, second
    wait_until(lambda: census()["entries"] == 1)
    assert get(keep) == 1


def test_wait_counts_failures_as_done(session: object) -> None:
    @fw.remote
    def fail() -> None:
        raise ValueError

    ref = fail.remote()
    assert fw.wait([ref], timeout=LIMIT) == ([ref], [])
    with pytest.raises(ValueError):
        get(ref)


def test_several_threads_wait_for_the_same(session: object) -> None:
    gate = Gate.remote()
    ref = gate.wait.remote(7)
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(get(ref))) for _ in range(8)]
    for thread in threads:
        thread.start()
    get(gate.open.remote(7))
    for thread in threads:
        thread.join(LIMIT)
    assert results == [7] * 8


def test_many_threads_put_pass_and_drop(session: object) -> None:
    errors: list[BaseException] = []

    def run(k: int) -> None:
        try:
            for n in range(60):
                ref = fw.put([k, n])
                assert get(echo.remote([ref]))[0] == ref
                assert get(echo.remote(ref)) == [k, n]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


def test_identity_of_references(session: object) -> None:
    ref = fw.put(1)
    (back,) = get(echo.remote([ref]))
    assert back == ref and hash(back) == hash(ref) and back is not ref
    assert back.hex() == ref.hex() and len(ref.binary()) == 28 and ref.hex() in repr(ref)
    assert {ref, back} == {ref}
    with pytest.raises(TypeError):
        fw.put(ref)
    with pytest.raises(TypeError, match="references are made by"):
        fw.ObjectRef(b"x" * 28)


# ---- references in values ----------------------------------------------------------------------------


def test_top_level_references_become_values_and_nested_ones_stay(session: object) -> None:
    @fw.remote
    def kinds(top: Any, nested: list[Any], *, key: Any) -> list[str]:
        return [type(top).__name__, type(nested[0]).__name__, type(key).__name__]

    ref = fw.put(1)
    assert get(kinds.remote(ref, [ref], key=ref)) == ["int", "ObjectRef", "int"]


def test_references_to_references(session: object) -> None:
    ref: Any = fw.put("core")
    for _ in range(5):
        ref = fw.put([ref])

    @fw.remote
    def dig(box: list[Any]) -> Any:
        while isinstance(box, list):
            box = fw.get(box[0])
        return box

    assert get(dig.remote([ref])) == "core"
    assert get(dig.remote(ref)) == "core"
    inner = get(get(ref)[0])
    del ref
    gc.collect()
    assert get(dig.remote(inner)) == "core"


def test_a_task_returns_references_that_it_made(session: object) -> None:
    @fw.remote
    def make(n: int) -> list[Any]:
        return [fw.put(n), echo.remote(n + 1), {"deep": fw.put([fw.put(n + 2)])}]

    for n in range(10):
        first, second, rest = get(make.remote(n))
        assert get([first, second]) == [n, n + 1]
        assert get(get(rest["deep"])[0]) == n + 2


def test_a_task_returns_a_reference_itself(session: object) -> None:
    @fw.remote
    def chain(n: int) -> Any:
        return fw.put("end") if n == 0 else chain.remote(n - 1)

    ref: Any = chain.remote(4)
    for _ in range(5):
        ref = get(ref)
    assert get(ref) == "end"


def test_references_in_exceptions(session: object) -> None:
    @fw.remote
    def fail(box: list[Any]) -> None:
        raise ValueError(box)

    ref = fw.put(1)
    with pytest.raises(ValueError) as caught:
        get(fail.remote([ref]))
    assert get(caught.value.cause.args[0][0]) == 1  # type: ignore[attr-defined]
    del caught
    # Nobody can follow a reference in an exception: it is kept for good in the process that raised it.
    current().objects.table.entries.pop(ref.binary())


# ---- borrowing ---------------------------------------------------------------------------------------


def test_a_reference_in_an_actor_lives_until_the_actor_drops_it(session: object) -> None:
    box = Box.remote()
    ref = fw.put("precious")
    object_id = ref.binary()
    get(box.keep.remote("r", [ref]))
    del ref
    gc.collect()
    for _ in range(3):
        get(echo.remote(1))  # time for a wrong release
    assert is_known(object_id)
    assert get(box.read.remote("r")) == "precious"
    (back,) = get(box.give.remote("r"))
    get(box.drop.remote("r"))
    assert get(back) == "precious"
    del back
    wait_until(lambda: not is_known(object_id), what="the end of the object")
    wait_empty(box)


def test_a_pending_result_kept_by_an_actor(session: object) -> None:
    gate, box = Gate.remote(), Box.remote()
    get(box.keep.remote("r", [gate.wait.remote(5)]))
    gc.collect()
    read = box.read.remote("r")
    get(gate.open.remote(5))
    assert get(read) == 5
    get(box.drop.remote("r"))
    wait_empty(box)


def test_hand_over_between_actors_while_the_middle_drops_it(session: object) -> None:
    a, b, c = Box.remote(), Box.remote(), Box.remote()
    get(a.keep.remote("r", get(b.make.remote("from b"))))
    for giver, taker in ((a, c), (c, b), (b, a)) * 4:
        get(taker.keep.remote("r", giver.give.remote("r")))
        get(giver.drop.remote("r"))
    assert get(a.read.remote("r")) == "from b"
    get(a.drop.remote("r"))
    wait_empty(a, b, c)


def test_direct_hand_over_without_the_driver(session: object) -> None:
    a, b = Box.remote(), Box.remote()
    ref = fw.put("x")
    object_id = ref.binary()
    get(a.call.remote(b, "keep", "r", [ref]))
    del ref
    gc.collect()
    assert get(b.read.remote("r")) == "x"
    assert is_known(object_id)
    get(a.call.remote(b, "drop", "r"))
    wait_until(lambda: not is_known(object_id))
    wait_empty(a, b)


def test_the_inner_reference_outlives_the_outer(session: object) -> None:
    box, maker = Box.remote(), Box.remote()
    for n in range(20):
        (inner,) = get(maker.make.remote(n))
        outer = fw.put([inner])
        del inner
        call = box.keep_inner.remote("r", [outer])
        del outer
        gc.collect()
        get(call)
        assert get(box.read.remote("r")) == n
    get(box.drop.remote("r"))
    wait_empty(box, maker)


def test_many_borrowers_come_and_go(session: object) -> None:
    boxes = [Box.remote() for _ in range(3)]
    ref = fw.put("shared")
    object_id = ref.binary()
    for turn in range(30):
        box = boxes[turn % 3]
        get(box.keep.remote("r", [ref]))
        if turn % 2:
            get(box.drop.remote("r"))
    get([box.keep.remote("r", [ref]) for box in boxes])
    del ref
    gc.collect()
    assert get([box.read.remote("r") for box in boxes]) == ["shared"] * 3
    get([box.drop.remote("r") for box in boxes[:2]])
    assert get(boxes[2].read.remote("r")) == "shared"
    fw.kill(boxes[2])
    wait_until(lambda: not is_known(object_id), what="a dead borrower's count to go")
    wait_empty(*boxes[:2])


def test_overlapping_calls_with_references(session: object) -> None:
    """Registrations that always overlap must not starve replies, nor lose objects."""

    @fw.remote
    class Async:
        def __init__(self) -> None:
            self.kept: list[Any] = []
            self.before = frozenset(current().objects.table.entries)

        async def swap(self, box: list[Any]) -> Any:
            self.kept.append(box[0])
            if len(self.kept) > 10:
                return [self.kept.pop(0)]
            return await box[0]

        async def clear(self) -> None:
            self.kept.clear()

        async def census(self) -> dict[str, int]:
            return census(self.before)

    actor = Async.remote()
    calls = [actor.swap.remote([fw.put(n)]) for n in range(300)]
    gc.collect()
    results = get(calls)
    assert results[:5] == [0, 1, 2, 3, 4]
    assert sorted(get([result[0] for result in results[10:]])) == list(range(290))
    del results, calls
    get(actor.clear.remote())
    wait_empty(actor)


def test_wait_and_get_of_borrowed_references(session: object) -> None:
    @fw.remote(num_cpus=0)
    def watch(box: list[Any]) -> tuple[int, Any, bool]:
        quick, slow = box
        done, rest = fw.wait([slow, quick], timeout=LIMIT)
        first = done == [quick] and rest == [slow]
        try:
            fw.get(slow, timeout=0.05)
        except GetTimeoutError:
            return len(done), fw.get(quick), first
        return -1, None, False

    gate = Gate.remote()
    slow = gate.wait.remote()
    assert get(watch.remote([fw.put("q"), slow])) == (1, "q", True)
    get(gate.open.remote())
    get(slow)


def test_references_in_closures(session: object) -> None:
    ref = fw.put("captured")
    object_id = ref.binary()

    def make(inner: Any) -> Any:
        @fw.remote
        def use() -> Any:
            return fw.get(inner)

        @fw.remote
        class Use:
            def use(self) -> Any:
                return fw.get(inner)

        return use, Use

    use, use_class = make(ref)
    assert get(use.remote()) == "captured"
    assert get(use_class.remote().use.remote()) == "captured"
    del use, use_class, ref
    assert is_known(object_id), "a function that was exported keeps what it captured"
    current().objects.table.entries.pop(object_id)


def test_a_reference_pickled_by_the_user_keeps_its_object(session: object) -> None:
    ref = fw.put("pinned")
    data = pickle.dumps(ref)
    object_id = ref.binary()
    del ref
    gc.collect()
    get(echo.remote(1))
    assert get(pickle.loads(data)) == "pinned"
    current().objects.table.entries.pop(object_id)


def test_the_death_of_an_owner_takes_its_objects_along(session: object) -> None:
    owner, keeper = Box.remote(), Box.remote()
    (lost,) = get(owner.make.remote("gone"))
    (fetched,) = get(owner.make.remote("kept"))
    get(keeper.keep.remote("r", [lost]))
    assert get(fetched) == "kept"
    gate = Gate.remote()

    @fw.remote(num_cpus=0)
    def waits(gate: Any) -> None:
        fw.get(gate.wait.remote())

    @fw.remote
    class Owner:
        def __init__(self, gate: Any) -> None:
            self.gate = gate

        def pending(self) -> list[Any]:
            return [waits.remote(self.gate)]

    second = Owner.remote(gate)
    (pending,) = get(second.pending.remote())
    waiter_result: list[Any] = []

    def wait_for_pending() -> None:
        try:
            get(pending)
        except BaseException as error:
            waiter_result.append(error)

    thread = threading.Thread(target=wait_for_pending)
    thread.start()
    fw.kill(owner)
    fw.kill(second)
    thread.join(LIMIT)
    assert isinstance(waiter_result[0], OwnerDiedError)
    with pytest.raises(OwnerDiedError, match=f"{lost.hex()}.*process that created") as caught:
        get(lost)
    assert "keep that process" in str(caught.value)
    with pytest.raises(OwnerDiedError):
        get(keeper.read.remote("r"))
    with pytest.raises(OwnerDiedError):
        get(echo.remote(lost))
    assert get(fetched) == "kept", "what was fetched before is here"
    waiter_result.clear()
    get(keeper.drop.remote("r"))
    wait_empty(keeper)


def test_a_dropped_result_is_freed_when_it_arrives(session: object) -> None:
    maker = Box.remote()
    for _ in range(20):
        maker.make.remote("nobody wants it")
    fw.cancel(maker.make.remote("cancelled"))
    wait_empty(maker)


def test_large_references_sent_back_and_forth(session: object) -> None:
    boxes = [Box.remote(), Box.remote()]
    refs = get(boxes[0].make.remote(np.ones(2**20)))
    for turn in range(4):
        get(boxes[turn % 2].keep.remote("r", refs))
        refs = get(boxes[turn % 2].give.remote("r"))
    assert float(get(boxes[1].read.remote("r")).sum()) == 2**20
    del refs
    get([box.drop.remote("r") for box in boxes])
    wait_empty(*boxes)


def test_unhandled_errors_are_logged_once(session: object, caplog: pytest.LogCaptureFixture) -> None:
    @fw.remote
    def fail(text: str) -> None:
        raise ValueError(text)

    with pytest.raises(ValueError):
        get(fail.remote("seen"))
    ref = fail.remote("looked at by wait")
    fw.wait([ref], timeout=LIMIT)
    fail.remote("unseen one")
    del ref
    wait_until(lambda: "unseen one" in caplog.text and "looked at by wait" in caplog.text, what="the log")
    assert caplog.text.count("nobody looked at its result") == 2
    assert "raise ValueError(text)" in caplog.text
    assert "seen" in caplog.text and "ValueError: seen" not in caplog.text


@pytest.mark.parametrize("returns", [1, 2])
def test_an_error_of_a_task_that_nobody_waits_for_any_more(
    session: object, caplog: pytest.LogCaptureFixture, tmp_path: Path, returns: int
) -> None:
    go = tmp_path / "go"

    @fw.remote(num_returns=returns)
    def fail() -> None:
        wait_until(go.exists)
        raise ValueError("too late for everybody")

    refs = [fail.remote()] if returns == 1 else fail.remote()
    ids = {ref.binary() for ref in refs}
    del refs
    table = current().objects.table
    wait_until(
        lambda: all(table.get(object_id) is None for object_id in ids), what="the end of the references"
    )
    go.touch()
    wait_until(lambda: "too late for everybody" in caplog.text, what="the log")
    assert caplog.text.count("nobody looked at its result") == 1
