"""A short form of `python -m framework.chaos`: some seconds of kills and stops, under work of every kind.

The long forms are for the command line: see docs/design/chaos.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from framework.chaos.workloads import CATALOGUE
from support.leaks import framework_processes, wait_until

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc"),
]


def chaos(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "framework.chaos", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_everything_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    arguments = ("--seed=3", "--every=0.5", "--duration=3", "--nodes=2", f"--json={path}")
    with chaos(tmp_path, *arguments) as process:
        said, _ = process.communicate(timeout=110)
    assert process.returncode == 0, said
    report = json.loads(path.read_text())
    assert report["passed"] and not report["left"] and not report["failures"]
    assert report["faults"]["node.kill"] and report["faults"]["worker.kill"] and report["faults"]["head.kill"]
    assert set(report["workloads"]) == set(CATALOGUE)
    for row in report["workloads"].values():
        assert row["rounds"] and row["asked"] == row["answered"] + sum(row["permitted"].values())
    assert "survived" in said and not framework_processes(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]  # no logs of a run that went well


def test_an_interrupt_ends_it_with_the_report(tmp_path: Path) -> None:
    arguments = ("--duration=600", "--nodes=1", "--workloads=nested", "--targets=workers", "--every=0.3")
    with chaos(tmp_path, *arguments) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "worker.kill" in line:
                break
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=110)
    assert process.returncode == 0, said
    assert "FAULTS" in said and "survived" in said
    wait_until(lambda: not framework_processes(tmp_path), what="the end of all processes")
