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
