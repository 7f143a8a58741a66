"""Nodes on machines that are really apart: network namespaces with an address each, joined by a switch. What
works by accident on one machine (loopback, shared directories) does not work here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.drivers import assert_clean
from support.leaks import framework_processes, wait_until
from support.namespaces import Machine, Network, NotPermitted

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BEGIN = """
import os, sys, time
import framework as fw
fw.init(address={address!r}, log_to_driver=True)

@fw.remote
def where(value=b""):
    return fw.util.get_node_ip_address(), len(value)

@fw.remote
def make(size):
    return b"x" * size

def alive():
    return sorted(node["NodeManagerAddress"] for node in fw.nodes() if node["Alive"])
"""


class Apart:
    """A head on the first machine, nodes on two more, each with a resource called as its number."""

    def __init__(self, network: Network, *options: str) -> None:
        self.machines = [network.machine() for _ in range(3)]
        head = self.machines[0]
        text = head.cli("start", "--head", f"--host={head.address}", "--num-cpus=0", *options)
        self.token = text.split("FRAMEWORK_TOKEN=")[1].split()[0]
        self.address = text.split("--address=")[1].split()[0]
        for number, machine in enumerate(self.machines[1:], 1):
            self.join(machine, number)

    def join(self, machine: Machine, number: int) -> None:
        resources = f'--resources={{"m{number}": 4}}'
        machine.cli(
            "start", f"--address={self.address}", "--num-cpus=2", resources, FRAMEWORK_TOKEN=self.token
        )

    def begin(self) -> str:
        return BEGIN.format(address=self.address)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    try:
        network = Network(tmp_path)
    except NotPermitted as error:
        pytest.skip(f"network namespaces are not permitted here: {error}")
    with network:
        try:
            yield network
        finally:
            for machine in network.machines:
                machine.cli("stop", "--force")
            wait_until(lambda: not framework_processes(tmp_path), 10, "the end of all processes")


@pytest.mark.parametrize("encryption", ["--tls", "--no-tls"])
def test_machines_work_together(network: Network, encryption: str) -> None:
    apart = Apart(network, encryption)
    assert ("-" in apart.token) == (encryption == "--tls")
    source = (
        apart.begin()
        + """
print("ALIVE", *alive())
first, second = (fw.get(where.options(resources={name: 1}).remote(), timeout=20)[0] for name in ("m1", "m2"))
print("WHERE", first, second)
ref = make.options(resources={"m1": 1}).remote(5_000_000)
there = fw.get(where.options(resources={"m2": 1}).remote(ref), timeout=20)
print("LARGE", *there, len(fw.get(ref, timeout=20)))

@fw.remote(resources={"m2": 1})
class Counter:
    def __init__(self): self.count = 0
    def add(self, ref):
        self.count += len(ref)
        print("counted", self.count)
        return fw.util.get_node_ip_address(), self.count
c = Counter.options(name="counter").remote()
fw.get(c.add.remote(ref), timeout=20)
print("ACTOR", *fw.get(c.add.remote(ref), timeout=20))

@fw.remote(resources={"m1": 1})
def nested():
    return fw.get(where.options(resources={"m2": 1}).remote(fw.put(b"y" * 1_000_000)), timeout=20)
print("NESTED", *fw.get(nested.remote(), timeout=20))
"""
    )
    addresses = [machine.address for machine in apart.machines]
    with apart.machines[0].driver(source) as driver:
        assert driver.finish(60) == 0, driver.text()
    assert driver.expect("ALIVE", 0).split()[1:] == addresses
    assert driver.expect("WHERE", 0).split()[1:] == addresses[1:]
    assert driver.expect("LARGE", 0).split()[1:] == [addresses[2], "5000000", "5000000"]
    assert driver.expect("ACTOR", 0).split()[1:] == [addresses[2], "10000000"]
    assert driver.expect("NESTED", 0).split()[1:] == [addresses[2], "1000000"]
    assert f"ip={addresses[2]}" in driver.expect("counted 10000000", 0)
    for machine in reversed(apart.machines):
        machine.cli("stop")
        assert_clean(machine.root)


def test_a_driver_on_a_machine_without_a_node(network: Network) -> None:
    apart = Apart(network)
    stranger = network.machine()
    source = (
        apart.begin()
        + """
print("ALIVE", len(alive()))
print("LARGE", *fw.get(where.options(resources={"m1": 1}).remote(fw.put(b"z" * 2_000_000)), timeout=20))
"""
    )
    with stranger.driver(source, FRAMEWORK_TOKEN=apart.token) as driver:
        assert driver.finish(60) == 0, driver.text()
        assert driver.expect("ALIVE", 0) == "ALIVE 4"
        assert driver.expect("LARGE", 0) == f"LARGE {apart.machines[1].address} 2000000"
    assert_clean(stranger.root)
    with stranger.driver(source, FRAMEWORK_TOKEN=apart.token.partition("-")[0]) as driver:
        assert driver.finish(60) == 1, "the token without the certificate's half"
        assert "Error" in driver.err[-1] and apart.token[:64] not in driver.text(), driver.text()


def test_a_pulled_cable(network: Network) -> None:
    """The node is dead within 5 s for all others; its task runs elsewhere; it ends when it hears of it."""
    apart = Apart(network)
    source = (
        apart.begin()
        + """
