"""The same seed is the same run, to the byte: again in this process, in another one with another heap, under
another hash seed of Python's."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from framework._sim.choices import first_difference
from framework._sim.runner import Outcome, run_program_of

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (3, 11, 24)

pytestmark = [pytest.mark.slow, pytest.mark.sim]

PROGRAM = """
import sys
from framework._sim.runner import run_program_of
junk = [object() for _ in range(int(sys.argv[1]) * 7919)][::3]
for seed in map(int, sys.argv[2:]):
    run = run_program_of(seed, keep_log=True)
    print(seed, run.digest, run.steps, flush=True)
"""


def elsewhere(number: int, seeds: tuple[int, ...]) -> list[str]:
    """The digests of runs in a fresh interpreter, which has its own addresses, order of sets, search path and
    working directory."""
    path = os.pathsep.join([str(ROOT), *("/somewhere/else" * n for n in range(1, 4 * number))])
    environment = {**os.environ, "PYTHONHASHSEED": str(number), "PYTHONPATH": path}
    command = [sys.executable, "-c", PROGRAM, str(number), *map(str, seeds)]
    done = subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, timeout=100, check=True
    )
    return done.stdout.splitlines()


def shown(run: Outcome) -> str:
    return f"{run.seed} {run.digest} {run.steps}"


def test_a_seed_is_the_same_run_wherever_it_runs() -> None:
    here = [shown(run_program_of(seed)) for seed in SEEDS]
    assert elsewhere(1, SEEDS) == here
    assert elsewhere(2, SEEDS[::-1]) == here[::-1]


def test_twice_in_one_process() -> None:
    first, second = (run_program_of(SEEDS[0], keep_log=True) for _ in range(2))
    assert first.log and second.log
    assert first_difference(first.log, second.log) is None
    assert first.digest == second.digest != run_program_of(SEEDS[1]).digest


def open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:  # that of the list itself
            continue
    return sorted(found)


def test_a_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_program_of(SEEDS[0])  # (what is imported and cached at first use)
    gc.collect()
    files, threads, objects = open_files(), threading.enumerate(), len(gc.get_objects())
    environment = dict(os.environ)
    for _ in range(3):
        for seed in SEEDS[:2]:
            run_program_of(seed)
    gc.collect()
    assert open_files() == files and threading.enumerate() == threads
    assert os.listdir(tmp_path) == [] and dict(os.environ) == environment
    assert len(gc.get_objects()) < objects + 3000


def test_nothing_is_said_while_a_run_is_taken_apart(capfd: pytest.CaptureFixture[str]) -> None:
    run = run_program_of(SEEDS[0])
    del run
    gc.collect()
    assert capfd.readouterr() == ("", "")
