from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framework.benchmarks import guard
from framework.benchmarks.guard import bound_for, bounds_of, exceeded

CALLS = "task, burst of 1,000: Python functions in the driver"


def test_a_bound_is_some_room_above_the_count() -> None:
    assert bound_for(CALLS, 40.0) == pytest.approx(45.0)
    assert bound_for("task, one at a time: frames sent by the driver", 1.0) == pytest.approx(1.05)


def test_a_lucky_count_of_sleeps_makes_no_strict_bound() -> None:
    metric = "task, one at a time: sleeps of the driver"
    assert bound_for(metric, 0.5) == bound_for(metric, 1.0) == pytest.approx(1.3)


@pytest.mark.parametrize(
    "metric", [CALLS, "a queued task: allocated blocks", "x: system calls in the worker"]
)
def test_a_fifth_more_is_noticed(metric: str) -> None:
    assert 1.2 * 20 > bound_for(metric, 20.0) > 1.04 * 20


def test_a_version_without_bounds_gets_the_largest_with_room() -> None:
    known = {"3.11": {"a": 10.0, "b": 1.0}, "3.12": {"a": 8.0}}
    assert bounds_of("3.12", known) == {"a": 8.0}
    assert bounds_of("3.99", known) == {"a": 12.5, "b": 1.25}


def test_the_text_of_a_failure_names_the_command_that_explains_it() -> None:
    (text,) = exceeded({"a: calls": 12.0}, {"a: calls": 10.0})
    assert "a: calls: 12.00 a call, at most 10.00 are allowed" in text
    assert "python -m framework.benchmarks guard --profile 'a: calls'" in text
    assert exceeded({"a: calls": 10.0}, {"a: calls": 10.0}) == []


def test_what_is_not_counted_any_more_or_has_no_bound_is_told() -> None:
    lines = exceeded(
        {"new": 1.0, "none": 0.0, "x: sleeps": 0.0}, {"gone": 1.0, "none": 1.0, "x: sleeps": 1.0}
    )
    assert [line.partition(":")[0] for line in lines] == ["gone", "none", "new"]


def test_the_file_of_bounds_has_the_supported_versions() -> None:
    known: dict[str, dict[str, float]] = json.loads(guard.BOUNDS_FILE.read_text())
    assert set(known) >= {"3.11", "3.12", "3.13"}
    assert len({tuple(bounds) for bounds in known.values()}) == 1
    assert all(bound > 0 for bounds in known.values() for bound in bounds.values())


class _Counts:
    def __init__(self, *figures: float) -> None:
        self.left = list(figures)

    def __call__(self) -> dict[str, Any]:
        return {"figures": {CALLS: self.left.pop(0)}, "names": {CALLS: {"f": 30.0, "g": 10.0}}}


@pytest.fixture
def bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bounds.json"
    path.write_text(json.dumps({guard.version(): {CALLS: 45.0}}))
    monkeypatch.setattr(guard, "BOUNDS_FILE", path)
    return path


@pytest.mark.parametrize(("counts", "code"), [((40.0,), 0), ((50.0, 44.0), 0), ((50.0, 49.0), 1)])
def test_what_is_over_is_counted_again(
    counts: tuple[float, ...], code: int, bounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "count", _Counts(*counts))
    assert guard.main([]) == code


def test_write_takes_the_largest_of_three(bounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "count", _Counts(40.0, 50.0, 45.0))
    assert guard.main(["--write"]) == 0
    assert json.loads(bounds.read_text())[guard.version()] == {CALLS: bound_for(CALLS, 50.0)}


def test_profile_shows_what_a_count_is_made_of(
    bounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "count", _Counts(40.0))
    assert guard.main(["--profile", CALLS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{CALLS}: 40.00 a call"
    assert [line.split() for line in lines[1:]] == [["30.000", "f"], ["10.000", "g"]]
