from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framework.benchmarks import catalogue, curves, targets
from framework.benchmarks.targets import MET, NOT_MET, TARGETS, UNKNOWN, Target, judge

ROWS = {row.name: row for workload in catalogue.ALL for row in workload.rows}


def _row(
    name: str, *samples: float, unit: str = "/s", floor: str | None = None, per: float = 1
) -> dict[str, Any]:
    lower = unit in ("s", "B", "%")
    return {
        "name": name,
        "unit": unit,
        "samples": list(samples),
        "floor": floor,
        "per_floor": per,
        "lower_is_better": lower,
    }


def _judge(target: Target, *rows: dict[str, Any], cpus: int = 2, **linear: str) -> tuple[str, str]:
    verdict = judge(target, {row["name"]: row for row in rows}, linear, cpus)
    return verdict.met, verdict.text


def test_every_row_of_a_target_exists() -> None:
    assert targets.rows_needed() <= set(ROWS)
    for target in TARGETS:
        if target.against == "floor":
            assert ROWS[target.row].floor, target
        elif target.against == "curve":
            assert target.row in curves.CURVES, target
        elif target.against is not None:
            assert ROWS[target.row].unit == ROWS[target.against].unit, target


def test_a_rate_against_a_peer() -> None:
    target = Target("a", "ours", "theirs", 12)
    assert _judge(target, _row("ours", 1200, 1300, 1100), _row("theirs", 100)) == (MET, "12.00x")
    assert _judge(target, _row("ours", 1190), _row("theirs", 100)) == (NOT_MET, "11.90x")
    assert _judge(target, _row("ours", 1190)) == (UNKNOWN, "-")
    assert _judge(target, _row("ours", 1190), _row("theirs")) == (UNKNOWN, "-")


def test_a_time_against_a_peer() -> None:
    target = Target("a", "ours", "theirs", 30)
    assert _judge(target, _row("ours", 0.01, unit="s"), _row("theirs", 0.3, unit="s")) == (MET, "30.00x")
    assert _judge(target, _row("ours", 0.02, unit="s"), _row("theirs", 0.3, unit="s")) == (NOT_MET, "15.00x")


def test_a_share_of_the_floor_counts_its_operations() -> None:
    target = Target("a", "batches", "floor", 0.35)
    rows = _row("batches", 40, floor="echo", per=1000), _row("echo", 100_000)
    assert _judge(target, *rows) == (MET, "40 %")
    target = Target("a", "start", "floor", 0.5)
    rows = _row("start", 0.4, unit="s", floor="fork", per=100), _row("fork", 0.001, unit="s")
    assert _judge(target, *rows) == (NOT_MET, "25 %")


def test_the_range_is_of_the_least_and_the_most_favourable_samples() -> None:
    rows = [_row("ours", 80, 100, 120), _row("theirs", 10, 8, 12)]
    verdict = judge(Target("a", "ours", "theirs", 1), {row["name"]: row for row in rows}, {}, 1)
    assert verdict.range == "6.67x … 15.00x"


def test_a_figure_itself() -> None:
    assert _judge(Target("a", "get", None, 100e-6), _row("get", 90e-6, unit="s")) == (MET, "90 µs")
    assert _judge(Target("a", "get", None, 100e-6), _row("get", 2e-3, unit="s")) == (NOT_MET, "2 ms")
    assert _judge(Target("a", "rate", None, 25_000), _row("rate", 30_000)) == (MET, "30,000 /s")
    assert _judge(Target("a", "rate", None, 25_000)) == (UNKNOWN, "-")


def test_what_scales_with_cores_is_asked_of_each() -> None:
    target = Target("a", "all", "one", 0.8, each_cpu=True)
    assert _judge(target, _row("all", 160), _row("one", 100), cpus=2) == (MET, "1.60x")
    assert _judge(target, _row("all", 160), _row("one", 100), cpus=4) == (NOT_MET, "1.60x")


def test_a_curve() -> None:
    target = Target("a", "wait", "curve", 0)
    assert _judge(target, wait="linear") == (MET, "linear")
    assert _judge(target, wait="grows faster") == (NOT_MET, "grows faster")
    assert _judge(target) == (UNKNOWN, "-")


def test_a_file_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    rows = [_row("get of 1 GiB, first", 50e-6, unit="s")]
    path.write_text(json.dumps({"format": 1, "settings": {"cpus": 2}, "rows": rows}))
    other.write_text(
        json.dumps(
            {"format": 1, "settings": {}, "rows": [], "curves": [{"name": "wait", "verdict": "linear"}]}
        )
    )
    assert targets.main([str(path), str(other)]) == 0
    out = capsys.readouterr().out
    assert f"2 met, 0 not met, {len(TARGETS) - 2} not measured" in out
    assert targets.main([str(tmp_path / "missing.json")]) == 2
    path.write_text("{}")
    assert targets.main([str(path)]) == 2
