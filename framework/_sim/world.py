"""What a random program needs of the place where it runs: a simulation, or a real session."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Set
from typing import Any, Protocol

from framework._sim.record import Record

Happening = tuple[float, str, Mapping[str, Any]]
"""One thing that really happened to the cluster: (time, kind, facts).

kinds: delay, partition, reset, crash, slow, stop, disk_full, disk_lost, head_restart, clock_jump, node_added,
node_removed; and, of the program's own making, worker_exit (it ended a worker that may own objects).

facts, where they are known: ``process`` of a crash ("worker", "node", "head" or "driver"), ``node`` (its
hexadecimal id), ``pid``, ``until`` (time of the end of a partition, stop, slowness; absent: it has not
ended), ``home`` (true for what befell the driver's own machine), ``head`` (true for what the head's storage
has lost), ``graceful`` of a node that was removed.
"""


class World(Protocol):
    """All times in seconds, of the clock that `happened` uses."""

    @property
    def rng(self) -> random.Random:
        """The source of all choices; a program draws from it once."""

    @property
    def kinds(self) -> Mapping[str, float] | None:
        """Weights of the kinds of operations; what is not in it is not done. None: all, as they are by
        default."""

    @property
    def count(self) -> int:
        """The number of operations."""

    @property
    def skip(self) -> Set[int]:
        """Numbers of operations that are left out; the choices of all others stay as they were."""

    @property
    def simulated(self) -> bool:
        """Whether all processes share this interpreter, so that there is a ledger."""

    @property
    def faults_possible(self) -> bool:
        """Whether anything but the program itself does damage."""

    @property
    def pace(self) -> float:
        """Factor of all times that a program lets pass: 1 where time costs nothing."""

    @property
    def patience(self) -> float:
        """Seconds after which what has not been answered never will be."""

    @property
    def store_bytes(self) -> int:
        """Size of the object store of the driver's node; 0: no program fills it."""

    @property
    def cpus(self) -> int:
        """CPUs of the smallest node that is there from beginning to end; 2 or more, so that actors with parts
        of CPUs leave a whole one to tasks."""

    @property
    def resource(self) -> str:
        """A custom resource of which there is 1 for good; an empty string: there is none."""

    @property
    def can_add_nodes(self) -> bool: ...

    @property
    def happened(self) -> list[Happening]: ...

    @property
    def seen(self) -> Record:
        """What the program has seen, for the oracles."""

    def note(self, kind: str, **facts: Any) -> None:
        """Append to `happened`, at this moment."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...

    async def add_node(self, **options: Any) -> str:
        """A node with these options of `cluster_utils.Cluster.add_node` joins; its id when it has. It is in
        `happened` then."""

    async def remove_node(self, node_id: str, graceful: bool) -> None:
        """A node that `add_node` has made ends; nothing when it has ended already. It is in `happened` as
        soon as that begins."""

    async def in_driver(self, job: Callable[[], Awaitable[Any]]) -> Any:
        """The result of a coroutine that runs in a driver of its own, which ends after it.
        `NotImplementedError` where there is only one."""
