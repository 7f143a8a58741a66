"""The soak runs, judges and writes; what it finds on a run of seconds is not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.drivers import assert_clean

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.bench]


def test_a_short_soak(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    sessions = tmp_path / "s"
    sessions.mkdir()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "framework.benchmarks.soak",
            *(
                "--minutes=0.05",
                "--interval=0.15",
                "--pause=0.1",
                "--visits=1",
                "--no-fill",
                f"--json={path}",
            ),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "FRAMEWORK_TMPDIR": str(sessions)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "FAILED" not in done.stdout, done.stdout
    found = json.loads(path.read_text())
    assert found["error"] == ""
    assert found["rounds"] >= 1 and found["visits"] >= 1
    assert found["operations"]["tasks_one_at_a_time"] >= 50
    judged = {(row["process"], row["figure"]) for row in found["verdicts"]}
    for process in ("driver", "head", "node 1", "node 2"):
        assert {(process, "heap"), (process, "descriptors")} <= judged, sorted(judged)
    for kind in ("worker", "zygote"):
        assert any(process.startswith(f"node 1 {kind}") for process, _ in judged), sorted(judged)
    assert {("latency", "actor call p50"), ("session", "store"), ("driver", "blocks")} <= judged
    assert {row["judgement"]["verdict"] for row in found["verdicts"]} <= {"flat", "grows", "?"}
    assert_clean(sessions)
