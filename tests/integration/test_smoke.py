"""The first things that anybody does."""

from __future__ import annotations

import pytest

import framework as fw

pytestmark = pytest.mark.integration


def test_a_task_and_its_result(session: object) -> None:
    @fw.remote
    def add(a: int, b: int) -> int:
        return a + b

    assert fw.get(add.remote(1, 2), timeout=10) == 3
