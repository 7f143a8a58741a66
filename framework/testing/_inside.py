"""What a simulated program, its tasks and its actors can ask of the simulation. All of it may stand in code
that runs in reality too."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

from framework._sim.user_programs import present


def is_simulated() -> bool:
    """Whether the calling code runs in a simulation."""
    return present() is not None


def now() -> float:
    """Seconds since the simulation began: the same for all processes, whatever their clocks say. In reality
    `time.monotonic`."""
    run = present()
    return time.monotonic() if run is None else run.kernel.now


def note(text: str, **facts: Any) -> None:
    """Write something down: into the trace, and into `Report.notes` with its time and process. In reality
    nothing happens. (`facts` are appended to the text by `repr`: they must look the same in every run.)"""
    run = present()
    if run is not None:
        run.note(text + "".join(f" {name}={value!r}" for name, value in facts.items()))


def sometimes(name: str) -> None:
    """Mark a place that good tests reach: `Report.reached` counts how often, and
    ``explore(..., must_reach=["name"])`` fails where no seed ever did. In reality nothing happens."""
    run = present()
    if run is not None:
        run.report.reached[name] = run.report.reached.get(name, 0) + 1


def eventually(condition: Callable[[], Any], within: float = 10.0, every: float = 0.05) -> Any:
    """Wait until `condition()` is true, and return what it returned.

    An `AssertionError` that it raises means "not yet". After `within` seconds (of virtual time, in a
    simulation) an `AssertionError` is raised. In a coroutine: ``await eventually(...)``, where the condition
    may be a coroutine function too.
    """
    if not callable(condition):
        raise TypeError(f"the condition is a function without arguments, not {condition!r}")
    if asyncio._get_running_loop() is not None:
        return _eventually(condition, within, every)
    end = time.monotonic() + within
    while True:
        found, problem = _attempt(condition)
        if inspect.iscoroutine(found):
            found.close()
            raise TypeError("the condition is a coroutine function: await eventually(...) in a coroutine")
        if found:
            return found
        if time.monotonic() >= end:
            raise _never(condition, within, found) from problem
        time.sleep(every)


async def _eventually(condition: Callable[[], Any], within: float, every: float) -> Any:
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while True:
        found, problem = _attempt(condition)
        if inspect.isawaitable(found):
            try:
                found = await found
            except AssertionError as error:
                found, problem = None, error
        if found:
            return found
        if loop.time() >= end:
            raise _never(condition, within, found) from problem
        await asyncio.sleep(every)


def _attempt(condition: Callable[[], Any]) -> tuple[Any, AssertionError | None]:
    try:
        return condition(), None
    except AssertionError as error:
        return None, error


def _never(condition: Callable[[], Any], within: float, last: Any) -> AssertionError:
    name = getattr(condition, "__qualname__", repr(condition))
    return AssertionError(f"{name} did not hold within {within:g} s; the last time it gave {last!r}")
