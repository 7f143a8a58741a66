"""Actors: state, order, handles, async and threaded ones, errors, death, names, scope."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Generic, TypeVar

import pytest

import framework as fw
from framework.actor import ActorClass, ActorHandle, exit_actor
from framework.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    PendingCallsLimitExceeded,
    TaskCancelledError,
    TaskTimeoutError,
)
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

T = TypeVar("T")
LIMIT = 20


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


@fw.remote
class Counter:
    """A counter."""

    kind = "plain"

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def inc(self, by: int = 1) -> int:
        self.value += by
        return self.value

    def pid(self) -> int:
        return os.getpid()

    def die(self, code: int = 3) -> None:
        os._exit(code)

    def fail(self, text: str) -> None:
        raise KeyError(text)


@fw.remote
class Recorder:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add(self, item: Any) -> None:
        self.seen.append(item)

    def all(self) -> list[Any]:
        return self.seen


@fw.remote
def later(value: Any, gate: Any = None) -> Any:
    if gate is not None:
        fw.get(gate.wait.remote())
    return value


@fw.remote
class Gate:
    """Holds others up until it is opened."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.waiting = 0

    async def wait(self) -> bool:
        self.waiting += 1
        await self.event.wait()
        return True

    async def open(self) -> None:
        self.event.set()

    async def count(self) -> int:
        return self.waiting


def wait_for_waiters(gate: Any, count: int) -> None:
    wait_until(lambda: get(gate.count.remote()) >= count, what=f"{count} waiters")


# ---- state and order ---------------------------------------------------------------------------------


def test_state_stays_between_calls(session: object) -> None:
    counter = Counter.remote(10)
    assert get([counter.inc.remote() for _ in range(3)]) == [11, 12, 13]
    assert get(Counter.remote(start=5).inc.remote(by=2)) == 7


def test_thousands_of_calls_run_in_order(session: object) -> None:
    counter = Counter.remote()
    assert get([counter.inc.remote() for _ in range(5000)]) == list(range(1, 5001))


def test_a_call_whose_argument_is_not_there_holds_up_those_behind_it(session: object) -> None:
    gate, recorder = Gate.remote(), Recorder.remote()
    recorder.add.remote(0)
    recorder.add.remote(later.remote(1, gate))
    rest = [recorder.add.remote(n) for n in range(2, 200)]
    done, _ = fw.wait(rest, timeout=0.1)
    assert done == []
    get(gate.open.remote())
    get(rest)
    assert get(recorder.all.remote()) == list(range(200))


def test_order_with_lone_calls_bursts_and_pending_arguments(session: object) -> None:
    """Lone calls leave from the caller's thread, others by way of the loop: no call may overtake another."""
    recorder = Recorder.remote()
    numbers = iter(range(100_000))
    sent = 0
    last = None
    for turn in range(300):
        if turn % 7 == 0:
            last = recorder.add.remote(later.remote(next(numbers)))
        elif turn % 5 == 0:
            last = [recorder.add.remote(next(numbers)) for _ in range(turn % 11 + 1)][-1]
        elif turn % 3 == 0:
            last = recorder.add.remote(fw.put(next(numbers)))
        else:
            last = recorder.add.remote(next(numbers))
        if turn % 4 == 0:
            get(last)
    sent = next(numbers)
    assert get(recorder.all.remote()) == list(range(sent))


