"""What `framework.testing` refuses, and what its helpers do in reality. (Runs: tests/sim/test_testing.py.)"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("greenlet", reason="the simulation takes the extra sim")

import framework as fw
from framework import testing
from framework._sim.explore import faults_of_text, faults_text
from framework.testing._simulate import call_text


def nothing() -> None:
    """A program."""


@fw.remote
def remote() -> None:
    """A task."""


@pytest.mark.parametrize(
    ("program", "options", "text"),
    [
        (5, {}, "not 5"),
        (remote, {}, "not a remote one"),
        (nothing, {"nodes": 0}, "at least one node"),
        (nothing, {"nodes": "two"}, "list of dicts"),
        (nothing, {"nodes": []}, "list of dicts"),
        (nothing, {"nodes": [{"cpus": 1}]}, r"no options \['cpus'\]"),
        (nothing, {"nodes": [3]}, "not 3"),
        (nothing, {"scheduler": "fair"}, "not 'fair'"),
        (nothing, {"limit": 0}, "positive"),
        (nothing, {"faults": {"reset": 1}}, "Faults"),
        (nothing, {"faults": "storm"}, "weather"),
    ],
)
def test_arguments(program: Any, options: dict[str, Any], text: str) -> None:
    for function in (testing.simulate, testing.explore):
        with pytest.raises((TypeError, ValueError), match=text):
            function(program, **options)


def test_a_coroutine_is_no_program() -> None:
    async def program() -> None:
        """Is called too early."""

    coroutine = program()
    with pytest.raises(TypeError, match="without calling it"):
        testing.simulate(coroutine)  # type: ignore[arg-type]
    coroutine.close()


@pytest.mark.parametrize("options", [{"jobs": 0}, {"seconds": 0}, {"failures": 0}])
def test_numbers_are_positive(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="positive"):
        testing.explore(nothing, **options)


def test_not_in_a_running_loop() -> None:
    async def simulates() -> None:
        testing.simulate(nothing)

    with pytest.raises(testing.SimulationError, match="running event loop"):
        asyncio.run(simulates())


def test_faults() -> None:
    with pytest.raises(ValueError, match="reset is a rate"):
        testing.Faults(reset=-1)
    with pytest.raises(ValueError, match="delay is a share"):
        testing.Faults(delay=2)
    faults = testing.Faults(reset=0.25, longest=3.0)
    assert faults_of_text(faults_text(faults)) == faults
    assert faults_of_text(faults_text(testing.Faults())) == testing.Faults()


def test_the_call_that_replays() -> None:
    assert call_text(nothing, 7, 1, None, "walk", 600.0) == "framework.testing.simulate(nothing, seed=7)"
    faults = testing.Faults(crash_worker=0.5, reset=1.0)
    assert call_text(nothing, 7, 2, faults, "priorities", 9.0) == (
        "framework.testing.simulate(nothing, seed=7, nodes=2, faults=Faults(crash_worker=0.5, reset=1.0), "
        "scheduler='priorities', limit=9)"
    )


def test_in_reality() -> None:
    assert not testing.is_simulated()
    testing.note("nobody listens", number=1)
    testing.sometimes("nobody counts")
    before = testing.now()
    assert testing.now() >= before


def test_eventually() -> None:
    answers = iter([0, None, "yes"])
    assert testing.eventually(lambda: next(answers), every=0.0) == "yes"
    with pytest.raises(AssertionError, match=r"did not hold within 0 s; the last time it gave \[\]"):
        testing.eventually(list, within=0)
    with pytest.raises(TypeError, match="function without arguments"):
        testing.eventually(True)  # type: ignore[arg-type]


def test_eventually_takes_an_assertion_for_not_yet() -> None:
    tries: list[int] = []

    def condition() -> bool:
        tries.append(1)
        assert len(tries) > 2, "too early"
        return True

    assert testing.eventually(condition, every=0.0)
    tries.clear()
    with pytest.raises(AssertionError) as caught:
        testing.eventually(condition, within=0)
    assert "too early" in str(caught.value.__cause__)


async def test_eventually_in_a_coroutine() -> None:
    answers = iter([0, 3])

    async def condition() -> int:
        return next(answers)

    assert await testing.eventually(condition, every=0.0) == 3
    with pytest.raises(AssertionError, match="did not hold"):
        await testing.eventually(lambda: False, within=0)


def test_coroutine_conditions_are_awaited() -> None:
    async def condition() -> bool:
        return True

    with pytest.raises(TypeError, match="await eventually"):
        testing.eventually(condition)


def test_simulated_keeps_the_name() -> None:
    @testing.simulated(seeds=1)
    def test_something() -> None:
        """Text."""

    assert test_something.__name__ == "test_something" and test_something.__doc__ == "Text."
    with pytest.raises(TypeError, match="not a remote function"):
        testing.simulated()(remote)


def test_a_replay_needs_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEWORK_SIM_SEED", "seven")
    with pytest.raises(ValueError, match="FRAMEWORK_SIM_SEED is the number of a seed, not 'seven'"):
        testing.simulated()(nothing)()


@pytest.mark.slow
def test_without_greenlet() -> None:
    code = "import sys; sys.modules['greenlet'] = None; import framework; import framework.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'framework[sim]'" in done.stderr
