from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

import framework._serial.functions as functions
from framework._serial.functions import dump_function, load_function
from framework.exceptions import SerializationError

LOCK = threading.Lock()


class Remote:
    """What a decorator leaves in the module in place of the function."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)


@Remote
def decorated(x: int) -> tuple[int, object]:
    return x + 1, LOCK


@Remote
class Decorated:
    lock = LOCK


def plain(x: int) -> int:
    return x + 1


def test_by_reference() -> None:
    for target in (plain, math.sin, len, Path, os.path.join):
        digest, payload, captured = dump_function(target)
        assert load_function(payload) is target
        assert (len(digest), len(payload) < 200, captured) == (functions.HASH_SIZE, True, [])


def test_what_a_decorator_replaced_goes_by_reference() -> None:
    for name in ("decorated", "Decorated"):
        target = globals()[name].__wrapped__
        _, payload, _ = dump_function(target)
        assert load_function(payload) is target


def test_by_value() -> None:
    add = 2

    def local(x: int) -> int:
        return x + add

    class Counter:
        def __init__(self) -> None:
            self.n = 0

        def up(self) -> int:
            self.n += add
            return self.n

    assert load_function(dump_function(local)[1])(1) == 3
    assert load_function(dump_function(lambda: add)[1])() == 2
    assert load_function(dump_function(Counter)[1])().up() == 2


def test_hash_is_of_the_content() -> None:
    def make(number: int) -> Any:
        return lambda: number

    one, same, other = make(1), make(1), make(2)
    assert dump_function(one)[0] == dump_function(one)[0] == dump_function(same)[0]
    assert dump_function(one)[0] != dump_function(other)[0]


def test_recursive_and_mutually_recursive() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)", space)
    assert load_function(dump_function(space["even"])[1])(10)


def test_what_cannot_be_pickled() -> None:
    lock = threading.Lock()

    def guarded() -> Any:
        return lock

    with pytest.raises(SerializationError) as caught:
        dump_function(guarded)
    assert "the function 'guarded': at guarded.<closure 'lock'>: cannot pickle" in str(caught.value)
    with pytest.raises(SerializationError, match="the actor"):
        dump_function(guarded, where="the actor")


def test_a_module_that_is_missing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_on_the_driver")
    exec("def f(): return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    _, payload, _ = dump_function(module.f)
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(SerializationError, match="'only_on_the_driver' cannot be imported") as caught:
        load_function(payload)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_wrapper_that_is_gone_here() -> None:
    with pytest.raises(AttributeError, match="no attribute"):
        functions.import_wrapped("math", "no_such_function")
    assert functions.import_wrapped("math", "sin") is math.sin


SCRIPT = """
import sys, threading
from dataclasses import dataclass
from framework._serial.functions import dump_function
from framework._serial.values import encode

@dataclass
class Point:
    x: int

def shift(p):
    return Point(p.x + STEP)

STEP = 5
sys.stdout.buffer.write(encode((dump_function(shift)[1], encode(Point(1)).wire)).wire)
"""


@pytest.mark.slow
def test_main_of_another_process(tmp_path: Path) -> None:
    from framework._serial.values import decode

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(functions.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    payload, point = decode(done.stdout)
    assert load_function(payload)(decode(point)).x == 6
