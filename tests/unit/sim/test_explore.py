"""Series of seeds: plans and their command lines, summaries, shrinking, children."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from typing import Any

import pytest

pytest.importorskip("greenlet", reason="the simulation takes the extra sim")

from framework._sim import explore, weather
from framework._sim.__main__ import main, parse
from framework._sim.children import NoResult, in_children
from framework._sim.counters import PATHS, SELDOM
from framework._sim.explore import ENOUGH, HAPPENINGS, Plan, Summary, faults_of_text, faults_text, sort_of
from framework._sim.faults import Faults
from framework._sim.planted import PLANTED
from framework._sim.programs import WEIGHTS
from framework._sim.runner import Outcome

# ---- plans -------------------------------------------------------------------------------------------

PLANS = [
    Plan(),
    Plan(faults=Faults()),
    Plan(faults=Faults(reset=0.8, delay=0.125, longest=1.0), nodes=3),
    Plan(without=frozenset({"reset", "partition"}), operations=7, scheduler="priorities"),
    Plan(kinds=("calls", "put"), skip=frozenset({0, 12, 3}), schedule=2, planted=next(iter(PLANTED))),
]


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_is_its_command_line(plan: Plan) -> None:
    options = parse(["--seed", "5", *plan.arguments()])
    assert options.plan == plan and options.range == range(5, 6)
    assert plan.command(5).startswith("python -m framework._sim --seed 5")
    assert plan.narrowed() == (plan != Plan())


@pytest.mark.parametrize("seed", range(40))
def test_a_settled_plan_is_the_same_run(seed: int) -> None:
    drawn = weather.draw(seed)
    settled = Plan().settled(seed)
    assert (settled.faults, settled.nodes, settled.operations) == (
        drawn.faults,
        drawn.nodes,
        drawn.operations,
    )
    assert settled.scheduler == drawn.scheduler
    assert faults_of_text(faults_text(drawn.faults)) == drawn.faults
    calm = Plan(without=frozenset({"reset"})).settled(seed)
    assert calm.faults == dataclasses.replace(drawn.faults, reset=0.0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--faults", "flood=1"], "no such fault: 'flood'"),
        (["--without", "flood"], "no such faults"),
        (["--kinds", "calls,walk"], "no such operations"),
        (["--seeds", "9-3"], "no seeds"),
        (["--trace"], "take one seed"),
        (["--planted", "nothing"], "invalid choice"),
        (["--jobs", "0"], "positive"),
    ],
)
def test_wrong_command_lines(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert text in capsys.readouterr().err


def test_seeds() -> None:
    assert parse(["--seeds", "7"]).range == range(7)
    assert parse(["--seeds", "7-9"]).range == range(7, 10)


def test_planted_bugs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-planted"]) == 0
    assert capsys.readouterr().out.count("\n") == len(PLANTED) >= 12


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_patch_what_is_there(name: str) -> None:
    patched: list[str] = []

    class Recorder:
        def _set(self, owner: Any, name: str, value: Any) -> None:
            assert callable(getattr(owner, name)) and value.__name__ == name
            patched.append(name)

    PLANTED[name].plant(Recorder())  # type: ignore[arg-type]
    assert len(patched) == 1
    options = parse(["--planted", name, *shlex.split(PLANTED[name].narrow)])
    assert options.plan.planted == name


# ---- summaries ---------------------------------------------------------------------------------------


def outcome(seed: int, *problems: str) -> Outcome:
    made = Outcome(seed)
    made.problems += problems
    made.faults = dict.fromkeys(HAPPENINGS, 1)
    made.paths = dict.fromkeys(PATHS, 2)
    made.operations = dict.fromkeys(WEIGHTS, 3)
    return made


def test_what_was_never_reached_fails_a_long_series() -> None:
    def series(count: int, plan: Plan) -> Summary:
        summary = Summary(plan)
        for seed in range(count):
            made = outcome(seed)
            del made.faults["reset"], made.operations["put"]
            made.paths["a borrower is lost"] = 0
            made.paths.update(dict.fromkeys(SELDOM, 0))
            summary.add(made)
        return summary

    assert series(ENOUGH - 1, Plan()).ok
    assert series(ENOUGH, Plan(nodes=2)).ok
    summary = series(ENOUGH, Plan())
    assert summary.never() == ["fault: reset", "path: a borrower is lost", "operation: put"]
    assert not summary.ok and summary.to_json()["never"] == summary.never()
    assert f"NEVER REACHED in {ENOUGH} seeds: fault: reset" in "\n".join(summary.lines())


def test_failures_are_told_with_their_replay() -> None:
    summary = Summary(Plan(nodes=2))
    summary.add(outcome(3))
    summary.add(outcome(4, "left over: a pin"))
    assert not summary.ok
    assert "1 of 2 seeds FAILED: 4" in list(summary.lines())[-1]
    (failed,) = summary.to_json()["failed"]
    assert failed == {
        "seed": 4,
        "problems": ["left over: a pin"],
        "replay": "python -m framework._sim --seed 4 --nodes 2",
    }
    assert "replay: python" in explore.report(summary.failed[0], summary.plan)


def test_sorts_of_problems() -> None:
    assert sort_of("left over: 3 leases") == sort_of("left over: 5 pins") != sort_of("wrong value: 3")


# ---- shrinking ---------------------------------------------------------------------------------------


def shrunk(monkeypatch: pytest.MonkeyPatch, plan: Plan, fails: Any) -> tuple[Plan, int]:
    """A run fails as `fails(plan)` says; how many runs it took."""
    runs = []

    def run(self: Plan, seed: int, keep_log: bool = False) -> Outcome:
        runs.append(self)
        return outcome(seed, *(["wrong value: 1"] if fails(self) else []))

    def here(items: Any, function: Any, **_: Any) -> Any:
        for item in items:
            yield item, function(item)

    monkeypatch.setattr(Plan, "run", run)
    monkeypatch.setattr(explore, "in_children", here)
    # (`close` is called on what `run_seeds` returns.)
    found = explore.shrink(5, plan)
    assert found is not None
    return found[0], len(runs)


def left(plan: Plan) -> set[int]:
    return set(range(plan.operations or 0)) - plan.skip


@pytest.mark.parametrize("needed", [{0}, {19}, {3, 17}, {4, 5, 6}, set(range(0, 20, 4))])
def test_shrinking_leaves_what_is_needed(monkeypatch: pytest.MonkeyPatch, needed: set[int]) -> None:
    plan = Plan(operations=20, nodes=3, faults=Faults(reset=1.0, slow=1.0, delay=0.5))

    def fails(plan: Plan) -> bool:
        assert plan.faults is not None
        return needed <= left(plan) and plan.faults.slow > 0 and (plan.nodes or 0) >= 2

    best, runs = shrunk(monkeypatch, plan, fails)
    assert left(best) == needed
    assert best.operations == max(needed) + 1
    assert best.faults == Faults(slow=1.0) and best.nodes == 2
    assert runs < 600


def test_nothing_to_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore, "in_children", lambda items, *_, **__: ((i, outcome(i)) for i in items))
    assert explore.shrink(5, Plan()) is None


# ---- children ----------------------------------------------------------------------------------------


def test_results_come_from_children() -> None:
    found = dict(in_children(range(5), lambda n: (n * n, os.getpid() == parent), jobs=2))
    assert found == {n: (n * n, False) for n in range(5)}


parent = os.getpid()


def test_what_a_child_says_at_its_end() -> None:
    def fails(number: int) -> int:
        if number == 1:
            os._exit(3)
        if number == 2:
            os.kill(os.getpid(), 9)
        raise KeyError("missing")

    found = dict(in_children([0, 1, 2], fails, jobs=3))
    assert all(isinstance(result, NoResult) and not result.hung for result in found.values())
    assert "KeyError: 'missing'" in str(found[0])
    assert "exit code 3" in str(found[1])
    assert "signal 9" in str(found[2])


@pytest.mark.slow
def test_a_child_that_hangs_is_ended_and_says_where() -> None:
    def hangs(_: int) -> None:
        while True:
            pass

    ((_, result),) = in_children([0], hangs, limit=0.3)
    assert isinstance(result, NoResult) and result.hung
    assert "no result after 0.3 s" in str(result) and "in hangs" in str(result)


def test_children_end_with_the_iterator() -> None:
    begun = time.monotonic()
    runs = in_children(range(4), lambda n: time.sleep(n * 30.0), jobs=2)
    assert next(runs)[0] == 0
    runs.close()
    assert time.monotonic() - begun < 20.0


def test_large_results_arrive() -> None:
    ((_, data),) = in_children([1], lambda _: b"x" * 3_000_000)
    assert isinstance(data, bytes) and len(data) == 3_000_000
