"""Order, and exactly once per success, under random deaths: programs of several callers, checked against what
the options promise.

The seeds are fixed. FRAMEWORK_TEST_PROGRAMS=1000 tries that many programs, with other seeds each time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import framework as fw
from support.actor_programs import LIMIT, ActorCaller, Echo, Program, read
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PROGRAMS = int(os.environ.get("FRAMEWORK_TEST_PROGRAMS") or 0)

#: What a call does: returns, raises, takes a while, is killed in its middle, ends its process (once each),
#: calls another actor, has an argument that is not there yet or lies in the store, is cancelled at once, or
#: has its caller wait for it before it makes the next.
STEPS = ("value",) * 6 + (
    "wait",
    "wait",
    "error",
    "slow",
    "slow",
    "held",
    "die",
    "nested",
    "ref",
    "large",
    "cancel",
)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    callers = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["thread", "thread", "task", "actor"]),
                st.lists(st.sampled_from(STEPS), min_size=2, max_size=12),
            ),
            min_size=1,
            max_size=4,
        )
    )
    crashing = sum(step in ("held", "die") for _, script in callers for step in script)
    drop = draw(st.booleans())
    how = st.just("signal") if drop else st.sampled_from(["signal", "signal", "restart", "kill"])
    strikes = draw(
        st.lists(st.tuples(st.integers(1, 6) | st.integers(1, 50), how), max_size=max(0, 5 - crashing))
    )
    return Program(
        kind=draw(st.sampled_from(["sync", "sync", "async", "threads"])),
        restarts=draw(st.sampled_from([-1, -1, 2, 0])),
        retries=draw(st.sampled_from([-1, 0, 0, 1])),
        save=draw(st.booleans()),
        callers=callers,
        held=draw(st.lists(st.integers(0, 3), max_size=2, unique=True)) if draw(st.booleans()) else [],
        strikes=strikes,
        drop=drop,
    )


@pytest.fixture(scope="module")
def helpers(session: object) -> list[Any]:
    return [fw.remote(num_cpus=0)(Echo).remote(), ActorCaller.options(max_concurrency=4).remote()]


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def try_program(program: Program, log: str, helpers: list[Any]) -> None:
    outcomes = program.run(log, *helpers)
    pids = {int(line[2]) for line in read(log) if line[0] == "init"}
    wait_until(lambda: not any(map(alive, pids)), LIMIT, f"the end of {pids} of {program}")
    failures = program.check(log, outcomes)
    if failures:
        text = "\n".join([*failures, repr(program), repr(outcomes), Path(log).read_text()])
        raise AssertionError(text)


def test_programs(helpers: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(
        max_examples=PROGRAMS or 60,
        derandomize=not PROGRAMS,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def check(program: Program) -> None:
        try_program(program, str(tmp_path_factory.mktemp("p") / "log"), helpers)

    check()


@pytest.mark.parametrize("kind", ["sync", "async", "threads"])
def test_a_program_without_deaths(helpers: list[Any], tmp_path: Path, kind: str) -> None:
    """The checks themselves: everything has its value, once, in order."""
    script = ["value", "error", "ref", "nested", "wait", "large", "slow", "value"]
    program = Program(
        kind, 0, 0, True, [(where, script) for where in ("thread", "task", "actor")], [], [], True
    )
    log = str(tmp_path / "log")
    outcomes = program.run(log, *helpers)
    assert program.check(log, outcomes) == []
    assert outcomes == [["refused" if step == "error" else "value" for step in script]] * 3
    assert sum(line[0] == "call" for line in read(log)) == 3 * len(script)
