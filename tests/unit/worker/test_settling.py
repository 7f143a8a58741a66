"""What the zygote does to its memory: gaps in it are filled, and what is made then lies close together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# In an interpreter of its own: what is filled stays so.
PROGRAM = """
import gc, sys
from itertools import pairwise
sys.path.insert(0, sys.argv[1])
from framework._worker.settling import fill_gaps, settle

def gaps(size, count=100):
    places = sorted(id(block) for block in [bytes(size - 33) for _ in range(count)])
    return sum(after - before != size for before, after in pairwise(places))

kept = {size: [bytes(size - 33) for _ in range(900)][::3] for size in (64, 208, 400)}
before = {size: gaps(size) for size in kept}
filled = fill_gaps()
print([before[size] > 30 for size in kept], filled > 2000, [gaps(size) <= 8 for size in kept])
again = fill_gaps()
print(again < 12_000)  # a pool or two of each size
settle(fill=True)
print(gc.get_freeze_count() > 0, gc.isenabled())
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="about its allocator")
def test_gaps_are_filled() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [
        "[True, True, True] True [True, True, True]",
        "True",
        "True True",
    ], done.stderr


def test_another_allocator_is_no_harm() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\nimport framework._worker.settling as s; s.fill_gaps()"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(ROOT)], env={"PYTHONMALLOC": "malloc"}, timeout=60, check=True
    )