@fw.remote(max_retries=2)
def slow(path):
    open(path, "a").write(fw.util.get_node_ip_address() + "\\n")
    time.sleep(3)
    return fw.util.get_node_ip_address()

path = os.environ["FRAMEWORK_TMPDIR"] + "/../began"
refs = [slow.options(scheduling_strategy="SPREAD").remote(path) for _ in range(4)]
while not os.path.exists(path) or len(open(path).readlines()) < 4: time.sleep(0.01)
print("RUNNING", flush=True)
while len(alive()) == 3: time.sleep(0.01)
print("DEAD", flush=True)
print("RESULTS", *sorted(set(fw.get(refs, timeout=40))), flush=True)
"""
    )
    lost = apart.machines[2]
    with apart.machines[0].driver(source) as driver:
        driver.expect("RUNNING", 40)
        lost.cut()
        began = time.monotonic()
        driver.expect("DEAD", 10)
        assert time.monotonic() - began < 5.5
        assert driver.finish(60) == 0, driver.text()
        assert driver.expect("RESULTS", 0).split()[1:] == [apart.machines[1].address], driver.text()
    lost.mend()
    wait_until(lambda: not framework_processes(lost.root), 20, "the end of the node that was cut off")
    assert_clean(lost.root)
    apart.join(lost, 2)
    assert apart.machines[0].cli("status").count(" alive at ") == 3


def test_a_cable_that_is_pulled_for_a_moment(network: Network) -> None:
    """For less time than it takes to be declared dead: nothing is lost."""
    apart = Apart(network)
    source = (
        apart.begin()
        + """
@fw.remote(resources={"m2": 1})
class Resident:
    def ping(self, number): return number

resident = Resident.remote()
fw.get(resident.ping.remote(0), timeout=20)
print("READY", flush=True)
longest, number = 0, 0
while longest < 1:
    began = time.monotonic()
    assert fw.get(resident.ping.remote(number), timeout=30) == number
    longest, number = time.monotonic() - began, number + 1
assert fw.get(resident.ping.remote(-1), timeout=30) == -1
assert fw.get(where.options(resources={"m2": 1}).remote(b"x" * 2_000_000), timeout=30)[1] == 2_000_000
print("ALIVE", len(alive()))
"""
    )
    with apart.machines[0].driver(source) as driver:
        driver.expect("READY", 40)
        apart.machines[2].cut()
        time.sleep(1.5)  # how long it is cut off: no waiting for anything
        apart.machines[2].mend()
        assert driver.finish(60) == 0, driver.text()
        assert driver.expect("ALIVE", 0) == "ALIVE 3"


def test_two_machines_lose_each_other(network: Network) -> None:
    """The head sees both, so that neither is dead; what they still have to say to each other fails in time
    (`limits.MACHINE_SILENCE`)."""
    apart = Apart(network)
    source = (
        apart.begin()
        + """
@fw.remote(resources={"m2": 1})
class Resident:
    def ping(self): return fw.util.get_node_ip_address()

resident = Resident.remote()
fw.get(resident.ping.remote(), timeout=20)
print("READY", flush=True)
while not os.path.exists(os.environ["FRAMEWORK_TMPDIR"] + "/../lost"): time.sleep(0.01)
began = time.monotonic()
try:
    fw.get(resident.ping.remote(), timeout=60)
except (fw.exceptions.ActorDiedError, fw.exceptions.ActorUnavailableError) as error:
    print("TOLD", round(time.monotonic() - began, 1), error, flush=True)
assert len(alive()) == 3
assert fw.get(where.options(resources={"m1": 1}).remote(), timeout=20)[0]
print("DONE")
"""
    )
    first, second = apart.machines[1:]
    with first.driver(source) as driver:
        driver.expect("READY", 40)
        first.lose(second)
        second.lose(first)
        (first.root.parent / "lost").touch()
        assert driver.finish(90) == 0, driver.text()
        assert driver.expect("DONE", 0)
        assert float(driver.expect("TOLD", 0).split()[1]) < 40, driver.text()


def test_a_slow_and_lossy_network(network: Network) -> None:
    apart = Apart(network)
    try:
        for machine in apart.machines:
            machine.trouble(20, 1)
    except NotPermitted as error:
        pytest.skip(f"the kernel cannot delay and lose packets (tc netem): {error}")
    source = (
        apart.begin()
        + """
ref = make.options(resources={"m1": 1}).remote(3_000_000)
for _ in range(5):
    assert fw.get(where.options(resources={"m2": 1}).remote(ref), timeout=40)[1] == 3_000_000
many = [where.options(scheduling_strategy="SPREAD").remote() for _ in range(100)]
assert len(fw.get(many, timeout=60)) == 100
print("ALIVE", len(alive()))
"""
    )
    with apart.machines[0].driver(source) as driver:
        assert driver.finish(110) == 0, driver.text()
        assert driver.expect("ALIVE", 0) == "ALIVE 3"