def test_each_thread_and_each_process_has_its_own_order(session: object) -> None:
    recorder = Recorder.remote()

    @fw.remote(num_cpus=0)
    def from_task(who: str, count: int) -> None:
        for n in range(count):
            ref = recorder.add.remote((who, n))
            if n % 10 == 0:
                fw.get(ref)
        fw.get(ref)

    def from_thread(who: str, count: int) -> None:
        for n in range(count):
            ref = recorder.add.remote((who, n))
            if n % 7 == 0:
                get(ref)
        get(ref)

    tasks = [from_task.remote(f"task{k}", 100) for k in range(2)]
    threads = [threading.Thread(target=from_thread, args=(f"thread{k}", 300)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    get(tasks)
    seen = get(recorder.all.remote())
    assert len(seen) == 1100
    for who, count in [("task0", 100), ("task1", 100), ("thread0", 300), ("thread1", 300), ("thread2", 300)]:
        assert [n for name, n in seen if name == who] == list(range(count))


def test_threads_that_take_turns_keep_their_common_order(session: object) -> None:
    recorder = Recorder.remote()
    lock = threading.Lock()
    counter = iter(range(10_000))

    def run() -> None:
        for _ in range(400):
            with lock:
                recorder.add.remote(next(counter))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert get(recorder.all.remote()) == list(range(1600))


def test_a_failed_argument_fails_its_call_and_no_other(session: object) -> None:
    counter = Counter.remote()

    @fw.remote
    def broken() -> int:
        raise ZeroDivisionError("no")

    first, second = counter.inc.remote(broken.remote()), counter.inc.remote()
    with pytest.raises(ZeroDivisionError):
        get(first)
    assert get(second) == 1


# ---- handles -----------------------------------------------------------------------------------------


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


# ---- classes -----------------------------------------------------------------------------------------


class Base:
    def __init__(self) -> None:
        self.total = 5

    def total(self) -> int:  # type: ignore[no-redef]
        return self.total  # type: ignore[return-value]

    def who(self) -> str:
        return "base"

    def both(self) -> str:
        return self.who() + "/" + Base.who(self)


@fw.remote
class Derived(Base):
    @property
    def prop(self) -> str:
        return "property"

    def who(self) -> str:
        return "derived"

    @staticmethod
    def static(n: int) -> int:
        return n * 2

    @classmethod
    def cls(cls) -> str:
        return cls.__name__

    def __call__(self, n: int) -> int:
        return n + 1

    def read(self) -> str:
        return self.prop

    @fw.method(num_returns=2)
    def two(self) -> tuple[int, int]:
        return 1, 2

    def three(self) -> list[int]:
        return [1, 2, 3]

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    def say(self) -> None:
        print("hello from an actor")


def test_inheritance_properties_static_class_and_special_methods(session: object) -> None:
    actor = Derived.remote()
    assert get(actor.both.remote()) == "derived/base"
    assert get(actor.total.remote()) == 5, "an attribute of the instance does not hide the method"
    assert get(actor.static.remote(4)) == 8
    assert get(actor.cls.remote()) == "Derived"
    assert get(actor.__call__.remote(1)) == 2
    assert get(actor.read.remote()) == "property"
    with pytest.raises(AttributeError, match="no method 'prop'; it has: .*both"):
        _ = actor.prop
    with pytest.raises(AttributeError, match="no method 'nothing'"):
        actor.nothing.remote()


def test_numbers_of_returns(session: object) -> None:
    actor = Derived.remote()
    first, second = actor.two.remote()
    assert get([first, second]) == [1, 2]
    assert get(actor.three.options(num_returns=3).remote()) == [1, 2, 3]
    assert get(actor.three.remote()) == [1, 2, 3]
    assert actor.say.options(num_returns=0).remote() is None
    wrong = actor.three.options(num_returns=2).remote()
    with pytest.raises(ValueError, match="num_returns=2, but returned 3 values"):
        get(wrong[0])
    assert [get(ref) for ref in actor.numbers.remote(5)] == [0, 1, 2, 3, 4]


def test_a_generic_class(session: object) -> None:
    class Box(Generic[T]):
        def __init__(self, item: T) -> None:
            self.item = item

        def open(self) -> T:
            return self.item

    assert get(fw.remote(Box).remote("x").open.remote()) == "x"


def test_a_class_by_value_that_extends_a_remote_class(session: object) -> None:
    class More(Counter):  # type: ignore[misc, valid-type]
        def twice(self) -> int:
            self.inc()
            return self.inc()  # type: ignore[no-any-return]

    assert get(fw.remote(More).remote(1).twice.remote()) == 3


def test_special_calls(session: object) -> None:
    counter = Counter.remote(3)
    assert get(counter.__ray_ready__.remote()) is True
    assert get(counter.__ray_call__.remote(lambda self, n: self.value + n, 4)) == 7
    gate = Gate.remote()

    async def waiting(self: Any) -> int:
        await asyncio.sleep(0)
        return self.waiting  # type: ignore[no-any-return]

    assert get(gate.__ray_call__.remote(waiting)) == 0
    pid = get(counter.pid.remote())
    counter.__ray_terminate__.remote()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="its end")
    with pytest.raises(ActorDiedError, match="__ray_terminate__"):
        get(counter.inc.remote())


def test_wrong_use_is_an_error_at_the_call(session: object) -> None:
    with pytest.raises(TypeError, match=r"Counter cannot be instantiated directly: use Counter\.remote"):
        Counter()
    with pytest.raises(TypeError, match=r"Counter\(\) takes at most 1 positional argument.*, but 2"):
        Counter.remote(1, 2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'begin'"):
        Counter.remote(begin=1)
    counter = Counter.remote()
    with pytest.raises(TypeError, match=r"inc\(\) of an actor cannot be called directly: use inc\.remote"):
        counter.inc()
    with pytest.raises(TypeError, match=r"Counter\.inc\(\) takes at most 1"):
        counter.inc.remote(1, 2)
    with pytest.raises(ValueError, match="max_restart.*max_restarts"):
        Counter.options(max_restart=1)
    with pytest.raises(ValueError, match="num_return"):
        counter.inc.options(num_return=2)
    with pytest.raises(ValueError, match="num_cpus"):
        Counter.options(num_cpus=-1)
    with pytest.raises(TypeError, match="remote already"):
        fw.remote(Counter)
    with pytest.raises(TypeError, match="cannot serialize.*lock"):
        Counter.remote(threading.Lock())
    with pytest.raises(TypeError, match=r"kill\(\) takes the handle"):
        fw.kill(counter.inc.remote())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="force=True is not for calls of actors"):
        fw.cancel(counter.inc.remote(), force=True)
    assert isinstance(Counter, ActorClass) and repr(Counter) == "ActorClass(Counter)"
    assert Counter.__doc__ == "A counter."


def test_output_of_actors(tmp_path: Any) -> None:
    program = """if True:
        import framework as fw

        @fw.remote
        class Speaker:
            def __init__(self):
                print("made")

            def say(self):
                print("hello")

        with fw.init(num_cpus=1):
            fw.get(Speaker.remote().say.remote())
            fw.get(Speaker.options(name="named").remote().say.remote())
    """
    env = {**os.environ, "FRAMEWORK_TMPDIR": str(tmp_path), "FRAMEWORK_DEDUP_LOGS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=30
    )
    lines = re.sub(r"pid=\d+", "pid=N", done.stdout).splitlines()
    assert sorted(lines) == sorted(
        f"({name} pid=N) {text}" for name in ("Speaker", "named") for text in ("made", "hello")
    )
    assert done.stderr == "" and done.returncode == 0


# ---- errors ------------------------------------------------------------------------------------------


def test_an_exception_in_a_method_leaves_the_actor_alive(session: object) -> None:
    counter = Counter.remote()
    with pytest.raises(KeyError, match="lost") as caught:
        get(counter.fail.remote("lost"))
    assert "Counter" in str(caught.value) and "raise KeyError(text)" in str(caught.value)
    assert get(counter.inc.remote()) == 1


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


# ---- kill --------------------------------------------------------------------------------------------


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


# ---- restarts ----------------------------------------------------------------------------------------


def test_restart_makes_it_anew_and_in_flight_calls_are_unavailable(session: object) -> None:
    counter = Counter.options(max_restarts=1).remote(10)
    assert get(counter.inc.remote()) == 11
    first = get(counter.pid.remote())
    with pytest.raises(
        ActorUnavailableError, match=r"die\(\) may or may not have run.*code 3.*max_task_retries"
    ):
        get(counter.die.remote())
    assert get(counter.inc.remote()) == 11
    assert get(counter.pid.remote()) != first
    with pytest.raises(ActorDiedError, match=r"restarted 1 time\(s\) \(max_restarts=1\)"):
        get(counter.die.remote())


def test_max_task_retries_repeats_calls_in_order(session: object, tmp_path: Any) -> None:
    mark = tmp_path / "died"

    @fw.remote(max_restarts=2, max_task_retries=1)
    class Phoenix:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def add(self, n: int) -> list[int]:
            if n == 5 and not mark.exists():
                mark.touch()
                os._exit(1)
            self.seen.append(n)
            return self.seen

    phoenix = Phoenix.remote()
    results = get([phoenix.add.remote(n) for n in range(20)])
    # Calls that were done may be made again where the answer died with the process, but in order, and none is
    # left out.
    assert results[-1] == list(range(20))[-len(results[-1]) :] and len(results[-1]) >= 15
    assert [seen[-1] for seen in results] == list(range(20))


def test_kill_with_restart(session: object) -> None:
    counter = Counter.options(max_restarts=1).remote()
    pid = get(counter.pid.remote())
    fw.kill(counter, no_restart=False)

    def restarted() -> bool:
        try:
            return bool(get(counter.pid.remote()) != pid)
        except ActorUnavailableError:
            return False

    wait_until(restarted, what="the restart")


def test_restart_with_large_and_nested_arguments(session: object) -> None:
    @fw.remote(max_restarts=1)
    class Holder:
        def __init__(self, data: bytes, nested: list[Any]) -> None:
            self.sizes = (len(data), fw.get(nested[0]))

        def get(self) -> tuple[int, int]:
            return self.sizes

        def die(self) -> None:
            os._exit(1)

    holder = Holder.remote(bytes(300_000), [fw.put(5)])
    assert get(holder.get.remote()) == (300_000, 5)
    with pytest.raises(ActorUnavailableError):
        get(holder.die.remote())
    assert get(holder.get.remote()) == (300_000, 5)


# ---- names and scope ---------------------------------------------------------------------------------


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


def test_a_handle_found_by_name_hears_of_the_end(session: object) -> None:
    counter = Counter.options(name="ends").remote()
    found = fw.get_actor("ends")
    assert get(found.inc.remote()) == 1
    del counter
    gc.collect()
    wait_until(lambda: _dead(found), what="the end")
    with pytest.raises(ActorDiedError, match="last handle has gone out of scope"):
        get(found.inc.remote())


def _dead(handle: Any) -> bool:
    try:
        get(handle.inc.remote())
    except ActorDiedError:
        return True
    return False


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


def test_resources(session: object) -> None:
    def cpus() -> float:
        return fw.available_resources().get("CPU", 0)

    wait_until(lambda: cpus() == 2, what="all CPUs to be free")
    idle = [Counter.remote() for _ in range(4)]
    get([actor.inc.remote() for actor in idle])
    wait_until(lambda: cpus() == 2, what="actors to hold nothing by default")
    one = Counter.options(num_cpus=1).remote()
    get(one.inc.remote())
    wait_until(lambda: cpus() == 1, what="one CPU to be held")
    two, three = Counter.options(num_cpus=1).remote(), Counter.options(num_cpus=1).remote()
    get(two.inc.remote())
    call = three.inc.remote()
    assert fw.wait([call], timeout=0.2) == ([], [call])
    del one
    gc.collect()
    assert get(call) == 1
    del two, three, call
    gc.collect()
    wait_until(lambda: cpus() == 2, what="all CPUs to be free again")


def test_runtime_env(session: object) -> None:
    @fw.remote(runtime_env={"env_vars": {"COLOUR": "green", "OMP_NUM_THREADS": "3"}})
    class Env:
        def read(self) -> tuple[str | None, str | None]:
            return os.environ.get("COLOUR"), os.environ.get("OMP_NUM_THREADS")

    assert get(Env.remote().read.remote()) == ("green", "3")
    assert "COLOUR" not in os.environ


# ---- async actors ------------------------------------------------------------------------------------


def test_coroutines_of_an_actor_run_concurrently_and_share_asyncio_objects(session: object) -> None:
    @fw.remote
    class Hub:
        def __init__(self) -> None:
            self.queue: asyncio.Queue[int] = asyncio.Queue()
            self.lock = asyncio.Lock()
            self.inside = self.most = 0

        async def put(self, n: int) -> None:
            await self.queue.put(n)

        async def take(self) -> int:
            return await self.queue.get()

        async def alone(self) -> int:
            async with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
                await asyncio.sleep(0.001)
                self.inside -= 1
            return self.most

        def thread(self) -> int:
            return threading.get_ident()

        async def loop_thread(self) -> int:
            return threading.get_ident()

        async def items(self, n: int) -> AsyncIterator[int]:
            for i in range(n):
                await asyncio.sleep(0)
                yield i

        def plain_items(self, n: int) -> Iterator[int]:
            yield from range(n)

    hub = Hub.remote()
    takers = [hub.take.remote() for _ in range(20)]
    get([hub.put.remote(n) for n in range(20)])
    assert get(takers) == list(range(20))
    assert get([hub.alone.remote() for _ in range(20)]) == [1] * 20
    assert get(hub.thread.remote()) != get(hub.loop_thread.remote())
    assert [get(ref) for ref in hub.items.remote(5)] == [0, 1, 2, 3, 4]
    assert [get(ref) for ref in hub.plain_items.remote(3)] == [0, 1, 2]


def test_max_concurrency_of_an_async_actor(session: object) -> None:
    @fw.remote(max_concurrency=3)
    class Few:
        def __init__(self) -> None:
            self.now = self.most = 0

        async def work(self) -> int:
            self.now += 1
            self.most = max(self.most, self.now)
            for _ in range(20):
                await asyncio.sleep(0)
            self.now -= 1
            return self.most

    few = Few.remote()
    assert max(get([few.work.remote() for _ in range(30)])) == 3


def test_references_as_arguments_do_not_hold_up_the_loop(session: object) -> None:
    gate = Gate.remote()

    @fw.remote
    class Host:
        async def size(self, data: bytes) -> int:
            return len(data)

    @fw.remote(num_cpus=0)
    def big(gate: Any) -> bytes:
        fw.get(gate.wait.remote())
        return bytes(500_000)

    @fw.remote(num_cpus=0)
    def forward(host: Any, box: list[Any]) -> int:
        return fw.get(host.size.remote(box[0]), timeout=LIMIT)  # type: ignore[no-any-return]

    host = Host.remote()
    slow = forward.remote(host, [big.remote(gate)])
    assert get(host.size.remote(bytes(200_000))) == 200_000
    get(gate.open.remote())
    assert get(slow) == 500_000


# ---- threads and groups ------------------------------------------------------------------------------


def test_max_concurrency_runs_plain_methods_in_threads(session: object) -> None:
    @fw.remote(max_concurrency=4)
    class Threaded:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(4)

        def meet(self) -> int:
            self.barrier.wait(LIMIT)
            return threading.get_ident()

        def items(self, n: int) -> Iterator[int]:
            yield from range(n)

        def fail(self) -> None:
            raise ValueError("in a thread")

        def nested(self) -> int:
            return fw.get(later.remote(5))  # type: ignore[no-any-return]

    actor = Threaded.remote()
    assert len(set(get([actor.meet.remote() for _ in range(4)]))) == 4
    assert [get(ref) for ref in actor.items.remote(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="in a thread"):
        get(actor.fail.remote())
    assert get([actor.nested.remote() for _ in range(4)]) == [5] * 4


@pytest.mark.parametrize("kind", ["async", "threads"])
def test_concurrency_groups(session: object, kind: str) -> None:
    @fw.remote(concurrency_groups={"io": 2, "compute": 1})
    class Threads:
        def __init__(self) -> None:
            self.event = threading.Event()

        @fw.method(concurrency_group="io")
        def wait(self) -> bool:
            return self.event.wait(LIMIT)

        @fw.method(concurrency_group="compute")
        def set(self) -> None:
            self.event.set()

        def plain(self) -> str:
            return "default"

    @fw.remote(concurrency_groups={"io": 2, "compute": 1})
    class Async:
        def __init__(self) -> None:
            self.event = asyncio.Event()

        @fw.method(concurrency_group="io")
        async def wait(self) -> bool:
            return await self.event.wait()

        @fw.method(concurrency_group="compute")
        async def set(self) -> None:
            self.event.set()

        async def plain(self) -> str:
            return "default"

    actor: Any = (Threads if kind == "threads" else Async).remote()
    waiting = [actor.wait.remote() for _ in range(3)]
    assert get(actor.plain.remote()) == "default"
    assert fw.wait(waiting, timeout=0.05)[0] == []
    get(actor.set.remote())
    assert get(waiting) == [True] * 3
    assert get(actor.plain.options(concurrency_group="compute").remote()) == "default"
    with pytest.raises(ValueError, match="group 'oi', which the actor class .* has: 'io', 'compute'"):
        get(actor.plain.options(concurrency_group="oi").remote())


# ---- cancel and timeout ------------------------------------------------------------------------------


def test_cancel_of_a_queued_call(session: object) -> None:
    gate, recorder = Gate.remote(), Recorder.remote()
    blocker = recorder.__ray_call__.remote(lambda self: fw.get(gate.wait.remote()))
    calls = [recorder.add.remote(n) for n in range(3)]
    wait_for_waiters(gate, 1)
    fw.cancel(calls[1])
    with pytest.raises(TaskCancelledError):
        get(calls[1])
    get(gate.open.remote())
    get([blocker, calls[0], calls[2]])
    assert get(recorder.all.remote()) == [0, 2]


def test_cancel_before_the_actor_is_alive(session: object) -> None:
    gate = Gate.remote()
    counter = Counter.remote(later.remote(1, gate))
    first, second = counter.inc.remote(), counter.inc.remote()
    fw.cancel(first)
    with pytest.raises(TaskCancelledError):
        get(first)
    get(gate.open.remote())
    assert get(second) == 2


def test_cancel_of_running_calls(session: object) -> None:
    @fw.remote
    class Sleeper:
        def sleep(self, gate: Any) -> None:
            fw.get(gate.wait.remote())
            time.sleep(1e6)

        def spin(self, gate: Any) -> None:
            fw.get(gate.wait.remote())
            while True:
                pass

        def wait(self, gate: Any) -> None:
            fw.get([gate.wait.remote(), Gate.remote().wait.remote()])

        def alive(self) -> bool:
            return True

    sleeper = Sleeper.remote()
    for method in (sleeper.sleep, sleeper.spin, sleeper.wait):
        gate = Gate.remote()
        ref = method.remote(gate)
        wait_for_waiters(gate, 1)
        get(gate.open.remote())
        fw.cancel(ref)
        with pytest.raises(TaskCancelledError):
            get(ref)
        assert get(sleeper.alive.remote())


def test_cancel_of_coroutines_lets_them_clean_up(session: object) -> None:
    @fw.remote
    class Sleeper:
        def __init__(self) -> None:
            self.begun = self.cleaned = 0

        async def sleep(self) -> None:
            self.begun += 1
            try:
                await asyncio.sleep(1e6)
            finally:
                self.cleaned += 1

        async def counts(self) -> tuple[int, int]:
            return self.begun, self.cleaned

    sleeper = Sleeper.remote()
    refs = [sleeper.sleep.remote() for _ in range(5)]
    assert get(sleeper.counts.remote()) == (5, 0)
    for ref in refs:
        fw.cancel(ref)
    for ref in refs:
        with pytest.raises(TaskCancelledError):
            get(ref)
    assert get(sleeper.counts.remote()) == (5, 5)


def test_cancel_at_once_never_leaves_a_caller_waiting(session: object) -> None:
    """Every moment of a call's life must be good for a cancel."""

    class Sync:
        def work(self) -> int:
            return sum(range(200))

    class Async:
        async def work(self) -> int:
            await asyncio.sleep(0.001)
            return 1

        def plain(self) -> int:
            return sum(range(200))

    threaded = fw.remote(Sync).options(max_concurrency=3).remote()
    actor = fw.remote(Async).remote()
    sync = fw.remote(Sync).remote()
    for handle_method in (threaded.work, actor.work, actor.plain, sync.work):
        refs = []
        for n in range(150):
            ref = handle_method.remote()
            refs.append(ref)
            if n % 2:
                fw.cancel(ref)
            if n % 10 == 0:
                fw.wait([ref], timeout=LIMIT)
        done, rest = fw.wait(refs, num_returns=len(refs), timeout=LIMIT)
        assert rest == []
        assert all(ref.exception() is None or isinstance(ref.exception(), TaskCancelledError) for ref in done)
        assert all(ref.exception() is None for ref in refs[::2])
        assert get(handle_method.remote())


def test_cancel_of_a_threaded_call_and_a_plain_call_of_an_async_actor(session: object) -> None:
    class Spinner:
        def spin(self, gate: Any) -> None:
            fw.get(gate.wait.remote())
            while True:
                pass

        def alive(self) -> bool:
            return True

    class AsyncSpinner(Spinner):
        async def nothing(self) -> None: ...

    for actor in (fw.remote(Spinner).options(max_concurrency=2).remote(), fw.remote(AsyncSpinner).remote()):
        gate = Gate.remote()
        ref = actor.spin.remote(gate)
        wait_for_waiters(gate, 1)
        get(gate.open.remote())
        fw.cancel(ref)
        with pytest.raises(TaskCancelledError):
            get(ref)
        assert get(actor.alive.remote())


def test_timeout_of_a_call(session: object) -> None:
    @fw.remote
    class Slow:
        async def slow(self) -> None:
            await asyncio.sleep(1e6)

        @fw.method(timeout=0.1)
        async def marked(self) -> None:
            await asyncio.sleep(1e6)

        async def quick(self) -> int:
            return 1

    slow = Slow.remote()
    with pytest.raises(TaskTimeoutError, match="slow"):
        get(slow.slow.options(timeout=0.1).remote())
    with pytest.raises(TaskTimeoutError):
        get(slow.marked.remote())
    assert get(slow.quick.options(timeout=LIMIT).remote()) == 1


def test_timeout_of_a_call_that_cannot_be_interrupted(
    session: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework._base.limits.CANCEL_GRACE", 0.2)
    gate = Gate.remote()

    @fw.remote(max_concurrency=2)
    class Deaf:
        def wait(self, gate: Any) -> bool:
            while True:
                try:
                    return fw.get(gate.wait.remote())  # type: ignore[no-any-return]
                except KeyboardInterrupt:
                    continue

        def quick(self) -> int:
            return 1

    deaf = Deaf.remote()
    get(deaf.quick.remote())
    ref = deaf.wait.options(timeout=0.1).remote(gate)
    with pytest.raises(TaskTimeoutError):
        get(ref)
    assert get(deaf.quick.remote()) == 1
    get(gate.open.remote())


def test_max_pending_calls(session: object) -> None:
    gate = Gate.remote()
    recorder = Recorder.options(max_pending_calls=3).remote()
    calls = [recorder.add.remote(later.remote(0, gate)), recorder.add.remote(1), recorder.add.remote(2)]
    with pytest.raises(PendingCallsLimitExceeded, match="3 calls .*actor Recorder .*max_pending_calls"):
        recorder.add.remote(3)
    get(gate.open.remote())
    get(calls)
    for n in range(3, 20):
        get(recorder.add.remote(n))
    assert get(recorder.all.remote()) == list(range(20))


def test_files_of_dead_workers_go(session: Any) -> None:
    sockets = os.path.join(session["session_dir"], "sockets")
    actors = [Counter.remote() for _ in range(3)]
    get([actor.inc.remote() for actor in actors])
    before = len(os.listdir(sockets))
    for actor in actors:
        fw.kill(actor)
    wait_until(lambda: len(os.listdir(sockets)) <= before - 6, what="the files to go")


def test_isinstance_of_handles(session: object) -> None:
    assert isinstance(Counter.remote(), ActorHandle)
