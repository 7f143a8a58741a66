"""Calling remote functions: arguments, dependencies, returns, kinds of callables, nesting, many tasks."""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from support.leaks import wait_until

pytestmark = pytest.mark.integration


@fw.remote
def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


@fw.remote
def add(a: int, b: int = 10, *, c: int = 100) -> int:
    return a + b + c


@fw.remote
def fail() -> None:
    raise ValueError("no")


# ---- arguments ---------------------------------------------------------------------------------------


def test_positional_keyword_and_default_arguments(session: object) -> None:
    refs = [
        add.remote(1),
        add.remote(1, 2),
        add.remote(b=1, a=2),
        add.remote(1, c=3),
        add.remote(*[1, 2], c=3),
    ]
    assert fw.get(refs, timeout=20) == [111, 103, 103, 14, 6]


def test_references_at_top_level_become_values(session: object) -> None:
    one, text = fw.put(1), fw.put("x" * 10)
    args, kwargs = fw.get(echo.remote(one, add.remote(1), text, 5, key=add.remote(one)), timeout=20)
    assert args == (1, 111, "x" * 10, 5)
    assert kwargs == {"key": 111}


def test_the_same_reference_twice(session: object) -> None:
    ref = add.remote(1)
    assert fw.get(echo.remote(ref, ref, again=ref), timeout=20) == ((111, 111), {"again": 111})


def test_references_inside_of_containers_stay_references(session: object) -> None:
    @fw.remote
    def look(items: list[Any], named: dict[str, Any]) -> Any:
        assert isinstance(items[0], fw.ObjectRef)
        assert isinstance(named["deep"][0][0], fw.ObjectRef)
        return fw.get(items[0]), fw.get(named["deep"][0][0])

    assert fw.get(look.remote([fw.put(7)], {"deep": [(add.remote(1),)]}), timeout=20) == (7, 111)


def test_a_reference_in_a_dependency_stays_a_reference(session: object) -> None:
    @fw.remote
    def wrap(value: int) -> list[Any]:
        return [fw.put(value)]

    @fw.remote
    def unwrap(items: list[Any]) -> Any:
        return type(items[0]).__name__, fw.get(items[0])

    assert fw.get(unwrap.remote(wrap.remote(5)), timeout=20) == ("ObjectRef", 5)


@pytest.mark.parametrize("size", [0, 1000, 102_400, 102_401, 3_000_000])
def test_arguments_and_results_of_any_size(session: object, size: int) -> None:
    array = np.arange(size, dtype=np.uint8)
    data = bytes(array)

    @fw.remote
    def both(raw: bytes, values: Any) -> Any:
        return raw == bytes(values), raw, values + 1

    same, raw, more = fw.get(both.remote(data, array), timeout=20)
    assert same
    assert raw == data
    assert np.array_equal(more, array + np.uint8(1))


def test_an_argument_cannot_be_changed_behind_the_callers_back(session: object) -> None:
    items = [1, 2]
    dependency = fw.put(items)
    ref = echo.remote(items, dependency)
    items.append(3)
    assert fw.get(ref, timeout=20)[0] == ([1, 2], [1, 2])


def test_a_chain_of_dependencies(session: object) -> None:
    @fw.remote
    def more(value: int) -> int:
        return value + 1

    ref = more.remote(0)
    for _ in range(300):
        ref = more.remote(ref)
    assert fw.get(ref, timeout=30) == 301


def test_a_thousand_dependencies_of_one_task(session: object) -> None:
    @fw.remote
    def total(*values: int) -> int:
        return sum(values)

    assert (
        fw.get(total.remote(*[add.remote(i) for i in range(1000)]), timeout=30) == sum(range(1000)) + 110_000
    )


# ---- returns -----------------------------------------------------------------------------------------


def test_numbers_of_returns(session: object) -> None:
    @fw.remote(num_returns=3)
    def three() -> Any:
        return 1, "two", [3]

    a, b, c = three.remote()  # type: ignore[misc]
    assert fw.get([a, b, c], timeout=20) == [1, "two", [3]]
    assert fw.get(three.options(num_returns=1).remote(), timeout=20) == (1, "two", [3])
    (only,) = [three.options(num_returns=1).remote()]
    assert fw.get(only, timeout=20) == (1, "two", [3])


def test_no_returns(session: object, tmp_path: Path) -> None:
    @fw.remote(num_returns=0)
    def touch() -> str:
        (tmp_path / "touched").write_text("")
        return "nobody sees this"

    assert touch.remote() is None
    wait_until((tmp_path / "touched").exists, 10, "the task's effect")


@pytest.mark.parametrize("value", [(1,), (1, 2, 3), [], 5, None])
def test_returns_that_do_not_match(session: object, value: Any) -> None:
    @fw.remote(num_returns=2)
    def two() -> Any:
        return value

    refs = two.remote()
    assert len(refs) == 2  # type: ignore[arg-type]
    for ref in refs:  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="num_returns=2"):
            fw.get(ref, timeout=20)


