"""Actors: state, order, errors of calls and constructors, output, resources."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
from typing import Any

import pytest

import framework as fw
from framework.actor import ActorClass
from framework.exceptions import (
    PendingCallsLimitExceeded,
)
from support.actors import LIMIT, Counter, Gate, Recorder, get, later
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


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


def test_an_exception_in_a_method_leaves_the_actor_alive(session: object) -> None:
    counter = Counter.remote()
    with pytest.raises(KeyError, match="lost") as caught:
        get(counter.fail.remote("lost"))
    assert "Counter" in str(caught.value) and "raise KeyError(text)" in str(caught.value)
    assert get(counter.inc.remote()) == 1


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
