"""A process of the simulated system."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework._sim.kernel import Task


class Process:
    """What the kernel keeps of one."""

    def __init__(self, pid: int, name: str, host: str) -> None:
        self.pid = pid
        self.name = name
        self.host = host  #: the machine's address
        self.alive = True
        self.stopped = False
        self.slowness = 0.0  #: seconds that each step may come late, until `slow_until`
        self.slow_until = 0.0
        self.clock_offset = 0.0  #: of its monotonic clock
        self.wall_offset = 0.0  #: of its wall clock
        self.status = 0  #: as `os.waitpid` has it, once it has ended
        self.tasks: dict[Task, None] = {}
        self.parked: list[Task] = []  #: ready, while it is stopped
        self.main: Task | None = None
        self.saved: dict[str, Any] = {}  #: values of its variables while another process runs
        self.signal_handlers: dict[int, Any] = {}
        self.descriptors: dict[int, Any] = {}
        self.parent: Process | None = None
        self.on_end: list[Callable[[], object]] = []
        self.errors: list[str] = []  #: tracebacks of its threads

    def crashed(self, task: Task, error: BaseException) -> None:
        """A task has ended with an exception."""
        import traceback

        self.errors.append(f"{task}: " + "".join(traceback.format_exception(error)))

    def let_go(self) -> None:
        """The run is over: keep nothing of what it had."""
        self.main = None
        for kept in (self.tasks, self.parked, self.saved, self.signal_handlers):
            kept.clear()
        self.descriptors.clear()
        self.on_end.clear()

    def __repr__(self) -> str:
        return f"<{self.name} pid={self.pid}{'' if self.alive else ' ended'}>"
