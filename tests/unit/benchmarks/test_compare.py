from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framework.benchmarks.compare import compare, load, main
from framework.benchmarks.invocation import Result, to_json
from framework.benchmarks.model import PER_SECOND, SECONDS, Row, Settings


def _document(cpus: int = 2, **rows: tuple[str, list[float]]) -> dict[str, Any]:
    results = [Result("tasks", Row(name, unit), samples) for name, (unit, samples) in rows.items()]
    facts = {"machine": {"cpus": cpus}, "versions": {}}
    return to_json(results, Settings(), facts, "2000-01-01T00:00:00+00:00")


def _verdicts(text: str) -> dict[str, str]:
    return {line.split()[0]: line.rsplit("  ", 1)[-1].strip() for line in text.splitlines()[1:]}


def test_better_is_faster_in_either_direction() -> None:
    before = _document(sync=(PER_SECOND, [99.0, 100.0, 101.0]), start=(SECONDS, [1.0, 1.0, 1.0]))
    after = _document(sync=(PER_SECOND, [198.0, 200.0, 202.0]), start=(SECONDS, [2.0, 2.0, 2.0]))
    text = compare(before, after)
    assert _verdicts(text) == {"sync": "faster", "start": "slower"}
    assert "2.00x" in text
    assert "0.50x" in text
    assert "198 /s … 202 /s" in text


def test_ranges_that_overlap_show_no_difference() -> None:
    before = _document(sync=(PER_SECOND, [80.0, 100.0, 120.0]))
    after = _document(sync=(PER_SECOND, [119.0, 200.0, 230.0]))
    assert _verdicts(compare(before, after)) == {"sync": "no difference seen"}


def test_floors_that_differ_are_told() -> None:
    before = _document(sync=(PER_SECOND, [100.0, 100.0]))
    after = _document(sync=(PER_SECOND, [100.0, 100.0]))
    for document, rate in ((before, 10.0), (after, 20.0)):
        document["rows"].append(
            {**document["rows"][0], "group": "floors", "name": "echo", "samples": [rate] * 2}
        )
    assert "the floors differ, so the machine did, too: echo 2.00x" in compare(before, after)
    assert "the floors differ" not in compare(before, before)


def test_single_samples_and_missing_figures_are_not_judged() -> None:
    before = _document(one=(PER_SECOND, [1.0]), gone=(PER_SECOND, [1.0, 1.0]))
    after = _document(one=(PER_SECOND, [9.0]), gone=(PER_SECOND, []))
    lines = compare(before, after).splitlines()
    assert lines[1].endswith("?")
    assert lines[2].endswith("no figure in B")


def test_what_differs_around_the_rows_is_said() -> None:
    before = _document(both=(PER_SECOND, [1.0, 1.0]), old=(PER_SECOND, [1.0]))
    after = _document(4, both=(PER_SECOND, [1.0, 1.0]), new=(PER_SECOND, [1.0]))
    text = compare(before, after)
    assert "only in A: old" in text
    assert "only in B: new" in text
    assert "different machine: cpus 2 -> 4" in text


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="no row in common"):
        compare(_document(a=(PER_SECOND, [1.0])), _document(b=(PER_SECOND, [1.0])))


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 0, "rows": []}', "not json"])
def test_load_refuses_other_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError):
        load(path)


def test_main_ends_with_2_on_unusable_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.json"
    good.write_text(json.dumps(_document(sync=(PER_SECOND, [1.0, 1.0]))))
    assert main([str(good), str(good)]) == 0
    assert "no difference seen" in capsys.readouterr().out
    assert main([str(good), str(tmp_path / "missing.json")]) == 2
    assert "missing.json" in capsys.readouterr().err
