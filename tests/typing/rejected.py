"""What type checkers must complain about: each line marked «error», and no other. Never run."""

from __future__ import annotations

import framework as fw


@fw.remote
def increment(x: int) -> int:
    return x + 1


@fw.remote(num_cpus=1)
def pair(x: int, y: str) -> str:
    return y * x


@fw.remote
def text() -> str:
    return ""


class Counter: ...


def wrong_arguments() -> None:
    increment.remote("one")  # error
    increment.remote()  # error
    increment.remote(1, 2)  # error
    increment.remote(y=1)  # error
    pair.remote("a", 1)  # error
    increment.options(num_cpus=1).remote("one")  # error


def wrong_reference() -> None:
    increment.remote(text.remote())  # error


def wrong_result() -> None:
    a: str = fw.get(increment.remote(1))  # error
    b: list[str] = fw.get([increment.remote(1)])  # error
    print(a, b)


async def wrong_awaited() -> None:
    a: str = await increment.remote(1)  # error
    print(a)


def called_directly() -> None:
    increment(1)  # error


def wrong_options() -> None:
    increment.options(num_cpu=1)  # error
    increment.options(num_cpus="1")  # error
    increment.options(max_restarts=1)  # error
    fw.remote(num_cpu=1)  # error
    fw.remote(num_returns="stream")  # error
    fw.method(num_cpus=1)  # error
    fw.remote(Counter).options(max_retries=1)  # error


def wrong_target() -> None:
    fw.remote(1)  # error


def not_a_reference() -> None:
    fw.get(1)  # error
