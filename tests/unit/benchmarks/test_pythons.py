from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from framework.benchmarks import catalogue, pythons
from framework.benchmarks.invocation import Result
from framework.benchmarks.model import PER_SECOND, Row, Settings
from framework.benchmarks.pythons import CORE_ROWS, Interpreter, Run, choose, table


def _python(*version: int) -> Interpreter:
    major, minor, micro = version
    return Interpreter(f"/{major}.{minor}.{micro}", (major, minor, micro))


def test_the_newest_of_each_other_supported_version() -> None:
    found = [_python(3, 13, 0), _python(3, 12, 1), _python(3, 12, 9), _python(3, 11, 7), _python(3, 9, 1)]
    assert choose(found, (3, 11)) == [_python(3, 12, 9), _python(3, 13, 0)]
    assert choose(found, (3, 13)) == [_python(3, 11, 7), _python(3, 12, 9)]


def test_core_rows_exist() -> None:
    assert set(CORE_ROWS) <= {row.name for workload in catalogue.PRODUCT for row in workload.rows}


def test_a_shim_that_stands_for_nothing_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for minor, script in ((12, "exit 127"), (13, f'exec "{sys.executable}" "$@"')):
        path = tmp_path / f"python3.{minor}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    found = dict.fromkeys(pythons._candidates())
    assert str(tmp_path / "python3.12") in found
    assert pythons._version_of(str(tmp_path / "python3.12")) is None
    assert pythons._version_of(str(tmp_path / "python3.13")) == sys.version_info[:3]


def test_dependencies_are_those_of_the_project() -> None:
    names = " ".join(pythons.dependencies())
    assert "cloudpickle" in names and "msgpack" in names and "pytest" not in names


def test_the_table_has_a_column_per_version_and_a_line_per_failure() -> None:
    name = CORE_ROWS[0]
    results = [Result("tasks", Row(name, PER_SECOND), [100.0])]
    runs = [
        Run("3.12.1", [{"name": name, "median": 110.0}]),
        Run("3.13.0", [], "no environment: no network"),
    ]
    lines = table(results, runs).splitlines()
    assert lines[0].split()[-1] == "3.12.1"
    assert "100 /s" in lines[1] and "110 /s" in lines[1]
    assert lines[2] == "Python 3.13.0: no environment: no network"
    assert "no other supported version" in table(results, [])


def test_only_core_rows_that_were_selected_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pythons, "find", lambda: [_python(3, 12, 9)])
    asked: list[list[str]] = []

    def measure(interpreter: Interpreter, rows: list[str], settings: Settings) -> Run:
        asked.append(rows)
        return Run(interpreter.name, [])

    monkeypatch.setattr(pythons, "_measure", measure)
    pythons.run_others(["something else", CORE_ROWS[1]], Settings(), lambda name: None)
    assert asked == [[CORE_ROWS[1]]]
    assert pythons.run_others(["something else"], Settings(), lambda name: None) == []


def test_an_environment_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'No module named venv' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(RuntimeError, match="no environment: No module named venv"):
        with pythons.ready(Interpreter(str(broken), (3, 12, 0))):
            pass
