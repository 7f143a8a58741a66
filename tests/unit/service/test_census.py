"""What a process holds, in numbers."""

from __future__ import annotations

import gc

from framework._service.census import census
from framework._state.objects import Entry, ObjectTable


def test_tables_and_instances_are_counted() -> None:
    gc.collect()
    before = census()
    table = ObjectTable()
    for number in range(300):
        table.add(Entry(number.to_bytes(28, "big")))
    after = census()
    name = "framework._state.objects.ObjectTable.entries"
    assert after[name] - before.get(name, 0) == 300
    assert after["framework._state.objects.Entry"] - before.get("framework._state.objects.Entry", 0) >= 300
    assert after["blocks"] > before["blocks"] > 0
    assert after["objects"] >= before["objects"] + 300
    assert all(type(count) is int for count in after.values())


def test_names_that_the_interpreter_has_looked_up_are_not_counted() -> None:
    before = census()["blocks"]
    names = ["x" * number for number in range(1, 100)]  # (of many sizes: they come to lie in many places)
    names += [f"{name}{number}" for number in range(50) for name in names]
    assert not any(hasattr(names, name) for name in names)
    names.clear()
    assert census()["blocks"] < before + 250
