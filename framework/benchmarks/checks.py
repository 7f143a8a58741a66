"""What it costs to look at frames before they are believed: ``python -m framework.benchmarks.checks``.

Calls of an actor on another node of a cluster, over TCP, authenticated, with and without TLS. In the same run
and between the same two processes, the check of frames (`framework._wire.messages.check`) is on and off by
turns, in both. What is compared is the processor time of both processes per call, which other programs
disturb less than the time on the clock: the median of the ratios of neighbouring turns, and the range that
half of them lie in. (The handshake itself costs nothing once it is over; its time is shown too.)
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import framework as fw
from framework._net.address import host_port
from framework._wire import messages as m
from framework.cluster_utils import Cluster

_CHECK: Callable[[object], int] = m.check


def _no_check(frame: Any) -> int:
    opcode: int = frame[0]
    return opcode


def _switch(on: bool) -> None:
    setattr(m, "check", _CHECK if on else _no_check)  # noqa: B010  (to the type checker it is a constant)


@fw.remote(num_cpus=0, resources={"far": 1})
class Far:
    """The other side."""

    def ping(self) -> None:
        """Nothing."""

    def switch(self, on: bool) -> None:
        """Look at frames here, or do not."""
        _switch(on)

    def processor_time(self) -> float:
        """Of this process, in seconds."""
        return time.process_time()


def one_at_a_time(far: Any, count: int) -> None:
    """Calls, each waited for."""
    for _ in range(count):
        fw.get(far.ping.remote())


def in_flight(far: Any, count: int) -> None:
    """Calls, all at once."""
    fw.get([far.ping.remote() for _ in range(count)])


def cost(far: Any, calls: Callable[[Any, int], None], count: int) -> float:
    """Microseconds of processor time per call, of both processes."""
    began = time.process_time() + fw.get(far.processor_time.remote())
    calls(far, count)
    ended = time.process_time() + fw.get(far.processor_time.remote())
    return 1e6 * float(ended - began) / count


def compare(far: Any, calls: Callable[[Any, int], None], rounds: int, count: int) -> str:
    """One line of the table."""
    costs: dict[bool, list[float]] = {True: [], False: []}
    ratios: list[float] = []
    cost(far, calls, count)
    for turn in range(rounds):
        found: dict[bool, float] = {}
        for on in (True, False) if turn % 2 else (False, True):
            fw.get(far.switch.remote(on))
            _switch(on)
            found[on] = cost(far, calls, count)
            costs[on].append(found[on])
        ratios.append(100 * (found[True] / found[False] - 1))
    fw.get(far.switch.remote(True))
    _switch(True)
    low, middle, high = statistics.quantiles(ratios, n=4)
    with_checks, without = statistics.median(costs[True]), statistics.median(costs[False])
    return f"{with_checks:>12.1f} {without:>12.1f} {middle:>8.1f} % {low:>8.1f} … {high:.1f} %"


def handshake(cluster: Cluster) -> float:
    """Milliseconds to connect and prove oneself, the median of 50."""
    from framework._net.tcp import open_authenticated

    assert cluster._head is not None
    facts = cluster._head.facts
    host, port = host_port(facts.head)
    times = []

    async def connect() -> None:
        began = time.perf_counter()
        sock = await open_authenticated(asyncio.get_running_loop(), host, port, facts)
        times.append(1e3 * (time.perf_counter() - began))
        sock.close()

    async def all_of_them() -> None:
        for _ in range(50):
            await connect()

    asyncio.run(all_of_them())
    return statistics.median(times)


def alone() -> float:
    """Nanoseconds to check a reply, the best of many."""
    frame = [m.DONE, 1, 1, None]
    times = []
    for _ in range(50):
        began = time.perf_counter()
        for _ in range(2_000):
            _CHECK(frame)
        times.append((time.perf_counter() - began) / 2_000)
    return 1e9 * min(times)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=1_000, help="of each turn")
    options = parser.parse_args()
    columns = f"{'with checks':>12} {'without':>12} {'cost':>10}  half of the rounds"
    print(f"{'µs of processor per call':28} {columns}")
    for tls in (False, True):
        with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}, tls=tls) as cluster:
            cluster.add_node(num_cpus=1, resources={"far": 1})
            cluster.connect(log_to_driver=False)
            far: Any = Far.remote()  # type: ignore[attr-defined]
            fw.get(far.ping.remote())
            kind = "TLS" if tls else "TCP"
            for name, calls in (("one at a time", one_at_a_time), ("all at once", in_flight)):
                line = compare(far, calls, options.rounds, options.calls)
                print(f"{kind + ', ' + name:28} {line}", flush=True)
            print(f"{kind}, a new connection: {handshake(cluster):.1f} ms", flush=True)
    print(f"the check of a reply alone: {alone():.0f} ns")


if __name__ == "__main__":
    main()
