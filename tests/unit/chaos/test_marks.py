"""Marks of executions."""

from __future__ import annotations

from pathlib import Path

from framework.chaos.marks import Marks, mark


def test_marks_are_counted_and_taken(tmp_path: Path) -> None:
    marks = Marks(str(tmp_path / "work"))
    path = marks.new("one")
    for key in ("a", "b b", "a"):
        mark(path, key)
    assert marks.read(path) == {"a": 2, "b b": 1}
    assert marks.take(path) == {"a": 2, "b b": 1}
    assert not Path(path).exists()


def test_a_late_run_marks_nothing(tmp_path: Path) -> None:
    marks = Marks(str(tmp_path))
    path = marks.new("one")
    assert marks.take(path) == {}
    mark(path, "late")
    assert not Path(path).exists()
