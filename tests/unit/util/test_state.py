"""Listing objects: what processes report, joined with what the node knows of blocks."""

from __future__ import annotations

from typing import Any

import pytest

from framework._wire import messages as m
from framework.util import state
from framework.util.state import list_objects, store_stats

HERE, THERE = b"h" * 28, b"t" * 28


def row(number: int, **facts: Any) -> dict[str, Any]:
    return {
        "object_id": bytes([number]) * 28,
        "owner": "unix:a",
        "borrowed": False,
        "state": "READY",
        "size": 100 * number,
        "stored": False,
        "store_id": b"",
        "local": 1,
        "borrowers": [],
        "contains": 0,
        "task": "make",
        "call_site": "file.py:1 in f",
        "pid": 10 + number,
        "kind": "worker",
        "node_id": HERE,
        **facts,
    }


class FakeRuntime:
    """A driver and two workers, one object in the store."""

    def __init__(self) -> None:
        self.store = self.listing = self.config = self
        self.cluster: object = None
        self.node_id = HERE
        self.rows = [
            row(1),
            row(2, kind="driver", borrowed=True),
            row(3, stored=True, store_id=b"s" * 28),
            row(4, stored=True, store_id=b"gone" * 7),
        ]

    def node_call(self, opcode: int) -> Any:
        block = {"object_id": b"s" * 28, "pins": 2, "state": "in memory", "size": 300, "sealed": True}
        here = {"objects": [block], "stats": {"used": 4096}}
        if opcode == m.STORE_LIST:
            return here
        assert opcode == m.NODE_STORES
        copy = {**block, "pins": 7}
        only = {**block, "object_id": b"gone" * 7, "state": "spilled"}
        return [{**here, "node_id": HERE}, {"objects": [copy, only], "stats": {}, "node_id": THERE}]

    def everywhere(self) -> list[dict[str, Any]]:
        return self.rows


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr(state, "current", lambda: fake)
    return fake


def test_the_largest_first_with_what_the_node_knows() -> None:
    rows = list_objects()
    assert [r["object_size"] for r in rows] == [400, 300, 200, 100]
    assert rows[1]["pins"] == 2 and rows[1]["store_state"] == "in memory"
    assert (rows[0]["pins"], rows[0]["store_state"]) == (0, "")  # freed since the process reported it
    assert rows[1]["object_id"] == "03" * 28 and rows[1]["call_site"] == "file.py:1 in f"


def test_owners_and_borrowers() -> None:
    rows = {r["pid"]: r for r in list_objects()}
    assert (rows[12]["type"], rows[12]["reference_type"], rows[12]["task_status"]) == (
        "DRIVER",
        "BORROWED",
        "NIL",
    )
    assert (rows[11]["type"], rows[11]["reference_type"], rows[11]["task_status"]) == (
        "WORKER",
        "OWNED",
        "READY",
    )


def test_filters_and_the_limit() -> None:
    assert [r["pid"] for r in list_objects(filters=[("reference_type", "=", "BORROWED")])] == [12]
    assert [r["pid"] for r in list_objects(filters=[("pid", "!=", 12), ("stored", "=", True)])] == [14, 13]
    assert [r["pid"] for r in list_objects(limit=1)] == [14]
    assert list_objects(filters=[("pid", "=", "13")])[0]["pid"] == 13


def test_of_a_cluster_what_is_on_the_node_of_the_process_or_else_elsewhere(runtime: FakeRuntime) -> None:
    runtime.cluster = object()
    runtime.rows[0] = row(1, stored=True, store_id=b"s" * 28, node_id=THERE)
    rows = {r["pid"]: r for r in list_objects()}
    assert (rows[11]["node_id"], rows[11]["pins"]) == (THERE.hex(), 7)
    assert (rows[13]["node_id"], rows[13]["pins"]) == (HERE.hex(), 2)
    assert (rows[14]["node_id"], rows[14]["store_state"]) == (HERE.hex(), "spilled")


@pytest.mark.parametrize(
    ("filters", "problem"),
    [
        ([("pid", "<", 3)], "compares with '=' or '!='"),
        ([("no such key", "=", "1")], "no key 'no such key' to filter by; there are: object_id, "),
        ("pid=3", r"filters is a list of \(key, '=' or '!=', value\), got 'p'"),
        ([("pid", 3)], "filters is a list of"),
    ],
)
def test_filters_that_make_no_sense(filters: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        list_objects(filters=filters)


def test_the_numbers_of_the_store() -> None:
    assert store_stats() == {"used": 4096}
