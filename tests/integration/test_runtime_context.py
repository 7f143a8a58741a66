"""What running code can ask about where it runs."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest

import framework as fw
from framework.exceptions import ActorUnavailableError

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def get(what: Any) -> Any:
    return fw.get(what, timeout=20)


def facts() -> dict[str, Any]:
    context = fw.get_runtime_context()
    return {
        "job": context.get_job_id(),
        "node": context.get_node_id(),
        "worker": context.get_worker_id(),
        "task": context.get_task_id(),
        "name": context.get_task_name(),
        "actor": context.get_actor_id(),
        "actor_name": context.get_actor_name(),
        "namespace": context.namespace,
        "resources": context.get_assigned_resources(),
    }


@fw.remote
class Asked:
    def __init__(self) -> None:
        self.born = facts()

    def birth(self) -> dict[str, Any]:
        return self.born

    def facts(self) -> dict[str, Any]:
        return facts()

    def facts_in_a_thread(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: found.append(facts()))
        thread.start()
        thread.join()
        return found[0]

    def me(self) -> Any:
        return fw.get_runtime_context().current_actor

    def restarted(self) -> bool:
        return fw.get_runtime_context().was_current_actor_reconstructed

    def die(self) -> None:
        import os

        os._exit(1)


@fw.remote
class AsyncAsked:
    async def facts(self) -> dict[str, Any]:
        return facts()

    async def twice(self, n: int) -> int:
        return n * 2

    async def through_myself(self, n: int) -> int:
        return await fw.get_runtime_context().current_actor.twice.remote(n)  # type: ignore[no-any-return]

    def plain(self) -> dict[str, Any]:
        return facts()


def test_in_the_driver(session: Any) -> None:
    found = facts()
    assert found["task"] is None and found["name"] is None
    assert found["actor"] is None and found["actor_name"] is None
    assert found["resources"] == {}
    assert found["job"] == session["job_id"] and found["node"] == session["node_id"]
    assert found["namespace"] == session["namespace"]
    assert fw.nodes()[0]["NodeID"] == found["node"]
    with pytest.raises(RuntimeError, match="only available inside an actor"):
        _ = fw.get_runtime_context().current_actor


def test_in_a_task(session: object) -> None:
    ref = fw.remote(num_cpus=1, name="asking")(facts).remote()
    found, mine = get(ref), facts()
    assert found["task"] == ref.task_id().hex()
    assert found["name"] == "asking"
    assert found["actor"] is None
    assert found["resources"] == {"CPU": 1.0}
    assert found["worker"] != mine["worker"]
    assert (found["job"], found["node"], found["namespace"]) == (mine["job"], mine["node"], mine["namespace"])


def test_in_an_actor(session: object) -> None:
    actor = Asked.options(name="asked").remote()
    ref = actor.facts.remote()
    found = get(ref)
    assert found["actor"] == actor._actor_id.hex()
    assert found["actor_name"] == "asked"
    assert found["task"] == ref.task_id().hex()
    assert found["name"] == "Asked.facts"
    born = get(actor.birth.remote())
    assert born["actor"] == found["actor"] and born["name"] == "Asked.__init__"
    thread = get(actor.facts_in_a_thread.remote())
    assert thread["actor"] == found["actor"] and thread["task"] is None
    assert get(Asked.remote().facts.remote())["actor_name"] == ""


def test_in_an_async_actor_each_call_knows_itself(session: object) -> None:
    actor = AsyncAsked.remote()
    refs = [actor.facts.remote() for _ in range(10)] + [actor.plain.remote()]
    assert [found["task"] for found in get(refs)] == [ref.task_id().hex() for ref in refs]
    assert get(actor.through_myself.remote(4)) == 8


def test_current_actor(session: object) -> None:
    actor = Asked.remote()
    me = get(actor.me.remote())
    assert me == actor
    assert get(me.facts.remote())["actor"] == actor._actor_id.hex()


def test_resources_of_an_actor(session: object) -> None:
    actor = Asked.options(num_cpus=1).remote()
    assert get(actor.facts.remote())["resources"] == {"CPU": 1.0}
    assert get(actor.birth.remote())["resources"] == {"CPU": 1.0}
    del actor
    assert get(Asked.remote().facts.remote())["resources"] == {}


def test_was_reconstructed(session: object) -> None:
    actor = Asked.options(max_restarts=1).remote()
    assert get(actor.restarted.remote()) is False
    with pytest.raises(ActorUnavailableError):
        get(actor.die.remote())
    assert get(actor.restarted.remote()) is True


def task_id() -> str | None:
    return fw.get_runtime_context().get_task_id()


@fw.remote
class Keeper:
    def __init__(self) -> None:
        self.kept: list[tuple[str | None, contextvars.Context]] = []

    def call(self, keep: bool) -> str | None:
        if keep:
            self.kept.append((task_id(), contextvars.copy_context()))
        return task_id()

    def all_as_they_were(self) -> bool:
        return all(context.run(task_id) == own for own, context in self.kept)


def test_each_call_has_a_context_of_its_own_as_long_as_somebody_keeps_it(session: object) -> None:
    keeper = Keeper.remote()
    refs = [keeper.call.remote(number % 3 == 0) for number in range(30)]
    assert get(refs) == [ref.task_id().hex() for ref in refs]
    assert get(keeper.all_as_they_were.remote())
