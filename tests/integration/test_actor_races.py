"""Deaths of actors in relation to others: their owners, holders of handles that are on the way, consumers of
their streams, and whoever kills, cancels or looks them up at the same moment.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.exceptions import ActorDiedError, ActorUnavailableError, OwnerDiedError, TaskCancelledError
from support.actor_moments import Box, Owner, make_and_hold, open_gate, opened, use, use_many
from support.actor_programs import LIMIT, end, read
from support.actor_watch import KINDS, begun, called, died, get, gone, inits, runs, start
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


@pytest.fixture
def owner(session: object) -> Any:
    return fw.remote(num_cpus=0)(Owner).remote()


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


def test_kill_with_restart_races_with_the_news_of_the_start(session: object, log: str) -> None:
    """The head hears that an incarnation is up when it has been replaced: only that one is ended."""
    actor = start(log, max_restarts=-1)
    for incarnation in range(80):
        begun(log, incarnation)
        until = time.monotonic() + incarnation % 8 * 0.0004
        while time.monotonic() < until:  # at another point of the start each time
            pass
        fw.kill(actor, no_restart=False)
    assert get(actor.step.options(max_task_retries=-1).remote(1)) == 1


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
