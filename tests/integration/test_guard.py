"""What a call costs in counts, which do not depend on the speed of the machine: no more than is allowed.

A failure says which count is over its bound, and the command that shows what it is made of. When the cost is
meant, ``python -m framework.benchmarks guard --write`` makes new bounds for the running version of Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="counts the sleeps of processes in /proc"
    ),
    pytest.mark.skipif(sys.implementation.name != "cpython", reason="bounds are of CPython"),
]


def test_counts_per_call_are_within_their_bounds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "framework.benchmarks", "guard"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
