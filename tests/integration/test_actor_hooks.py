"""What an actor class may define for its own life: a shutdown hook, and a pair to save and restore its
state."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework.actor import exit_actor
from framework.exceptions import ActorDiedError
from framework.util.state import store_stats
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LIMIT = 20


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


def content(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def wait_for(path: Path, text: str) -> None:
    wait_until(lambda: content(path) == text, 10, f"{path.name} to hold {text!r}")


# ---- the end -----------------------------------------------------------------------------------------------


class Plain:
    def __init__(self, path: str) -> None:
        self.path = path

    def ping(self) -> int:
        return os.getpid()

    def leave(self) -> None:
        exit_actor()

    def leave_by_exit(self) -> None:
        raise SystemExit(0)

    def __framework_shutdown__(self) -> None:
        with open(self.path, "a") as file:
            file.write("bye")


class Coroutines(Plain):
    async def wait(self) -> None:
        await asyncio.sleep(60)

    async def __framework_shutdown__(self) -> None:
        await asyncio.sleep(0.01)
        super().__framework_shutdown__()


class AsInRay(Plain):
    __framework_shutdown__ = None  # type: ignore[assignment]

    def __ray_shutdown__(self) -> None:
        super().__framework_shutdown__()


KINDS = {
    "sync": fw.remote(Plain),
    "threads": fw.remote(max_concurrency=3)(Plain),
    "async": fw.remote(Coroutines),
    "ray": fw.remote(AsInRay),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["scope", "exit_actor", "sys.exit", "terminate"])
def test_an_orderly_end_runs_the_hook_once(session: object, tmp_path: Path, kind: str, ending: str) -> None:
    path = tmp_path / "log"
    actor = KINDS[kind].remote(str(path))
    get(actor.ping.remote())
    if ending == "exit_actor":
        with pytest.raises(ActorDiedError, match="exit_actor"):
            get(actor.leave.remote())
    elif ending == "sys.exit":
        with pytest.raises(ActorDiedError, match="sys.exit"):
            get(actor.leave_by_exit.remote())
    elif ending == "terminate":
        get(actor.__ray_terminate__.remote())
    del actor
    gc.collect()
    wait_for(path, "bye")


def test_kill_does_not_run_it(session: object, tmp_path: Path) -> None:
    path = tmp_path / "log"
    actor = KINDS["sync"].remote(str(path))
    get(actor.ping.remote())
    fw.kill(actor)
    with pytest.raises(ActorDiedError):
        get(actor.ping.remote())
    assert content(path) == ""


def test_calls_that_wait_come_before_it(session: object, tmp_path: Path) -> None:
    @fw.remote
    class Writer:
        def __init__(self, path: str) -> None:
            self.path = path

        def write(self, text: str) -> None:
            with open(self.path, "a") as file:
                file.write(text)

        def __framework_shutdown__(self) -> None:
            self.write("end")

    path = tmp_path / "log"
    actor = Writer.remote(str(path))
    for i in range(50):
        actor.write.remote(f"{i} ")
    del actor
    wait_for(path, "".join(f"{i} " for i in range(50)) + "end")


def test_the_end_of_the_owner_runs_it(session: object, tmp_path: Path) -> None:
    """An actor made by another actor ends with it, and in order."""
    path = tmp_path / "log"

    @fw.remote
    class Parent:
        def __init__(self, path: str) -> None:
            self.child = KINDS["sync"].remote(path)

        def child_pid(self) -> int:
            return fw.get(self.child.ping.remote())

        def die(self) -> None:
            os._exit(1)

    parent = Parent.remote(str(path))
    get(parent.child_pid.remote())
    with pytest.raises(ActorDiedError):
        get(parent.die.remote())
    wait_for(path, "bye")


# ---- saved state -------------------------------------------------------------------------------------------


class Tally:
    """A counter that remembers."""

    def __init__(self, start: int = 0) -> None:
        self.value = start
        self.restored = False

    def inc(self) -> int:
        self.value += 1
        return self.value

    def fail(self) -> None:
        self.value += 100
        raise ValueError("not counted")

    def facts(self) -> tuple[int, bool, int]:
        return self.value, self.restored, os.getpid()

    def save_now(self) -> None:
        fw.get_runtime_context().save_actor_state()

    def __framework_save__(self) -> Any:
        return self.value

    def __framework_restore__(self, state: Any) -> None:
        self.value, self.restored = state, True


class AsyncTally(Tally):
    async def inc_async(self) -> int:
        return self.inc()

    async def save_now_async(self) -> None:
        await fw.get_runtime_context().save_actor_state_async()

    async def __framework_save__(self) -> Any:
        await asyncio.sleep(0)
        return self.value

    async def __framework_restore__(self, state: Any) -> None:
        await asyncio.sleep(0)
        super().__framework_restore__(state)


def crash(actor: Any) -> None:
    """End its process and wait for the next."""
    pid = get(actor.facts.remote())[2]
    os.kill(pid, signal.SIGKILL)

    def restarted() -> bool:
        try:
            return bool(get(actor.facts.remote())[2] != pid)
        except fw.exceptions.ActorUnavailableError:
            return False

    wait_until(restarted, 10, "the restart")


@pytest.mark.parametrize("cls", [Tally, AsyncTally])
def test_what_callers_have_heard_of_survives(session: object, cls: type) -> None:
    actor = fw.remote(max_restarts=-1, save_every=1)(cls).remote(5)
    for expected in range(6, 16):
        assert get(actor.inc.remote()) == expected
        if expected % 4 == 0:
            crash(actor)
    assert get(actor.facts.remote())[:2] == (15, True)


def test_threads_save_too(session: object) -> None:
    actor = fw.remote(max_restarts=1, save_every=1, max_concurrency=2)(Tally).remote()
    assert get(actor.inc.remote()) == 1
    crash(actor)
    assert get(actor.facts.remote())[:2] == (1, True)


def test_every_third_call(session: object) -> None:
    actor = fw.remote(max_restarts=-1, save_every=3)(Tally).remote()
    get([actor.inc.remote() for _ in range(8)])
    os.kill(get(actor.facts.remote())[2], signal.SIGKILL)  # the ninth call: saves 8
    wait_until(lambda: _value(actor) == (8, True), 10, "the restored state")


def _value(actor: Any) -> tuple[int, bool] | None:
    try:
        value, restored, _ = get(actor.facts.remote())
    except fw.exceptions.ActorUnavailableError:
        return None
    return value, restored


def test_calls_that_failed_do_not_count(session: object) -> None:
    actor = fw.remote(max_restarts=-1, save_every=1)(Tally).remote()
    get(actor.inc.remote())
    pid = get(actor.facts.remote())[2]
    with pytest.raises(ValueError, match="not counted"):
        get(actor.fail.remote())
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _value(actor) == (1, True), 10, "the state before the failure")


@pytest.mark.parametrize("cls", [Tally, AsyncTally])
def test_saving_when_asked(session: object, cls: type) -> None:
    actor = fw.remote(max_restarts=-1)(cls).remote()
    get([actor.inc.remote() for _ in range(3)])
    get(actor.save_now.remote() if cls is Tally else actor.save_now_async.remote())
    get([actor.inc.remote() for _ in range(3)])
    crash(actor)
    assert get(actor.facts.remote())[:2] == (3, True)


def test_without_a_saved_state_nothing_is_restored(session: object) -> None:
    actor = fw.remote(max_restarts=-1)(Tally).remote(7)
    get(actor.inc.remote())
    crash(actor)
    assert get(actor.facts.remote())[:2] == (7, False)


def test_a_large_state_goes_through_the_store_and_is_freed(session: object) -> None:
    @fw.remote(max_restarts=-1, save_every=1)
    class Field(Tally):
        def __init__(self) -> None:
            super().__init__()
            self.field = np.zeros(100_000)

        def grow(self) -> float:
            self.field += 1
            return float(self.field.sum())

        def __framework_save__(self) -> Any:
            return self.field

        def __framework_restore__(self, state: Any) -> None:
            assert state.flags.writeable
            self.field, self.restored = state, True

    before = store_stats()["objects"]
    actor = Field.remote()
    for n in range(1, 4):
        assert get(actor.grow.remote()) == n * 100_000
    crash(actor)
    assert get(actor.grow.remote()) == 400_000
    assert store_stats()["objects"] <= before + 1
    fw.kill(actor)
    del actor
    wait_until(lambda: store_stats()["objects"] == before, 10, "the state to be freed")


def test_a_state_that_holds_references_is_refused(session: object) -> None:
    @fw.remote(save_every=1)
    class Holder(Tally):
        def __framework_save__(self) -> Any:
            return {"ref": fw.put(1)}

    with pytest.raises(TypeError, match="holds 1 reference"):
        get(Holder.remote().inc.remote())


def test_a_hook_that_fails_fails_the_call(session: object) -> None:
    @fw.remote(save_every=1)
    class Broken(Tally):
        def __framework_save__(self) -> Any:
            raise LookupError("nothing to save")

    with pytest.raises(LookupError, match="nothing to save"):
        get(Broken.remote().inc.remote())


def test_a_class_without_the_hooks_is_refused_at_once(session: object) -> None:
    class Half:
        def __framework_save__(self) -> Any:
            return 1

    with pytest.raises(TypeError, match="has no __framework_restore__"):
        fw.remote(save_every=2)(Half).remote()
    with pytest.raises(ValueError, match="save_every"):
        fw.remote(save_every=0)(Half)


def test_saving_outside_of_an_actor(session: object) -> None:
    with pytest.raises(RuntimeError, match="not in an actor"):
        fw.get_runtime_context().save_actor_state()
