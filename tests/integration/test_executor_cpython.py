"""CPython's own tests of executors, run with `PoolExecutor`.

The cases are those of the Python that runs the suite, from its package `test`; nothing of them is here. Many
distributions leave that package out: then there is nothing to run. What cannot apply to another executor
than those of the standard library is listed in `EXCLUDED`, with the reason.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import unittest
from types import ModuleType
from typing import Any

import pytest

from framework.util.executor import PoolExecutor

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("session")]

PACKAGE = "test.test_concurrent_futures"
#: from 3.12 on the tests are a package; before, one module
PARTS = ("executor", "util", "test_as_completed", "test_deadlock", "test_init", "test_process_pool")
PARTS += ("test_shutdown", "test_wait")

PRIVATE = "looks into private attributes of ProcessPoolExecutor; "
STDLIB = "makes a standard library executor by name, whatever executor_type is; "
INHERITED = "hands over a lock of multiprocessing, which only children of this process can use; "
AT_EXIT = "ours: test_executor_sessions.py, "

#: name of a case -> why it is not run, and where the same is tested for us
EXCLUDED = {
    # ExecutorShutdownTest
    "test_interpreter_shutdown": STDLIB + "ours: test_executor_sessions.py, test_work_is_finished_at_exit",
    "test_submit_after_interpreter_shutdown": STDLIB
    + "ours: test_executor_sessions.py, test_no_work_after_exit",
    "test_hang_gh83386": STDLIB + "ours: test_executor_sessions.py, test_work_is_finished_at_exit",
    "test_hang_issue39205": STDLIB + "ours: test_executor_sessions.py, test_work_is_finished_at_exit",
    # ProcessPoolShutdownTest
    "test_processes_terminate": PRIVATE + "ours: test_executor.py, test_processes_end",
    "test_context_manager_shutdown": STDLIB + "ours: test_executor.py, test_processes_end",
    "test_del_shutdown": STDLIB + "ours: test_executor.py, test_dropped_executor",
    "test_shutdown_no_wait": STDLIB + "ours: test_executor.py, test_shutdown_without_waiting",
    # ProcessPoolExecutorTest
    "test_killed_child": PRIVATE + "ours: test_executor.py, test_killed_worker_breaks_the_executor",
    "test_traceback": "wants a private class as the cause; ours: test_executor.py, test_remote_traceback",
    "test_ressources_gced_in_workers": (
        "reaches a multiprocessing.Manager, whose key only children of this process have; "
        "ours: test_executor.py, test_workers_drop_arguments"
    ),
    "test_saturation": INHERITED + "ours: test_executor.py, test_no_more_than_max_workers",
    "test_idle_process_reuse_one": PRIVATE + "ours: test_executor.py, test_workers_are_reused",
    "test_idle_process_reuse_multiple": PRIVATE + "ours: test_executor.py, test_workers_are_reused",
    "test_max_tasks_per_child": PRIVATE + "ours: test_executor.py, test_max_tasks_per_child",
    "test_max_tasks_per_child_defaults_to_spawn_context": "we have no start methods",
    "test_max_tasks_early_shutdown": (
        "skips itself under the start method fork only; ours: test_executor.py, "
        "test_max_tasks_and_early_shutdown"
    ),
    "test_python_finalization_error": "breaks the starting of threads: we start none",
    "test_force_shutdown_workers_invalid_op": PRIVATE + "new in 3.14",
    "test_force_shutdown_workers": PRIVATE + "new in 3.14",
    "test_kill_workers": PRIVATE + "new in 3.14",
    "test_terminate_workers": PRIVATE + "new in 3.14",
    "test_process_pool_executor_terminate_workers": PRIVATE + "new in 3.14",
    "test_process_pool_executor_kill_workers": PRIVATE + "new in 3.14",
    # ExecutorDeadlockTest
    "test_error_at_task_unpickle": (
        "wants a broken pool, because the worker dies of it; our worker lives, and the error is the result: "
        "test_executor.py, test_what_cannot_be_unpickled"
    ),
    "test_error_during_result_unpickle_in_result_handler": (
        "wants a broken pool; here the error is the result: test_executor.py, test_what_cannot_be_unpickled"
    ),
    "test_exit_during_result_unpickle_in_result_handler": (
        "wants a broken pool; here the error is the result: test_executor.py, test_what_cannot_be_unpickled"
    ),
    "test_exit_during_result_pickle_on_worker": (
        "wants SystemExit; a result is pickled after the call, where sys.exit() ends our worker: the pool "
        "breaks"
    ),
    "test_shutdown_deadlock_pickle": PRIVATE + "ours: test_executor.py, test_error_at_pickling",
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": PRIVATE + "we have no such pipe",
}


def parts() -> list[ModuleType]:
    """The modules that have the cases; skips this module where there are none."""
    try:
        names = [f"{PACKAGE}.{part}" for part in PARTS] if sys.version_info >= (3, 12) else [PACKAGE]
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        reason = f"this Python comes without its tests of concurrent.futures ({error})"
        pytest.skip(reason, allow_module_level=True)
    except unittest.SkipTest as error:  # they refuse some builds of Python
        pytest.skip(str(error), allow_module_level=True)


def find(name: str) -> type:
    for part in PARTS_FOUND:
        if hasattr(part, name):
            found: type = getattr(part, name)
            return found
    raise LookupError(f"CPython's tests have no {name} any more")


PARTS_FOUND = parts()


class Executor(PoolExecutor):
    """Some cases say which start method they want."""

    def __init__(self, max_workers: int | None = None, *args: Any, mp_context: Any = None, **kwargs: Any):
        super().__init__(max_workers, *args, **kwargs)


def cases(mixin: str) -> type:
    """The cases of one of CPython's mixins, for our executor."""
    body: dict[str, Any] = {
        "executor_type": Executor,
        # Asked for by cases for process pools; what comes of it, `Executor` ignores.
        "get_context": lambda self: multiprocessing.get_context("spawn"),
        "__module__": __name__,
    }
    tests = find(mixin)
    for name, reason in EXCLUDED.items():
        if hasattr(tests, name):
            body[name] = unittest.skip(reason)(lambda self: None)
    bases = (tests,) if "setUp" in dir(tests) else (tests, find("ExecutorMixin"))
    return type(f"Our{mixin.removesuffix('Mixin')}", (*bases, unittest.TestCase), body)


OurProcessPoolExecutorTest = cases("ProcessPoolExecutorTest")  # all of ExecutorTest, and more
OurProcessPoolShutdownTest = cases("ProcessPoolShutdownTest")  # all of ExecutorShutdownTest, and more
OurWaitTests = cases("WaitTests")
OurAsCompletedTests = cases("AsCompletedTests")
OurInitializer = cases("InitializerMixin")
OurFailingInitializer = cases("FailingInitializerMixin")
OurExecutorDeadlockTest = cases("ExecutorDeadlockTest")
