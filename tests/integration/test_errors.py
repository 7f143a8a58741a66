"""What goes wrong in tasks, as the caller sees it."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.exceptions import (
    FrameworkError,
    GetTimeoutError,
    SerializationError,
    TaskError,
    UnserializableCause,
    WorkerCrashedError,
)
from support.leaks import wait_until

pytestmark = pytest.mark.integration


class Custom(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("has a lock")
        self.lock = threading.Lock()


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")

    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


@fw.remote
def passing(value: Any) -> Any:
    return value


@fw.remote
def failing(text: str = "boo") -> None:
    deep(text)


def deep(text: str) -> None:
    raise ValueError(text)


def error_of(ref: Any, timeout: float = 20) -> Any:
    with pytest.raises(Exception) as caught:
        fw.get(ref, timeout=timeout)
    return caught.value


# ---- exceptions of user code -------------------------------------------------------------------------


def test_the_class_and_the_remote_traceback(session: object) -> None:
    error = error_of(failing.remote("specific text"))
    assert isinstance(error, ValueError)
    assert isinstance(error, TaskError)
    assert isinstance(error, FrameworkError)
    assert error.args == ("specific text",)
    assert error.function_name == "failing"
    assert error.pid != os.getpid()
    text = "".join(traceback.format_exception(error))
    for part in (
        f"framework::failing() (pid={error.pid}",
        "in deep",
        "raise ValueError(text)",
        "ValueError: specific text",
    ):
        assert part in text
    assert "framework/_worker" not in str(error)


def test_custom_exceptions_keep_their_class_and_attributes(session: object) -> None:
    @fw.remote
    def fail() -> None:
        raise Custom(404, detail="gone")

    error = error_of(fail.remote())
    assert isinstance(error, Custom)
    assert (error.code, error.detail) == (404, "gone")
    assert isinstance(error.cause, Custom)


def test_exceptions_of_a_class_made_in_a_function(session: object) -> None:
    class Local(KeyError):
        pass

    @fw.remote
    def fail() -> None:
        raise Local("mine")

    assert isinstance(error_of(fail.remote()), Local)


def test_chained_causes_groups_and_notes(session: object) -> None:
    @fw.remote
    def chain() -> None:
        try:
            deep("the first")
        except ValueError as first:
            second = KeyError("the second")
            second.add_note("a note")
            raise second from first

    error = error_of(chain.remote())
    assert isinstance(error, KeyError)
    text = str(error)
    assert "the first" in text
    assert "direct cause" in text
    assert "a note" in text

    @fw.remote
    def group() -> None:
        raise ExceptionGroup("several", [ValueError("v"), TypeError("t")])

    with pytest.raises(ExceptionGroup) as caught:
        fw.get(group.remote(), timeout=20)
    assert [type(e) for e in caught.value.exceptions] == [ValueError, TypeError]


def test_the_same_error_several_times(session: object) -> None:
    ref = failing.remote()
    errors = [error_of(ref) for _ in range(3)]
    assert len({id(error) for error in errors}) == 3, "one object raised twice would grow its traceback"
    assert {str(error) for error in errors} == {str(errors[0])}


def test_a_failed_dependency(session: object, tmp_path: Path) -> None:
    @fw.remote
    def never(value: Any, *, other: Any = None) -> None:
        (tmp_path / "ran").touch()

    failed = failing.remote("the origin")
    for ref in (never.remote(failed), never.remote(1, other=failed), never.remote(never.remote(failed))):
        error = error_of(ref)
        assert isinstance(error, ValueError)
        assert "the origin" in str(error)
        assert error.function_name == "failing"
    assert not (tmp_path / "ran").exists()


def test_an_error_that_passes_through_tasks(session: object) -> None:
    @fw.remote
    def through() -> Any:
        return fw.get(failing.remote("inside"))

    error = error_of(through.remote())
    assert isinstance(error, ValueError)
    assert type(error.cause) is ValueError
    for part in ("framework::through()", "framework::failing()", "ValueError: inside"):
        assert part in str(error)

    @fw.remote
    def catching() -> str:
        try:
            fw.get(failing.remote("caught"))
        except ValueError as error:
            return str(error.args[0])
        return "nothing"

    assert fw.get(catching.remote(), timeout=20) == "caught"


def test_a_list_with_one_failure(session: object) -> None:
    refs = [passing.remote(1), failing.remote("one of them"), passing.remote(2)]
    with pytest.raises(ValueError, match="one of them"):
        fw.get(refs, timeout=20)
    assert fw.get([refs[0], refs[2]], timeout=20) == [1, 2]


def test_errors_as_values(session: object) -> None:
    value = fw.get(passing.remote(ValueError("a value")), timeout=20)
    assert type(value) is ValueError


# ---- what cannot be pickled --------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Unpicklable, BadText])
def test_exceptions_that_cannot_be_pickled(session: object, cls: type[Exception]) -> None:
    @fw.remote
    def fail() -> None:
        raise cls

    error = error_of(fail.remote())
    assert isinstance(error, TaskError)
    assert isinstance(error.cause, UnserializableCause)
    assert cls.__name__ in error.cause.type_name
    assert "in fail" in str(error)
    assert fw.get(passing.remote(1), timeout=20) == 1


def test_results_that_cannot_be_pickled(session: object) -> None:
    @fw.remote
    def locked() -> Any:
        return {"items": [1, threading.Lock()]}

    @fw.remote(num_returns=2)
    def second() -> Any:
        return 1, threading.Lock()

    error = error_of(locked.remote())
    assert isinstance(error, SerializationError)
    for part in ("the result of locked()", "result['items'][1]", "lock"):
        assert part in str(error)
    for ref in second.remote():  # type: ignore[attr-defined]
        assert "result 1 of second()" in str(error_of(ref))
    assert fw.get(passing.remote(1), timeout=20) == 1


@pytest.mark.parametrize("kind", ["lock", "file", "socket", "nested", "closure", "generator"])
def test_arguments_that_cannot_be_pickled(session: object, kind: str, tmp_path: Path) -> None:
    import socket

    class Holder:
        def __init__(self, thing: Any) -> None:
            self.thing = thing

    with open(tmp_path / "f", "w") as file, socket.socket() as sock:
        lock = threading.Lock()
        value: Any = {
            "lock": lock,
            "file": file,
            "socket": sock,
            "nested": {"a": [0, Holder(lock)]},
            "closure": lambda: lock,
            "generator": (i for i in range(3)),
        }[kind]
        with pytest.raises(SerializationError) as caught:
            passing.remote(value)
        assert isinstance(caught.value, TypeError)
        text = str(caught.value)
        assert "argument 1 of passing()" in text
        if kind == "nested":
            assert "['a'][1].thing" in text
        with pytest.raises(SerializationError, match="the argument 'value' of passing"):
            passing.remote(value=value)


def test_functions_that_cannot_be_pickled(session: object) -> None:
    lock = threading.Lock()

    @fw.remote
    def uses() -> Any:
        return lock

    with pytest.raises(SerializationError, match=r"remote function uses\(\)") as caught:
        uses.remote()
    assert "lock" in str(caught.value)


def test_a_function_that_cannot_be_loaded_there(session: object) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (deep, ("cannot be loaded",))

    bomb = Bomb()

    @fw.remote
    def uses() -> Any:
        return bomb

    for ref in (uses.remote(), passing.remote(Bomb())):
        with pytest.raises(SerializationError, match="ValueError: cannot be loaded"):
            fw.get(ref, timeout=20)


# ---- time, death -------------------------------------------------------------------------------------


def test_get_timeout(session: object, tmp_path: Path) -> None:
    @fw.remote
    def wait_for_it() -> int:
        import time

        while not (tmp_path / "gate").exists():
            time.sleep(0.005)
        return 1

    ref = wait_for_it.remote()
    try:
        with pytest.raises(GetTimeoutError) as caught:
            fw.get([passing.remote(1), ref], timeout=0.3)
        assert isinstance(caught.value, TimeoutError)
        text = str(caught.value)
        assert "timed out after 0.3 s" in text
        assert "wait_for_it()" in text
        assert "1 of 2" in text
        with pytest.raises(GetTimeoutError):
            fw.get(ref, timeout=0)
    finally:
        (tmp_path / "gate").touch()
    assert fw.get(ref, timeout=20) == 1


def test_a_dead_worker(session: object) -> None:
    @fw.remote(max_retries=0)
    def die() -> None:
        os._exit(9)

    error = error_of(die.remote())
    assert isinstance(error, WorkerCrashedError)
    for part in ("exited with code 9", "die() was tried once", "max_retries=0", f"pid={error.pid}"):
        assert part in str(error)


def test_a_dead_worker_of_a_dependency(session: object) -> None:
    @fw.remote(max_retries=0)
    def die() -> None:
        os._exit(9)

    error = error_of(passing.remote(die.remote()))
    assert isinstance(error, WorkerCrashedError)
    assert "die()" in str(error)


# ---- errors that nobody looks at ---------------------------------------------------------------------


@pytest.fixture
def logged(session: object, caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    def texts(part: str) -> list[str]:
        gc.collect()
        return [r.getMessage() for r in caplog.records if r.name == "framework" and part in r.getMessage()]

    with caplog.at_level(logging.WARNING, "framework"):
        yield texts


def finish(part: str) -> None:
    """All that was submitted before is done and dropped when a later task is."""
    wait_until(lambda: fw.get(passing.remote(part), timeout=20) == part, 20)


@pytest.mark.slow
def test_unhandled_errors_are_logged_once(logged: Any) -> None:
    ref = failing.remote("nobody looks at this")
    fw.wait([ref], timeout=20)
    del ref
    wait_until(lambda: logged("nobody looks at this"), 10, "the log record")
    finish("later")
    assert len(logged("nobody looks at this")) == 1
    assert "failing()" in logged("nobody looks at this")[0]


@pytest.mark.slow
def test_errors_of_tasks_without_returns_are_logged(logged: Any) -> None:
    @fw.remote(num_returns=0)
    def silent() -> None:
        raise ValueError("from a task without returns")

    silent.remote()
    wait_until(lambda: logged("from a task without returns"), 10, "the log record")
    finish("later")
    assert len(logged("from a task without returns")) == 1


@pytest.mark.slow
def test_handled_errors_are_not_logged(logged: Any) -> None:
    @fw.remote
    def sleeping() -> None:
        time.sleep(1e6)

    seen = failing.remote("somebody looked")
    error_of(seen)
    dependent = passing.remote(failing.remote("passed on"))
    error_of(dependent)
    cancelled = sleeping.remote()
    fw.cancel(cancelled)
    fw.wait([cancelled], timeout=20)
    del seen, dependent, cancelled
    marker = failing.remote("the marker")
    fw.wait([marker], timeout=20)
    del marker
    wait_until(lambda: logged("the marker"), 10, "the marker")
    assert not logged("somebody looked")
    assert not logged("passed on")
    assert not logged("sleeping()")


def test_a_list_that_fails_counts_as_looked_at(session: object, caplog: pytest.LogCaptureFixture) -> None:
    """One failure is raised; the others of the same list are no news that nobody has asked for."""

    @fw.remote
    def fails() -> None:
        raise LookupError("nothing there")

    refs = [fails.remote() for _ in range(3)]
    fw.wait(refs, num_returns=3, timeout=20)
    with pytest.raises(LookupError):
        fw.get(refs)
    with caplog.at_level(logging.ERROR, logger="framework"):
        del refs
        gc.collect()
        fw.get(fw.remote(lambda: None).remote())
        wait_until(lambda: not [row for row in fw.util.state.list_objects() if row["state"] == "FAILED"], 10)
    assert "nobody looked" not in caplog.text
