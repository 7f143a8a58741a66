"""Labels of nodes, and what may be asked of them.

On the wire a set of wishes is a dict from label to ``[operator, values]``; the operators are `IN`, `NOT_IN`,
`EXISTS` and `ABSENT`. As in Ray, a node without the label satisfies `NOT_IN`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

IN: Final = "in"
NOT_IN: Final = "!in"
EXISTS: Final = "exists"
ABSENT: Final = "!exists"

NODE_ID_LABEL: Final = "ray.io/node-id"
"""Every node has this one: its id, hexadecimal. (Ray's name, so that programs run unchanged.)"""

Wishes = Mapping[str, Any]

# Compiled (0.7 ms) by those who use labels.
_LIST: Final = r"(!?)in\((.*)\)\Z"
_NAME: Final = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z"


def matches(labels: Mapping[str, str], wishes: Wishes) -> bool:
    """Whether a node with these labels satisfies all of them."""
    for name, (operator, values) in wishes.items():
        have = labels.get(name)
        if operator == IN:
            fine = have is not None and have in values
        elif operator == NOT_IN:
            fine = have is None or have not in values
        elif operator == EXISTS:
            fine = have is not None
        else:
            fine = have is None
        if not fine:
            return False
    return True


def format_wishes(wishes: Wishes) -> str:
    """For messages: ``{zone: in(a, b), gpu: exists}``."""
    parts = []
    for name, (operator, values) in wishes.items():
        parts.append(f"{name}: {operator}" + (f"({', '.join(values)})" if values else ""))
    return "{" + ", ".join(parts) + "}"


def check_label(option: str, name: object) -> str:
    """The name of a label: an optional ``prefix/``, then letters, digits, ``-``, ``_`` and ``.``; `TypeError`
    or `ValueError` otherwise."""
    if not isinstance(name, str):
        raise TypeError(f"{option}: the name of a label is a str, not {name!r} of type {type(name).__name__}")
    prefix, slash, rest = name.rpartition("/")
    if not re.match(_NAME, rest) or len(rest) > 63 or (slash and not prefix):
        raise ValueError(
            f"{option}: {name!r} is no name of a label: letters, digits, '-', '_' and '.', at most 63, with "
            "an optional 'prefix/' before them"
        )
    return name


def check_value(option: str, value: object) -> str:
    """The value of a label: as its name, without a prefix, or empty."""
    if not isinstance(value, str):
        raise TypeError(
            f"{option}: the value of a label is a str, not {value!r} of type {type(value).__name__}"
        )
    if value and (not re.match(_NAME, value) or len(value) > 63):
        raise ValueError(
            f"{option}: {value!r} is no value of a label: letters, digits, '-', '_' and '.', at most 63"
        )
    return value


def parse_selector(option: str, selector: object) -> dict[str, list[Any]]:
    """What a ``label_selector`` asks for: its values are ``"value"``, ``"!value"``, ``"in(a, b)"`` or
    ``"!in(a, b)"``. `TypeError` or `ValueError` when it is no such dict."""
    if not isinstance(selector, Mapping):
        raise TypeError(f"option {option} must be a dict from str to str, not {selector!r}")
    wishes: dict[str, list[Any]] = {}
    for name, text in selector.items():
        check_label(f"option {option}", name)
        if not isinstance(text, str):
            raise TypeError(f"option {option} must be a dict from str to str, but it has {name!r}: {text!r}")
        found = re.match(_LIST, text, re.DOTALL)
        if found is not None:
            negated = bool(found[1])
            values = [part.strip() for part in found[2].split(",")]
            if not all(values):
                raise ValueError(f"option {option}: {name!r}: {text!r} has an empty value in its list")
        else:
            negated = text.startswith("!")
            values = [text[1:] if negated else text]
            if not values[0] and negated:
                raise ValueError(f"option {option}: {name!r}: {text!r} names no value")
        for value in values:
            try:
                check_value(f"option {option}", value)
            except ValueError as error:
                raise ValueError(
                    f"{error}. A selector's value is 'value', '!value', 'in(a, b)' or '!in(a, b)'"
                ) from None
        wishes[name] = [NOT_IN if negated else IN, values]
    return wishes
