"""How actors start and end: failed constructors, death, exit, kill, the last handle."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from typing import Any

import pytest

import framework as fw
from framework.actor import exit_actor
from framework.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
)
from support.actors import LIMIT, Counter, Gate, get, later, wait_for_waiters
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class Base:
    def __init__(self) -> None:
        self.total = 5

    def total(self) -> int:  # type: ignore[no-redef]
        return self.total  # type: ignore[return-value]

    def who(self) -> str:
        return "base"

    def both(self) -> str:
        return self.who() + "/" + Base.who(self)


def test_an_exception_in_the_constructor_reaches_every_call(session: object) -> None:
    @fw.remote
    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("cannot start")

        def method(self) -> None: ...

    broken = Broken.remote()
    early = [broken.method.remote() for _ in range(3)]
    for ref in early:
        with pytest.raises(ActorDiedError, match="cannot start") as caught:
            get(ref)
        assert "its constructor raised an exception" in str(caught.value)
        assert 'raise RuntimeError("cannot start")' in str(caught.value)
        assert caught.value.class_name == "Broken"
    started = time.monotonic()
    with pytest.raises(ActorDiedError, match="cannot start"):
        get(broken.method.remote())
    assert time.monotonic() - started < 1

    @fw.remote
    def other(handle: Any) -> None:
        fw.get(handle.method.remote(), timeout=LIMIT)

    with pytest.raises(ActorDiedError, match="cannot start"):
        get(other.remote(broken))


def test_an_argument_of_the_constructor_that_fails(session: object) -> None:
    @fw.remote
    def broken() -> int:
        raise ZeroDivisionError("no start value")

    counter = Counter.remote(broken.remote())

    @fw.remote
    def other(handle: Any) -> None:
        fw.get(handle.inc.remote(), timeout=LIMIT)

    foreign = other.remote(counter)
    for call in (counter.inc.remote(), foreign):
        with pytest.raises(ActorDiedError, match="an argument of its constructor has failed.*") as caught:
            get(call)
        assert "no start value" in str(caught.value)


def test_an_actor_that_can_never_be_placed(session: object) -> None:
    with pytest.raises(ActorUnschedulableError, match="Counter can never be placed: it needs .*1000"):
        get(Counter.options(num_cpus=1000).remote().inc.remote())


@pytest.mark.parametrize(
    ("end", "cause"), [("exit", "exited with code 3"), ("kill", "SIGKILL"), ("segv", "SIGSEGV")]
)
def test_the_death_of_the_process_is_seen_by_all_callers(session: object, end: str, cause: str) -> None:
    counter = Counter.remote()
    pid = get(counter.pid.remote())

    @fw.remote(num_cpus=0)
    class Friend:
        def __init__(self, handle: Any) -> None:
            self.handle = handle
            fw.get(handle.inc.remote())

        def call(self) -> int:
            return fw.get(self.handle.inc.remote(), timeout=LIMIT)  # type: ignore[no-any-return]

    friend = Friend.remote(counter)
    get(friend.__ray_ready__.remote())
    assert get([counter.inc.remote() for _ in range(50)]) == list(range(2, 52))
    calls = []
    if end == "exit":
        calls = [counter.die.remote(3)]
    elif end == "segv":
        calls = [counter.__ray_call__.remote(lambda self: os.kill(os.getpid(), signal.SIGSEGV))]
    else:
        os.kill(pid, signal.SIGKILL)
    calls += [counter.inc.remote() for _ in range(50)]
    for call in calls:
        with pytest.raises(ActorDiedError) as caught:
            get(call)
        assert cause in str(caught.value) and str(pid) in str(caught.value) and "Counter" in str(caught.value)
    with pytest.raises(ActorDiedError, match=cause):
        get(friend.call.remote())
    started = time.monotonic()
    with pytest.raises(ActorDiedError, match=cause):
        get(counter.inc.remote())
    with pytest.raises(ActorDiedError, match=cause):
        get(counter.inc.remote(fw.put(1)))
    assert time.monotonic() - started < 1

    @fw.remote
    def late(handle: Any) -> None:
        fw.get(handle.inc.remote(), timeout=LIMIT)

    with pytest.raises(ActorDiedError, match=cause):
        get(late.remote(counter))


@pytest.mark.parametrize("how", ["sys.exit", "exit_actor"])
@pytest.mark.parametrize("kind", ["sync", "async", "threads"])
def test_a_method_that_exits_ends_the_actor(session: object, how: str, kind: str) -> None:
    @fw.remote
    class Leaver:
        def leave(self) -> None:
            if how == "exit_actor":
                exit_actor()
            sys.exit(4)

    class AsyncLeaver(Base):
        async def leave(self) -> None:
            if how == "exit_actor":
                exit_actor()
            sys.exit(4)

    actor: Any = fw.remote(AsyncLeaver) if kind == "async" else Leaver
    leaver = (
        actor.options(max_concurrency=2, max_restarts=1).remote() if kind == "threads" else actor.remote()
    )
    text = r"called exit_actor\(\)" if how == "exit_actor" else r"called sys\.exit\(4\)"
    with pytest.raises(ActorDiedError, match=text):
        get(leaver.leave.remote())
    with pytest.raises(ActorDiedError, match=text):
        get(leaver.leave.remote())


def test_exit_actor_outside_of_an_actor(session: object) -> None:
    with pytest.raises(TypeError, match="inside of an actor"):
        exit_actor()


def test_kill_ends_running_queued_and_later_calls(session: object) -> None:
    gate = Gate.remote()

    @fw.remote
    class Stuck:
        def stay(self) -> None:
            fw.get(gate.wait.remote())

        def quick(self) -> int:
            return 1

    stuck = Stuck.options(max_restarts=3).remote()
    running = stuck.stay.remote()
    wait_for_waiters(gate, 1)
    queued = [stuck.quick.remote() for _ in range(100)]
    fw.kill(stuck)
    started = time.monotonic()
    for ref in [running, *queued, stuck.quick.remote()]:
        with pytest.raises(ActorDiedError, match=r"ended by kill\(\)"):
            get(ref)
    assert time.monotonic() - started < 5
    fw.kill(stuck)  # twice is as once


def test_kill_before_it_is_alive(session: object) -> None:
    gate = Gate.remote()
    counter = Counter.remote(later.remote(1, gate))
    call = counter.inc.remote()
    fw.kill(counter)
    with pytest.raises(ActorDiedError, match=r"kill\(\)"):
        get(call)
    get(gate.open.remote())
    with pytest.raises(ActorDiedError, match=r"kill\(\)"):
        get(counter.inc.remote())


def test_kill_of_an_actor_that_waits_for_resources(session: object) -> None:
    holder = Counter.options(num_cpus=2).remote()
    get(holder.inc.remote())
    waiting = Counter.options(num_cpus=2).remote()
    call = waiting.inc.remote()
    fw.kill(waiting)
    with pytest.raises(ActorDiedError):
        get(call)
    fw.kill(holder)
    third = Counter.options(num_cpus=2).remote()
    assert get(third.inc.remote()) == 1


def test_the_last_handle_ends_the_actor_after_its_calls(session: object) -> None:
    gate = Gate.remote()
    counter = Counter.remote()
    pid = get(counter.pid.remote())
    late = [counter.inc.remote(later.remote(1, gate)), *[counter.inc.remote() for _ in range(10)]]
    del counter
    gc.collect()
    wait_for_waiters(gate, 1)
    assert os.path.exists(f"/proc/{pid}")
    get(gate.open.remote())
    assert get(late) == list(range(1, 12))
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the end of the actor")


def test_the_actor_ends_without_a_garbage_collection(session: object) -> None:
    gc.disable()
    try:
        counter = Counter.remote()
        pid = get(counter.pid.remote())
        assert get(counter.inc.options(name="x").remote()) == 1
        del counter
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the end of the actor")
    finally:
        gc.enable()


def test_a_handle_elsewhere_keeps_it(session: object) -> None:
    @fw.remote(num_cpus=0)
    class Keeper:
        def __init__(self, box: list[Any]) -> None:
            self.box = box

        def use(self) -> int:
            return fw.get(self.box[0].inc.remote())  # type: ignore[no-any-return]

        def drop(self) -> None:
            self.box.clear()

    counter = Counter.remote()
    pid = get(counter.pid.remote())
    keeper = Keeper.remote([counter])
    get(keeper.__ray_ready__.remote())
    del counter
    gc.collect()
    assert [get(keeper.use.remote()) for _ in range(3)] == [1, 2, 3]
    assert os.path.exists(f"/proc/{pid}")
    get(keeper.drop.remote())
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the end of the actor")


def test_files_of_dead_workers_go(session: Any) -> None:
    sockets = os.path.join(session["session_dir"], "sockets")
    actors = [Counter.remote() for _ in range(3)]
    get([actor.inc.remote() for actor in actors])
    before = len(os.listdir(sockets))
    for actor in actors:
        fw.kill(actor)
    wait_until(lambda: len(os.listdir(sockets)) <= before - 6, what="the files to go")
