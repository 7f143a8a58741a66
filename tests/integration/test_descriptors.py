"""Actors need descriptors: one at each caller, two at the node. What happens when there are few."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework._base import limits
from framework.exceptions import ActorDiedError
from support.actors import LIMIT, Counter, get
from support.drivers import Driver

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class Scarce:
    """As long as it lasts, this process can open no file."""

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        while True:  # up to the highest, there are gaps
            fd = os.dup(0)
            self.fillers.append(fd)
            if fd > highest:
                break
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, self.before[1]))

    def __init__(self) -> None:
        self.fillers: list[int] = []

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self.before)
        for fd in self.fillers:
            os.close(fd)


def test_calls_wait_for_descriptors(session: object) -> None:
    with Scarce():
        counter = Counter.remote()
        call = counter.inc.remote()
        assert fw.wait([call], timeout=0.5)[0] == []
    assert get([call, counter.inc.remote()]) == [1, 2]


def test_calls_do_not_wait_for_ever(session: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEATH_VERDICT_TIMEOUT", 0.2)
    counter: Any = Counter.remote()
    with Scarce():
        with pytest.raises(ActorDiedError, match="cannot be reached"):
            get(counter.inc.remote())


def test_the_limit_is_raised(tmp_path: Path) -> None:
    source = f"""
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        import framework as fw

        @fw.remote(num_cpus=0)
        class Small:
            def limit(self):
                return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

        with fw.init(num_cpus=2):
            actors = [Small.remote() for _ in range(50)]
            limits = fw.get([actor.limit.remote() for actor in actors], timeout={LIMIT})
            print(min(limits), min(hard, 65536) if hard > 0 else 65536)
    """
    with Driver(source, tmp_path) as driver:
        assert driver.finish(LIMIT) == 0, driver.text()
        found, expected = driver.out[0].split()
        assert found == expected