def test_each_return_can_be_a_dependency(session: object) -> None:
    @fw.remote(num_returns=2)
    def pair() -> Any:
        return 1, 2

    first, second = pair.remote()  # type: ignore[misc]
    assert fw.get(add.remote(second, first), timeout=20) == 103


# ---- kinds of callables ------------------------------------------------------------------------------


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, value: int) -> int:
        return value * self.factor

    def method(self, value: int) -> int:
        return value + self.factor


def test_kinds_of_callables(session: object) -> None:
    factor = 3

    def closure(value: int) -> int:
        return value * factor

    scale = Scale(4)
    for function, expected in (
        (closure, 6),
        (lambda value: value + 1, 3),
        (functools.partial(pow, 2), 4),
        (scale, 8),
        (scale.method, 6),
        (abs, 2),
    ):
        assert fw.get(fw.remote(function).remote(2), timeout=20) == expected  # type: ignore[call-overload]


def test_recursion_within_and_across_tasks(session: object) -> None:
    def plain(n: int) -> int:
        return 1 if n == 0 else n * plain(n - 1)

    @fw.remote
    def remote(n: int) -> Any:
        return 1 if n == 0 else n * fw.get(remote.remote(n - 1))  # type: ignore[operator]

    assert fw.get(fw.remote(plain).remote(10), timeout=20) == 3_628_800
    assert fw.get(remote.remote(5), timeout=20) == 120


