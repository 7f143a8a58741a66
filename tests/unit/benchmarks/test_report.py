from __future__ import annotations

import math

import pytest

from framework.benchmarks import facts, peers, report
from framework.benchmarks.invocation import Result, hold_against_floors, last_line
from framework.benchmarks.model import BYTES, GB_PER_SECOND, PER_SECOND, SECONDS, Row


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, PER_SECOND, "-"),
        (12_345.6, PER_SECOND, "12,346 /s"),
        (1.234, PER_SECOND, "1.23 /s"),
        (12.34, PER_SECOND, "12.3 /s"),
        (5.2, GB_PER_SECOND, "5.20 GB/s"),
        (0.0042, SECONDS, "4.2 ms"),
        (0.3, SECONDS, "0.30 s"),
        (1999.6, BYTES, "2,000 B"),
    ],
)
def test_figure(value: float | None, unit: str, text: str) -> None:
    assert report.figure(value, unit) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (math.nan, "-"), (0.25, "25 %"), (0.004, "0.4 %"), (1.5, "150 %")]
)
def test_percent(value: float | None, text: str) -> None:
    assert report.percent(value) == text


def test_columns_line_up() -> None:
    assert report.columns([("a", "1", "x"), ("bb", "22", "")]) == ["a    1  x", "bb  22"]
    assert report.columns([]) == []


def _results() -> list[Result]:
    floor = Result("floors", Row("echo", PER_SECOND), [100.0, 200.0, 300.0])
    own = Result("tasks", Row("batch", PER_SECOND, "echo", 10), [5.0, 4.0, 6.0])
    slow = Result("tasks", Row("other", PER_SECOND, "not measured"), [1.0])
    broken = Result("tasks", Row("broken", PER_SECOND, "echo"), [], "RuntimeError: no")
    return [floor, own, slow, broken]


def test_ratios_need_both_figures() -> None:
    results = _results()
    hold_against_floors(results)
    assert [result.ratio for result in results] == [None, pytest.approx(0.25), None, None]


def test_table_shows_figures_and_notes() -> None:
    results = _results()
    hold_against_floors(results)
    lines = report.table(results).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["FLOORS", "echo", "TASKS", "batch", "other", "broken"]
    assert "25 %" in lines[4]
    assert "40 %" in lines[4]
    assert lines[6].endswith("RuntimeError: no")


def test_peer_table_sets_the_same_work_side_by_side() -> None:
    own = Result("tasks", Row(peers.PRODUCT_ROWS[peers.TASK], PER_SECOND), [3000.0])
    other = Result("peer Ray", Row(peers.row_name("Ray", peers.TASK), PER_SECOND), [400.0])
    lines = report.peer_table([own, other]).splitlines()
    assert lines[0].split()[-2:] == ["framework", "Ray"]
    assert "3,000 /s" in lines[1]
    assert "400 /s" in lines[1]
    assert report.peer_table([own]) == ""


def test_heading_copes_with_unknown_facts() -> None:
    machine: dict[str, object] = dict.fromkeys(facts.machine())
    text = report.heading(machine, {}, "note")
    assert "cpu unknown" in text
    assert "memory unknown" in text


def test_facts_of_this_machine_are_complete() -> None:
    machine = facts.machine()
    assert isinstance(machine["cpus"], int)
    assert machine["cpus"] >= 1
    assert "numpy" in facts.versions()


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n", "Some CPU @ 2 GHz"),
        ("Model : Board rev 1\n", "Board rev 1"),
        ("model : 85\n", None),
        ("", None),
    ],
)
def test_cpu_model(text: str, model: str | None) -> None:
    assert facts.cpu_model(text) == model


def test_last_line_says_what_happened() -> None:
    assert last_line("Traceback:\n  x\nValueError: no\n\n") == "ValueError: no"
    assert last_line(" \n") == "no output"
    assert len(last_line("x" * 1000)) <= 160
