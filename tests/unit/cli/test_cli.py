"""What the command line does without a session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from framework import _cli_listing

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_without_click_the_way_to_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [sys.executable, "-m", "framework", "status"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1 and "framework[cli]" in done.stderr and "Traceback" not in done.stderr, done


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("TASK_STATUS!=NIL", ("task_status", "!=", "NIL")),
        ("TYPE=WORKER", ("type", "=", "WORKER")),
        ("pid = 5", ("pid", "=", "5")),
        ("name=a=b", ("name", "=", "a=b")),
    ],
)
def test_filters(text: str, parsed: tuple[str, str, str]) -> None:
    assert _cli_listing.parse_filter(text) == parsed


@pytest.mark.parametrize("text", ["TYPE", "=5", "!=x", ""])
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(ValueError, match="KEY=VALUE"):
        _cli_listing.parse_filter(text)


def test_rows_are_chosen() -> None:
    rows = [{"type": "DRIVER", "pid": 1}, {"type": "WORKER", "pid": 2}]
    assert _cli_listing.chosen(rows, [("type", "=", "worker")]) == [rows[1]]
    assert _cli_listing.chosen(rows, [("type", "!=", "WORKER"), ("pid", "=", "1")]) == [rows[0]]
    assert _cli_listing.chosen([], [("nothing", "=", "1")]) == []
    with pytest.raises(ValueError, match="no column 'nothing'; there are: type, pid"):
        _cli_listing.chosen(rows, [("nothing", "=", "1")])


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    _cli_listing._print_table(
        ["a", "long_name"], [{"a": 1.0, "long_name": {"x": 2}}, {"a": "abc", "long_name": ""}]
    )
    assert capsys.readouterr().out == "A    LONG_NAME\n1    x: 2\nabc\n"
