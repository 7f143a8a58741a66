"""Mistakes get a clear error at the line that made them, before anything is sent."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.exceptions import (
    AlreadyInitializedError,
    ConnectionFailedError,
    ForkedProcessError,
    NotInitializedError,
)
from framework.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

pytestmark = pytest.mark.integration


@fw.remote
def add(a: int, b: int = 1, *, c: int = 0) -> int:
    return a + b + c


@fw.remote
def anything(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


@fw.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, by: int = 1) -> int:
        self.value += by
        return self.value


untyped: Any = fw
untyped_add: Any = add
untyped_counter: Any = Counter


# ---- calls -------------------------------------------------------------------------------------------


def test_direct_calls(session: object) -> None:
    with pytest.raises(TypeError, match=r"add\.remote"):
        untyped_add(1)
    with pytest.raises(TypeError, match=r"Counter\.remote"):
        untyped_counter()
    counter: Any = Counter.remote()
    with pytest.raises(TypeError, match=r"add\.remote"):
        counter.add(1)


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, r"add\(\) misses the argument 'a'"),
        ((1, 2, 3), {}, r"add\(\) takes at most 2 positional"),
        ((1,), {"a": 2}, "got two values for the argument 'a'"),
        ((1,), {"d": 2}, "unexpected keyword argument 'd'"),
    ],
)
def test_wrong_arguments(session: object, args: Any, kwargs: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text) as caught:
        untyped_add.remote(*args, **kwargs)
    assert "add(a, b=..., *, c=...)" in str(caught.value)
    assert fw.get(anything.remote(*args, **kwargs), timeout=20) == (args, kwargs)


def test_wrong_arguments_of_actors(session: object) -> None:
    cls: Any = Counter
    with pytest.raises(TypeError, match=r"Counter.*unexpected keyword argument 'begin'"):
        cls.remote(begin=1)
    counter: Any = Counter.remote(5)
    with pytest.raises(TypeError, match=r"add\(\) takes at most 1 positional"):
        counter.add.remote(1, 2)
    with pytest.raises(AttributeError, match="subtract"):
        counter.subtract.remote(1)
    assert fw.get(counter.add.remote(), timeout=20) == 6


# ---- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_cpu": 1}, ValueError, "did you mean 'num_cpus'"),
        ({"max_restarts": 1}, ValueError, "it is an option of actors"),
        ({"num_cpus": -1}, ValueError, "num_cpus must not be negative"),
        ({"num_cpus": "2"}, TypeError, "num_cpus must be a number"),
        ({"num_cpus": True}, TypeError, "num_cpus must be a number"),
        ({"num_cpus": float("nan")}, ValueError, "num_cpus must be a finite number"),
        ({"num_gpus": 1.5}, ValueError, "whole number"),
        ({"memory": -5}, ValueError, "memory must not be negative"),
        ({"resources": {"CPU": 1}}, ValueError, "num_cpus=1"),
        ({"resources": {"x": -1}}, ValueError, "resources"),
        ({"resources": ["x"]}, TypeError, "dict"),
        ({"num_returns": -1}, ValueError, "num_returns"),
        ({"num_returns": 1.5}, TypeError, "num_returns"),
        ({"num_returns": "many"}, ValueError, "'streaming' or 'dynamic'"),
        ({"max_retries": -2}, ValueError, "max_retries"),
        ({"max_retries": 1.0}, TypeError, "max_retries"),
        ({"retry_exceptions": ValueError}, TypeError, "list of exception classes"),
        ({"retry_exceptions": [3]}, TypeError, "no exception class"),
        ({"retry_policy": 3}, TypeError, "RetryPolicy"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": "1"}, TypeError, "timeout"),
        ({"max_calls": -1}, ValueError, "max_calls"),
        ({"name": ""}, ValueError, "name"),
        ({"runtime_env": {"pip": ["x"]}}, ValueError, "'pip' is not supported"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, TypeError, "str to str"),
        ({"scheduling_strategy": "FASTEST"}, ValueError, "'DEFAULT', 'SPREAD'"),
        ({"scheduling_strategy": 5}, TypeError, "strategy"),
        ({"generator_window": 0}, ValueError, "generator_window"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    def function() -> None: ...

    with pytest.raises(error, match=text):
        untyped.remote(**options)(function)
    with pytest.raises(error, match=text):
        untyped_add.options(**options)


@pytest.mark.parametrize(
    "decorate", [lambda: untyped.remote(5), lambda: untyped.remote(add), lambda: untyped.remote()]
)
def test_decorating_what_cannot_be_remote(decorate: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="remote"):
        decorate()


def test_strategies_that_mean_nothing(session: object) -> None:
    with pytest.raises(ValueError, match="node_id"):
        NodeAffinitySchedulingStrategy(5, soft=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="placement_group"):
        PlacementGroupSchedulingStrategy("a group")
    with pytest.raises(TypeError, match=r"In\(\.\.\.\)"):
        NodeLabelSchedulingStrategy({"zone": "a"})
    with pytest.raises(ValueError, match="needs a label"):
        NodeLabelSchedulingStrategy({})
    with pytest.raises(ValueError, match="at least one value"):
        In()
    both = add.options(label_selector={"zone": "a"}, scheduling_strategy="SPREAD")
    with pytest.raises(ValueError, match="together"):
        both.remote(1)
    with pytest.raises(ValueError, match="label_selector"):
        add.options(label_selector={"zone": "in(a"})
    with pytest.raises(TypeError, match="priority"):
        add.options(priority=0.5)  # type: ignore[typeddict-item]


# ---- get, wait, put, cancel, kill --------------------------------------------------------------------


async def coroutine() -> None: ...


def test_get_of_what_is_not_a_reference(session: object) -> None:
    for value, text in (
        (5, "int: 5"),
        ("x", "str: 'x'"),
        ({"a": 1}, "dict"),
        (add, r"call \.remote\(\) on it first"),
        (Counter.remote(), "call one of its methods"),
        ([add.remote(1), 5], "item 1 of the list is int: 5"),
        ([[add.remote(1)]], "item 0 of the list is list"),
    ):
        with pytest.raises(TypeError, match=text):
            untyped.get(value)
    waiting = coroutine()
    with pytest.raises(TypeError, match="await it"):
        untyped.get(waiting)
    waiting.close()


def test_get_with_a_wrong_timeout(session: object) -> None:
    ref = add.remote(1)
    with pytest.raises(ValueError, match="negative"):
        fw.get(ref, timeout=-1)
    with pytest.raises(TypeError, match="number of seconds"):
        untyped.get(ref, timeout="1")
    with pytest.raises(ValueError):
        fw.get(ref, timeout=float("nan"))
    assert fw.get([], timeout=0) == []


def test_wait(session: object) -> None:
    ref, other = add.remote(1), add.remote(2)
    for arguments, options, error, text in (
        ([ref, ref], {}, ValueError, "duplicates"),
        ([], {}, ValueError, "at least one"),
        ([ref], {"num_returns": 2}, ValueError, r"between 1 and .*\(1\), got 2"),
        ([ref, other], {"num_returns": 0}, ValueError, "got 0"),
        ([ref], {"num_returns": 1.0}, TypeError, "int"),
        ([ref], {"timeout": -1}, ValueError, "negative"),
        (ref, {}, TypeError, "list of references, got a single one"),
        ([ref, 5], {}, TypeError, "item 1"),
        ({ref}, {}, TypeError, "list"),
    ):
        with pytest.raises(error, match=text):
            untyped.wait(arguments, **options)


def test_put_cancel_kill_get_actor(session: object) -> None:
    ref = add.remote(1)
    with pytest.raises(TypeError, match=r"put\(\[ref\]\)"):
        fw.put(ref)
    with pytest.raises(TypeError, match="cancel"):
        untyped.cancel(5)
    with pytest.raises(TypeError, match="handle of an actor"):
        untyped.kill(ref)
    with pytest.raises(ValueError, match="nobody"):
        fw.get_actor("nobody")
    with pytest.raises(TypeError):
        fw.ObjectRef(b"x" * 28)


# ---- init and shutdown -------------------------------------------------------------------------------


def test_init_twice(session: object) -> None:
    with pytest.raises(AlreadyInitializedError, match="ignore_reinit_error"):
        fw.init()
    assert fw.init(ignore_reinit_error=True) is session


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_cpu": 2}, ValueError, "did you mean 'num_cpus'"),
        ({"num_cpus": -1}, ValueError, "num_cpus"),
        ({"num_cpus": "many"}, TypeError, "num_cpus"),
        ({"resources": {"GPU": 1}}, ValueError, "num_gpus"),
        ({"object_store_memory": -1}, ValueError, "object_store_memory"),
        ({"namespace": ""}, ValueError, "namespace"),
        ({"address": "10.0.0.1:6379"}, ConnectionFailedError, "10.0.0.1:6379"),
        ({"address": "/nowhere/at/all"}, ConnectionFailedError, "/nowhere/at/all"),
    ],
)
def test_arguments_of_init(
    session_root: Path,
    options: dict[str, Any],
    error: type[Exception],
    text: str,
    request: pytest.FixtureRequest,
) -> None:
    fw.shutdown()
    with pytest.raises(error, match=text):
        untyped.init(**options)
    assert not fw.is_initialized()


@pytest.mark.slow
def test_use_after_shutdown(session_root: Path) -> None:
    fw.shutdown()
    with fw.init(num_cpus=1, log_to_driver=False):
        old_ref = add.remote(1)
        pending = anything.remote(old_ref)
        counter = Counter.remote()
        fw.get([old_ref, counter.add.remote()], timeout=20)
    uses: list[Callable[[], Any]] = [
        lambda: add.remote(1),
        lambda: fw.get(old_ref),
        lambda: fw.wait([old_ref]),
        lambda: fw.put(1),
        lambda: fw.cancel(pending),
        lambda: counter.add.remote(),
        lambda: Counter.remote(),
        fw.cluster_resources,
        fw.nodes,
        lambda: fw.get_actor("x"),
    ]
    for use in uses:
        with pytest.raises(NotInitializedError, match=r"init\(\)"):
            use()
    assert not fw.is_initialized()
    fw.shutdown()  # twice is as once


@pytest.mark.slow
def test_references_of_an_earlier_session(session_root: Path) -> None:
    fw.shutdown()
    with fw.init(num_cpus=1, log_to_driver=False):

        @fw.remote
        def never() -> None:
            import time

            time.sleep(1e6)

        pending = never.remote()
        fw.wait([pending], timeout=0.05)
    with fw.init(num_cpus=1, log_to_driver=False):
        with pytest.raises(fw.exceptions.FrameworkError):
            fw.get(pending, timeout=5)
        with pytest.raises(fw.exceptions.FrameworkError):
            fw.get(anything.remote(pending), timeout=5)
        assert fw.get(add.remote(1), timeout=20) == 2


# ---- forks -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_use_in_a_forked_child(session_root: Path, tmp_path: Path) -> None:
    fw.shutdown()
    with fw.init(num_cpus=1, log_to_driver=False):
        counter = Counter.remote()
        ref = add.remote(1)
        fw.get([ref, counter.add.remote()], timeout=20)

        async def awaiting() -> None:
            await asyncio.wait_for(pending, 5)

        @fw.remote
        def later() -> int:
            import time

            while not (tmp_path / "gate").exists():
                time.sleep(0.005)
            return 3

        pending = later.remote()
        uses: list[Callable[[], Any]] = [
            lambda: add.remote(1),
            lambda: fw.get(ref),
            lambda: fw.get(pending, timeout=5),
            lambda: fw.wait([pending], timeout=5),
            lambda: fw.put(1),
            lambda: counter.add.remote(),
            lambda: fw.cancel(pending),
            lambda: fw.nodes(),
            lambda: asyncio.run(awaiting()),
            lambda: pending.future().result(5),
        ]
        child = os.fork()
        if child == 0:
            report = []
            for number, use in enumerate(uses):
                try:
                    use()
                    report.append(f"{number}: no error")
                except ForkedProcessError:
                    pass
                except BaseException as error:
                    report.append(f"{number}: {type(error).__name__}: {error}")
            (tmp_path / "report").write_text("\n".join(report))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        (tmp_path / "gate").touch()
        assert (tmp_path / "report").read_text() == ""
        assert fw.get([pending, counter.add.remote()], timeout=20) == [3, 2]


@pytest.mark.slow
def test_a_mistake_does_not_break_the_session(fresh_session: object) -> None:
    for _ in range(50):
        with pytest.raises(TypeError):
            untyped_add.remote()
        with pytest.raises(TypeError):
            untyped.get(sys)
    assert fw.get([add.remote(i) for i in range(50)], timeout=20) == list(range(1, 51))
    assert "CPU" in fw.cluster_resources()
