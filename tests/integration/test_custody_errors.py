"""References inside of exceptions are counted as those inside of values: what they refer to lives as long as
the error does, wherever that goes, and not longer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.exceptions import ActorDiedError, OwnerDiedError, TaskCancelledError
from framework.util.state import list_objects, store_stats
from support import raising
from support.custody import LARGE, LIMIT, Carrier
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


def rows() -> list[dict[str, Any]]:
    """All objects of all processes, besides those that stand for the actors themselves."""
    gc.collect()
    return [row for row in list_objects() if not row["object_id"].startswith("00" * 8)]


def nothing_remains() -> None:
    try:
        wait_until(lambda: not rows() and store_stats()["objects"] == 0, 8)
    except AssertionError:
        raise AssertionError(f"left: {store_stats()} {rows()}") from None


@pytest.fixture(autouse=True)
def clean(session: object) -> Iterator[None]:
    nothing_remains()
    yield
    nothing_remains()


def inner(ref: Any) -> Any:
    """The reference in the error of `ref`."""
    try:
        get(ref)
    except Exception as error:
        found = raising.found_in(error)
        assert isinstance(found, fw.ObjectRef)
        return found
    raise AssertionError("nothing was raised")


def check(ref: Any, tag: int = 5) -> None:
    found = inner(ref)
    value = get(found)
    assert (value["tag"], len(value["pad"]), value["pad"][-1]) == (tag, LARGE, tag)


CALLS: dict[str, Callable[[], Any]] = {
    "task": lambda: raising.one,
    "coroutine": lambda: raising.coroutine,
    "actor": lambda: raising.Sync.remote().call,
    "threads": lambda: raising.Threads.remote().call,
    "async actor": lambda: raising.Async.remote().call,
}


@pytest.mark.parametrize("call", CALLS)
def test_raised_caught_used_and_dropped(session: object, call: str) -> None:
    function = CALLS[call]()
    for way in raising.WAYS:
        ref = function.remote(way, [])
        check(ref)
        assert rows(), f"{way}: it lives as long as its error"
        check(ref)
        del ref
        mine = raising.new(6)
        ref = function.remote(way, [mine])
        if way != "task error":  # (which another task's error has then)
            assert inner(ref) == mine
        del mine
        check(ref, 6)
        kept = inner(ref)
        del ref
        assert get(kept)["tag"] == 6, "longer than its error"
        del kept
        nothing_remains()


def test_all_results_of_a_task_share_its_error(session: object) -> None:
    refs = raising.three.remote("args", [])
    for ref in refs:
        check(ref)
    del refs[1:], ref
    check(refs[0])


def test_an_error_that_nobody_looks_at(session: object) -> None:
    ref = raising.one.remote("args", [])
    fw.wait([ref], timeout=LIMIT)
    del ref
    nothing_remains()
    raising.one.remote("args", [])
    raising.without_returns.remote()
    nothing_remains()


def test_errors_of_attempts_that_are_not_the_last(session: object, tmp_path: Path) -> None:
    assert get(raising.better_later.remote(tmp_path / "n")) == 4
    nothing_remains()


def test_a_cancelled_task_that_answers_with_one(session: object, tmp_path: Path) -> None:
    ref = raising.answers_a_cancel_with_it.remote(tmp_path / "began")
    wait_until((tmp_path / "began").exists)
    fw.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)


def test_generators_that_end_with_one(session: object) -> None:
    for take in (0, 1, 3, 4):
        generator = raising.stream.remote(3)
        refs = [next(generator) for _ in range(take)]
        for number, ref in enumerate(refs[:3]):
            assert get(get(ref)[0])["tag"] == number
        if take == 4:
            check(refs[3])
        del generator, refs
        if take:
            del ref
        nothing_remains()
    check(raising.dynamic.remote(2))
    actor = raising.Async.remote()  # the owner of what is inside: it must live
    generator = actor.items.remote()
    assert get(get(next(generator))[0])["tag"] == 1
    check(next(generator))


def test_passed_on_as_an_argument(session: object) -> None:
    check(raising.given.remote(raising.given.remote(raising.one.remote("attributes", []))))


def test_passed_on_inside_of_a_list(session: object) -> None:
    ref = raising.one.remote("attributes", [])
    borrower = raising.Sync.remote()
    get(borrower.keep.remote([ref]))
    del ref
    assert get(borrower.tag_inside.remote()) == 5
    assert get(borrower.tag_inside.remote()) == 5
    get(borrower.forget.remote())
    nothing_remains()


def test_put_as_a_value(session: object) -> None:
    try:
        get(raising.one.remote("attributes", []))
    except Carrier as error:
        ref = fw.put([error])
    (found,) = get(ref)
    assert get(found.refs[0])["tag"] == 5
    assert found.cause.refs == found.refs
    del found
    assert len({row["object_id"] for row in rows()}) == 2
    assert get(get(ref)[0].refs[0])["tag"] == 5


def test_an_actor_that_keeps_its_error(session: object) -> None:
    actor = raising.Sync.remote()
    ref = actor.keeps_it.remote()
    check(ref)
    object_id = inner(ref).hex()
    del ref
    assert not get(raising.given.remote(0))
    assert object_id in {row["object_id"] for row in rows()}
    get(actor.forget.remote())
    nothing_remains()


def test_a_constructor_that_fails_with_one(session: object) -> None:
    actor = raising.Sync.remote(fail=True)
    with pytest.raises(ActorDiedError, match="Carrier: carrier 0"):
        get(actor.forget.remote())
    wait_until(lambda: store_stats()["objects"] == 0, 8)


def test_an_owner_that_dies_with_what_is_in_an_error(session: object) -> None:
    actor = raising.Sync.remote()
    found = inner(actor.call.remote("args", []))
    fw.kill(actor)
    wait_until(lambda: store_stats()["objects"] == 0)
    with pytest.raises(OwnerDiedError, match=found.hex()):
        get(found)
