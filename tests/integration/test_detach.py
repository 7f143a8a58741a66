"""Values that are handed over to the session."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import warnings
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework.exceptions import ActorDiedError, OwnerDiedError
from framework.util.state import store_stats
from support.drivers import alive
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@fw.remote(num_cpus=0)
class Maker:
    """Owns what it makes."""

    def pid(self) -> int:
        return os.getpid()

    def make(self) -> list[Any]:
        inner = fw.put([1, 2, 3])
        large = fw.put((np.ones(200_000), [fw.detach(inner)]))
        small = fw.put("small")
        return [large, small, fw.detach(large), fw.detach(small)]


def test_it_outlives_its_owner_and_is_freed_with_its_last_reference(session: object) -> None:
    maker = Maker.remote()
    large, small, kept_large, kept_small = fw.get(maker.make.remote())
    pid = fw.get(maker.pid.remote())
    fw.kill(maker)
    wait_until(lambda: not alive(pid))  # (`kill` does not wait; until it has happened, values are handed out)
    with pytest.raises(ActorDiedError):
        fw.get(maker.pid.remote())
    for ref in (large, small):
        with pytest.raises(OwnerDiedError):
            fw.get(ref, timeout=10)
    array, (inner,) = fw.get(kept_large)
    assert array.sum() == 200_000 and fw.get(inner) == [1, 2, 3]
    assert fw.get(kept_small) == "small"
    del array, inner, large, small, ref, kept_large, kept_small
    wait_until(lambda: store_stats()["objects"] == store_stats()["pins"] == 0)


@fw.remote(num_cpus=0)
class Keeper:
    def make(self) -> list[Any]:
        return [fw.put("kept")]


@fw.remote(num_cpus=0)
class Holder:
    """Has what another one owns."""

    def pids(self) -> tuple[int, int]:
        keeper: Any = Keeper.options(lifetime="detached", name="keeper").remote()
        (self.ref,) = fw.get(keeper.make.remote())
        return os.getpid(), fw.get(keeper.__ray_call__.remote(lambda self: os.getpid()))

    def give(self) -> list[Any]:
        return [self.ref]


def test_what_an_actor_has_given_outlives_its_kill(session: object) -> None:
    """Whoever owns it does not know yet that it is borrowed here."""
    holder = Holder.remote()
    pid, owner = fw.get(holder.pids.remote())
    os.kill(owner, signal.SIGSTOP)
    again = threading.Timer(0.2, os.kill, (owner, signal.SIGCONT))
    try:
        (ref,) = fw.get(holder.give.remote())
        again.start()
        fw.kill(holder)
        wait_until(lambda: not alive(pid))
        assert fw.get(ref, timeout=10) == "kept"
    finally:
        again.cancel()
        os.kill(owner, signal.SIGCONT)
        fw.kill(fw.get_actor("keeper"))


def test_own_values_results_and_what_is_not_there_yet(session: object) -> None:
    @fw.remote(num_cpus=0)
    def slow() -> Any:
        return np.full(200_000, 2.0)

    kept = fw.detach(slow.remote())
    assert fw.get(kept).sum() == 400_000
    again = fw.detach(kept)
    assert again != kept
    del kept
    assert fw.get(again).sum() == 400_000


async def test_on_an_event_loop(session: object) -> None:
    kept = await asyncio.to_thread(fw.detach, fw.put(5))
    assert await kept == 5


def test_errors(session: object) -> None:
    @fw.remote(num_cpus=0)
    def fail() -> None:
        raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        fw.detach(fail.remote())
    with pytest.raises(TypeError, match="ObjectRef"):
        fw.detach([1])  # type: ignore[arg-type]


def test_replicas_take_other_nodes(session: object) -> None:
    with pytest.warns(RuntimeWarning, match="only 1 of them"):
        assert fw.get(fw.put(np.zeros(200_000), replicas=2)).sum() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fw.get(fw.put("small", replicas=2)) == "small"
    with pytest.raises(ValueError, match="replicas"):
        fw.put(1, replicas=0)
