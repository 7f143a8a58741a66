"""Shutdown hooks of actors, at the end of the session."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import framework as fw

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LIMIT = 20


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


class Plain:
    def __init__(self, path: str) -> None:
        self.path = path

    def ping(self) -> int:
        return os.getpid()

    def __framework_shutdown__(self) -> None:
        with open(self.path, "a") as file:
            file.write("bye")


class Coroutines(Plain):
    async def __framework_shutdown__(self) -> None:
        await asyncio.sleep(0.01)
        super().__framework_shutdown__()


KINDS = {
    "sync": fw.remote(Plain),
    "threads": fw.remote(max_concurrency=3)(Plain),
    "async": fw.remote(Coroutines),
}


def test_the_end_of_the_session_runs_it(session_root: Path, tmp_path: Path) -> None:
    fw.init(num_cpus=2, log_to_driver=False)
    paths = [tmp_path / f"log{i}" for i in range(3)]
    actors = [KINDS[kind].remote(str(path)) for kind, path in zip(KINDS, paths, strict=True)]
    get([actor.ping.remote() for actor in actors])
    fw.shutdown()
    for path in paths:
        assert path.read_text() == "bye"


def test_one_that_hangs_does_not_hold_up_the_end_of_the_session(session_root: Path) -> None:
    @fw.remote
    class Stubborn:
        def ping(self) -> int:
            return os.getpid()

        def __framework_shutdown__(self) -> None:
            threading.Event().wait()

    fw.init(num_cpus=1, log_to_driver=False)
    actor = Stubborn.remote()
    pid = get(actor.ping.remote())
    fw.shutdown()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_fails_says_so(
    session_root: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    @fw.remote
    class Careless:
        def ping(self) -> int:
            return 1

        def __framework_shutdown__(self) -> None:
            raise LookupError("nowhere to go")

    with fw.init(num_cpus=1):
        actor = Careless.remote()
        get(actor.ping.remote())
    shown = "".join(capfd.readouterr())
    assert "the shutdown hook of the actor Careless failed" in shown
    assert "nowhere to go" in shown
