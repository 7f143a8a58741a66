"""Answers that are read by threads and loops which wait for them, and not by the runtime's loop: in a
simulation that is so only here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("greenlet", reason="the simulation takes the extra sim")

from framework._net.takeover import Reading, Turn
from framework._sim.explore import Plan, Summary, report, run_seeds
from framework._sim.sockets import SimSocket

KINDS = ("singly", "calls_singly", "burst", "calls", "nested", "cancel_calls", "kill")
PLAN = Plan(kinds=KINDS)

pytestmark = [pytest.mark.sim, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _plain_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(SimSocket, "plain", True)
    yield


def test_seeds() -> None:
    summary = Summary(PLAN)
    for outcome in run_seeds(range(200, 240), PLAN, jobs=2):
        summary.add(outcome)
    assert not summary.failed, "\n\n".join(report(outcome, PLAN) for outcome in summary.failed)


def test_loops_do_read_and_a_seed_is_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    skip = Reading.skip

    def counted(reading: Reading, turn: Turn, size: int) -> None:
        if turn.host is not None:
            read.append(size)
        skip(reading, turn, size)

    monkeypatch.setattr(Reading, "skip", counted)
    first = PLAN.run(201)
    assert first.ok and read
    before, again = len(read), PLAN.run(201)
    assert again.digest == first.digest
    assert len(read) == 2 * before
