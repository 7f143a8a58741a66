"""The helpers of a session's start, and the context that `init` returns."""

from __future__ import annotations

import concurrent.futures
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from framework import _session
from framework._node.session import create_session
from framework._session import Context
from framework.exceptions import ConnectionFailedError, LocalNodeDiedError


@pytest.fixture
def context() -> Context:
    config = SimpleNamespace(
        session_dir="/s",
        node_id=b"\xab",
        job=b"\1\0\0\0",
        namespace="n",
        node_ip="127.0.0.1",
        is_driver=True,
    )
    ready: concurrent.futures.Future[None] = concurrent.futures.Future()
    return Context(SimpleNamespace(config=config, node_ready=ready), True)


def test_a_context_is_a_mapping_of_facts(context: Context) -> None:
    assert context["session_dir"] == context.session_dir == context["address"] == "/s"
    assert (context["node_id"], context["job_id"], context["namespace"]) == ("ab", "01000000", "n")
    assert dict(context) == context.address_info and len(context) == len(list(context)) == 6
    assert context.dashboard_url == "" and "/s" in repr(context)
    with pytest.raises(KeyError):
        context["nothing"]


def test_a_block_waits_for_the_node_and_tells_why_there_is_none(context: Context) -> None:
    context._runtime.node_ready.set_exception(LocalNodeDiedError("no memory"))
    with pytest.raises(LocalNodeDiedError, match="no memory"), context:
        raise AssertionError("the block was entered")


def test_the_search_path_is_the_same_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/a", Path("/b"), "/c"])
    assert _session._search_path() == [str(tmp_path), "/a", "/c"]


def test_a_working_directory_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "path", ["", "/a"])
    assert _session._working_directory() == "" and _session._search_path() == ["/a"]
    os.chdir(tmp_path)


def test_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    path = create_session("ab")
    monkeypatch.chdir(tmp_path)
    assert _session._session_at(os.path.relpath(path)) == path
    for address, text in (("auto", "framework start --head"), ("host:1", "not supported yet"), ("/x", "/x")):
        with pytest.raises(ConnectionFailedError, match=text):
            _session._session_at(address)
    with pytest.raises(TypeError):
        _session._session_at(5)  # type: ignore[arg-type]


def test_outside_of_a_loop_and_inside() -> None:
    import asyncio

    async def inside() -> bool:
        return _session._in_loop()

    assert not _session._in_loop()
    assert asyncio.run(inside())
