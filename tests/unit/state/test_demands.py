"""Who comes first: priorities that mean first, not alone; jobs that share; large requests that are not
overtaken for ever."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework._base import limits
from framework._state.demands import Demand, Order, Recall
from framework._state.node import Allocation, NodeState, Worker

CPU = 10_000
STEP = 0.05


class Queue:
    """An owner with endless (or so many) tasks of one kind. It keeps its leases as long as it has tasks,
    unless they are asked back."""

    def __init__(
        self,
        name: str,
        job: str = "job",
        *,
        cpus: float = 1,
        lasts: float = 0.2,
        priority: int = 0,
        tasks: int = 10**9,
    ) -> None:
        self.name, self.job = name, job.encode()
        self.units = {"CPU": round(cpus * CPU)}
        self.lasts, self.priority, self.tasks = lasts, priority, tasks
        self.running: dict[int, float] = {}  #: lease -> when its task ends
        self.recalled: set[int] = set()
        self.seen = self.done = 0
        self.told = -1
        self.used = 0.0  #: CPU seconds
        self.served: list[float] = []  #: when it was given a lease

    @property
    def wanted(self) -> int:
        return min(self.tasks - len(self.running), limits.MAX_LEASES_WANTED)


class Sim:
    def __init__(self, cpus: float, *queues: Queue) -> None:
        self.now = 0.0
        self.state = NodeState({"CPU": round(cpus * CPU)}, "ab" * 28, lambda: self.now)
        self.queues: dict[str, Queue] = {}
        self.workers = 0
        for queue in queues:
            self.add(queue)

    def add(self, queue: Queue) -> None:
        self.queues[queue.name] = queue
        self.state.describe_key(queue.name, 1, queue.units, (), queue.job, None, True, queue.priority)

    def run(self, commands: list[Any]) -> None:
        for command in commands:
            if command[0] == "start":
                self.workers += 1
                worker = Worker(str(self.workers).encode(), 1, "a", (), None)
                self.run(self.state.worker_up(worker, self.now))
            elif command[0] == "grant":
                queue, lease = self.queues[command[1]], command[3].lease_id
                queue.seen += 1
                queue.told = max(0, queue.told - 1)
                if queue.tasks <= len(queue.running):
                    self.run(self.state.lease_returned(lease, queue.name, self.now))
                    continue
                queue.running[lease] = self.now + queue.lasts
                queue.served.append(self.now)
            elif command[0] == "recall":
                self.queues[command[1]].recalled.add(command[2])

    def turn(self) -> None:
        self.now += STEP
        for queue in self.queues.values():
            for lease, ends in list(queue.running.items()):
                queue.used += STEP * queue.units["CPU"] / CPU
                if ends > self.now:
                    continue
                queue.done += 1
                queue.tasks -= 1
                if queue.tasks >= len(queue.running) and lease not in queue.recalled:
                    queue.running[lease] = self.now + queue.lasts
                    continue
                del queue.running[lease]
                queue.recalled.discard(lease)
                self.run(self.state.lease_returned(lease, queue.name, self.now))
            if queue.wanted != queue.told:
                queue.told = queue.wanted
                self.run(self.state.demand(queue.name, 1, queue.wanted, queue.seen))
        self.run(self.state.schedule())
        used = sum(q.units["CPU"] * len(q.running) for q in self.queues.values())
        actors = sum(a.units["CPU"] for a in self.state.leases.values() if a.actor is not None)
        assert used + actors + self.state.available["CPU"] == self.state.total["CPU"]

    def until(self, when: float) -> None:
        while self.now < when:
            self.turn()


def test_jobs_share_evenly() -> None:
    first, second = Queue("a", "one"), Queue("b", "two")
    sim = Sim(8, first)
    sim.until(5)
    assert len(first.running) == 8
    sim.add(second)
    sim.until(8)
    assert len(first.running) == len(second.running) == 4
    third = Queue("c", "three")
    sim.add(third)
    sim.until(12)
    assert sorted(len(q.running) for q in (first, second, third)) == [2, 3, 3]


def test_shares_count_cpus_not_leases() -> None:
    wide, narrow = Queue("a", "one", cpus=2), Queue("b", "two", cpus=0.5)
    sim = Sim(8, wide, narrow)
    sim.until(10)
    assert (len(wide.running), len(narrow.running)) == (2, 8)


def test_a_higher_priority_takes_over() -> None:
    low, high = Queue("a"), Queue("b", priority=3, tasks=40)
    sim = Sim(4, low)
    sim.until(2)
    sim.add(high)
    sim.until(3)
    assert len(high.running) == 4, "each low lease has returned after its task"
    sim.until(6)
    assert high.done == 40 and len(low.running) == 4


def test_a_low_priority_is_not_shut_out() -> None:
    high, low = Queue("a", priority=1_000_000), Queue("b", priority=0)
    sim = Sim(2, high, low)
    sim.until(5 * limits.AGING)
    assert low.used > 0 and high.used > 2 * low.used
    assert low.served[0] <= 2 * limits.AGING + 2


def test_one_cpu_is_shared_by_turns() -> None:
    first, second = Queue("a", "one"), Queue("b", "two")
    sim = Sim(1, first)
    sim.until(1)
    sim.add(second)
    sim.until(1 + 6 * limits.AGING)
    assert abs(first.used - second.used) <= 2 * limits.AGING + 2


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    small = [Queue(f"s{n}", f"job{n}", lasts=0.3 + n / 10) for n in range(6)]
    sim = Sim(4, *small)
    sim.until(2)
    large = Queue("large", "big", cpus=4, tasks=3)
    sim.add(large)
    sim.until(2 + 8 * limits.AGING)
    assert large.done == 3
    assert all(queue.done for queue in small)


def test_what_never_ends_does_not_block_the_rest() -> None:
    """A request that waits for room that nobody will ever give up must not keep the rest from working."""
    forever, large = Queue("f", "one", lasts=1e9, tasks=1), Queue("large", "two", cpus=4)
    sim = Sim(4, forever)
    sim.until(1)
    sim.add(large)
    small = Queue("s", "three")
    sim.add(small)
    sim.until(10 * limits.AGING)
    assert small.used > 3 * 10 * limits.AGING / 3, "at least a third of the time"
    assert large.done == 0


def test_actors_get_room() -> None:
    queue = Queue("a")
    sim = Sim(2, queue)
    sim.until(2)
    placed = sim.state.place_actor(b"a" * 16, {"CPU": CPU}, (), b"job")
    assert not [c for c in placed if c[0] == "run_actor"]
    found: list[Any] = []
    run = sim.run

    def watch(commands: list[Any]) -> None:
        found.extend(c for c in commands if c[0] == "run_actor")
        run(commands)

    sim.run = watch  # type: ignore[method-assign]
    sim.until(4)
    assert len(found) == 1
    assert len(queue.running) == 1


queues = st.lists(
    st.tuples(
        st.sampled_from(["one", "two", "three"]),
        st.sampled_from([0.5, 1, 2, 4]),
        st.sampled_from([0.05, 0.2, 1.0]),
        st.sampled_from([0, 0, 0, 1, 7, -3]),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(rows=queues, late=st.lists(st.integers(0, 40), min_size=5, max_size=5))
def test_nobody_starves(rows: list[Any], late: list[int]) -> None:
    """Whatever competes, each gets something: within a time that only depends on how many there are."""
    sim = Sim(4)
    waiting = [
        (when / 4, Queue(f"q{n}", job, cpus=cpus, lasts=lasts, priority=priority))
        for n, ((job, cpus, lasts, priority), when) in enumerate(zip(rows, late, strict=False))
    ]
    bound = limits.AGING * (len(rows) + 4) + 6 * limits.RESERVE
    pending = sorted(waiting, key=lambda item: item[0])
    while sim.now < 10 + bound:
        while pending and pending[0][0] <= sim.now:
            sim.add(pending.pop(0)[1])
        sim.turn()
    for when, queue in waiting:
        assert queue.served, f"{queue.name} starved: {rows}"
        assert queue.served[0] - when <= bound


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    jobs=st.integers(2, 4),
    lasts=st.sampled_from([0.05, 0.2, 0.4]),
    cpus=st.sampled_from([4, 6, 8]),
    starts=st.lists(st.integers(0, 10), min_size=4, max_size=4),
)
def test_unfairness_is_bounded(jobs: int, lasts: float, cpus: int, starts: list[int]) -> None:
    """Jobs that always want more hold the same, up to one lease, from soon after the last has come."""
    sim = Sim(cpus)
    pending = [(starts[n] / 2, Queue(f"q{n}", f"job{n}", lasts=lasts)) for n in range(jobs)]
    pending.sort(key=lambda item: item[0])
    all_queues = [queue for _, queue in pending]
    while sim.now < 5 + cpus * (limits.LEASE_QUANTUM + 3 * lasts):
        while pending and pending[0][0] <= sim.now:
            sim.add(pending.pop(0)[1])
        sim.turn()
    before = [queue.used for queue in all_queues]
    begin = sim.now
    sim.until(begin + 8)
    used = [queue.used - was for queue, was in zip(all_queues, before, strict=True)]
    assert max(used) - min(used) <= 8 * 1.5 + 1, used


# ---- the parts ------------------------------------------------------------------------------------------


def demand(cpus: float = 1, job: bytes = b"a", priority: int = 0, since: float = 0.0) -> Demand:
    made = Demand({"CPU": round(cpus * CPU)}, (), job, None, priority)
    made.since = since
    return made


def lease(number: int, job: bytes = b"b", priority: int = 0, cpus: float = 1, key: int = 1) -> Allocation:
    return Allocation(number, job, key, {"CPU": round(cpus * CPU)}, (), job, None, priority)


def test_leases_are_asked_back_only_where_it_helps() -> None:
    who, wants = ("a", 1), demand(4)
    held = [lease(n) for n in range(1, 4)]
    order = Order([(who, wants)], held, 1.0)
    assert Recall(held, 1.0).help(who, wants, {"CPU": 0}, order) is None, "three are not four"
    found = Recall(held, 1.0).help(who, wants, {"CPU": 2 * CPU}, order)
    assert found is None, "it would hold more than those it takes from"
    wants = demand(1)
    found = Recall(held, 1.0).help(who, wants, {"CPU": 0}, Order([(who, wants)], held, 1.0))
    assert found is not None and [x.lease_id for x in found] == [1]
    again = Recall(held, 1.5)
    assert again.help(who, wants, {"CPU": 0}, Order([(who, wants)], held, 1.5)) == [], "one is on its way"


def test_a_lease_is_left_alone_for_a_while_except_by_priority() -> None:
    held = [lease(n) for n in range(1, 5)]
    soon = limits.LEASE_QUANTUM / 2
    who, equal, urgent = ("a", 1), demand(), demand(priority=1)
    assert Recall(held, soon).help(who, equal, {}, Order([(who, equal)], held, soon)) is None
    assert Recall(held, soon).help(who, urgent, {}, Order([(who, urgent)], held, soon))
