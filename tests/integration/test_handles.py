"""Handles of actors: where they go, what they are equal to, and how long they keep their actor."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import typing
from typing import Any

import pytest

import framework as fw
from framework.actor import ActorHandle
from support.actors import LIMIT, Counter, Gate, get, later, wait_for_waiters
from support.drivers import Driver
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


# ---- identity ----------------------------------------------------------------------------------------


def test_copies_of_a_handle_are_the_same_actor(session: object) -> None:
    counter, other = Counter.remote(), Counter.remote()
    back = get(later.remote([counter]))[0]
    assert back is not counter and back == counter and hash(back) == hash(counter)
    assert {counter: 1, other: 2}[back] == 1 and len({counter, back, other}) == 2
    assert repr(back) == repr(counter) == f"Actor(Counter, {back._ray_actor_id.hex()})"
    assert copy.copy(counter) is counter and copy.deepcopy([counter]) == [counter]
    assert {"inc", "die", "_ray_actor_id"} <= set(dir(back))


def test_handles_in_annotations_at_run_time(session: object) -> None:
    def use(handle: ActorHandle[Counter]) -> None: ...  # type: ignore[valid-type]

    assert typing.get_type_hints(use)["handle"] == ActorHandle[Counter]  # type: ignore[valid-type]
    assert fw.ActorHandle is ActorHandle and isinstance(Counter.remote(), fw.ActorHandle)


def test_attributes_cannot_be_read_through_a_handle(session: object) -> None:
    counter = Counter.remote()
    for name in ("value", "kind"):  # of the instance, of the class
        with pytest.raises(AttributeError, match=f"no method '{name}'; it has: .*let a method return them"):
            getattr(counter, name)
    assert get(counter.__ray_call__.remote(lambda self: (self.value, self.kind))) == (0, "plain")
    assert not hasattr(counter, "__len__") and not hasattr(counter, "_private")


# ---- where handles keep their actor ------------------------------------------------------------------


def ended(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


class Wrapper:
    def __init__(self, handle: Any) -> None:
        self.parts = {"deep": [(handle,)]}

    def handle(self) -> Any:
        return self.parts["deep"][0][0]


def test_a_handle_inside_a_stored_object_keeps_the_actor(session: object) -> None:
    counter = Counter.remote()
    pid = get(counter.pid.remote())
    box = fw.put({"large": bytes(300_000), "wrapped": Wrapper(counter)})
    del counter
    gc.collect()
    assert get(get(box)["wrapped"].handle().inc.remote()) == 1
    get(later.remote(1))
    assert not ended(pid)
    del box
    gc.collect()
    wait_until(lambda: ended(pid), what="the end of the actor")


def test_a_handle_that_is_a_result_keeps_the_actor_until_it_is_dropped(session: object) -> None:
    @fw.remote
    def make() -> dict[str, Any]:
        counter = Counter.remote(5)
        return {"made": Wrapper(counter), "pid": fw.get(counter.pid.remote())}

    ref = make.remote()
    result = get(ref)
    pid = result["pid"]
    assert get(result["made"].handle().inc.remote()) == 6
    del result
    gc.collect()
    assert get(get(ref)["made"].handle().inc.remote()) == 7
    del ref
    gc.collect()
    wait_until(lambda: ended(pid), what="the end of the actor")


def test_a_handle_in_a_closure_and_in_a_class(session: object) -> None:
    def capture() -> tuple[Any, Any]:
        counter = Counter.remote()

        @fw.remote
        def call() -> int:
            return fw.get(counter.inc.remote())  # type: ignore[no-any-return]

        @fw.remote
        class Caller:
            target = counter

            def call(self) -> int:
                return fw.get(self.target.inc.remote())  # type: ignore[no-any-return]

        return call, Caller.remote()

    call, caller = capture()
    gc.collect()
    assert [get(call.remote()), get(caller.call.remote()), get(call.remote())] == [1, 2, 3]


def test_the_end_of_the_actor_that_holds_the_last_handle(session: object) -> None:
    @fw.remote(num_cpus=0)
    class Holder:
        def __init__(self, box: list[Any]) -> None:
            self.box = box

    counter = Counter.remote()
    pid = get(counter.pid.remote())
    holder = Holder.remote([counter])
    get(holder.__ray_ready__.remote())
    del counter
    gc.collect()
    get(later.remote(1))
    assert not ended(pid)
    fw.kill(holder)
    wait_until(lambda: ended(pid), what="the end of the actor")


def test_methods_of_handles_travel(session: object) -> None:
    @fw.remote
    def call(methods: dict[str, Any]) -> list[Any]:
        refs = [methods["plain"].remote(2), methods["named"].remote(by=3), *methods["two"].remote()]
        return [fw.get(ref) for ref in refs]

    @fw.remote
    class Doer(Counter):  # type: ignore[misc, valid-type]
        @fw.method(num_returns=2)
        def pair(self) -> tuple[int, int]:
            return 8, 9

    doer = Doer.remote()
    methods = {"plain": doer.inc, "named": doer.inc.options(name="other"), "two": doer.pair}
    assert repr(doer.inc) == f"<method inc of {doer!r}>"
    del doer
    gc.collect()
    assert get(call.remote(methods)) == [2, 5, 8, 9]


# ---- actors and their own handles --------------------------------------------------------------------


@fw.remote
class Selfish:
    """Knows itself."""

    def __init__(self) -> None:
        self.me = fw.get_runtime_context().current_actor
        self.seen: list[int] = []

    async def count(self, n: int) -> list[int]:
        self.seen.append(n)
        if n:
            return await self.me.count.remote(n - 1)  # type: ignore[no-any-return]
        return self.seen

    async def itself(self) -> Any:
        return self.me

    async def pid(self) -> int:
        return os.getpid()

    async def forwarded(self, n: int) -> int:
        return len(await call_count.remote([self.me], n))


@fw.remote(num_cpus=0)
def call_count(box: list[Any], n: int) -> list[int]:
    return fw.get(box[0].count.remote(n), timeout=LIMIT)  # type: ignore[no-any-return]


def test_an_actor_calls_itself_and_lets_others_call_it(session: object) -> None:
    actor = Selfish.remote()
    assert get(actor.count.remote(4)) == [4, 3, 2, 1, 0]
    assert get(actor.forwarded.remote(1)) == 7
    assert get(actor.itself.remote()) == actor


def test_an_actor_that_keeps_its_own_handle_ends_all_the_same(session: object) -> None:
    actor = Selfish.remote()
    pid = get(actor.pid.remote())
    del actor
    gc.collect()
    wait_until(lambda: ended(pid), what="the end of the actor")


def test_the_handle_that_an_actor_has_given_of_itself_keeps_it(session: object) -> None:
    actor = Selfish.remote()
    pid = get(actor.pid.remote())
    given = get(actor.itself.remote())
    del actor
    gc.collect()
    get(later.remote(1))
    assert get(given.count.remote(0)) == [0]
    again = get(later.remote([given]))[0]
    del given
    gc.collect()
    assert get(again.pid.remote()) == pid
    del again
    gc.collect()
    wait_until(lambda: ended(pid), what="the end of the actor")


def test_a_tree_of_actors_ends_with_its_root(session: object) -> None:
    @fw.remote(num_cpus=0)
    class Branch:
        def __init__(self, depth: int) -> None:
            kind = fw.remote(num_cpus=0)(type(self))
            self.children = [kind.remote(depth - 1) for _ in range(2)] if depth else []

        def pids(self) -> list[int]:
            below = fw.get([child.pids.remote() for child in self.children])
            return [os.getpid(), *(pid for pids in below for pid in pids)]

    root = Branch.remote(2)
    pids = get(root.pids.remote())
    assert len(set(pids)) == 7
    del root
    gc.collect()
    wait_until(lambda: all(ended(pid) for pid in pids), what="the end of the tree")


def test_actors_that_hold_each_other_until_one_is_killed(session: object) -> None:
    @fw.remote(num_cpus=0)
    class Friend:
        async def meet(self, other: list[Any]) -> int:
            self.other = other[0]
            return os.getpid()

        async def name(self) -> str:
            return "friend"

        async def ask(self) -> str:
            return await self.other.name.remote()  # type: ignore[no-any-return]

    a, b = Friend.remote(), Friend.remote()
    pids = get([a.meet.remote([b]), b.meet.remote([a])])
    assert get([a.ask.remote(), b.ask.remote()]) == ["friend", "friend"]
    del b
    gc.collect()
    assert get(a.ask.remote()) == "friend"
    fw.kill(a)
    wait_until(lambda: all(ended(pid) for pid in pids), what="the end of both")


# ---- across drivers ----------------------------------------------------------------------------------


def test_handles_between_drivers(session: Any, session_root: Any) -> None:
    """One that another driver unpickles, one found by name, and one that another driver's actor holds."""
    counter, gate = Counter.options(name="shared").remote(), Gate.options(name="gate").remote()
    data = fw.cloudpickle.dumps(counter).hex()
    kept = Counter.remote(100)
    pid = get(kept.pid.remote())
    program = f"""
        import pickle
        import framework as fw

        @fw.remote(num_cpus=0)
        class Holder:
            def take(self, box):
                self.box = box

            def use(self):
                return fw.get(self.box[0].inc.remote())

        with fw.init(address={session["session_dir"]!r}, namespace={session["namespace"]!r}):
            handle = pickle.loads(bytes.fromhex({data!r}))
            found = fw.get_actor("shared")
            print("calls", fw.get([handle.inc.remote(), found.inc.remote()]), handle == found, flush=True)
            holder = Holder.options(name="holder").remote()
            fw.get(holder.__ray_ready__.remote())
            print("ready", flush=True)
            fw.get(fw.get_actor("gate").wait.remote())
            print("last", fw.get(holder.use.remote()), flush=True)
    """
    with Driver(program, session_root) as driver:
        assert driver.expect("calls") == "calls [1, 2] True"
        driver.expect("ready")
        holder = fw.get_actor("holder")
        get(holder.take.remote([kept]))
        del kept
        gc.collect()
        assert get(holder.use.remote()) == 101
        assert not ended(pid)
        get(gate.open.remote())
        assert driver.finish() == 0
        assert driver.expect("last") == "last 102"
    wait_until(lambda: ended(pid), what="the end of what the other driver's actor held")
    fw.kill(counter)
