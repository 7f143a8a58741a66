"""Threads, virtual time and the scheduler of the simulated system."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from framework._sim.choices import Choices, Log, first_difference
from framework._sim.kernel import Kernel, SimulationError, Task
from framework._sim.schedulers import Priorities, RandomWalk
from support.simulated import Machines, simulated


def kernel(seed: int = 0) -> Kernel:
    choices = Choices(seed)
    return Kernel(choices, Log(keep=True), RandomWalk(choices))


def test_timers_come_in_order_and_time_jumps() -> None:
    system, seen = kernel(), []
    for when in (5.0, 1.0, 3.0, 1.0):
        system.call_at(when, lambda when=when: seen.append((when, system.now)))
    system.call_at(2.0, seen.append, "never").cancel()
    system.call_later(4.0, lambda: system.call_later(0.5, seen.append, "nested"))
    system.run(lambda: len(seen) == 5, 10.0)
    assert seen == [(1.0, 1.0), (1.0, 1.0), (3.0, 3.0), "nested", (5.0, 5.0)]
    assert system.now == 5.0


def test_block_wake_and_timeout() -> None:
    with simulated() as machines:
        system, seen = machines.kernel, []

        def waits() -> None:
            seen.append(system.block(system.now + 10, "something"))
            seen.append(system.block(system.now + 10))
            seen.append(round(system.now, 3))

        task = machines.go(waits)
        machines.run_for(3)
        assert "something" in system.report() and seen == []
        system.wake(task)
        system.wake(task)  # twice is as once
        machines.run()
        assert seen == [True, False, 13.0]
        system.wake(task)  # of no consequence


def test_the_timer_of_an_earlier_wait_does_not_end_a_later_one() -> None:
    with simulated() as machines:
        system, seen = machines.kernel, []

        def waits() -> None:
            system.block(1.0)
            seen.append(system.block(5.0))
            seen.append(system.now)

        task = machines.go(waits)
        machines.run_for(0.5)
        system.wake(task)
        machines.run()
        assert seen == [False, pytest.approx(5.0, abs=1e-3)]


def test_blocking_outside_of_processes_is_an_error() -> None:
    with pytest.raises(SimulationError, match="outside of the simulated processes"):
        kernel().block(None, "nothing")


def test_a_standstill_says_who_waits_for_what() -> None:
    with simulated() as machines:
        lock = machines.result(threading.Lock)

        def first() -> None:
            lock.acquire()
            lock.acquire()

        machines.go(first, name="greedy")
        with pytest.raises(SimulationError, match=r"standstill.*no timer(.|\n)*process/greedy: a lock"):
            machines.run()


def test_a_livelock_is_reported() -> None:
    with simulated() as machines:
        machines.kernel.max_steps = 100

        def spins() -> None:
            while True:
                time.sleep(0)

        machines.go(spins)
        with pytest.raises(SimulationError, match=r"not finished after 100 steps: a livelock\?(.|\n)*spins"):
            machines.run()


def test_running_out_of_virtual_time_is_reported() -> None:
    with simulated() as machines:

        def for_ever() -> None:
            while True:
                time.sleep(60)

        machines.go(for_ever)
        with pytest.raises(SimulationError, match=r"after 1000 virtual s(.|\n)*for_ever: time.sleep"):
            machines.run(1000)


def test_an_error_of_the_simulation_ends_it() -> None:
    with simulated() as machines:

        def fails() -> None:
            raise SimulationError("no such thing")

        machines.kernel.spawn(machines.process(), fails, "fails")
        machines.go(lambda: time.sleep(1e9), name="sleeps")
        with pytest.raises(SimulationError, match="no such thing"):
            machines.run()


def test_ctrl_c_ends_it() -> None:
    with simulated() as machines:

        def interrupted() -> None:
            raise KeyboardInterrupt

        machines.kernel.spawn(machines.process(), interrupted, "interrupted")
        machines.go(lambda: time.sleep(1e9), name="sleeps")
        with pytest.raises(KeyboardInterrupt):
            machines.run()


def test_kill_is_a_power_cut() -> None:
    with simulated() as machines:
        system, seen = machines.kernel, []
        process = machines.process()

        def unlucky() -> None:
            try:
                time.sleep(10)
                seen.append("went on")
            finally:
                seen.append("cleaned up")

        for _ in range(3):
            machines.go(unlucky, process)
        machines.run_for(5)
        system.kill(process)
        assert not process.alive and not process.tasks
        machines.run_for(20)
        assert seen == []


def test_stop_and_resume() -> None:
    with simulated() as machines:
        process, seen = machines.process(), []

        def ticks() -> None:
            for _ in range(4):
                time.sleep(1)
                seen.append(round(time.monotonic(), 2))

        machines.go(ticks, process)
        machines.run_for(1.5)
        machines.kernel.stop(process)
        machines.kernel.stop(process)
        machines.run_for(10)
        assert seen == [1.0] and process.parked
        machines.kernel.resume(process)
        machines.kernel.resume(process)
        machines.run()
        assert seen == [1.0, 11.5, 12.5, 13.5]


def test_a_clock_jump_ends_what_has_become_due() -> None:
    with simulated() as machines:
        jumps, stays = machines.process(), machines.process()
        ends: dict[str, tuple[float, float]] = {}

        def sleeper(name: str, seconds: float) -> None:
            time.sleep(seconds)
            ends[name] = round(time.monotonic(), 2), round(machines.kernel.now, 2)

        machines.go(lambda: sleeper("short", 5), jumps, name="short")
        machines.go(lambda: sleeper("long", 30), jumps, name="long")
        machines.go(lambda: sleeper("other", 5), stays, name="other")
        machines.run_for(1)
        machines.kernel.jump_clock(jumps, 10)
        machines.run()
        assert ends == {"short": (11.0, 1.0), "other": (5.0, 5.0), "long": (30.0, 20.0)}


def test_slow_processes_run_late_and_do_run() -> None:
    with simulated() as machines:
        slow, ends = machines.process(), []

        def steps() -> None:
            for _ in range(10):
                time.sleep(0)
            ends.append(machines.kernel.now)

        slow.slowness, slow.slow_until = 0.5, 100.0
        machines.go(steps, slow)
        machines.go(steps)
        machines.run()
        assert ends[0] < 0.01 and 0.5 < ends[1] < 6


def test_signals_interrupt_waiting_and_waiting_goes_on() -> None:
    with simulated() as machines:
        seen: list[Any] = []

        def waits() -> None:
            signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(round(time.monotonic(), 2)))
            signal.signal(signal.SIGUSR2, raises)
            time.sleep(5)
            seen.append(round(time.monotonic(), 2))
            try:
                time.sleep(5)
            except InterruptedError:
                seen.append("interrupted")

        def raises(number: int, frame: Any) -> None:
            raise InterruptedError

        task = machines.go(waits)
        machines.run_for(1)
        machines.kernel.signal(task, signal.SIGUSR1)
        machines.run_for(5)
        machines.kernel.signal(task, signal.SIGUSR2)
        machines.run()
        assert seen == [1.0, 5.0, "interrupted"]


def order(machines: Machines, count: int) -> list[int]:
    ran: list[int] = []

    def steps(number: int) -> None:
        for _ in range(5):
            ran.append(number)
            time.sleep(0)

    for number in range(count):
        machines.go(lambda number=number: steps(number), name=f"task {number}")
    machines.run()
    return ran


@pytest.mark.parametrize("scheduler", ["walk", "priorities"])
def test_the_seed_decides_who_runs(scheduler: str) -> None:
    found = []
    for seed in (0, 0, 1, 2):
        with simulated(seed, scheduler) as machines:
            found.append(order(machines, 5))
    assert found[0] == found[1] and found[0] != found[2] != found[3]
    assert all(sorted(ran) == sorted([*range(5)] * 5) for ran in found)


def test_priorities_starve_and_change() -> None:
    """One task runs for long while others are ready; at a change it falls behind them all."""
    with simulated(3, "priorities") as machines:
        ran = order(machines, 4)
    assert sum(left != right for left, right in zip(ran, ran[1:], strict=False)) == 3
    choices = Choices(3)
    scheduler = Priorities(choices, changes=200, steps=200)
    tasks = [Task(machines.process(), lambda: None, str(number), number) for number in range(3)]
    for task in tasks:
        scheduler.added(task)
        assert 1 <= task.priority < 2
    picked = [scheduler.choose(tasks) for _ in range(2000)]
    assert {*picked} == {0, 1, 2} and min(task.priority for task in tasks) < 0


def test_the_first_difference_of_two_logs() -> None:
    assert first_difference(["a", "b"], ["a", "b"]) is None
    assert "event 1 differs" in str(first_difference(["a", "b"], ["a", "c"]))
    assert "only the first run has it: b" in str(first_difference(["a", "b"], ["a"]))
    assert "only the second run has it: b" in str(first_difference(["a"], ["a", "b"]))
    one, other = Log(), Log(keep=True)
    for log in (one, other):
        for number in range(2000):
            log.add(str(number))
    assert one.digest() == other.digest() and one.lines is None and other.count == 2000
    one.add("more")
    assert one.digest() != other.digest()


def test_choices() -> None:
    one, other = Choices(5), Choices(5)
    assert one.bytes(8) == other.bytes(8)
    assert not one.chance(0.0) and one.chance(1.0)  # draws nothing
    assert one.unit() == other.unit()
    assert one.derive("a").random() == other.derive("a").random() != one.derive("b").random()
    assert one.pick("abc") in "abc"
