"""How a process gets at the arena of its node, which may be held up, or gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from framework._runtime import store as module
from framework._runtime.store import RuntimeStore
from framework._store.arena import create_arena
from framework.exceptions import LocalNodeDiedError


def store_of(directory: Path) -> RuntimeStore:
    runtime = mock.Mock(socket_dir=str(directory), dead=None)
    runtime.config.cluster = None
    return RuntimeStore(runtime)


@pytest.fixture
def listener(tmp_path: Path) -> Any:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "store"))
        sock.listen(1)
        yield sock


def test_a_node_that_is_held_up_is_waited_for(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long: what asked is the user's task, which has done nothing wrong."""
    patience: list[float | None] = []

    def receive(sock: socket.socket) -> tuple[int, int]:
        patience.append(sock.gettimeout())
        return create_arena(4096, str(tmp_path)), 4096

    monkeypatch.setattr(module, "receive_arena", receive)
    assert store_of(tmp_path).open_arena().capacity == 4096
    assert patience == [None]


def test_a_node_that_is_gone(tmp_path: Path, listener: socket.socket) -> None:
    store = store_of(tmp_path)
    listener.close()
    with pytest.raises(LocalNodeDiedError, match="does not hand over"):
        store.open_arena()
    os.unlink(tmp_path / "store")
    store._runtime.dead = LocalNodeDiedError("killed")
    with pytest.raises(LocalNodeDiedError, match="killed"):
        store.open_arena()
