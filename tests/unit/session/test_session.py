"""The helpers of a session's start, and the context that `init` returns."""

from __future__ import annotations

import concurrent.futures
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from framework import _session
from framework._base.cluster import ClusterFacts
from framework._node import control
from framework._node.session import create_session, write_node_pid
from framework._service.credentials import write_private
from framework._session import Context
from framework.exceptions import ConnectionFailedError, LocalNodeDiedError


def facts(head: str = "127.0.0.1:6380") -> ClusterFacts:
    return ClusterFacts(cluster_id=bytes(16), token=bytes(32), head=head, host="127.0.0.1", node_id=bytes(28))


@pytest.fixture
def context() -> Context:
    config = SimpleNamespace(
        session_dir="/s",
        node_id=b"\xab",
        job=b"\1\0\0\0",
        namespace="n",
        node_ip="127.0.0.1",
        is_driver=True,
        cluster=None,
    )
    ready: concurrent.futures.Future[None] = concurrent.futures.Future()
    return Context(SimpleNamespace(config=config, node_ready=ready), True)


def test_a_context_is_a_mapping_of_facts(context: Context) -> None:
    assert context["session_dir"] == context.session_dir == context["address"] == "/s"
    assert (context["node_id"], context["job_id"], context["namespace"]) == ("ab", "01000000", "n")
    assert dict(context) == context.address_info and len(context) == len(list(context)) == 7
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
    monkeypatch.delenv("FRAMEWORK_TOKEN", raising=False)
    assert _session._session_at(os.path.relpath(path)) == (path, None, None)
    for address, text in (
        ("auto", "framework start --head"),
        ("127.0.0.1:1", "FRAMEWORK_TOKEN"),
        ("/x", "/x"),
        ("host:", "neither"),
        ("host", "neither"),
    ):
        with pytest.raises(ConnectionFailedError, match=text):
            _session._session_at(address)
    with pytest.raises(TypeError):
        _session._session_at(5)  # type: ignore[arg-type]


def test_a_node_of_the_cluster_on_this_machine_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    sessions = {name: create_session(name) for name in ("aa", "bb", "cc", "dd")}
    for name, head in (("aa", "127.0.0.1:7000"), ("bb", "127.0.0.1:6380"), ("cc", "127.0.0.1:6380")):
        write_private(os.path.join(sessions[name], "cluster.json"), facts(head).to_dict())
        write_node_pid(sessions[name], name != "cc")
    assert control.sessions_of_cluster("127.0.0.1:6380") == [sessions["bb"], sessions["cc"]]
    assert control.sessions_of_cluster("localhost:6380") == [sessions["bb"], sessions["cc"]]
    assert control.sessions_of_cluster("127.0.0.1:1") == []
    Path(sessions["cc"], "head.json").touch()
    session_dir, node, joined = _session._session_at("127.0.0.1:6380")
    assert (session_dir, node) == (sessions["cc"], None), "the head's node first"
    assert joined is not None and joined.head == "127.0.0.1:6380"
    assert _session._session_at(sessions["dd"]) == (sessions["dd"], None, None)
    Path(sessions["bb"], "node.pid").write_text("999999999\nstays")
    assert control.sessions_of_cluster("127.0.0.1:6380") == [sessions["cc"]], "one has ended"


def test_outside_of_a_loop_and_inside() -> None:
    import asyncio

    async def inside() -> bool:
        return _session._in_loop()

    assert not _session._in_loop()
    assert asyncio.run(inside())
