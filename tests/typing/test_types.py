"""mypy and pyright agree with the files accepted*.py and rejected*.py, line by line."""

from __future__ import annotations

import functools
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CASES = ("accepted.py", "accepted_actors.py", "rejected.py", "rejected_actors.py")
MARK = re.compile(r"#\s*error\b")

pytestmark = pytest.mark.slow

# (file name, line) to what the checker said there.
Findings = dict[tuple[str, int], str]


def run(*command: str, timeout: float = 100.0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MYPYPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def mypy(paths: list[Path]) -> Findings:
    """What `mypy --strict` reports in these files."""
    pytest.importorskip("mypy")
    options = ["--strict", "--config-file=pyproject.toml", "--no-error-summary", "--no-pretty"]
    done = run("mypy", *options, *map(str, paths))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: Findings = {}
    for line in done.stdout.splitlines():
        match = re.match(r"(.+?):(\d+)(?::\d+)?: error: (.*)", line)
        if match is not None:
            found.setdefault((Path(match[1]).name, int(match[2])), match[3])
    return found


@functools.cache
def why_no_pyright() -> str | None:
    """The reason that pyright cannot run here (its engine needs Node.js), or None."""
    try:
        done = run("pyright", "--version", timeout=60.0)
    except subprocess.TimeoutExpired:
        return "pyright did not start within a minute: it may be fetching Node.js without a network"
    if done.returncode != 0:
        return f"pyright cannot run here: {(done.stdout + done.stderr).strip()[-200:]}"
    return None


def pyright(paths: list[Path]) -> Findings:
    """What pyright reports in these files."""
    reason = why_no_pyright()
    if reason is not None:
        pytest.skip(reason)
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, paths))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: Findings = {}
    for item in json.loads(done.stdout)["generalDiagnostics"]:
        if item["severity"] == "error":
            where = (Path(item["file"]).name, item["range"]["start"]["line"] + 1)
            found.setdefault(where, item["message"])
    return found


def marked(path: Path) -> set[tuple[str, int]]:
    """The lines of a file on which an error is wanted."""
    lines = path.read_text().splitlines()
    return {(path.name, number) for number, line in enumerate(lines, 1) if MARK.search(line)}


def compare(found: Findings, paths: list[Path]) -> list[str]:
    """One line for each unexpected and each missing error."""
    wanted: set[tuple[str, int]] = set().union(*(marked(path) for path in paths))
    names = {path.name for path in paths}
    extra = [f"{name}:{line}: {text}" for (name, line), text in found.items() if (name, line) not in wanted]
    missing = [f"{name}:{line}: no error reported" for name, line in wanted - found.keys() if name in names]
    return sorted(extra + missing)


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_checker_agrees(checker: Callable[[list[Path]], Findings]) -> None:
    paths = [HERE / name for name in CASES]
    problems = compare(checker(paths), paths)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("accepted")])
def test_what_checkers_accept_can_be_loaded(name: str) -> None:
    assert runpy.run_path(str(HERE / name))["__doc__"]


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_harness_notices(checker: Callable[[list[Path]], Findings], tmp_path: Path) -> None:
    case = tmp_path / "planted.py"
    case.write_text("a: int = 'unexpected'\nb: int = 'wanted'  # error\nc: int = 1  # error\n")
    problems = compare(checker([case]), [case])
    assert len(problems) == 2
    assert problems[0].startswith("planted.py:1:")
    assert problems[1] == "planted.py:3: no error reported"
