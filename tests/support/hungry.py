"""Tasks and actors that take memory until they are stopped. (Why a module of its own: see custody.py.)"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import framework as fw

MIB = 2**20
MOST = 5_000 * MIB  # what one that should be ended takes at most


def grow() -> str:
    """Take memory until somebody stops it."""
    taken = []
    while sum(map(len, taken)) < MOST:
        taken.append(bytearray(b"x") * (32 * MIB))
        time.sleep(0.02)
    return "nobody stopped it"


def attempts(path: Path) -> int:
    """Count one attempt, and return how many there have been."""
    with path.open("a") as file:
        file.write("x")
    return path.stat().st_size


@fw.remote(max_retries=0)
def hungry() -> str:
    return grow()


@fw.remote(max_retries=1)
def better_later(path: Path) -> int:
    attempt = attempts(path)
    if attempt <= 2:
        grow()
    return attempt


@fw.remote(max_retries=-1)
def never_better(path: Path) -> str:
    attempts(path)
    return grow()


@fw.remote(max_retries=1)
def items(path: Path) -> Iterator[int]:
    attempt = attempts(path)
    for number in range(200):
        yield number
        if number == 20 and attempt == 1:
            grow()


@fw.remote
class Hungry:
    def eat(self) -> str:
        return grow()

    def eat_once(self, path: Path) -> int:
        attempt = attempts(path)
        if attempt == 1:
            grow()
        return attempt

    def pid(self) -> int:
        return os.getpid()


@fw.remote(max_retries=3)
def sleeps_with_a_block(path: Path, size: int, seconds: float) -> int:
    """The first attempt writes its pid when it has that much memory, and then sleeps."""
    attempt = attempts(path / "n")
    if attempt == 1:
        block = bytearray(b"x") * size
        (path / "pid.new").write_text(str(os.getpid()))
        (path / "pid.new").rename(path / "pid")
        time.sleep(seconds)
        del block
    return attempt


@fw.remote(max_retries=0)
def grows_until_that_one_is_gone(path: Path) -> str:
    pid = int((path / "pid").read_text())
    taken = []
    while os.path.exists(f"/proc/{pid}"):
        assert sum(map(len, taken)) < MOST
        taken.append(bytearray(b"x") * (32 * MIB))
        time.sleep(0.02)
    return "spared"


@fw.remote(max_retries=0)
def sleeps(seconds: float) -> str:
    time.sleep(seconds)
    return "done"
