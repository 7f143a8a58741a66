"""Samples into verdicts, and what is shown of them; without processes."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from framework.benchmarks.soak import Verdict, grown_tables, parse, shown, table, verdicts
from framework.benchmarks.soak_docs import BEGIN, END, figures, replaced, samples_of
from framework.benchmarks.soak_samples import (
    Sample,
    figures_of,
    growth_of_tables,
    lasting,
    memory_of,
    size_below,
)

MIB = 1024 * 1024
ROLLUP = """\
55d0a8a5b000-7ffd2b5f4000 ---p 00000000 00:00 0                          [rollup]
Rss:               12345 kB
Pss:                6000 kB
Pss_Anon:           5000 kB
Private_Clean:       100 kB
Private_Dirty:      4000 kB
Anonymous:          5500 kB
"""


def sample(index: int, leak: float = 0.0) -> Sample:
    heap = 40.0 * MIB + (index % 5) * 10_000
    made = Sample(3.0 * index, 2_000 * index)
    made.processes = {
        "driver": {"heap": heap + leak * 2_000 * index, "descriptors": 20.0},
        "node 1": {"heap": heap, "descriptors": 30.0 + index // 10},
    }
    if index % 2:
        made.processes["node 1 worker 3"] = {"heap": heap + index * MIB}
    made.whole = {"store": 5.0 * MIB, "logs": 1_000.0 * index}
    if index % 3:
        made.latency = {"actor call p50": 100e-6}
    made.tables = {"driver": {"a": index, "b": 7, "c": 2 * index}} if index % 5 == 0 else {}
    return made


def test_memory_from_the_text_of_the_system() -> None:
    expected = {"rss": 12345, "pss": 6000, "heap": 5500, "private": 4000}
    assert memory_of(ROLLUP) == {name: 1024.0 * size for name, size in expected.items()}


def test_figures_of_this_process_and_of_none() -> None:
    found = figures_of(os.getpid())
    assert found is not None
    assert found["heap"] > MIB and found["descriptors"] >= 3
    assert found["threads"] >= threading.active_count()
    assert figures_of(2**22 + 1) is None


def test_bytes_below_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(bytes(50))
    assert size_below(str(tmp_path)) == 150
    assert size_below(str(tmp_path / "none")) == 0


def test_who_grows_is_said_and_who_lives_short_is_not_judged() -> None:
    samples = [sample(index, leak=20.0) for index in range(200)]
    assert lasting(samples) == ["driver", "node 1"]
    found = {(row.process, row.figure): row.judgement.verdict for row in verdicts(samples)}
    assert found == {
        ("driver", "heap"): "grows",
        ("driver", "descriptors"): "flat",
        ("node 1", "heap"): "flat",
        ("node 1", "descriptors"): "grows",
        ("session", "store"): "flat",
        ("latency", "actor call p50"): "flat",
    }


def test_what_has_grown_most_is_named() -> None:
    samples = [sample(index, leak=20.0) for index in range(200)]
    assert growth_of_tables(samples, "driver") == [("c", 190, 390), ("a", 95, 195)]
    assert growth_of_tables(samples, "node 1") == []
    text = grown_tables(samples, verdicts(samples))
    assert text.splitlines()[0] == "driver, from the middle to the end:"
    assert "190 ->        390  c" in text


def test_the_table_has_a_line_for_each_figure() -> None:
    found = verdicts([sample(index) for index in range(200)])
    lines = table(found).splitlines()
    assert len(lines) == 1 + len(found)
    assert any("driver: heap" in line and line.endswith("flat") for line in lines)
    few = [sample(index) for index in range(4)]
    assert all(line.endswith("?") for line in table(verdicts(few)).splitlines()[1:])
    assert isinstance(found[0], Verdict)


@pytest.mark.parametrize(
    ("figure", "value", "text"),
    [
        ("heap", 2.5 * MIB, "2.5 MiB"),
        ("files", 1_536.0, "1.5 KiB"),
        ("actor call p50", 0.000123, "123 µs"),
        ("descriptors", 24.0, "24"),
        ("threads", 0.25, "0.25"),
        ("blocks", float("nan"), "-"),
    ],
)
def test_values_are_shown_in_their_unit(figure: str, value: float, text: str) -> None:
    assert shown(figure, value) == text


@pytest.mark.parametrize("wrong", [["--minutes=0"], ["--nodes=1"], ["--interval=-1"], ["--pause=-1"]])
def test_options_that_make_no_sense(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(wrong)
    assert "must be" in capsys.readouterr().err


def result(leak: float) -> dict[str, Any]:
    samples = [sample(index, leak) for index in range(80)]
    for one in samples:
        for figures_there in one.processes.values():
            figures_there |= {"descriptors": 20.0, "threads": 3.0}
    made = {
        "machine": {"cpus": 2},
        "rounds": 12,
        "visits": 3,
        "operations": {"tasks": 1_000, "calls": 2_000},
        "error": "",
        "verdicts": [asdict(verdict) for verdict in verdicts(samples)],
        "samples": [{**asdict(one), "tables": None} for one in samples],
    }
    loaded: dict[str, Any] = json.loads(json.dumps(made))
    return loaded


def test_a_page_gets_the_figures_of_a_run() -> None:
    found = result(leak=100.0)
    assert [one.time for one in samples_of(found)] == [3.0 * index for index in range(80)]
    text = figures(found)
    assert "4 minutes, 3,000 operations in 12 rounds, 3 visits" in text
    assert "What grows: driver: heap. What went wrong: nothing." in text
    assert "| driver | 41.8, 47.6, 53.3 | 100,000 | \N{EN DASH} | 20 | 3 |" in text
    assert "| actor call p50 | 100 | 100 | 100 | 100 |" in text
    assert "What grows: nothing." in figures(result(leak=0.0))
    page = f"# Title\n{BEGIN}\nold\n{END}\nmore\n"
    once = replaced(page, text)
    assert once.startswith(f"# Title\n{BEGIN}\n\n4 minutes") and once.endswith(f"{END}\nmore\n")
    assert "old" not in once and replaced(once, text) == once
    with pytest.raises(ValueError, match="begin"):
        replaced("# Title\n", text)
