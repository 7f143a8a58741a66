from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from framework.benchmarks import peers, plot
from framework.benchmarks.curves import Measured
from framework.benchmarks.invocation import Result, to_json
from framework.benchmarks.model import PER_SECOND, SECONDS, Row, Settings


def _document() -> dict[str, Any]:
    task, start = peers.PRODUCT_ROWS[peers.TASK], peers.PRODUCT_ROWS[peers.START_UP]
    results = [
        Result("tasks", Row(task, PER_SECOND), [4000.0, 5000.0, 6000.0]),
        Result("start-up", Row(start, SECONDS), [0.5]),
        Result("peer Ray", Row(peers.row_name("Ray", peers.TASK), PER_SECOND), [500.0]),
        Result("peer Ray", Row(peers.row_name("Ray", peers.START_UP), SECONDS), [10.0]),
        Result("peer loky", Row(peers.row_name("loky", peers.TASK), PER_SECOND), []),
    ]
    document: dict[str, Any] = to_json(results, Settings(), {}, "2000-01-01T00:00:00+00:00")
    points = [(10, [0.1, 0.2]), (100, [1.0]), (1000, [10.0])]
    document["curves"] = [Measured("tasks", "tasks in flight", "tasks", points).to_json()]
    faster = {**document["rows"][0], "samples": [10_000.0]}
    document["pythons"] = [{"version": "3.12.1", "rows": [faster], "note": ""}]
    return document


def test_how_many_times_faster_than_a_peer() -> None:
    found = plot.against_peers(_document()["rows"])
    assert found == {
        f"{peers.TASK}: 5,000 /s": {"Ray": pytest.approx(10.0)},
        f"{peers.START_UP}: 0.50 s": {"Ray": pytest.approx(20.0)},
    }


def test_how_versions_compare() -> None:
    task = peers.PRODUCT_ROWS[peers.TASK]
    assert plot.across_pythons(_document()) == {task: {"Python 3.12.1": pytest.approx(2.0)}}


@pytest.mark.slow
def test_pictures_are_small_and_the_same_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    results = tmp_path / "results.json"
    results.write_text(json.dumps(_document()))
    once, again = tmp_path / "once", tmp_path / "again"
    assert plot.main([str(results), str(once)]) == 0
    assert plot.main([str(results), str(again)]) == 0
    names = sorted(path.name for path in once.iterdir())
    assert names == ["curves.svg", "peers.svg", "pythons.svg"]
    for name in names:
        assert (once / name).read_bytes() == (again / name).read_bytes()
        assert (once / name).stat().st_size < 60_000
        ET.parse(once / name)
    assert "10" in (once / "peers.svg").read_text()
    assert str(once / "peers.svg") in capsys.readouterr().out


def test_nothing_to_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "require", lambda: None)
    path = tmp_path / "empty.json"
    path.write_text(json.dumps({"format": 1, "rows": []}))
    assert plot.main([str(path), str(tmp_path)]) == 1
    assert plot.main([str(tmp_path / "missing.json"), str(tmp_path)]) == 2


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="framework\\[plot\\]"):
        plot.require()