def test_functions_of_modules_on_the_drivers_path(session: object, tmp_path: Path) -> None:
    (tmp_path / "plain_module_xyz.py").write_text("def triple(x):\n    return 3 * x\nLIMIT = [1]\n")
    program = (
        "import sys, os\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import framework as fw, plain_module_xyz as module\n"
        "fw.init(num_cpus=1)\n"
        "@fw.remote\n"
        "def main_function(x):\n"
        "    import plain_module_xyz\n"
        "    return plain_module_xyz.triple(x), os.getcwd()\n"
        "print(fw.get(fw.remote(module.triple).remote(2), timeout=20))\n"
        "print(*fw.get(main_function.remote(3), timeout=20))\n"
    )
    import subprocess

    root = str(Path(fw.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["6", "9", str(tmp_path)], done.stderr


def test_async_functions(session: object) -> None:
    @fw.remote
    async def slowly(value: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return value + 1

    assert fw.get([slowly.remote(i) for i in range(20)], timeout=20) == list(range(1, 21))


def test_names(session: object) -> None:
    @fw.remote(name="special")
    def function() -> Any:
        return fw.get_runtime_context().get_task_name()

    assert fw.get(function.remote(), timeout=20) == "special"
    assert fw.get(function.options(name="other").remote(), timeout=20) == "other"
    with pytest.raises(ValueError, match=r"other\(\) .*num_returns=2"):
        fw.get(fw.remote(lambda: 1).options(name="other", num_returns=2).remote()[0], timeout=20)  # type: ignore[index]


# ---- nesting -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nested_tasks_twenty_deep(session: object) -> None:
    @fw.remote
    def deep(n: int) -> Any:
        return 0 if n == 0 else 1 + fw.get(deep.remote(n - 1))  # type: ignore[operator]

    assert fw.get(deep.remote(20), timeout=60) == 20


@pytest.mark.slow
def test_an_outer_task_that_holds_every_cpu(session: object) -> None:
    @fw.remote(num_cpus=2)
    def outer() -> list[Any]:
        return fw.get([add.remote(i) for i in range(10)])

    expected = [i + 110 for i in range(10)]
    assert fw.get([outer.remote() for _ in range(4)], timeout=60) == [expected] * 4


@pytest.mark.slow
def test_quicksort_by_nested_tasks(session: object) -> None:
    @fw.remote
    def quicksort(items: list[int]) -> list[int]:
        if len(items) < 200:
            return sorted(items)
        pivot = items[len(items) // 2]
        parts = (
            [i for i in items if i < pivot],
            [i for i in items if i == pivot],
            [i for i in items if i > pivot],
        )
        left, right = quicksort.remote(parts[0]), quicksort.remote(parts[2])
        return fw.get(left) + parts[1] + fw.get(right)

    items = [(i * 7919) % 10_007 for i in range(4_000)]
    assert fw.get(quicksort.remote(items), timeout=90) == sorted(items)


@pytest.mark.slow
def test_a_tree_of_tasks(session: object) -> None:
    @fw.remote
    def fib(n: int) -> int:
        return n if n < 2 else sum(fw.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert fw.get(fib.remote(9), timeout=100) == 34


@pytest.mark.slow
def test_wait_in_a_task_lends_its_cpu_too(session: object) -> None:
    @fw.remote(num_cpus=2)
    def outer() -> int:
        done, rest = fw.wait([add.remote(i) for i in range(5)], num_returns=5, timeout=20)
        return len(done) - len(rest)

    assert fw.get(outer.remote(), timeout=30) == 5


# ---- many --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_tasks(session: object) -> None:
    @fw.remote
    def tiny(i: int) -> int:
        return i

    assert fw.get([tiny.remote(i) for i in range(10_000)], timeout=60) == list(range(10_000))


@pytest.mark.slow
def test_tasks_from_several_threads(session: object) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def use(start: int) -> int:
        return sum(fw.get([add.remote(i) for i in range(start, start + 300)], timeout=60))

    with ThreadPoolExecutor(6) as pool:
        sums = list(pool.map(use, range(0, 1800, 300)))
    assert sum(sums) == sum(range(1800)) + 1800 * 110


@pytest.mark.slow
def test_a_slow_task_does_not_hold_up_those_behind_it(session: object) -> None:
    @fw.remote
    def work(path: str | None) -> int:
        while path is not None and not os.path.exists(path):
            time.sleep(0.01)
        return 1

    fw.get([work.remote(None) for _ in range(200)], timeout=30)  # now it counts as very short
    gate = os.path.join(fw.init(ignore_reinit_error=True).session_dir, "logs", "gate")
    refs = [work.remote(gate if i == 20 else None) for i in range(400)]
    others = [ref for i, ref in enumerate(refs) if i != 20]
    try:
        done, _ = fw.wait(others, num_returns=len(others), timeout=20)
        assert len(done) == len(others)
        assert not refs[20].done()
    finally:
        Path(gate).touch()
    assert fw.get(refs[20], timeout=20) == 1
    os.unlink(gate)


# ---- tasks that misbehave ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [None, 0, 3, "text"])
def test_sys_exit_fails_the_task_and_spares_the_worker(session: object, code: Any) -> None:
    @fw.remote
    def leave() -> None:
        sys.exit(code)

    with pytest.raises(fw.exceptions.TaskError, match=r"sys\.exit"):
        fw.get(leave.remote(), timeout=20)
    assert fw.get(add.remote(1), timeout=20) == 111


def test_keyboard_interrupt_of_user_code(session: object) -> None:
    @fw.remote
    def interrupt() -> None:
        raise KeyboardInterrupt("mine")

    with pytest.raises(fw.exceptions.TaskError, match="KeyboardInterrupt: mine"):
        fw.get(interrupt.remote(), timeout=20)


def test_closed_standard_streams(session: object) -> None:
    @fw.remote
    def close() -> int:
        print("before")
        os.close(1)
        sys.stdout.close()
        return os.getpid()

    @fw.remote
    def speak() -> int:
        print("after")
        return os.getpid()

    closed = fw.get(close.remote(), timeout=20)
    # Until the worker without a standard output has had its turn.
    wait_until(lambda: closed in fw.get([speak.remote() for _ in range(8)], timeout=20), 20, "its next task")


def test_a_changed_directory_does_not_break_the_worker(session: object, tmp_path: Path) -> None:
    @fw.remote
    def move() -> str:
        os.chdir(tmp_path)
        return os.getcwd()

    assert fw.get([move.remote() for _ in range(4)], timeout=20) == [str(tmp_path)] * 4
    assert fw.get(add.remote(1), timeout=20) == 111


@pytest.mark.slow
@pytest.mark.parametrize("how", ["return", "raise", "exit", "_exit"])
def test_a_fork_in_a_task(session: object, how: str) -> None:
    @fw.remote
    def fork() -> tuple[int, int]:
        pid = os.fork()
        if pid == 0:
            if how == "return":
                return (0, 0)
            if how == "raise":
                raise ValueError("in the child")
            if how == "exit":
                sys.exit(0)
            os._exit(0)
        return pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    pid, code = fw.get(fork.remote(), timeout=20)
    assert pid > 0
    assert code == (1 if how == "raise" else 0)
    assert fw.get([add.remote(1) for _ in range(20)], timeout=20) == [111] * 20


@pytest.mark.slow
def test_multiprocessing_in_a_task(session: object) -> None:
    @fw.remote
    def pool() -> list[int]:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as workers:
            return workers.map(abs, [-1, -2, -3])

    assert fw.get(pool.remote(), timeout=30) == [1, 2, 3]
    assert fw.get(add.remote(1), timeout=20) == 111


def test_a_subprocess_can_be_interrupted(session: object) -> None:
    """SIGINT is not ignored in what tasks start."""

    @fw.remote
    def disposition() -> int:
        import subprocess

        text = "import signal; print(int(signal.getsignal(signal.SIGINT) == signal.default_int_handler))"
        return int(subprocess.check_output([sys.executable, "-c", text]))

    assert fw.get(disposition.remote(), timeout=20) == 1


def test_a_deep_recursion_error(session: object) -> None:
    @fw.remote
    def down(n: int = 0) -> int:
        def again(m: int) -> int:
            return again(m + 1)

        return again(n)

    with pytest.raises(RecursionError):
        fw.get(down.remote(), timeout=20)
    assert fw.get(add.remote(1), timeout=20) == 111
