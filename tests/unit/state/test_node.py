"""Ledger, queue and pool of a node."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from framework._base import limits
from framework._base.resources import UNIT
from framework._state.node import IDLE, Allocation, NodeState, Worker

JOB = b"\1\0\0\0"
ENV = (("A", "1"),)


def node(cpus: float = 2, **more: float) -> NodeState:
    units = {"CPU": cpus, **more}
    return NodeState({name: round(amount * UNIT) for name, amount in units.items()}, "ab" * 28)


def up(state: NodeState, name: bytes, env: Any = ()) -> list[Any]:
    return state.worker_up(Worker(name, 1, "a", env, None), 0.0)


def grants(commands: list[Any]) -> list[Allocation]:
    return [command[3] for command in commands if command[0] == "grant"]


def cpus(amount: float = 1) -> dict[str, int]:
    return {"CPU": round(amount * UNIT)}


def test_a_demand_starts_workers_and_is_granted_when_they_are_up() -> None:
    state = node()
    state.describe_key("owner", 1, cpus(), (), JOB)
    assert state.demand("owner", 1, 5, 0) == [("start", ()), ("start", ())]
    assert state.available == {"CPU": 0}
    assert state.demand("owner", 1, 5, 0) == [], "saying it twice changes nothing"
    (granted,) = grants(up(state, b"w1"))
    assert granted.worker is state.workers[b"w1"]
    assert len(grants(up(state, b"w2"))) == 1
    (again,) = grants(state.lease_returned(granted.lease_id, "owner", 1.0))
    assert again.worker is state.workers[b"w1"]


def test_a_key_that_an_owner_has_forgotten() -> None:
    state = node(1)
    for key in (1, 2):
        state.describe_key("owner", key, cpus(), (), JOB)
    state.demand("owner", 1, 1, 0)
    (lease,) = grants(up(state, b"w1"))
    state.demand("owner", 2, 1, 0)
    assert state.forget_keys("owner", [2, 7]) == []
    assert list(state.demands) == [("owner", 1)]
    assert not state.unmet
    assert state.forget_keys("owner", [1]) == [], "what was granted stays so"
    assert state.lease_returned(lease.lease_id, "owner", 1.0) == []
    assert (state.demands, state.busy()) == ({}, 0)


def test_idle_workers_of_a_job_that_has_ended_are_replaced() -> None:
    state = node(4)
    state.prestart(2)
    for name in (b"used", b"busy", b"fresh"):
        up(state, name)
    state.workers[b"used"].job = state.workers[b"busy"].job = JOB
    state.workers[b"busy"].state = "leased"
    idle, commands = state.job_ended(JOB, 2)
    assert [worker.worker_id for worker in idle] == [b"used"]
    assert commands == [("start", ())], "with the fresh one, two for the next job"
    assert state.job_ended(JOB, 2)[1] == [], "that one is under way"
    assert state.job_ended(b"another", 2) == ([], [])


def test_a_retired_worker_holds_nothing_and_gets_nothing() -> None:
    state = node(1)
    state.describe_key("owner", 1, cpus(), (), JOB)
    state.demand("owner", 1, 2, 0)
    (lease,) = grants(up(state, b"w1"))
    over, commands = state.worker_retired(b"w1")
    assert over is lease
    assert state.available == {"CPU": 0}, "the next one has it"
    assert commands == [("start", ())], "in another worker"
    assert state.blocked(b"w1") == []
    assert len(grants(up(state, b"w2"))) == 1
    assert state.worker_retired(b"w1") == (None, []), "twice is as once"
    assert state.lease_returned(lease.lease_id, "owner", 1.0) == []
    assert state.busy() == 1
    assert state.owner_gone("owner")[0] == [state.workers[b"w2"]]
    assert state.surplus(99.0, 0, 1.0) == [], "it ends by itself"
    assert [worker.worker_id for worker in state.job_ended(JOB, 0)[0]] == [b"w1"]
    assert state.worker_gone(b"w1")[0] is None


def test_a_worker_that_was_killed_gets_nothing_more() -> None:
    """Its lease may be returned before its end is seen: whoever got it then would die with it."""
    state = node(1)
    state.describe_key("owner", 1, cpus(), (), JOB)
    state.demand("owner", 1, 2, 0)
    (lease,) = grants(up(state, b"w1"))
    state.workers[b"w1"].ending = True
    commands = state.lease_returned(lease.lease_id, "owner", 1.0)
    assert commands == [("start", ())], "another process for the next lease"
    assert state.worker_gone(b"w1") == (None, [])
    (other,) = grants(up(state, b"w2"))
    assert other.worker is state.workers[b"w2"]


def test_an_actor_gets_a_worker_that_has_served_nobody() -> None:
    """It ends with the actor, and what others hold of what earlier tasks have made there would end too."""
    state = node(2)
    state.describe_key("owner", 1, cpus(), (), JOB)
    state.demand("owner", 1, 1, 0)
    (lease,) = grants(up(state, b"used"))
    assert state.place_actor(b"actor", cpus(0), (), JOB) == [("start", ())]
    assert state.lease_returned(lease.lease_id, "owner", 1.0) == [], "it is not for the actor that waits"
    ((word, actor, allocation),) = up(state, b"fresh")
    assert (word, actor, allocation.worker) == ("run_actor", b"actor", state.workers[b"fresh"])
    assert state.place_actor(b"another", cpus(0), (), JOB) == [("start", ())]
    (again,) = grants(state.demand("owner", 1, 1, 1))
    assert again.worker is state.workers[b"used"]


def test_a_returned_worker_goes_to_its_own_job() -> None:
    state = node(1)
    for owner, job in (("a", JOB), ("b", b"\2\0\0\0")):
        state.describe_key(owner, 1, cpus(), (), job)
    state.demand("a", 1, 1, 0)
    (lease,) = grants(up(state, b"w1"))
    assert state.demand("b", 1, 1, 0) == [("pressure", "a")]
    assert ("start", ()) in state.lease_returned(lease.lease_id, "a", 1.0)
    (other,) = grants(up(state, b"w2"))
    assert (other.owner, other.worker) == ("b", state.workers[b"w2"])


def test_who_waits_for_more_of_a_kind_is_not_asked_to_give_back_what_it_has_of_it() -> None:
    state = node(1)
    for key in (1, 2):
        state.describe_key("a", key, cpus(), (), JOB)
    state.demand("a", 1, 1, 0)
    grants(up(state, b"w1"))
    assert state.demand("a", 1, 5, 1) == []
    assert state.demand("a", 2, 1, 0) == [("pressure", "a")], "it may be idle, and wanted for the other"


def test_owners_take_turns() -> None:
    state = node(4)
    for owner in ("a", "b"):
        state.describe_key(owner, 1, cpus(), (), JOB)
    for name in (b"1", b"2", b"3", b"4"):
        up(state, name)
    state.available["CPU"] = 0
    state.demand("a", 1, 10, 0)
    state.demand("b", 1, 10, 0)
    state.available["CPU"] = 4 * UNIT
    assert sorted(allocation.owner for allocation in grants(state.schedule())) == ["a", "a", "b", "b"]


def test_a_blocked_worker_lends_its_cpus_and_takes_them_back() -> None:
    state = node(1)
    up(state, b"w1")
    state.describe_key("owner", 1, cpus(), (), JOB)
    state.demand("owner", 1, 1, 0)
    assert state.available["CPU"] == 0
    state.demand("owner", 1, 2, 1)
    assert ("start", ()) in state.blocked(b"w1")
    assert state.available["CPU"] == 0, "lent to the next"
    assert state.blocked(b"w1") == []
    state.unblocked(b"w1")
    state.unblocked(b"w1")
    assert state.available["CPU"] == -UNIT


def test_impossible_demands_are_refused_with_a_reason() -> None:
    state = node(2, tape=1)
    for key, units, text in (
        (1, cpus(3), "CPU"),
        (2, {"unicorn": 1}, "unicorn"),
        (3, {"tape": 2 * UNIT}, "tape"),
    ):
        state.describe_key("owner", key, units, (), JOB)
        ((word, owner, told, why),) = state.demand("owner", key, 1, 0)
        assert (word, owner, told) == ("infeasible", "owner", key)
        assert f"not enough: {text}" in why
    assert state.available == state.total


def test_strategies() -> None:
    state = node()
    here, elsewhere = "ab" * 28, "cd" * 28
    assert state.never(cpus(), None) is None
    assert state.never(cpus(), ["SPREAD"]) is None
    assert state.never(cpus(), ["node", here, False]) is None
    assert state.never(cpus(), ["node", elsewhere, True]) is None
    assert elsewhere in (state.never(cpus(), ["node", elsewhere, False]) or "")
    assert "labels" in (state.never(cpus(), ["labels", {"a": ["in", ["b"]]}, {}]) or "")
    assert "CPU" in (state.never(cpus(9), ["node", here, False]) or "")


def test_a_node_that_drains_asks_its_leases_back() -> None:
    state = node()
    for name in (b"w1", b"w2"):
        up(state, name)
    state.describe_key("owner", 1, cpus(), (), JOB)
    (first,) = grants(state.demand("owner", 1, 1, 0))
    state.draining = True
    assert state.schedule() == [("recall", "owner", first.lease_id)]
    assert state.schedule() == [], "it was asked back a moment ago"
    assert state.unmet and state.busy() == 1
    assert grants(state.demand("owner", 1, 2, 1)) == []
    assert grants(state.lease_returned(first.lease_id, "owner", 1.0)) == []
    assert state.busy() == 0


def test_a_start_that_fails_is_tried_again_and_then_given_up() -> None:
    state = node()
    state.describe_key("owner", 1, cpus(), ENV, JOB)
    assert state.demand("owner", 1, 1, 0) == [("start", ENV)]
    for _ in range(limits.WORKER_START_ATTEMPTS - 1):
        assert state.start_failed(ENV, "why") == [("start", ENV)]
    assert state.start_failed(ENV, "why") == [("unserved", "owner", 1, ENV, "why")]
    assert state.available == state.total
    assert state.demand("owner", 1, 1, 0) == [("start", ENV)], "it may be asked for again"
    assert len(grants(up(state, b"w", ENV))) == 1


def test_a_start_that_nobody_waits_for_may_fail() -> None:
    state = node()
    assert state.prestart(2) == [("start", ()), ("start", ())]
    assert state.start_failed((), "why") == []
    assert state.starting[()] == 1


def test_the_end_of_an_owner() -> None:
    state = node()
    up(state, b"w1")
    state.describe_key("owner", 1, cpus(), (), JOB)
    state.demand("owner", 1, 2, 0)
    orphans, _ = state.owner_gone("owner")
    assert [worker.worker_id for worker in orphans] == [b"w1"]
    state.worker_gone(b"w1")
    assert state.available == state.total


def test_workers_are_not_shared_between_jobs_and_environments() -> None:
    state = node(4)
    up(state, b"w1")
    state.describe_key("a", 1, cpus(), (), b"job1")
    state.describe_key("b", 1, cpus(), (), b"job2")
    state.describe_key("a", 2, cpus(), ENV, b"job1")
    (granted,) = grants(state.demand("a", 1, 1, 0))
    state.lease_returned(granted.lease_id, "a", 1.0)
    assert state.demand("b", 1, 1, 0) == [("start", ())]
    assert state.demand("a", 2, 1, 0) == [("start", ENV)]


class NodeMachine(RuleBasedStateMachine):
    """The accounts are exact at every moment, and whole again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.state = node(4, GPU=2, tape=0.5)
        self.seen: dict[tuple[str, int], int] = {}
        self.held: list[Allocation] = []
        self.starts: list[Any] = []
        self.names = 0
        shapes = [cpus(), cpus(0.3), {"GPU": UNIT // 2}, {**cpus(2), "tape": 1000}]
        for owner in ("a", "b"):
            for key, units in enumerate(shapes):
                self.state.describe_key(owner, key, units, ENV if key == 1 else (), JOB)
                self.seen[(owner, key)] = 0

    def run(self, commands: list[Any]) -> None:
        for command in commands:
            if command[0] == "start":
                self.starts.append(command[1])
            elif command[0] == "grant":
                self.held.append(command[3])
                if (command[1], command[2]) in self.seen:
                    self.seen[(command[1], command[2])] += 1

    @rule(owner=st.sampled_from("ab"), key=st.integers(0, 3), wanted=st.integers(0, 6))
    def demand(self, owner: str, key: int, wanted: int) -> None:
        if (owner, key) in self.seen:
            self.run(self.state.demand(owner, key, wanted, self.seen[(owner, key)]))

    @rule(succeeds=st.booleans())
    def start(self, succeeds: bool) -> None:
        if self.starts:
            env = self.starts.pop(0)
            self.names += 1
            name = str(self.names).encode()
            self.run(up(self.state, name, env) if succeeds else self.state.start_failed(env, "why"))

    @rule(data=st.data())
    def give_back(self, data: Any) -> None:
        if self.held:
            allocation = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            self.run(self.state.lease_returned(allocation.lease_id, allocation.owner, 1.0))

    @rule(data=st.data(), word=st.sampled_from(["blocked", "unblocked", "gone"]))
    def worker(self, data: Any, word: str) -> None:
        if not self.state.workers:
            return
        name = data.draw(st.sampled_from(sorted(self.state.workers)))
        if word == "blocked":
            self.run(self.state.blocked(name))
        elif word == "unblocked":
            self.state.unblocked(name)
        else:
            allocation, commands = self.state.worker_gone(name)
            if allocation in self.held:
                self.held.remove(allocation)
            self.run(commands)

    @invariant()
    def accounts_are_exact(self) -> None:
        expected = dict(self.state.total)
        shares = 0
        for allocation in self.state.leases.values():
            for name, amount in allocation.units.items():
                expected[name] -= amount
            shares += sum(units for _, units in allocation.gpu_shares)
            expected["CPU"] += allocation.lent.get("CPU", 0)
        assert self.state.available == expected
        assert self.state.gpus.available() == self.state.gpus.total * UNIT - shares

    @invariant()
    def workers_and_leases_agree(self) -> None:
        for worker in self.state.workers.values():
            assert (worker.allocation is None) == (worker.state == IDLE)
            if worker.allocation is not None:
                assert self.state.leases[worker.allocation.lease_id].worker is worker

    def teardown(self) -> None:
        for owner in ("a", "b"):
            orphans, _ = self.state.owner_gone(owner)
            for worker in orphans:
                self.state.worker_gone(worker.worker_id)
        assert not self.state.leases
        assert self.state.available == self.state.total


NodeMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestNode = pytest.mark.slow(NodeMachine.TestCase)
