"""Programs of users in simulated clusters: `framework.testing`."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("greenlet", reason="the simulation takes the extra sim")

import framework as fw
from framework import testing

pytestmark = [pytest.mark.sim, pytest.mark.slow]


@fw.remote
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, amount: int = 1) -> int:
        self.count += amount
        return self.count

    def call(self, other: fw.actor.ActorHandle, me: fw.actor.ActorHandle) -> int:
        return fw.get(other.call.remote(me, other))


@fw.remote
def add_slowly(counter: fw.actor.ActorHandle) -> int:
    time.sleep(30.0)
    testing.sometimes("slept")
    return fw.get(counter.add.remote())


def counts() -> int:
    counter = Counter.remote()
    begun = testing.now()
    fw.get([add_slowly.remote(counter) for _ in range(4)])
    testing.note("added", after=round(testing.now() - begun))
    return fw.get(counter.add.remote(0))


async def counts_async() -> int:
    counter = Counter.remote()
    await asyncio.gather(*(counter.add.remote() for _ in range(5)))

    async def five() -> bool:
        return await counter.add.remote(0) == 5

    assert await testing.eventually(five)
    return await counter.add.remote(0)


def races() -> None:
    """Fails under some seeds."""
    counter = Counter.remote()
    first, second = fw.get([add.remote(counter), add.remote(counter)])
    assert first < second, "the second was first"


@fw.remote
def add(counter: fw.actor.ActorHandle) -> int:
    return fw.get(counter.add.remote())


def test_a_program() -> None:
    begun = time.monotonic()
    report = testing.simulate(counts, nodes=2)
    assert report.result == 4
    assert report.virtual >= 30.0 > time.monotonic() - begun
    assert report.reached == {"slept": 4}
    assert [text for _, _, text in report.notes] == ["added after=30"]
    assert report.steps and report.digest and report.trace is None and not report.faults
    assert not testing.is_simulated() and not fw.is_initialized()


def test_a_coroutine_program() -> None:
    assert testing.simulate(counts_async).result == 5


def test_a_seed_is_a_run(tmp_path: Path) -> None:
    faults = testing.Faults(crash_worker=0.05, delay=0.1, slow=0.2)
    path = tmp_path / "trace"
    first = testing.simulate(counts_with_faults, seed=3, nodes=2, faults=faults, trace=path)
    second = testing.simulate(counts_with_faults, seed=3, nodes=2, faults=faults, trace=True)
    other = testing.simulate(counts_with_faults, seed=4, nodes=2, faults=faults)
    assert first.digest == second.digest != other.digest
    assert second.trace is not None and path.read_text().count("\n") >= len(second.trace)


def counts_with_faults() -> int:
    return sum(fw.get([sleeps.remote(number) for number in range(8)]))


@fw.remote(max_retries=-1)
def sleeps(number: int) -> int:
    time.sleep(random.uniform(1.0, 5.0))
    return number


def test_faults_happen_and_retries_help() -> None:
    seen = testing.explore(
        counts_with_faults,
        seeds=4,
        nodes=[{"num_cpus": 1}, {"num_cpus": 4}],
        faults=testing.Faults(crash_worker=0.5),
    )
    assert seen.seeds == 4 and not seen.failures
    assert seen.faults["crash of a worker"] > 0
    assert seen.virtual > 4.0


def test_exceptions_reach_the_caller() -> None:
    def fails() -> None:
        {}["missing"]

    with pytest.raises(KeyError, match="missing") as caught:
        testing.simulate(fails, seed=5)
    assert "seed=5" in caught.value.__notes__[0]


def test_who_waits_for_whom() -> None:
    def dies() -> None:
        one, other = Counter.remote(), Counter.remote()
        fw.get(one.call.remote(other, one))

    with pytest.raises(testing.SimulationError) as caught:
        testing.simulate(dies, limit=20.0)
    text = str(caught.value)
    assert "has not ended after 20 virtual seconds" in text
    assert text.count("test_testing.py") == 3  # the program, and both actors
    assert text.count("in Counter.call, waiting for get() of Counter.call()") == 2


def test_what_cannot_be_simulated() -> None:
    with pytest.raises(testing.SimulationError, match="Popen"):
        testing.simulate(lambda: subprocess.run(["true"], check=True))
    with pytest.raises(testing.SimulationError, match="init"):
        testing.simulate(lambda: fw.init())
    with pytest.raises(testing.SimulationError, match="nested"):
        testing.simulate(lambda: testing.simulate(counts))
    with pytest.raises(testing.SimulationError, match="status 768"):
        testing.simulate(lambda: os._exit(3))


def test_explore_finds_the_seed() -> None:
    with pytest.raises(testing.SimulationFailed) as caught:
        testing.explore(races, seeds=30)
    failure = caught.value.failures[0]
    assert "the second was first" in failure.text and f"seed={failure.seed}" in failure.replay
    assert isinstance(failure.error, AssertionError) and caught.value.__cause__ is failure.error
    with pytest.raises(AssertionError, match="the second was first"):
        testing.simulate(
            races, seed=failure.seed, scheduler="priorities" if "priorities" in failure.replay else "walk"
        )


def test_a_hang_is_a_result() -> None:
    def spins() -> None:
        while True:
            pass

    with pytest.raises(testing.SimulationFailed, match=r"no result after 2 s of real time[^$]*in spins"):
        testing.explore(spins, seeds=1, seconds=2.0)


def test_must_reach() -> None:
    assert testing.explore(counts, seeds=1, must_reach="slept").reached == {"slept": 4}
    with pytest.raises(testing.SimulationFailed, match="never reached: 'elsewhere'") as caught:
        testing.explore(counts, seeds=1, must_reach=["slept", "elsewhere"])
    assert caught.value.never == ["elsewhere"]


@testing.simulated(seeds=2, nodes=2)
async def test_simulated_tests() -> None:
    assert testing.is_simulated()
    assert await counts_async() == 5


@pytest.mark.parametrize("amount", [3])
@testing.simulated(seeds=1)
def test_simulated_tests_with_arguments(amount: int) -> None:
    assert fw.get(Counter.remote().add.remote(amount)) == amount


def test_a_simulated_test_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    @testing.simulated(seeds=30)
    def test_races() -> None:
        races()

    with pytest.raises(
        testing.SimulationFailed, match=r"FRAMEWORK_SIM_SEED=\d+ python -m pytest -k test_races"
    ) as caught:
        test_races()
    monkeypatch.setenv("FRAMEWORK_SIM_SEED", str(caught.value.failures[0].seed))
    with pytest.raises(AssertionError, match="the second was first"):
        test_races()
