"""The ports of a running cluster, and who does not get in there; the head away while it is spoken to."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import framework as fw
from framework._base.cluster import ClusterFacts
from framework._net.tcp import open_authenticated
from framework.cluster_utils import Cluster
from framework.exceptions import AuthenticationError, ConnectionFailedError
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@fw.remote(num_cpus=0)
class Resident:
    def ping(self, value: object) -> object:
        return value

    def ask_for(self, name: str) -> object:
        return fw.get(fw.get_actor(name).ping.remote(name))


def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool) -> Cluster:
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}, tls=tls)
    cluster.add_node(num_cpus=1, resources={"far": 10})
    cluster.connect()
    return cluster


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    with two_nodes(tmp_path, monkeypatch, request.param) as made:
        yield made


def family(cluster: Cluster) -> list[psutil.Process]:
    """All processes of the cluster, and this one."""
    roots = [cluster.head_pid, *(node.pid for node in cluster.list_all_nodes())]
    found = [psutil.Process()]
    for pid in roots:
        process = psutil.Process(pid)
        found += [process, *process.children(recursive=True)]
    return found


def open_ports(cluster: Cluster) -> dict[int, str]:
    """The TCP ports at which its processes listen, and what they are."""
    ports = {}
    for process in family(cluster):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip == "127.0.0.1", "nothing listens beyond loopback untold"
                ports[connection.laddr.port] = " ".join(process.cmdline())[:100]
    return ports


def test_strangers_are_refused_at_every_port(cluster: Cluster) -> None:
    actors = [Resident.remote(), Resident.options(resources={"far": 1}).remote()]
    assert fw.get([actor.ping.remote(1) for actor in actors], timeout=20) == [1, 1]
    ports = open_ports(cluster)
    # The head; two nodes, for nodes and for data; this driver; two workers at least.
    assert len(ports) >= 8, ports
    head = cluster._head
    assert head is not None
    real = head.facts
    strangers = {
        "no member": {"token": b"x" * 32},
        "another cluster": {"cluster_id": b"x" * 16},
        "not encrypted, or otherwise": {"certificate": None} if real.certificate else {"token": b"y" * 32},
    }
    for port, what in ports.items():
        for name, changed in strangers.items():
            facts = ClusterFacts.from_dict(real.to_dict())
            for field, value in changed.items():
                setattr(facts, field, value)

            async def attempt(facts: ClusterFacts = facts, port: int = port) -> None:
                await open_authenticated(asyncio.get_running_loop(), "127.0.0.1", port, facts, timeout=2)

            with pytest.raises((AuthenticationError, ConnectionFailedError)):
                asyncio.run(attempt())
                pytest.fail(f"{name} got in at port {port}: {what}")
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.settimeout(10)
            try:
                sock.sendall(os.urandom(100_000))
                while sock.recv(4096):
                    pass
            except ConnectionError:
                pass
    assert fw.get([actor.ping.remote(2) for actor in actors], timeout=20) == [2, 2]
    assert len(fw.nodes()) == 2 and all(node["Alive"] for node in fw.nodes())


def test_a_flood_of_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of silent connections to every port: their number and memory is bounded, and work goes on."""
    with two_nodes(tmp_path, monkeypatch, False) as cluster:
        far = Resident.options(resources={"far": 1}).remote()
        assert fw.get(far.ping.remote(0), timeout=20) == 0
        processes = family(cluster)[1:]
        before = sum(process.memory_info().rss for process in processes)
        ports = list(open_ports(cluster))
        strangers = []
        for _ in range(100):
            for port in ports:
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
                strangers.append(sock)
        try:
            # A process that is new must reach all others, and be reached.
            new = Resident.options(resources={"far": 1}).remote()
            assert fw.get(new.ping.remote(1), timeout=30) == 1
            assert fw.get(far.ping.remote(2), timeout=20) == 2
            assert all(node["Alive"] for node in fw.nodes())
            grown = sum(process.memory_info().rss for process in processes) - before
            # (Up to `limits.MAX_UNAUTHENTICATED` of them are let in at each port, at some 35 KB each.)
            assert grown < 60e3 * len(strangers), f"{grown / 1e6:.1f} MB for {len(strangers)} connections"
        finally:
            for sock in strangers:
                sock.close()


def test_the_head_is_away_while_it_is_spoken_to(cluster: Cluster) -> None:
    """Its own node speaks to it over a Unix socket, the other one over TCP: both wait for it."""
    far_kind = Resident.options(resources={"far": 1})
    near, far = Resident.options(name="near").remote(), far_kind.options(name="far").remote()
    askers = [Resident.remote(), far_kind.remote()]
    assert fw.get([asker.ask_for.remote("near") for asker in askers], timeout=20) == ["near", "near"]
    assert fw.get([near.ping.remote(0), far.ping.remote(0)], timeout=20) == [0, 0]
    coming = far_kind.remote()  # it may be known already, placed, or started when the head goes
    cluster.kill_head()
    assert fw.get([near.ping.remote(1), far.ping.remote(2)], timeout=5) == [1, 2]
    seen: list[int] = []
    here = threading.Thread(target=lambda: seen.append(len(fw.nodes())))
    here.start()
    there = [asker.ask_for.remote("far") for asker in askers]
    late = far_kind.remote()  # (With a name it would wait here: the head is asked whether it is taken.)
    pings = [late.ping.remote(n) for n in range(3)]
    assert fw.wait([*there, *pings], timeout=0.5)[0] == [] and not seen
    cluster.restart_head()
    assert fw.get(there, timeout=20) == ["far", "far"]
    assert fw.get(pings, timeout=20) == [0, 1, 2]
    assert fw.get(coming.ping.remote("here"), timeout=20) == "here"
    here.join(20)
    wait_until(lambda: len([node for node in fw.nodes() if node["Alive"]]) == 2)
    assert fw.get(near.ping.remote(3), timeout=20) == 3
