"""Secrets that do not show: what they are kept in says so instead of itself, wherever values are printed for
people: in a repr, in a log, in the variables that some tools add to tracebacks.
"""

from __future__ import annotations

from typing import Any


class Secret(bytes):
    """Bytes that nobody is to see."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__


class SecretText(str):
    """Text that nobody is to see, unless it is written out on purpose (``str()``, an f-string)."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"


#: of the facts of a cluster, those that are
HIDDEN = ("token", "key")


def hidden(facts: dict[str, Any]) -> dict[str, Any]:
    """The same dict, with what is secret in it kept from sight."""
    for name in HIDDEN:
        value = facts.get(name)
        if isinstance(value, str):
            facts[name] = SecretText(value)
        elif isinstance(value, bytes):
            facts[name] = Secret(value)
    return facts
