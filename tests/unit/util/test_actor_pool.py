"""ActorPool without a session: what it refuses, and what an empty one does."""

from __future__ import annotations

import pytest

import framework as fw
from framework.util import ActorPool


def test_it_holds_handles_only() -> None:
    with pytest.raises(TypeError, match="holds handles of actors"):
        ActorPool([object()])  # type: ignore[list-item]


def test_an_empty_pool_has_nothing_to_give() -> None:
    pool: ActorPool[object] = ActorPool([])
    assert not pool.has_next()
    assert not pool.has_free()
    assert pool.pop_idle() is None
    for get in (pool.get_next, pool.get_next_unordered):
        with pytest.raises(StopIteration, match="No more results to get"):
            get()


async def test_an_empty_pool_has_nothing_to_give_in_a_coroutine() -> None:
    pool: ActorPool[object] = ActorPool([])
    for get in (pool.get_next_async, pool.get_next_unordered_async):
        with pytest.raises(StopAsyncIteration, match="No more results to get"):
            await get()
    assert [item async for item in pool.map(lambda actor, value: [], [])] == []


def test_items_without_actors_are_an_error_and_stay() -> None:
    pool: ActorPool[object] = ActorPool([])
    pool.submit(lambda actor, value: [], 1)
    assert pool.has_next()
    for _ in range(2):
        with pytest.raises(ValueError, match="no actors"):
            pool.get_next()
    assert pool.has_next()


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_is_not_negative(timeout: float) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        ActorPool([]).get_next(timeout=timeout)


def test_none_of_this_has_started_a_session() -> None:
    assert not fw.is_initialized()
