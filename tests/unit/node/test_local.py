"""The node process of a driver, as the driver sees it: started in a session of its own, waited for, killed
when it does not end, and swept up after."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from framework._base import limits
from framework._node import local
from framework._node.local import LocalNode
from support.leaks import wait_until


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    return tmp_path / f"framework-{os.getuid()}"


def node_that(monkeypatch: pytest.MonkeyPatch, code: str) -> LocalNode:
    """A node whose process runs `code` instead; ``config`` is what it was told."""
    code = f"import json, os, socket, sys, time; config = json.loads(sys.argv[1])\n{code}"
    monkeypatch.setattr(
        local, "command", lambda module, *arguments: [sys.executable, "-S", "-c", code, *arguments]
    )
    return LocalNode({"num_cpus": 3})


def test_what_the_process_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "print(json.dumps(config), flush=True); socket.socket(fileno=config['driver_fd']).send(b'driver')\n"
        "socket.socket(fileno=config['head_fd']).send(b'head'); print(os.getsid(0) == os.getpid())"
    )
    node = node_that(monkeypatch, code)
    with node.driver, node.head:
        assert node.driver.recv(10) == b"driver" and node.head.recv(10) == b"head"
        assert node.driver.recv(10) == b"", "its side is not open in here"
        assert node.process.wait(20)
        said, leads = Path(node.session_dir, "logs", "node.err").read_text().splitlines()
        config = json.loads(said)
        assert config["session_dir"] == node.session_dir and Path(node.session_dir).parent == root
        assert (config["driver_pid"], config["resources"]) == (os.getpid(), {"num_cpus": 3})
        assert config["node_id"] == node.node_id.hex() and leads == "True"
        node.wait()
    assert (Path(node.session_dir) / "logs" / "node.err").exists(), "it has said something"
    assert not (Path(node.session_dir) / "sockets").exists()


def test_the_end_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = node_that(monkeypatch, "open(os.path.join(config['session_dir'], 'sockets', 'node'), 'w')")
    with node.driver, node.head:
        node.wait()
    assert list(root.iterdir()) == []


def test_one_that_does_not_end_is_killed_with_its_group(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHUTDOWN_GRACE", 0.05)
    node = node_that(monkeypatch, "os.posix_spawn('/bin/sleep', ['sleep', '60'], {}); time.sleep(60)")
    with node.driver, node.head:
        node.wait()
    assert node.process.code == -signal.SIGKILL
    assert node.process.wait_for_group(0)
    assert list(root.iterdir()) == []


def test_last_words(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = node_that(monkeypatch, "sys.exit('no memory')")
    with node.driver, node.head:
        assert node.process.wait(20)
        assert "exit code 1" in node.last_words() and "no memory" in node.last_words()
        node.wait()
    silent = node_that(monkeypatch, "os._exit(3)")
    with silent.driver, silent.head:
        assert silent.process.wait(20)
        assert "exit code 3" in silent.last_words() and "(nothing)" in silent.last_words()
        silent.wait()


def test_a_process_that_cannot_be_started(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(local, "command", lambda *_: ["/nowhere/python"])
    with pytest.raises(FileNotFoundError):
        LocalNode({})
    assert list(root.iterdir()) == []
    wait_until(lambda: os.listdir("/proc/self/fd") == before)


def test_no_place_for_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    monkeypatch.setenv("FRAMEWORK_TMPDIR", "/proc/nowhere")
    with pytest.raises(OSError, match="FRAMEWORK_TMPDIR"):
        LocalNode({})
    wait_until(lambda: os.listdir("/proc/self/fd") == before)
