"""The benchmarks run on the framework as it is: figures in every row, and nothing left behind.

The figures themselves are not looked at: they depend on the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from framework.benchmarks import compare

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.bench]

# One of each kind of workload: floors, objects, clients in processes of their own, tasks, streams, actors,
# fresh processes.
SMOKE = "put calls|tasks sync|await one|streaming|1:1 actor calls sync|async-actor calls sync|first result"


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "framework.benchmarks", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_bench_smoke(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = benchmarks("--quick", "--runs=1", "--seconds=0.01", "--filter", SMOKE, "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert {row["group"] for row in rows} >= {"floors", "objects", "tasks", "actors", "start-up"}
    for row in rows:
        assert row["median"] > 0, row
        assert not row["note"], row
        assert row["name"] in done.stdout
    held = [row for row in rows if row["floor"]]
    assert held and all(row["ratio"] > 0 for row in held)


def test_compare_reads_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    done = benchmarks(
        "--quick", "--runs=1", "--seconds=0.01", "--filter", "pipe|get calls", "--json", str(path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert compare.main([str(path), str(path)]) == 0
    assert "single client get calls" in capsys.readouterr().out


def test_a_filter_that_matches_nothing() -> None:
    done = benchmarks("--filter", "no such row")
    assert (done.returncode, done.stderr.strip()) == (2, "no row matches")


def test_targets_are_held_against_the_rows_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = benchmarks(
        "--targets", "--quick", "--runs=1", "--seconds=0.01", "--filter=tasks sync|idle", "--json", str(path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "  single client tasks sync / floor" in line]
    assert len(lines) == 1 and " %" in lines[0]
    names = {row["name"] for row in json.loads(path.read_text())["rows"]}
    assert "single client tasks sync" in names and "1:n actor calls sync" not in names
    again = benchmarks("targets", str(path))
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() in done.stdout


def test_a_curve_has_points_and_a_verdict(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    done = benchmarks("--curves", "arguments", "returns", "--quick", "--runs=1", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    curves = json.loads(path.read_text())["curves"]
    assert [curve["name"] for curve in curves] == ["arguments", "returns"]
    for curve in curves:
        assert len(curve["points"]) >= 3 and not curve["note"]
        assert curve["verdict"] in ("linear", "grows faster")


def test_latency_under_load(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    loads = "driver computes|large puts|tasks queued|tasks in flight"
    done = benchmarks("--quick", "--runs=1", "--seconds=0.01", "--filter", loads, "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row["median"] for row in json.loads(path.read_text())["rows"]}
    assert len(rows) == 8
    assert all(seconds > 0 for seconds in rows.values())  # (each is of calls of its own)
