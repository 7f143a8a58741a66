"""as_completed and map_unordered without a session: what they refuse, and what nothing gives."""

from __future__ import annotations

from typing import Any

import pytest

import framework as fw
from framework.util import as_completed, map_unordered


@fw.remote
def same(x: int) -> int:
    return x


def test_nothing_gives_nothing() -> None:
    assert list(as_completed([])) == []
    assert list(map_unordered(same, [])) == []


async def test_nothing_gives_nothing_in_a_coroutine() -> None:
    assert [x async for x in as_completed([])] == []
    assert [x async for x in map_unordered(same, [])] == []


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_a_chunk_has_something_in_it(chunk_size: int) -> None:
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        as_completed([], chunk_size)
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        map_unordered(same, [], chunk_size=chunk_size)


def test_a_chunk_size_is_a_whole_number() -> None:
    for wrong in (1.5, True, "1"):
        with pytest.raises(TypeError, match="chunk_size is an int"):
            as_completed([], wrong)  # type: ignore[call-overload]


def test_other_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="backpressure_size"):
        map_unordered(same, [], 0)
    with pytest.raises(ValueError, match="timeout must not be negative"):
        as_completed([], timeout=-1)
    with pytest.raises(TypeError, match="takes a remote function"):
        map_unordered(len, [[]])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="item 0 is 3"):
        wrong: list[Any] = [3]
        as_completed(wrong)


def test_none_of_this_has_started_a_session() -> None:
    assert not fw.is_initialized()
