"""Random programs on simulated clusters: some hundred seeds, those that have found something before, a few
of them twice. Longer: ``make sim SEEDS=10000``."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("greenlet", reason="the simulation takes the extra sim")

from framework._sim.explore import Plan, Summary, report, run_seeds, twice
from framework._sim.faults import Faults

from .regressions import REGRESSIONS

SEEDS = int(os.environ.get("FRAMEWORK_SIM_SEEDS", "250"))
SHARES = 5  # tests that SEEDS are divided among, so that none comes near pytest's limit
JOBS = 2

pytestmark = [pytest.mark.sim, pytest.mark.slow]


def plan_of(options: dict[str, Any]) -> Plan:
    """That of a regression."""
    given = dict(options)
    if isinstance(given.get("faults"), dict):
        given["faults"] = Faults(**given["faults"])
    for name in ("skip", "without"):
        if name in given:
            given[name] = frozenset(given[name])
    if given.get("kinds") is not None:
        given["kinds"] = tuple(given["kinds"])
    return Plan(**given)


def check(seeds: Any, plan: Plan) -> Summary:
    summary = Summary(plan)
    for outcome in run_seeds(seeds, plan, jobs=JOBS):
        summary.add(outcome)
    assert not summary.failed, "\n\n".join(report(outcome, plan) for outcome in summary.failed)
    return summary


@pytest.mark.parametrize("share", range(SHARES))
def test_seeds(share: int) -> None:
    summary = check(range(share, SEEDS, SHARES), Plan())
    assert summary.seeds == len(range(share, SEEDS, SHARES))


@pytest.mark.parametrize(
    ("seed", "options", "what"),
    REGRESSIONS,
    ids=[f"{seed}-{n}" for n, (seed, _, _) in enumerate(REGRESSIONS)],
)
def test_regressions(seed: int, options: dict[str, Any], what: str) -> None:
    assert what
    check([seed], plan_of(options))


def test_a_seed_is_the_same_twice() -> None:
    differ = [f"seed {seed}: {where}" for seed, where in twice(range(3), Plan(), jobs=JOBS) if where]
    assert not differ, "\n".join(differ)
