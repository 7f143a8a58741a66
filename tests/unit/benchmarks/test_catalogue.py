from __future__ import annotations

import pytest

from framework.benchmarks import catalogue, floors, peers, targets
from framework.benchmarks.__main__ import main, parse
from framework.benchmarks.invocation import side_by_side
from framework.benchmarks.model import Settings

ROWS = {row.name: row for workload in catalogue.ALL for row in workload.rows}


def test_names_are_unique() -> None:
    names = [row.name for workload in catalogue.ALL for row in workload.rows]
    assert len(names) == len(set(names))


def test_every_floor_is_a_floor_row_of_a_comparable_unit() -> None:
    floor_rows = {load.name: load.rows[0] for load in floors.WORKLOADS}
    for row in ROWS.values():
        if row.floor is not None:
            assert floor_rows[row.floor].unit == row.unit, row.name


def test_core_rows_of_peers_exist() -> None:
    assert set(peers.PRODUCT_ROWS.values()) <= set(ROWS)
    assert {load.group for load in peers.WORKLOADS} == {f"peer {name}" for name in peers.MODULES}


@pytest.mark.parametrize(
    "name",
    [
        "single client get calls",
        "single client put calls",
        "multi client put calls",
        "single client put gigabytes",
        "single client tasks and get batch",
        "multi client put gigabytes",
        "single client get object containing 10k refs",
        "single client wait 1k refs",
        "single client tasks sync",
        "single client tasks async",
        "multi client tasks async",
        "1:1 actor calls sync",
        "1:1 actor calls async",
        "1:1 actor calls concurrent",
        "1:n actor calls async",
        "n:n actor calls async",
        "n:n actor calls with arg async",
        "1:1 async-actor calls sync",
        "1:1 async-actor calls async",
        "1:1 async-actor calls with args async",
        "1:n async-actor calls async",
        "n:n async-actor calls async",
    ],
)
def test_published_rows_are_there(name: str) -> None:
    assert name in ROWS


def test_select_adds_the_floors_that_are_needed() -> None:
    names = [load.name for load in catalogue.select("^SINGLE client tasks sync$", with_peers=False)]
    assert names == [floors.ECHO_ONE, "single client tasks sync"]


def test_select_leaves_peers_out_unless_asked_for() -> None:
    assert not [load for load in catalogue.select(None, with_peers=False) if load in peers.WORKLOADS]
    assert len(catalogue.select(None, with_peers=True)) == len(catalogue.ALL)


def test_select_nothing() -> None:
    assert catalogue.select("no such row", with_peers=True) == []


def test_what_is_compared_runs_one_after_the_other() -> None:
    given = catalogue.select(None, with_peers=True)
    order = side_by_side(given)
    assert len(order) == len(given) and set(order) == set(given)
    names = [load.name for load in order]
    assert names[: len(floors.WORKLOADS)] == [load.name for load in floors.WORKLOADS]
    at = names.index("single client tasks sync")
    assert names[at + 1 : at + 5] == [
        peers.row_name(name, peers.TASK) for name in ("ProcessPoolExecutor", "loky", "Ray", "Dask")
    ]
    without = catalogue.select(None, with_peers=False)
    assert side_by_side(without) == without


def test_workload_named() -> None:
    assert catalogue.workload_named(floors.PIPE).rows[0].name == floors.PIPE
    with pytest.raises(KeyError):
        catalogue.workload_named("no such row")


def test_quick_batches_are_a_tenth_but_never_empty() -> None:
    assert Settings(quick=True).batch(1000) == 100
    assert Settings(quick=True).batch(5) == 1
    assert Settings().batch(1000) == 1000


def test_quick_gives_way_to_explicit_options() -> None:
    assert (parse(["--quick"]).runs, parse(["--quick"]).seconds) == (2, 0.2)
    assert parse(["--quick", "--runs", "7"]).runs == 7
    assert (parse([]).runs, parse([]).seconds) == (5, 1.0)


@pytest.mark.parametrize("bad", [["--runs", "0"], ["--seconds", "0"], ["--filter", "("], ["--timeout", "-1"]])
def test_bad_options_end_with_a_message(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(bad)
    assert end.value.code == 2
    assert bad[0] in capsys.readouterr().err


def test_list_prints_rows_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--filter", "^pipe"]) == 0
    assert capsys.readouterr().out == "pipe ping-pong [/s]\n"


def test_a_filter_without_rows_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--filter", "no such row"]) == 2
    assert "no row matches" in capsys.readouterr().err


def test_targets_take_their_rows_and_all_of_the_peers() -> None:
    names = targets.rows_needed()
    own = catalogue.select(None, with_peers=False, names=names)
    assert {row.name for load in own for row in load.rows} >= {name for name in names if ": " not in name}
    assert "1:n actor calls sync" not in {load.name for load in own}
    everything = catalogue.select(None, with_peers=True, names=names)
    assert set(peers.WORKLOADS) <= set(everything)
    assert {row.name for load in everything for row in load.rows} >= names
