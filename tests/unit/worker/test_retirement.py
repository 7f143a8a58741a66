"""When an idle worker may end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from framework._worker.retirement import is_needed


def executor(**changed: Any) -> Any:
    entries = {b"1": SimpleNamespace(owner=None, borrowers=changed.get("borrowers"))}
    objects = SimpleNamespace(
        drain_drops=lambda: None,
        handing_over=changed.get("handing_over", False),
        table=SimpleNamespace(entries=entries),
    )
    runtime = SimpleNamespace(
        objects=objects,
        submitter=SimpleNamespace(tasks=changed.get("tasks")),
        actors=SimpleNamespace(owns_living=lambda: changed.get("actors", False)),
    )
    return SimpleNamespace(runtime=runtime, queue=changed.get("queue"), contexts={})


def test_one_that_nobody_has_anything_of_may_end() -> None:
    assert not is_needed(executor(), job_over=False)


@pytest.mark.parametrize(
    "what",
    [
        {"queue": [1]},
        {"tasks": {1: "submitted"}},
        {"borrowers": {"driver": 1}},
        {"handing_over": True},  # a result with references is on its way: nobody borrows them yet
    ],
)
def test_one_that_others_need_stays(what: dict[str, Any]) -> None:
    assert is_needed(executor(**what), job_over=True)


def test_actors_keep_it_only_as_long_as_their_job() -> None:
    assert is_needed(executor(actors=True), job_over=False)
    assert not is_needed(executor(actors=True), job_over=True)
