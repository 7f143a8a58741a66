"""A simulated system without a cluster in it: processes that run functions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from framework._sim.choices import Choices, Log
from framework._sim.kernel import Kernel, Task
from framework._sim.patches import System
from framework._sim.process import Process
from framework._sim.schedulers import Priorities, RandomWalk


class Machines:
    """What `simulated` gives: start functions with `go`, then `run`."""

    def __init__(self, seed: int, scheduler: str) -> None:
        choices = Choices(seed)
        policy = {"walk": RandomWalk, "priorities": Priorities}[scheduler](choices)
        self.kernel = Kernel(choices, Log(keep=True), policy)
        self.system = System(self.kernel, self.end)
        self.network = self.system.network
        self.results: dict[str, Any] = {}
        self.errors: dict[str, BaseException] = {}

    def end(self, process: Process, status: int = 9) -> None:
        """The process is gone, as after kill -9."""
        process.status = status
        self.kernel.kill(process)
        self.network.process_ended(process)
        for function in process.on_end:
            function()
        if self.kernel.current is not None and self.kernel.process is process:
            self.kernel.leave()

    def process(self, host: str = "10.0.0.1", name: str = "process") -> Process:
        return self.kernel.new_process(name, host)

    def go(
        self,
        function: Callable[[], Any],
        process: Process | None = None,
        *,
        host: str = "10.0.0.1",
        name: str = "",
    ) -> Task:
        """Start a thread that runs it, of a new process unless one is given. What it returns is kept under
        its name."""
        process = process or self.process(host)
        name = name or f"{function.__name__}"

        def body() -> None:
            try:
                self.results[name] = function()
            except BaseException as error:
                self.errors[name] = error

        task = self.kernel.spawn(process, body, name)
        process.main = process.main or task
        return task

    def run(self, until: float = 1e6) -> None:
        """Until all threads have come to their ends; what one of them raised is raised."""
        alive = self.kernel.processes.values()
        self.kernel.run(lambda: not any(p.alive and p.tasks for p in alive), self.kernel.now + until)
        for error in self.errors.values():
            raise error

    def run_for(self, seconds: float) -> None:
        """Let virtual time pass."""
        over: list[bool] = []
        self.kernel.call_later(seconds, over.append, True)
        self.kernel.run(lambda: bool(over), self.kernel.now + seconds + 1)

    def result(self, function: Callable[[], Any]) -> Any:
        """What a function returns when a simulated process runs it."""
        self.go(function, name="result")
        self.run()
        return self.results["result"]


@contextlib.contextmanager
def simulated(seed: int = 0, scheduler: str = "walk") -> Iterator[Machines]:
    """While this is open, the calling thread is in a simulated system."""
    machines = Machines(seed, scheduler)
    with machines.system.installed():
        yield machines
