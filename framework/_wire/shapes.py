"""What the maps and lists inside of messages must look like: of those that services keep, and would stumble
over later, when it is somebody else's turn.

A shape is a function that says whether a value is fine. Keys that a map has beyond those that are named here
are nobody's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

Shape = Callable[[Any], bool]


def ids(value: Any) -> bool:
    """``[bytes, ...]``."""
    return type(value) is list and set(map(type, value)) <= _BYTES


def numbers(value: Any) -> bool:
    """``[int, ...]``."""
    return type(value) is list and set(map(type, value)) <= _INT


def results(value: Any) -> bool:
    """``[int, int, anything, int, int, anything, ...]``."""
    return (
        type(value) is list
        and len(value) % 3 == 0
        and set(map(type, value[::3])) <= _INT
        and set(map(type, value[1::3])) <= _INT
    )


def units(value: Any) -> bool:
    """Amounts of resources: ``{name: int}``."""
    return type(value) is dict and set(map(type, value)) <= _STR and set(map(type, value.values())) <= _INT


def texts(value: Any) -> bool:
    """``{str: str}``."""
    return type(value) is dict and set(map(type, value)) <= _STR and set(map(type, value.values())) <= _STR


def strategy(value: Any) -> bool:
    """Where something is to run, see `framework._state.scheduling`."""
    if not value:
        return value is None or type(value) is list
    if type(value) is not list:
        return False
    kind, *rest = value
    found = tuple(map(type, rest))
    if kind == "node":
        return found == (str, bool)
    if kind == "labels":
        return found == (dict, dict) and _wishes(rest[0]) and _wishes(rest[1])
    if kind == "group":
        return found == (bytes, int, bool)
    return type(kind) is str and not rest


def _wishes(value: dict[Any, Any]) -> bool:
    return all(
        type(name) is str
        and type(wish) is list
        and len(wish) == 2
        and type(wish[0]) is str
        and type(wish[1]) is list
        and set(map(type, wish[1])) <= _STR
        for name, wish in value.items()
    )


def each(shape: Shape) -> Shape:
    """A list of such values."""
    return lambda value: type(value) is list and all(map(shape, value))


def maybe(shape: Shape) -> Shape:
    """That, or None."""
    return lambda value: value is None or shape(value)


def row(*parts: type | Shape) -> Shape:
    """A list with exactly these parts."""
    shapes = [_shape_of(part) for part in parts]

    def fine(value: Any) -> bool:
        return (
            type(value) is list
            and len(value) == len(shapes)
            and all(shape(part) for shape, part in zip(shapes, value, strict=True))
        )

    return fine


def record(needs: str = "", **parts: type | Shape) -> Shape:
    """A map with text for keys. Of those named, what it has must be of this shape; it must have what `needs`
    lists."""
    shapes = {name: _shape_of(part) for name, part in parts.items()}
    needed = needs.split()

    def fine(value: Any) -> bool:
        if type(value) is not dict or not set(map(type, value)) <= _STR:
            return False
        return all(name in value for name in needed) and all(
            shape(value[name]) for name, shape in shapes.items() if name in value
        )

    return fine


def _shape_of(part: type | Shape) -> Shape:
    if isinstance(part, type):
        return lambda value: type(value) is part
    return part


def _is(*types: type) -> Shape:
    return lambda value: type(value) in types


_BYTES, _STR, _INT = {bytes}, {str}, {int}
MAP: Final = _is(dict, type(None))
_TEXT: Final = _is(str, type(None))
_LIMIT: Final = _is(int, float, type(None))

#: the facts of whoever says HELLO
PEER: Final = record(
    job=bytes,
    node=bytes,
    to=_is(str, bytes),
    namespace=_TEXT,
    cwd=_TEXT,
    sys_path=lambda value: type(value) is list and set(map(type, value)) <= _STR,
    log_to_driver=bool,
    logging=maybe(lambda value: type(value) is list),
)

#: a task, as its template describes it
TASK: Final = record(
    "name returns hash scope",
    name=str,
    returns=int,
    hash=bytes,
    scope=bytes,
    method=_TEXT,
    max_calls=int,
    resources=maybe(units),
    strategy=maybe(strategy),
    retry=_is(bytes, type(None)),
    group=_TEXT,
)

#: an actor
ACTOR: Final = record(
    "resources",
    class_name=str,
    resources=units,
    placement=units,
    env=maybe(texts),
    strategy=strategy,
    priority=int,
    name=_TEXT,
    namespace=_TEXT,
    lifetime=_TEXT,
    max_restarts=_LIMIT,
    job=bytes,
    owner=str,
    handle=_is(bytes, list, type(None)),
    job_info=PEER,
)

#: a node, as others know it
NODE: Final = record(
    "node_id",
    node_id=bytes,
    total=units,
    available=units,
    labels=texts,
    host=str,
    port=int,
    data_port=int,
    hostname=str,
    pid=int,
    session_dir=str,
    head=bool,
    alive=bool,
    draining=bool,
    actors=each(row(bytes, int, bytes, str, int)),
    processes=ids,
    bundles=each(row(bytes, int, int, bool)),
    last_words=each(lambda value: type(value) is list),
)

#: what waits for resources
PENDING: Final = each(row(units, strategy, int))

#: bundles of a placement group, by their place in it
BUNDLES: Final = each(row(int, units))
