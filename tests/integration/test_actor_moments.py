"""Deaths of actors: one test for each moment of an actor's life at which it may happen.

Elsewhere: the end of its owner, handles on the way, generators and races (test_actor_races.py); the end of
the driver, with detached actors (test_detached.py); a constructor, or an argument of it, that fails
(test_actor_life.py).
"""

from __future__ import annotations

import gc
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

import framework as fw
from framework._base import limits
from framework.exceptions import ActorUnavailableError, TaskCancelledError
from support.actor_moments import Box, Owner, open_gate, opened, use
from support.actor_programs import end
from support.actor_watch import KINDS, begun, called, died, get, gone, inits, runs, start

pytestmark = [pytest.mark.integration, pytest.mark.slow]


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


def test_in_the_restart_it_dies_before_its_caller_has_judged_the_first_death(
    session: object, log: str
) -> None:
    """A process that it has forked keeps its socket open: the caller waits for what it may still have said,
    while the next incarnation ends, which had begun no call at all."""
    actor = start(log, ("", "die"), max_restarts=-1)
    child = get(actor.fork.remote())
    try:
        call = actor.hold.remote(1)
        called(log, 1)
        end(inits(log)[0])
        begun(log, 2)
        open_gate(log, 1)
        with pytest.raises(ActorUnavailableError):
            get(call)
    finally:
        end(child)
    assert get(actor.step.remote(2)) == 2 and runs(log, 1) == 1


@pytest.mark.parametrize("patience", ["patient", "impatient"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_told_late(
    session: object, log: str, kind: str, patience: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller sees the connection end; what that means, it hears later, perhaps after it has asked."""
    if patience == "impatient":
        monkeypatch.setattr(limits, "DEATH_VERDICT_TIMEOUT", 0.01)
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


def test_calls_that_wait_for_each_other_survive_many_deaths(session: object) -> None:
    """After some deaths all of them are suspects, and sent alone, but not for ever."""
    box = fw.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Box).remote()
    taking = [box.take.remote() for _ in range(3)]
    for _ in range(limits.SUSPECT_DEATHS + 1):
        pid = get(box.pid.remote())
        end(pid)
        gone(pid)
    assert fw.wait(taking, timeout=0)[0] == []
    for number in range(3):
        box.put.remote(number)
    assert sorted(get(taking)) == [0, 1, 2]
