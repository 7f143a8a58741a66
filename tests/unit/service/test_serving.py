"""What long-lived processes do about their memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from framework._base import limits
from framework._service import serving

HOLES = """
import ctypes, json
from framework._service import serving

if serving._trimmer() is None:
    raise SystemExit(77)

def heap():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous"))

class Loop:
    def call_later(self, delay, function, *args):
        self.next = function, args

loop = Loop()
serving.keep_heap_small(loop)
pieces = [bytes(3000) for _ in range(20_000)]
kept = pieces[::50] + pieces[-1:]
full = heap()
del pieces
before = heap()
function, args = loop.next
function(*args)
print(json.dumps([full, before, heap()]))
"""


def test_memory_in_pieces_is_given_back() -> None:
    found = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, timeout=60)
    if found.returncode == 77:
        pytest.skip("this C library cannot")
    assert found.returncode == 0, found.stderr
    full, before, after = map(int, found.stdout.strip(" []\n").split(","))
    assert before > full - 20_000, "the test makes no holes"
    assert after < full - 40_000


def test_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    waiting: list[Any] = []

    class Loop:
        def call_later(self, delay: float, *call: Any) -> None:
            assert delay == limits.TRIM_INTERVAL
            waiting.append(call)

    monkeypatch.setattr(serving, "_trimmer", lambda: trimmed.append)
    loop: Any = Loop()
    serving.keep_heap_small(loop)
    for _ in range(3):
        ((function, *args),) = waiting
        waiting.clear()
        function(*args)
    assert trimmed == [0, 0, 0]


def test_not_where_there_is_nothing_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_trimmer", lambda: None)
    waiting: list[Any] = []

    class Loop:
        def call_later(self, delay: float, *call: Any) -> None:
            waiting.append(call)

    loop: Any = Loop()
    serving.keep_heap_small(loop)
    function, *args = waiting.pop()
    function(*args)
    assert not waiting
