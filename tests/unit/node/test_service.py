"""The node service between its peers: workers forked on demand, leases granted and lost, actors placed,
output passed on to the driver that it is for, jobs that end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from framework._base import limits
from framework._node.service import NodeService
from framework._wire import messages as m
from support.connections import Recorder

JOB, OTHER_JOB = b"\1\0\0\0", b"\2\0\0\0"
ACTOR = b"a" * 16
GROUP = b"g" * 18
CPU = 10_000


async def spin(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class World:
    """A node with 2 CPUs whose zygote is this test: it 'forks' processes that only sleep."""

    def __init__(self, directory: Path, stays: bool) -> None:
        for name in ("sockets", "logs"):
            (directory / name).mkdir()
        self.directory = directory
        self.stopped: list[str] = []
        self.numbers = iter(range(1, 100))
        self.service = NodeService(
            asyncio.get_running_loop(),
            b"n" * 28,
            str(directory),
            {"CPU": 2 * CPU},
            random_bytes=lambda size: bytes([next(self.numbers)]) * size,
            prestart=1,
            stop=self.stopped.append,
            stays=stays,
        )
        self.head = Recorder("head", b"h")
        ours, self.zygote = socket.socketpair()
        self.zygote.setblocking(False)
        self.unpacker = msgpack.Unpacker()
        self.pids: list[int] = []
        self.service.start(ours, self.sleeper(), self.head)

    def sleeper(self) -> int:
        pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
        self.pids.append(pid)
        return pid

    def close(self) -> None:
        self.service.stop()
        self.service.deliver_rest()
        self.zygote.close()
        for pid in self.pids[1:]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    async def forks(self, count: int) -> list[bytes]:
        """The ids of the next workers that are asked for."""
        found: list[bytes] = []
        while len(found) < count:
            self.unpacker.feed(await asyncio.get_running_loop().sock_recv(self.zygote, 1 << 16))
            found += [request[0] for request in self.unpacker]
        return found

    async def worker(self, ident: bytes | None = None) -> Recorder:
        """The next worker: asked for, forked, and connected."""
        if ident is None:
            (ident,) = await self.forks(1)
        pid = self.sleeper()
        self.zygote.send(msgpack.packb(["forked", ident, pid, ""]))
        await spin(lambda: self.service.processes.by_id[ident].pid)
        worker = Recorder("worker", ident, pid=pid)
        self.service.peer_joined(worker)
        return worker

    async def exit(self, worker: Recorder, status: int = signal.SIGKILL) -> None:
        """Its process ends, as the zygote tells it, and its connection."""
        await self.exited(worker, status)
        self.service.peer_lost(worker)
        assert worker.ident not in self.service.processes.by_id

    async def exited(self, worker: Recorder, status: int = signal.SIGKILL) -> None:
        """The zygote tells of its end, and nothing has been read from its connection yet."""
        process = self.service.processes.by_id[worker.ident]
        self.zygote.send(msgpack.packb(["exited", worker.peer["pid"], status]))
        await spin(lambda: process.status is not None)

    def driver(self, job: bytes = JOB) -> Recorder:
        driver = Recorder("driver", job * 7, job=job)
        self.service.peer_joined(driver)
        return driver

    def tell(self, peer: Recorder, opcode: int, *fields: Any) -> None:
        handlers = self.service.head_handlers if peer is self.head else self.service.handlers
        peer.tell(handlers, opcode, *fields)

    def want(self, driver: Recorder, leases: int = 1, cpus: float = 1, key: int = 1) -> None:
        self.tell(driver, m.LEASE_KEY, key, {"CPU": int(cpus * CPU)}, None, None, True, 0, b"")
        self.tell(driver, m.LEASE_DEMAND, key, leases, 0)

    def place(self, **more: Any) -> None:
        spec = {"class_name": "A", "resources": {"CPU": 0}, "placement": {"CPU": 0}, "job": JOB, **more}
        self.tell(self.head, m.ACTOR_PLACE, ACTOR, spec, 0)


@pytest.fixture(params=[False])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world = World(tmp_path, request.param)
    yield world
    world.close()


stays = pytest.mark.parametrize("world", [True], indirect=True)


async def test_nothing_is_left_of_workers_that_have_ended(world: World) -> None:
    timers = []
    for _ in range(10):
        (ident,) = await world.forks(1)
        process = world.service.processes.by_id[ident]
        timers.append(process.start_timer)
        worker = await world.worker(ident)
        assert process.start_timer is None, "it is up"
        await world.exit(worker)
        world.want(world.driver(), leases=1)
    (ident,) = await world.forks(1)
    timers.append(world.service.processes.by_id[ident].start_timer)
    world.zygote.send(msgpack.packb(["forked", ident, 0, "no memory"]))
    await spin(lambda: ident not in world.service.processes.by_id)
    assert all(timer is not None and timer.cancelled() for timer in timers)


async def test_it_joins_the_head_and_starts_workers_ahead(world: World) -> None:
    ((_, info),) = world.head.take(m.NODE_JOIN)
    assert (info["total"], info["pid"], info["session_dir"]) == (
        {"CPU": 2 * CPU},
        os.getpid(),
        str(world.directory),
    )
    assert len(await world.forks(1)) == 1


async def test_a_lease_from_demand_to_return(world: World) -> None:
    driver, first = world.driver(), await world.worker()
    world.want(driver, 3)
    ((key, lease, ident, address, gpus),) = driver.take(m.LEASE_GRANT)
    assert (key, ident, address, gpus) == (1, first.ident, first.peer["address"], [])
    second = await world.worker()  # asked for, because there was none for the second CPU
    ((_, _, ident, _, _),) = driver.take(m.LEASE_GRANT)
    assert ident == second.ident
    world.tell(driver, m.LEASE_RETURN, lease)
    assert [frame[2] for frame in driver.take(m.LEASE_GRANT)] == [first.ident], "the third"


async def test_a_lease_of_another_cannot_be_returned(world: World) -> None:
    driver, other = world.driver(), world.driver(OTHER_JOB)
    await world.worker()
    world.want(driver)
    ((_, lease, *_),) = driver.take(m.LEASE_GRANT)
    world.tell(other, m.LEASE_RETURN, lease)
    assert world.service.state.available["CPU"] == CPU


async def test_a_worker_that_dies_is_reported_with_its_task(world: World) -> None:
    driver, worker = world.driver(), await world.worker()
    world.want(driver)
    ((_, lease, *_),) = driver.take(m.LEASE_GRANT)
    (world.directory / "sockets" / f"{worker.ident.hex()[:12]}.run").write_bytes((77).to_bytes(8, "little"))
    await world.exit(worker, signal.SIGSEGV)
    ((lost, running, pid, detail, _),) = driver.take(m.LEASE_LOST)
    assert (lost, running, pid) == (lease, 77, worker.peer["pid"]) and "SIGSEGV" in detail
    assert world.service.state.available["CPU"] == 2 * CPU
    assert list((world.directory / "sockets").iterdir()) == []


async def test_a_request_that_can_never_be_met(world: World) -> None:
    driver = world.driver()
    world.want(driver, cpus=3)
    ((_, forever, error, text),) = driver.take(m.LEASE_INFEASIBLE)
    assert forever and error == "TaskUnschedulableError" and "CPU" in text


async def test_workers_that_cannot_be_started(world: World) -> None:
    driver = world.driver()
    world.want(driver)
    for _ in range(limits.WORKER_START_ATTEMPTS):
        (ident,) = await world.forks(1)
        world.zygote.send(msgpack.packb(["forked", ident, 0, "no memory"]))
    await spin(lambda: driver.said)
    ((_, forever, error, text),) = driver.take(m.LEASE_INFEASIBLE)
    assert not forever and error == "WorkerCrashedError" and "no memory" in text


async def test_a_worker_that_waits_lends_its_cpus(world: World) -> None:
    driver, worker = world.driver(), await world.worker()
    world.want(driver, cpus=2)
    world.want(driver, cpus=1, key=2)
    assert [frame[0] for frame in driver.take(m.LEASE_GRANT)] == [1]
    world.tell(worker, m.BLOCKED)
    await world.worker()
    assert [frame[0] for frame in driver.take(m.LEASE_GRANT)] == [2]
    world.tell(worker, m.UNBLOCKED)
    assert world.service.state.available["CPU"] == -CPU


async def test_an_actor_from_placement_to_its_end(world: World) -> None:
    worker = await world.worker()
    world.place()
    ((actor, spec, gpus, restarted),) = worker.take(m.ACTOR_RUN)
    assert (actor, spec["class_name"], gpus, restarted) == (ACTOR, "A", [], 0)
    world.tell(worker, m.ACTOR_UP, ACTOR, None)
    ((actor, incarnation, ident, address, pid, error),) = world.head.take(m.ACTOR_PLACED)
    assert (actor, incarnation, ident, pid, error) == (ACTOR, 0, worker.ident, worker.peer["pid"], None)
    assert address == worker.peer["address"]
    world.tell(world.head, m.ACTOR_END, ACTOR, 0, False, "no handle is left")
    assert worker.take(m.EXIT) == [[True, "no handle is left"]]
    await world.exit(worker, 0)
    ((actor, incarnation, detail, *_),) = world.head.take(m.ACTOR_GONE)
    assert (actor, incarnation) == (ACTOR, 0) and "no handle is left" in detail


async def test_what_a_worker_said_last_counts_though_its_end_is_told_first(world: World) -> None:
    worker = await world.worker()
    world.place()
    world.tell(worker, m.ACTOR_UP, ACTOR, None)
    await world.exited(worker, 0)
    assert world.head.take(m.ACTOR_GONE) == [], "there may be more to read from it"
    world.tell(worker, m.LEAVING, "exit_actor() was called")
    world.service.peer_lost(worker)
    ((actor, _, detail, intended, *_),) = world.head.take(m.ACTOR_GONE)
    assert (actor, intended) == (ACTOR, True) and "exit_actor" in detail


async def test_a_dead_worker_whose_connection_a_child_of_it_keeps_open(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "EXIT_GRACE", 0.01)
    worker = await world.worker()
    world.place()
    world.tell(worker, m.ACTOR_UP, ACTOR, None)
    await world.exited(worker)
    world.service.processes.end(worker.ident, "too late", intended=True)
    assert os.waitpid(worker.peer["pid"], os.WNOHANG) == (0, 0), "its pid may be another's by now"
    await spin(lambda: worker.closed)
    world.service.peer_lost(worker)
    ((_, _, detail, intended, *_),) = world.head.take(m.ACTOR_GONE)
    assert "SIGKILL" in detail and not intended


async def test_an_actor_that_fits_nowhere(world: World) -> None:
    world.place(placement={"CPU": 5 * CPU})
    ((actor, _, _, _, _, error),) = world.head.take(m.ACTOR_PLACED)
    assert actor == ACTOR and "ActorUnschedulableError" in error and "never be placed" in error[-1]


async def test_a_worker_that_nobody_has_started_is_sent_away(world: World) -> None:
    stranger = Recorder("worker", b"?" * 28, pid=1)
    world.service.peer_joined(stranger)
    assert stranger.closed


async def test_the_end_of_the_only_driver_is_the_end_of_the_node(world: World) -> None:
    driver, other = world.driver(), world.driver(OTHER_JOB)
    world.service.peer_lost(other)
    assert world.stopped == []
    world.service.peer_lost(driver)
    assert world.stopped == ["its driver has ended"]


@stays
async def test_a_node_that_stays_goes_on_without_drivers(world: World) -> None:
    driver, worker = world.driver(), await world.worker()
    world.want(driver)
    ((_, lease, *_),) = driver.take(m.LEASE_GRANT)
    world.tell(driver, m.LEASE_RETURN, lease)
    world.service.peer_lost(driver)
    assert world.stopped == []
    assert worker.take(m.JOB_OVER) == [[]], "it has run that job's code: it is for nobody else"
    assert len(await world.forks(1)) == 1, "a fresh one, for the next driver"


@stays
async def test_a_worker_that_must_stay_is_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORKER_IDLE_TIMEOUT", 0.01)
    driver, worker = world.driver(), await world.worker()
    world.want(driver)
    ((_, lease, *_),) = driver.take(m.LEASE_GRANT)
    world.tell(driver, m.LEASE_RETURN, lease)
    world.service.peer_lost(driver)
    world.tell(worker, m.EXIT_DENIED)
    await spin(lambda: len([f for f in worker.said if f[0] == m.JOB_OVER]) >= 3)
    await world.exit(worker, 0)
    await asyncio.sleep(0.03)
    assert world.service._jobs_over == set(), "nothing of the job is left: nothing is remembered"


async def test_what_runs_for_a_driver_ends_with_it(world: World) -> None:
    world.driver(OTHER_JOB)
    driver, worker = world.driver(), await world.worker()
    world.want(driver)
    world.service.peer_lost(driver)
    assert os.waitpid(worker.peer["pid"], 0)[1] == signal.SIGKILL
    world.pids.remove(worker.peer["pid"])
    await world.exit(worker)
    assert world.service.state.available["CPU"] == 2 * CPU


@pytest.mark.parametrize(("kind", "stops"), [("tool", True), ("worker", False), ("owner", False)])
async def test_who_may_stop_the_node(world: World, kind: str, stops: bool) -> None:
    peer = Recorder(kind, b"x")
    world.tell(peer, m.NODE_STOP, "why")
    assert world.stopped == (["why"] if stops else [])
    world.tell(world.driver(), m.NODE_STOP, "I have done")
    assert world.stopped[-1] == "I have done"


async def test_only_the_owner_of_a_lease_may_have_its_worker_killed(world: World) -> None:
    driver, other, worker = world.driver(), world.driver(OTHER_JOB), await world.worker()
    world.want(driver)
    pid = worker.peer["pid"]
    world.tell(other, m.KILL_WORKER, worker.ident, "mine")
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    world.tell(driver, m.KILL_WORKER, worker.ident, "mine")
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    world.pids.remove(pid)


async def in_a_group(world: World) -> tuple[Recorder, Recorder, int]:
    """A driver that has leased a worker in a bundle, the worker, and the number of the lease."""
    driver, worker = world.driver(), await world.worker()
    world.tell(world.head, m.GROUP_PREPARE, GROUP, 1, [[0, {"CPU": CPU}]])
    world.tell(world.head, m.GROUP_COMMIT, GROUP, 1, [[0, {"CPU": CPU}]])
    units = {f"CPU_group_{GROUP.hex()}": CPU, f"bundle_group_{GROUP.hex()}": 10}
    world.tell(driver, m.LEASE_KEY, 1, units, None, None, True, 0, b"")
    world.tell(driver, m.LEASE_DEMAND, 1, 1, 0)
    ((_, lease, ident, _, _),) = driver.take(m.LEASE_GRANT)
    assert ident == worker.ident
    return driver, worker, lease


async def test_an_idle_worker_outlives_the_group_that_it_was_leased_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GROUP_LEAVE", 0.01)
    driver, worker, lease = await in_a_group(world)
    world.tell(world.head, m.GROUP_RETURN, GROUP, -1, "it was removed")
    assert driver.take(m.LEASE_RECALL) == [[lease]]
    world.tell(driver, m.LEASE_RETURN, lease)
    assert world.service.state.available == {"CPU": 2 * CPU}
    await asyncio.sleep(0.05)  # (nothing is to happen)
    assert not world.service.processes.by_id[worker.ident].reason


async def test_a_worker_that_is_not_given_back_ends_with_its_group(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GROUP_LEAVE", 0.01)
    driver, worker, lease = await in_a_group(world)
    world.tell(world.head, m.GROUP_RETURN, GROUP, -1, "it was removed")
    await spin(lambda: world.service.processes.by_id[worker.ident].reason)
    # What would be given to it now would meet its end.
    world.tell(driver, m.LEASE_RETURN, lease)
    world.want(driver, 2, key=2)
    await world.exit(worker)
    assert driver.take(m.LEASE_LOST) == [] and driver.take(m.LEASE_GRANT) == []
    assert world.service.state.available == {"CPU": 0}


async def test_output_goes_to_the_driver_whose_job_it_is(world: World) -> None:
    mine, other = world.driver(), world.driver(OTHER_JOB)
    quiet = Recorder("driver", b"q", job=JOB, log_to_driver=False)
    world.service.peer_joined(quiet)
    worker = await world.worker()
    world.want(mine)
    path = world.directory / "logs" / f"worker-{worker.ident.hex()[:12]}-{worker.peer['pid']}.out"
    path.write_text("hello\n")
    mine.ask(world.service.handlers, m.LOG_FLUSH)
    assert mine.take(m.LOG_LINES) == [[worker.peer["pid"], False, [["", "hello"]]]]
    assert other.said == quiet.said == []


async def test_a_driver_that_leaves_does_not_end_the_lines_of_others(world: World) -> None:
    mine, other = world.driver(), world.driver(OTHER_JOB)
    worker = await world.worker()
    world.want(mine)
    path = world.directory / "logs" / f"worker-{worker.ident.hex()[:12]}-{worker.peer['pid']}.out"
    path.write_text("half a")
    other.ask(world.service.handlers, m.LOG_FLUSH)
    assert not mine.take(m.LOG_LINES)
    path.write_text("half a line")
    mine.ask(world.service.handlers, m.LOG_FLUSH)
    assert mine.take(m.LOG_LINES) == [[worker.peer["pid"], False, [["", "half a line"]]]]


async def test_a_slow_driver_gets_its_lines_later_and_others_theirs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_POLL", 0.001)
    slow, other = world.driver(), world.driver(OTHER_JOB)
    slow.slow = True
    workers = [await world.worker()]
    world.want(slow)
    world.want(other)
    workers.append(await world.worker())
    for worker in workers:
        path = world.directory / "logs" / f"worker-{worker.ident.hex()[:12]}-{worker.peer['pid']}.out"
        path.write_text(f"of {worker.peer['pid']}\n")
    await spin(lambda: any(frame[0] == m.LOG_LINES for frame in other.said))
    assert not slow.take(m.LOG_LINES)
    slow.slow = False
    await spin(lambda: any(frame[0] == m.LOG_LINES for frame in slow.said))


async def test_the_zygote_dies(world: World) -> None:
    driver, worker = world.driver(), await world.worker()
    world.want(driver)
    started: list[Any] = []

    def spawn(env: Any) -> tuple[socket.socket, int]:
        started.append(env)
        ours, theirs = socket.socketpair()
        world.unpacker = msgpack.Unpacker()
        world.zygote = theirs
        theirs.setblocking(False)
        return ours, world.sleeper()

    world.service.processes.zygotes._spawn = spawn
    pid = worker.peer["pid"]
    world.zygote.close()
    await spin(lambda: started)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    world.service.peer_lost(worker)
    assert driver.take(m.LEASE_LOST)
    world.pids.remove(pid)
    assert started == [()]
    world.pids.remove(world.pids[-1])  # the second zygote's process: reaped by the service
    world.want(driver, 2)
    assert len(await world.forks(1)) == 1
