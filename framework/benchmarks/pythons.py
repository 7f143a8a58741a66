"""The core rows under other versions of Python that are found on this machine: ``--pythons``.

One interpreter per minor version that the framework supports, other than the one that runs: those on the
PATH, and those of pyenv. Where the dependencies are not installed, they are put into a virtual environment
that is deleted afterwards; where that fails, a line says so, and the run goes on.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.benchmarks.invocation import Result
from framework.benchmarks.model import Settings
from framework.benchmarks.processes import PACKAGE_ROOT, run_child
from framework.benchmarks.report import columns, figure

#: The rows that are measured: what every program does, and what depends on the interpreter most.
CORE_ROWS: tuple[str, ...] = (
    "single client tasks sync",
    "single client tasks async",
    "multi client tasks async",
    "await one at a time",
    "streaming generator items",
    "1:1 actor calls sync",
    "1:1 actor calls async",
    "n:n actor calls async",
    "1:1 async-actor calls async",
    "single client get object containing 10k refs",
    "actor start, one",
    "import + init + first result",
)
_OLDEST, _NEWEST = 11, 14
_IMPORTS = "import cloudpickle, msgpack, numpy"
_INSTALL_TIMEOUT = 600.0
_RUN_TIMEOUT = 1800.0


@dataclass(frozen=True, slots=True)
class Interpreter:
    """`version` as ``(3, 12, 1)``."""

    path: str
    version: tuple[int, int, int]

    @property
    def name(self) -> str:
        """As ``3.12.1``."""
        return ".".join(map(str, self.version))


@dataclass(slots=True)
class Run:
    """What one interpreter gave: rows as in ``--json``, or a note with the reason why there are none."""

    version: str
    rows: list[dict[str, Any]]
    note: str = ""


def _candidates() -> Iterator[str]:
    for minor in range(_OLDEST, _NEWEST + 1):
        if found := shutil.which(f"python3.{minor}"):
            yield found
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(root.glob("versions/3.*/bin/python")))


def _version_of(path: str) -> tuple[int, int, int] | None:
    """None where it does not start: a version manager's shim may stand for nothing."""
    code = "import sys; print(sys.implementation.name, *sys.version_info[:3])"
    try:
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=20, check=True)
        name, *numbers = done.stdout.split()
        major, minor, micro = map(int, numbers)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return (major, minor, micro) if name == "cpython" else None


def choose(found: Sequence[Interpreter], running: tuple[int, int]) -> list[Interpreter]:
    """One for each minor version that is supported and is not the one that runs: the newest of it."""
    best: dict[tuple[int, int], Interpreter] = {}
    for each in found:
        minor = each.version[:2]
        if (3, _OLDEST) <= minor <= (3, _NEWEST) and minor != running:
            known = best.get(minor)
            if known is None or each.version > known.version:
                best[minor] = each
    return [best[minor] for minor in sorted(best)]


def find() -> list[Interpreter]:
    """The other interpreters of this machine, oldest first."""
    found = [Interpreter(path, version) for path in _candidates() if (version := _version_of(path))]
    return choose(found, sys.version_info[:2])


def dependencies() -> list[str]:
    """What the framework needs, as pip takes it."""
    project = PACKAGE_ROOT / "pyproject.toml"
    if project.exists():
        listed: list[str] = tomllib.loads(project.read_text())["project"]["dependencies"]
        return listed
    return [each for each in importlib.metadata.requires("framework") or () if "extra ==" not in each]


@contextmanager
def ready(interpreter: Interpreter) -> Iterator[str]:
    """The path of an interpreter of that version which has the dependencies. `RuntimeError` with one line
    that says why there is none."""
    if subprocess.run([interpreter.path, "-c", _IMPORTS], capture_output=True, check=False).returncode == 0:
        yield interpreter.path
        return
    with tempfile.TemporaryDirectory() as directory:
        python = os.path.join(directory, "bin", "python")
        for command in (
            [interpreter.path, "-m", "venv", directory],
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *dependencies()],
        ):
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT, check=False
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise RuntimeError(f"no environment: {error}") from None
            if done.returncode:
                lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
                raise RuntimeError(f"no environment: {lines[-1][:160]}")
        yield python


def _measure(interpreter: Interpreter, rows: Sequence[str], settings: Settings) -> Run:
    pattern = "|".join(f"^{re.escape(row)}$" for row in rows)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "rows.json")
        arguments = ["-m", "framework.benchmarks", "--filter", pattern, "--json", str(out)]
        arguments += ["--runs", str(settings.runs), "--seconds", str(settings.seconds)]
        try:
            with ready(interpreter) as python:
                outcome = run_child(
                    arguments + (["--quick"] if settings.quick else []), _RUN_TIMEOUT, executable=python
                )
        except RuntimeError as error:
            return Run(interpreter.name, [], str(error))
        if not out.exists():
            lines = outcome.stderr.strip().splitlines() or ["no output"]
            return Run(interpreter.name, [], lines[-1][:160])
        return Run(interpreter.name, json.loads(out.read_text())["rows"])


def run_others(selected: Sequence[str], settings: Settings, progress: Callable[[str], None]) -> list[Run]:
    """The core rows that are among `selected`, under each other interpreter. Ctrl-C ends it early."""
    rows = [row for row in CORE_ROWS if row in selected]
    runs: list[Run] = []
    try:
        for interpreter in find() if rows else ():
            progress(f"Python {interpreter.name}")
            runs.append(_measure(interpreter, rows, settings))
    except KeyboardInterrupt:
        pass
    return runs


def table(results: Sequence[Result], runs: Sequence[Run]) -> str:
    """The core rows, one column per version, and a line for each version that gave none."""
    if not runs:
        return "PYTHONS: no other supported version was found"
    running = ".".join(map(str, sys.version_info[:3]))
    own: Mapping[str, Result] = {result.row.name: result for result in results}
    shown = [run for run in runs if run.rows]
    lines: list[tuple[str, ...]] = [("PYTHONS", running, *(run.version for run in shown), "")]
    for name in CORE_ROWS:
        if name in own:
            unit = own[name].row.unit
            others = [{row["name"]: row["median"] for row in run.rows}.get(name) for run in shown]
            cells = [own[name].value, *others]
            lines.append((f"  {name}", *(figure(cell, unit) for cell in cells), ""))
    notes = [f"Python {run.version}: {run.note}" for run in runs if run.note]
    return "\n".join([*columns(lines), *notes])
