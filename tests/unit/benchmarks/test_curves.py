from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from framework.benchmarks import curves
from framework.benchmarks.__main__ import main, parse
from framework.benchmarks.curve_work import TooLarge
from framework.benchmarks.curves import CURVES, Curve, Measured, sample, table
from framework.benchmarks.model import Settings


def _curve(timed: Callable[[int], float], sizes: tuple[int, ...] = (1, 10, 100, 1000)) -> Curve:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Callable[[int], float]]:
        yield timed

    return Curve("made", "made up", "things", sizes, prepare)


def test_published_curves_are_there() -> None:
    assert CURVES["tasks"].sizes[0] == 1000 and CURVES["tasks"].sizes[-1] == 1_000_000
    assert CURVES["actors"].sizes[0] == 1 and CURVES["actors"].sizes[-1] == 1000
    assert CURVES["values"].sizes[0] == 1 and CURVES["values"].sizes[-1] == 1_000_000_000
    assert CURVES["submitters"].sizes == tuple(range(1, 9))


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_sizes_ascend_and_a_quick_run_has_three_at_least(curve: Curve) -> None:
    assert list(curve.sizes) == sorted(set(curve.sizes))
    quick = curve.sizes_for(Settings(quick=True))
    assert len(quick) >= 3 and set(quick) < set(curve.sizes)


def test_each_point_is_measured_a_few_times() -> None:
    measured = sample(_curve(lambda size: size / 1000), Settings(runs=9))
    assert [(size, len(samples)) for size, samples in measured.points] == [
        (1, 3),
        (10, 3),
        (100, 3),
        (1000, 3),
    ]
    assert (measured.verdict, measured.slope) == ("linear", pytest.approx(1.0))


def test_a_long_point_is_measured_once() -> None:
    measured = sample(_curve(float), Settings(runs=5))
    assert [len(samples) for _, samples in measured.points] == [3, 2, 1, 1]


def test_a_point_that_the_machine_cannot_hold_ends_the_curve() -> None:
    def timed(size: int) -> float:
        if size > 100:
            raise TooLarge("no memory")
        return 0.001 * size

    measured = sample(_curve(timed), Settings(runs=1))
    assert [size for size, _ in measured.points] == [1, 10, 100]
    assert measured.note == "up to 100: no memory"
    assert "linear  up to 100: no memory" in table([measured])


def test_table_and_document() -> None:
    points = [(1, [2e-6, 1e-6]), (10, [2e-3]), (100, [3.0])]
    measured = Measured("made", "made up", "things", points)
    text = table([measured])
    assert "100 things" in text and "3 s" in text and "1 µs" in text and "30 ms" in text
    document = measured.to_json()
    assert document["verdict"] == "grows faster" and document["points"] == points
    empty = Measured("made", "made up", "things")
    assert "too few points" in table([empty])


def test_names_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--curves"]).curves == []
    assert parse(["--curves", "tasks", "wait"]).curves == ["tasks", "wait"]
    for bad in (["--curves", "no-such"], ["--curves", "tasks", "--peers"]):
        with pytest.raises(SystemExit) as end:
            parse(bad)
        assert end.value.code == 2
    assert "--curves" in capsys.readouterr().err


def test_no_rows_are_listed_for_curves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--curves", "--list"]) == 0
    assert capsys.readouterr().out.split() == list(curves.CURVES)
