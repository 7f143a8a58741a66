"""Handles of actors: where they go, what they are equal to, and how long they keep their actor."""

from __future__ import annotations

import gc
import os
import pickle
from typing import Any

import pytest

import framework as fw
from framework.actor import ActorHandle
from support.actors import LIMIT, Counter, Gate, get, later, wait_for_waiters
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_handles_in_tasks_actors_and_containers(session: object) -> None:
    counter = Counter.remote()

    @fw.remote
    def use(box: dict[str, list[Any]]) -> int:
        return get(box["handles"][0].inc.remote())  # type: ignore[no-any-return]

    @fw.remote
    class User:
        def __init__(self, handle: Any) -> None:
            self.handle = handle

        def use(self) -> int:
            return fw.get(self.handle.inc.remote())  # type: ignore[no-any-return]

        def give(self) -> Any:
            return self.handle

    assert get(use.remote({"handles": [counter]})) == 1
    user = User.remote(counter)
    assert get(user.use.remote()) == 2
    back = get(user.give.remote())
    assert back == counter and hash(back) == hash(counter) and back is not counter
    assert get(back.inc.remote()) == 3
    assert get(get(fw.put(counter)).inc.remote()) == 4
    assert counter != Counter.remote() and counter != "counter"
    assert repr(counter) == f"Actor(Counter, {counter._actor_id.hex()})"
    assert get(later.remote(counter.inc)).remote is not None


def test_a_bound_method_keeps_its_actor(session: object) -> None:
    inc = Counter.remote(1).inc
    gc.collect()
    assert get(inc.remote()) == 2


def test_a_handle_pickled_by_the_user_works_and_keeps_the_actor(session: object) -> None:
    counter = Counter.remote(1)
    data = fw.cloudpickle.dumps(counter)
    pid = get(counter.pid.remote())
    del counter
    gc.collect()
    copy = pickle.loads(data)
    assert get(copy.inc.remote()) == 2
    assert get(copy.pid.remote()) == pid
    fw.kill(copy)


def test_a_handle_of_an_actor_that_still_waits_for_its_arguments(session: object) -> None:
    gate = Gate.remote()
    counter = Counter.remote(later.remote(40, gate))

    @fw.remote
    def use(handle: Any) -> int:
        return fw.get(handle.inc.remote(), timeout=LIMIT)  # type: ignore[no-any-return]

    result = use.options(num_cpus=0).remote([counter][0])
    wait_for_waiters(gate, 1)
    get(gate.open.remote())
    assert get(result) == 41


def test_actors_made_by_tasks_and_actors(session: object) -> None:
    @fw.remote
    def make() -> Any:
        return Counter.remote(7)

    @fw.remote
    class Maker:
        def __init__(self) -> None:
            self.child = Counter.remote(1)

        def child_pid(self) -> int:
            return fw.get(self.child.pid.remote())  # type: ignore[no-any-return]

    counter = get(make.remote())
    assert get(counter.inc.remote()) == 8
    maker = Maker.remote()
    pid = get(maker.child_pid.remote())
    fw.kill(maker)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the end of the child with its owner")


def test_actors_that_call_each_other(session: object) -> None:
    @fw.remote
    class Node:
        async def meet(self, other: Any) -> None:
            self.other = other

        async def bounce(self, n: int) -> list[int]:
            if n == 0:
                return [os.getpid()]
            return [os.getpid(), *await self.other.bounce.remote(n - 1)]

    a, b = Node.remote(), Node.remote()
    get([a.meet.remote(b), b.meet.remote(a)])
    pids = get(a.bounce.remote(10))
    assert len(pids) == 11 and len(set(pids)) == 2
    get([a.meet.remote(a)])
    assert len(set(get(a.bounce.remote(5)))) == 1


def test_isinstance_of_handles(session: object) -> None:
    assert isinstance(Counter.remote(), ActorHandle)
