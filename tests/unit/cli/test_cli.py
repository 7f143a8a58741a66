"""What the command line does without a session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from framework import _cli, _cli_listing, _cli_status
from framework._base import resources as res
from framework._base.cluster import ClusterFacts

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


@pytest.mark.parametrize(
    ("units", "strategy", "line"),
    [
        ({"CPU": 20_000}, None, "waiting: 3 x {CPU: 2}"),
        ({"CPU": 5_000}, ["SPREAD"], "waiting: 3 x {CPU: 0.5}, SPREAD"),
        ({"CPU": 10_000}, ["node", "ab" * 28, False], "waiting: 3 x {CPU: 1}, on node abababababab"),
        ({"CPU": 10_000}, ["node", "ab" * 28, True], "waiting: 3 x {CPU: 1}, on node abababababab if it can"),
        (
            {"CPU": 10_000},
            ["labels", {"zone": ["in", ["a", "b"]]}, {}],
            "waiting: 3 x {CPU: 1}, on nodes with the labels {zone: in(a, b)}",
        ),
        (
            res.in_group({"GPU": 10_000}, "cd" * 18, 1),
            ["group", b"\xcd" * 18, 1, False],
            f"waiting: 3 x {{GPU: 1}}, in bundle 1 of placement group {'cd' * 18}",
        ),
        (
            res.in_group({"GPU": 10_000}, "cd" * 18, -1),
            ["group", b"\xcd" * 18, -1, False],
            f"waiting: 3 x {{GPU: 1}}, in placement group {'cd' * 18}",
        ),
    ],
)
def test_what_waits_is_told_in_words(units: dict[str, int], strategy: list[Any] | None, line: str) -> None:
    assert _cli_status._demand_lines({"pending": [[units, strategy, 3]]}) == [line]


def test_each_cluster_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the session of its head, if that is here."""
    sessions = [str(tmp_path / name) for name in ("later", "other", "local", "head")]
    for path in sessions:
        os.mkdir(path)
    Path(sessions[3], "head.json").touch()
    clusters = {sessions[0]: b"1", sessions[1]: b"2", sessions[3]: b"1"}

    def facts(path: str) -> ClusterFacts | None:
        if path not in clusters:
            return None
        return ClusterFacts(
            cluster_id=clusters[path] * 16, token=b"t", head="h:1", host="h", node_id=b"n" * 28
        )

    monkeypatch.setattr(_cli, "cluster_facts", facts)
    assert _cli.one_of_each_cluster(sessions) == sessions[1:]
    assert _cli.one_of_each_cluster(sessions[:3]) == sessions[:3]
