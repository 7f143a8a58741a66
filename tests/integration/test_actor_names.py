"""Names of actors, namespaces, detached ones."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

import framework as fw
from framework.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
)
from support.actors import LIMIT, Counter, get, later
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def _dead(handle: Any) -> bool:
    try:
        get(handle.inc.remote())
    except ActorDiedError:
        return True
    return False


def test_names(session: object) -> None:
    first = Counter.options(name="one").remote(1)
    assert get(fw.get_actor("one").inc.remote()) == 2
    with pytest.raises(ValueError, match="'one' exists already"):
        Counter.options(name="one").remote()
    same = Counter.options(name="one", get_if_exists=True).remote(100)
    assert same == first and get(same.inc.remote()) == 3
    other = Counter.options(name="one", namespace="elsewhere").remote(50)
    assert get(fw.get_actor("one", namespace="elsewhere").inc.remote()) == 51
    with pytest.raises(ValueError, match="no actor named 'two' was found in namespace"):
        fw.get_actor("two")
    with pytest.raises(ValueError, match="non-empty"):
        fw.get_actor("")
    fw.kill(first)
    with pytest.raises(ValueError, match="no actor named 'one'"):
        fw.get_actor("one")
    fw.kill(other)

    @fw.remote
    def find() -> int:
        return fw.get(fw.get_actor("three").inc.remote())  # type: ignore[no-any-return]

    three = Counter.options(name="three").remote(3)
    assert get(find.remote()) == 4
    del three


def test_get_if_exists_from_many_at_once(session: object) -> None:
    @fw.remote(num_cpus=0)
    def use(n: int) -> int:
        handle = Counter.options(name="shared", get_if_exists=True, lifetime="detached").remote()
        return fw.get(handle.pid.remote(), timeout=LIMIT)  # type: ignore[no-any-return]

    pids = get([use.remote(n) for n in range(6)])
    assert len(set(pids)) == 1
    fw.kill(fw.get_actor("shared"))


def test_get_if_exists_inside_of_an_event_loop(session: object) -> None:
    async def main() -> None:
        first = Counter.options(name="loop").remote(1)
        second = Counter.options(name="loop", get_if_exists=True).remote(100)
        assert await first.inc.remote() == 2
        assert await second.inc.remote() == 3
        assert await later.remote(second.inc.remote()) == 4

        @fw.remote
        def use(handle: Any) -> int:
            return fw.get(handle.inc.remote())  # type: ignore[no-any-return]

        assert await use.remote(second) == 5
        del second
        gc.collect()
        assert await first.inc.remote() == 6
        clash = Counter.options(name="loop").remote()
        with pytest.raises(ActorAlreadyExistsError, match="'loop' is taken"):
            await clash.inc.remote()

    asyncio.run(asyncio.wait_for(main(), LIMIT))


def test_a_handle_found_by_name_hears_of_the_end(session: object) -> None:
    counter = Counter.options(name="ends").remote()
    found = fw.get_actor("ends")
    assert get(found.inc.remote()) == 1
    del counter
    gc.collect()
    wait_until(lambda: _dead(found), what="the end")
    with pytest.raises(ActorDiedError, match="last handle has gone out of scope"):
        get(found.inc.remote())


def test_detached_stays(session: object) -> None:
    @fw.remote
    def make() -> int:
        handle = Counter.options(name="stays", lifetime="detached").remote(1)
        return fw.get(handle.pid.remote())  # type: ignore[no-any-return]

    pid = get(make.remote())
    mine = Counter.options(name="mine", lifetime="detached").remote(1)
    get(mine.inc.remote())
    del mine
    gc.collect()
    get(later.remote(1))
    assert get(fw.get_actor("stays").pid.remote()) == pid
    assert get(fw.get_actor("mine").inc.remote()) == 3
    fw.kill(fw.get_actor("stays"))
    fw.kill(fw.get_actor("mine"))


def test_the_directory_of_names(session: object) -> None:
    from framework.util import list_named_actors

    before = list_named_actors()
    kept = [Counter.options(name=name).remote() for name in ("listed-b", "listed-a")]
    other = Counter.options(name="listed-c", namespace="elsewhere").remote()
    get([actor.inc.remote() for actor in [*kept, other]])
    assert set(list_named_actors()) - set(before) == {"listed-a", "listed-b"}
    everywhere = list_named_actors(all_namespaces=True)
    assert {"name": "listed-c", "namespace": "elsewhere"} in everywhere
    fw.kill(other)
    assert {"name": "listed-c", "namespace": "elsewhere"} not in list_named_actors(all_namespaces=True)
