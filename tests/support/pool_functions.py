"""Functions for pools of processes of the standard library, whose children find them by name."""

from __future__ import annotations


def square(x: int) -> int:
    return x * x


def add(a: int, b: int, *, c: int = 0) -> int:
    return a + b + c


def fail_at_three(x: int) -> int:
    if x == 3:
        raise ValueError(f"not {x}")
    return x
