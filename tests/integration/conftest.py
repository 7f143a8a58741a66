"""Sessions for integration tests, each with a root directory of its own and a check that nothing is left
behind.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import framework as fw
from support.leaks import framework_processes, open_descriptors, session_remains, wait_until


@pytest.fixture(scope="session")
def _warm() -> None:
    """The first session of a process loads modules and opens descriptors that stay (epoll of the loop's
    library, …).
    """
    fw.init(num_cpus=1)
    fw.shutdown()


@pytest.fixture(scope="module")
def session_root(tmp_path_factory: pytest.TempPathFactory, _warm: None) -> Iterator[Path]:
    """FRAMEWORK_TMPDIR for this module; afterwards no process, no socket, no session directory beyond
    logs.
    """
    root = tmp_path_factory.mktemp("s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRAMEWORK_TMPDIR", str(root))
        before = open_descriptors()
        yield root
        fw.shutdown()
        gc.collect()
        wait_until(lambda: not framework_processes(root), 5, "the end of all processes")
        assert session_remains(root) == []
        new = {fd: what for fd, what in open_descriptors().items() if fd not in before}
        assert not [w for w in new.values() if "socket" in w or "eventpoll" in w or str(root) in w], new


@pytest.fixture(scope="module")
def session(session_root: Path) -> Iterator[object]:
    """One session with 2 CPUs for all tests of a module."""
    with fw.init(num_cpus=2, log_to_driver=False) as context:
        yield context


@pytest.fixture
def fresh_session(session_root: Path) -> Iterator[object]:
    """A session with 2 CPUs for one test."""
    with fw.init(num_cpus=2, log_to_driver=False) as context:
        yield context
