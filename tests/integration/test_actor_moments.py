"""Deaths of actors: one test for each moment at which it may happen.

Elsewhere: the driver's end with detached actors (test_detached.py); a constructor, or an argument of it, that
fails (test_actor_life.py).
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import framework as fw
from framework.exceptions import ActorDiedError, ActorUnavailableError, OwnerDiedError, TaskCancelledError
from support.actor_moments import (
    AsyncSubject,
    Box,
    Owner,
    Subject,
    make_and_hold,
    open_gate,
    opened,
    use,
    use_many,
)
from support.actor_programs import LIMIT, end, read
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

KINDS = ["sync", "async", "threads"]


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


def start(log: str, *args: Any, kind: str = "sync", **options: Any) -> Any:
    if kind == "threads":
        options["max_concurrency"] = 3
    cls: Any = AsyncSubject if kind == "async" else Subject
    return fw.remote(num_cpus=0)(cls).options(**options).remote(log, *args)


def inits(log: str) -> list[int]:
    """The pids of all incarnations so far."""
    return [int(line[2]) for line in read(log) if line[0] == "init"]


def runs(log: str, number: object) -> int:
    return sum(line[:2] == ["call", str(number)] for line in read(log))


def begun(log: str, incarnation: int) -> int:
    """Wait for the constructor of this incarnation to begin; its pid."""
    wait_until(lambda: len(inits(log)) > incarnation, LIMIT, f"incarnation {incarnation}")
    return inits(log)[incarnation]


def called(log: str, number: object, times: int = 1) -> None:
    wait_until(lambda: runs(log, number) >= times, LIMIT, f"call {number}")


def gone(pid: int) -> None:
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), LIMIT, f"the end of process {pid}")


def died(ref: Any, match: str) -> None:
    with pytest.raises(ActorDiedError, match=match):
        get(ref)


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


@pytest.fixture
def owner(session: object) -> Any:
    return fw.remote(num_cpus=0)(Owner).remote()


# ---- before its creation -----------------------------------------------------------------------------


def test_before_creation_the_owner_of_a_pending_argument_dies(owner: Any, log: str) -> None:
    [argument] = get(owner.pending.remote(log + ".never"))
    actor = start(log, (), argument)
    calls = [actor.step.remote(1), use.remote([actor], 2)]
    end(get(owner.pid.remote()))
    for call in calls:
        died(call, "argument of its constructor has failed")
    assert not inits(log)


def test_before_creation_its_own_owner_dies(owner: Any, log: str) -> None:
    actor = get(owner.make_of.remote(log, log + ".never"))
    calls = [actor.step.remote(1), use.remote([actor], 2)]
    end(get(owner.pid.remote()))
    for call in calls:
        died(call, "its owner, the process that created it, has ended")
    assert not inits(log)


def test_before_creation_its_argument_is_cancelled(session: object, log: str) -> None:
    argument = opened.remote(log + ".never")
    actor = start(log, (), argument)
    calls = [actor.step.remote(1), use.remote([actor], 2)]
    fw.cancel(argument)
    for call in calls:
        died(call, "argument of its constructor has failed")
    with pytest.raises(TaskCancelledError):
        get(argument)
    assert not inits(log)


def test_before_creation_it_waits_for_what_a_dying_actor_holds(session: object, log: str) -> None:
    holder = start(log + "-holder", num_cpus=2)
    pid = get(holder.pid.remote())
    actor = start(log, num_cpus=2)
    call = actor.step.remote(1)
    assert fw.wait([call], timeout=0.05)[0] == [] and not inits(log)
    end(pid)
    assert get(call) == 1


def test_before_creation_its_owner_dies_while_there_are_no_resources(owner: Any, log: str) -> None:
    holder = start(log + "-holder", num_cpus=2)
    get(holder.pid.remote())
    actor = get(owner.make.remote(log, {"num_cpus": 1}))
    call = actor.step.remote(1)
    end(get(owner.pid.remote()))
    died(call, "its owner")
    fw.kill(holder)
    assert get(start(log + "-next", num_cpus=2).step.remote(2)) == 2, "nothing is kept for the dead one"
    assert not inits(log)


# ---- during its constructor --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_constructor_its_process_dies(session: object, log: str, kind: str) -> None:
    actor = start(log, ("die",), kind=kind, max_restarts=1)
    assert get([actor.step.remote(n) for n in range(3)]) == [0, 1, 2], (
        "they had not begun: no retry is needed"
    )
    assert len(inits(log)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_constructor_its_process_dies_for_good(session: object, log: str, kind: str) -> None:
    actor = start(log, ("die",), kind=kind)
    for call in [actor.step.remote(n) for n in range(3)]:
        died(call, "SIGKILL")
    assert len(inits(log)) == 1 and not runs(log, 0)


def test_in_the_constructor_it_hangs_and_is_killed(session: object, log: str) -> None:
    actor = start(log, ("hang",), max_restarts=-1)
    calls = [actor.step.remote(n) for n in range(3)]
    pid = begun(log, 0)
    fw.kill(actor)
    for call in calls:
        died(call, r"kill\(\)")
    gone(pid)
    assert len(inits(log)) == 1


def test_in_the_constructor_it_hangs_and_is_killed_to_be_restarted(session: object, log: str) -> None:
    actor = start(log, ("hang", "hang"), max_restarts=2)
    calls = [actor.step.remote(n) for n in range(3)]
    for incarnation in range(2):
        begun(log, incarnation)
        fw.kill(actor, no_restart=False)
    assert get(calls) == [0, 1, 2]
    for pid in inits(log)[:2]:
        gone(pid)
    assert len(inits(log)) == 3


def test_in_the_constructor_its_last_handle_goes(session: object, log: str) -> None:
    actor = start(log, ("hang",))
    pid = begun(log, 0)
    del actor
    gc.collect()
    gone(pid)


def test_in_the_constructor_its_owner_dies(owner: Any, log: str) -> None:
    actor = get(owner.make.remote(log, {"max_restarts": -1}, ("hang",)))
    call = actor.step.remote(1)
    pid = begun(log, 0)
    end(get(owner.pid.remote()))
    died(call, "its owner")
    gone(pid)
    assert len(inits(log)) == 1


# ---- between receipt and reply -----------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_while_a_call_runs(session: object, log: str, kind: str, retries: int) -> None:
    actor = start(log, kind=kind, max_restarts=1, max_task_retries=retries)
    call = actor.hold.remote(7)
    called(log, 7)
    end(inits(log)[0])
    if retries:
        called(log, 7, 2)
        open_gate(log, 7)
        assert get(call) == 7 and runs(log, 7) == 2
    else:
        with pytest.raises(ActorUnavailableError, match="SIGKILL"):
            get(call)
        assert get(actor.step.remote(8)) == 8
        assert runs(log, 7) == 1


@pytest.mark.parametrize("retries", [0, -1])
def test_while_its_reply_is_buffered(session: object, log: str, retries: int) -> None:
    """Replies of short calls wait for company: those of the calls just before the death may be lost. They
    have run, and without retries do not run again."""
    actor = start(log, max_restarts=-1, max_task_retries=retries)
    for turn in range(5):
        held = actor.hold.remote(f"h{turn}")
        called(log, f"h{turn}")
        numbers = [f"{turn}.{n}" for n in range(5)]
        calls = [actor.step.remote(number) for number in numbers]
        last = actor.strike.options(max_task_retries=0).remote()
        after = actor.step.remote(f"after{turn}")
        open_gate(log, f"h{turn}")
        with pytest.raises(ActorUnavailableError):
            get(last)
        assert get(after) == f"after{turn}", "it had not begun"
        for number, call in zip(numbers, calls, strict=True):
            try:
                assert get(call) == number
            except ActorUnavailableError:
                assert retries == 0
            assert runs(log, number) == 1 or (retries and runs(log, number) == 2)
        try:
            get(held)
        except ActorUnavailableError:
            assert retries == 0
        assert runs(log, f"after{turn}") == 1


# ---- between a reply and the next call ---------------------------------------------------------------


def test_between_a_reply_and_the_next_call(session: object, log: str) -> None:
    """Whether the caller has heard of the death or not: what it calls now has not begun, and is free."""
    actor = start(log, max_restarts=-1)
    for number in range(8):
        pid = get(actor.pid.remote())
        end(pid)
        assert get(actor.step.remote(number)) == number
        assert runs(log, number) == 1


@pytest.mark.parametrize("kind", ["async", "threads"])
def test_between_a_reply_and_the_next_call_of_a_concurrent_actor(
    session: object, log: str, kind: str
) -> None:
    """Here nobody knows what had begun: at most once without retries, at least once with them."""
    actor = start(log, kind=kind, max_restarts=-1)
    for number in range(8):
        end(get(actor.pid.options(max_task_retries=-1).remote()))
        try:
            assert get(actor.step.remote(number)) == number
        except ActorUnavailableError:
            assert runs(log, number) == 0
        end(get(actor.pid.options(max_task_retries=-1).remote()))
        assert get(actor.step.options(max_task_retries=-1).remote(f"r{number}")) == f"r{number}"
        assert runs(log, number) <= 1


# ---- during a restart --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["signal", "kill"])
@pytest.mark.parametrize("kind", KINDS)
def test_during_the_restart_it_is_killed_again(session: object, log: str, kind: str, how: str) -> None:
    actor = start(log, ("", "hang", "hang"), kind=kind, max_restarts=3)
    end(get(actor.pid.remote()))
    pid = begun(log, 1)
    calls = [actor.step.remote(n) for n in range(3)]
    for incarnation in (2, 3):
        if how == "signal":
            end(pid)
        else:
            fw.kill(actor, no_restart=False)
        pid = begun(log, incarnation)
    assert get(calls) == [0, 1, 2]
    assert [runs(log, n) for n in range(3)] == [1, 1, 1]


def test_during_the_restart_it_dies_for_the_last_time(session: object, log: str) -> None:
    actor = start(log, ("", "hang"), max_restarts=1)
    end(get(actor.pid.remote()))
    pid = begun(log, 1)
    calls = [actor.step.remote(1), use.remote([actor], 2)]
    end(pid)
    for call in calls:
        died(call, r"SIGKILL.*restarted 1 time\(s\) \(max_restarts=1\)")


def test_during_the_restart_it_is_killed_for_good(session: object, log: str) -> None:
    actor = start(log, ("", "hang"), max_restarts=-1)
    end(get(actor.pid.remote()))
    pid = begun(log, 1)
    calls = [actor.step.remote(1), use.remote([actor], 2)]
    fw.kill(actor)
    for call in calls:
        died(call, r"kill\(\)")
    gone(pid)
    assert len(inits(log)) == 2


def test_during_the_restart_its_last_handle_goes(session: object, log: str) -> None:
    actor = start(log, ("", "hang"), max_restarts=-1)
    end(get(actor.pid.remote()))
    pid = begun(log, 1)
    del actor
    gc.collect()
    gone(pid)
    assert len(inits(log)) == 2


def test_in_the_restart_its_constructor_raises(session: object, log: str) -> None:
    actor = start(log, ("", "raise"), max_restarts=-1, max_task_retries=-1)
    end(get(actor.pid.remote()))
    for call in [actor.step.remote(1), use.remote([actor], 2)]:
        died(call, "incarnation 1 cannot start")
    assert len(inits(log)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_told_late(session: object, log: str, kind: str) -> None:
    """The caller sees the connection end; what that means, it hears later."""
    actor = start(log, kind=kind, max_restarts=1)
    pid = get(actor.pid.remote())
    node = psutil.Process(pid).parent().parent()
    assert "framework._node" in " ".join(node.cmdline())
    node.send_signal(signal.SIGSTOP)
    try:
        end(pid)
        calls = [actor.step.remote(n) for n in range(3)]
        assert fw.wait(calls, num_returns=3, timeout=0.2)[0] == []
    finally:
        node.send_signal(signal.SIGCONT)
    try:
        assert get(calls) == [0, 1, 2]
    except ActorUnavailableError:
        assert kind != "sync", "it can be known that they had not begun"
    assert max(runs(log, n) for n in range(3)) <= 1


# ---- its owner goes ----------------------------------------------------------------------------------


def test_the_worker_of_the_task_that_made_it_dies(session: object, log: str) -> None:
    box = fw.remote(num_cpus=0)(Box).remote()
    making = make_and_hold.remote(log, box)
    actor, detached, owner = get(box.take.remote())
    pid, detached_pid = get([actor.pid.remote(), detached.pid.remote()])
    call = actor.hold.remote(1)
    called(log, 1)
    end(owner)
    with pytest.raises(fw.exceptions.WorkerCrashedError):
        get(making)
    for ref in (call, actor.step.remote(2)):
        died(ref, "its owner, the process that created it, has ended")
    gone(pid)
    assert get(fw.get_actor(log, "moments").pid.remote()) == detached_pid
    assert get(detached.step.remote(3)) == 3
    fw.kill(detached)


def test_the_actor_that_made_it_dies_and_is_restarted(session: object, log: str) -> None:
    owner = fw.remote(num_cpus=0, max_restarts=1, max_task_retries=1)(Owner).remote()
    actor = get(owner.make.remote(log, {"max_restarts": -1, "max_task_retries": -1}))
    pid = get(actor.pid.remote())
    call = actor.hold.remote(1)
    called(log, 1)
    end(get(owner.pid.remote()))
    died(call, "its owner")
    gone(pid)
    again = get(owner.make.remote(log + "-2", {}))
    assert get(again.step.remote(1)) == 1, "the next incarnation makes actors of its own"
    died(actor.step.remote(2), "its owner")
    assert len(inits(log)) == 1


# ---- its handle is on the way ------------------------------------------------------------------------


def test_its_handle_is_in_a_queued_task_when_it_dies(session: object, log: str) -> None:
    actor = start(log)
    pid = get(actor.pid.remote())
    waiting = use.remote([actor], 1, opened.remote(log + ".open"))
    end(pid)
    died(actor.step.remote(2), "SIGKILL")
    open_gate(log, "open")
    died(waiting, "SIGKILL")


def test_its_handle_is_in_a_queued_task_when_its_last_other_handle_goes(session: object, log: str) -> None:
    actor = start(log)
    pid = get(actor.pid.remote())
    waiting = use.remote([actor], 1, opened.remote(log + ".open"))
    del actor
    gc.collect()
    get(use.remote([start(log + "-other")], 1))  # a turn of everything that could end it
    assert os.path.exists(f"/proc/{pid}")
    open_gate(log, "open")
    assert get(waiting) == 1
    del waiting
    gone(pid)


def test_its_handle_is_in_a_queued_task_that_is_cancelled(session: object, log: str) -> None:
    actor = start(log)
    pid = get(actor.pid.remote())
    waiting = use.remote([actor], 1, opened.remote(log + ".never"))
    del actor
    fw.cancel(waiting)
    with pytest.raises(TaskCancelledError):
        get(waiting)
    gc.collect()
    gone(pid)


def test_its_handle_is_in_a_result_when_its_owner_dies(owner: Any, log: str) -> None:
    result = owner.make.remote(log, {})
    assert fw.wait([result], timeout=LIMIT, fetch_local=False)[0]
    pid = begun(log, 0)
    end(get(owner.pid.remote()))
    gone(pid)
    died(get(result).step.remote(1), "its owner|no such actor")


def test_its_handle_is_in_a_stored_object_when_it_dies(session: object, log: str) -> None:
    actor = start(log)
    box = fw.put({"large": bytes(300_000), "handle": actor})
    pid = get(actor.pid.remote())
    del actor
    end(pid)
    gone(pid)
    died(get(box)["handle"].step.remote(1), "SIGKILL")


def test_its_handle_is_in_an_object_whose_owner_dies(owner: Any, log: str) -> None:
    """The object is lost, and with its owner the actor."""
    nested = get(fw.remote(num_cpus=0)(lambda owner, log: [owner.make.remote(log, {})]).remote(owner, log))
    pid = begun(log, 0)
    end(get(owner.pid.remote()))
    gone(pid)
    with pytest.raises((OwnerDiedError, ActorDiedError)):
        get(get(nested[0]).step.remote(1))


# ---- a generator method ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("retries", [0, 1])
def test_in_a_generator(session: object, log: str, kind: str, retries: int) -> None:
    """With retries each item arrives once, in order; without, those that were made, then the error."""
    actor = start(log, kind=kind, max_restarts=1, max_task_retries=retries)
    stream = actor.stream.options(num_returns="streaming").remote(10, 4)
    taken = [get(next(stream)) for _ in range(4)]
    open_gate(log, "taken")
    if retries:
        assert taken + [get(ref) for ref in stream] == list(range(10))
        assert sum(line[0] == "item" for line in read(log)) == 14
    else:
        with pytest.raises(ActorUnavailableError):
            for ref in stream:
                get(ref)
        assert taken == [0, 1, 2, 3] and sum(line[0] == "item" for line in read(log)) == 4
    assert get(actor.step.remote(1)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_generator_for_good(session: object, log: str, kind: str) -> None:
    actor = start(log, kind=kind)
    stream = actor.stream.options(num_returns="streaming").remote(10, 4)
    open_gate(log, "taken")
    taken = []
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        for ref in stream:
            taken.append(get(ref))
    assert taken == list(range(len(taken))) and len(taken) <= 4


# ---- races -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_cancel_races_with_completion(session: object, log: str, kind: str) -> None:
    actor = start(log, kind=kind)
    outcomes = []
    for number in range(60):
        call = actor.step.remote(number)
        if number % 3:
            called(log, number)  # it has run, and its reply is on its way
        fw.cancel(call)
        try:
            assert get(call) == number
            outcomes.append("value")
        except TaskCancelledError:
            outcomes.append("cancelled")
        assert runs(log, number) <= 1
    assert get(actor.step.remote("last")) == "last", "no cancel hits a later call"
    assert len(inits(log)) == 1 and "value" in outcomes


@pytest.mark.parametrize("first", ["signal", "kill"])
def test_kill_races_with_a_restart(session: object, tmp_path: Path, first: str) -> None:
    for turn in range(8):
        log = str(tmp_path / f"log{turn}")
        actor = start(log, max_restarts=-1, max_task_retries=-1, name=f"races-{first}-{turn}")
        pid = get(actor.pid.remote())
        strike: list[Callable[[], Any]] = [lambda: end(pid), lambda: fw.kill(actor)]  # noqa: B023
        for blow in strike if first == "signal" else reversed(strike):
            blow()
            if turn % 2:
                begun(log, 0)
        died(actor.step.remote(1), r"kill\(\)")
        with pytest.raises(ValueError, match="no actor named"):
            fw.get_actor(f"races-{first}-{turn}")
        for found in inits(log):
            gone(found)
        assert len(inits(log)) <= 2 and runs(log, 1) == 0


def test_kill_with_restart_races_with_a_death(session: object, log: str) -> None:
    """Twice is as once, or as twice; the actor is there afterwards, and its calls are made."""
    actor = start(log, max_restarts=-1)
    for number in range(8):
        end(get(actor.pid.options(max_task_retries=-1).remote()))
        fw.kill(actor, no_restart=False)
        assert get(actor.step.options(max_task_retries=-1).remote(number)) == number
    assert len(inits(log)) <= 17


def test_lookup_races_with_death(session: object, tmp_path: Path) -> None:
    """A name leads to a living actor or to none; nobody waits for ever."""
    name, over, problems, found = "looked-up", threading.Event(), [], []

    def look() -> None:
        while not over.is_set():
            try:
                found.append(get(fw.get_actor(name).step.remote(1)))
            except (ValueError, ActorDiedError):
                pass
            except BaseException as error:
                problems.append(error)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(12):
            actor = start(str(tmp_path / f"log{turn}"), name=name, get_if_exists=turn % 2 == 0)
            pid = get(actor.pid.remote())
            count = len(found)
            wait_until(lambda: len(found) > count or problems, LIMIT, "a lookup")  # noqa: B023
            if turn % 3:
                fw.kill(actor)
            else:
                end(pid)
                died(actor.step.remote(2), "SIGKILL")
            with pytest.raises(ValueError, match="no actor named"):
                fw.get_actor(name)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert problems == [] and set(found) == {1}


@pytest.mark.parametrize("restarts", [0, -1])
@pytest.mark.parametrize("kind", KINDS)
def test_exit_actor_races_with_the_calls_of_several_callers(
    session: object, log: str, kind: str, restarts: int
) -> None:
    actor = start(log, kind=kind, max_restarts=restarts, max_task_retries=restarts)
    get(actor.pid.remote())
    callers = [use_many.remote(actor, log, caller, 40) for caller in "abc"]
    called(log, "a0")
    leaving = actor.leave.remote()
    mine = [actor.step.remote(f"d{number}") for number in range(40)]
    died(leaving, r"exit_actor\(\)")
    for call in mine:
        if kind == "sync":
            died(call, r"exit_actor\(\)")
    for caller, outcomes in zip("abc", get(callers), strict=True):
        for number, outcome in enumerate(outcomes):
            assert outcome == "value" or (outcome.startswith("ActorDied") and "exit_actor()" in outcome), (
                outcome
            )
            assert outcome != "value" or runs(log, f"{caller}{number}") == 1
        if kind == "sync":
            assert outcomes == sorted(outcomes, reverse=True), "values first, in the order of the calls"
    died(actor.step.remote(1), r"exit_actor\(\)")
    assert len(inits(log)) == 1
