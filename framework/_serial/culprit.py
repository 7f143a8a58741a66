"""Finds what in a value cannot be pickled, and says it as a path: ``args[0]['log'].handle``.

The search pickles parts of the value (into nothing) until no smaller part fails. Among many children the
failing one is found by halving, so the cost stays near that of pickling the value a few times over. It is
bounded in depth and in the number of attempts; when a bound is hit, the path found so far is the answer.
"""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from framework._base.limits import CULPRIT_CHILDREN as MAX_CHILDREN
from framework._base.limits import CULPRIT_DEPTH as MAX_DEPTH
from framework._base.limits import CULPRIT_KEY_TEXT as MAX_KEY_TEXT
from framework._base.limits import CULPRIT_PROBES as MAX_PROBES
from framework._serial.pickler import why_not


class Culprit(NamedTuple):
    """The path to the smallest part that cannot be pickled, and why it cannot."""

    path: str
    reason: str


Child = tuple[str, Any]
"""(what is appended to the path, the part)"""


def find_culprit(value: object, name: str, error: Exception | None = None) -> Culprit:
    """Search `value`, called `name`, for what cannot be pickled; `error` is what pickling it raised, if
    known.

    Never raises, and returns `name` itself with the reason when nothing smaller is to blame.
    """
    if error is None:
        error = why_not(value)
        if error is None:
            return Culprit(name, "nothing: it can be pickled")
    search = _Search()
    path, last = search.descend(value, error)
    if isinstance(error, RecursionError) or "recursion" in reason_of(error):
        # Deep nesting: every level fails, so the path would only say that the search gave up.
        if isinstance(last, RecursionError) or search.depth >= MAX_DEPTH or "recursion" in reason_of(last):
            limit = sys.getrecursionlimit()
            return Culprit(name, f"it is nested too deeply for pickle (limit: {limit} levels)")
    return Culprit(name + path, reason_of(last))


def reason_of(error: BaseException) -> str:
    """The text of a pickling error, with its type where the text alone would not tell."""
    try:
        text = str(error).rstrip(".")
    except Exception:
        text = "(its text cannot be shown)"
    if isinstance(error, TypeError) and "pickle" in text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Search:
    __slots__ = ("depth", "probes", "seen")

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.probes = 0
        self.depth = 0

    def descend(self, value: object, error: Exception) -> tuple[str, Exception]:
        path: list[str] = []
        # What was looked at stays referenced: a part made on the fly must not hand its id() to the next.
        kept: list[object] = []
        while self.depth < MAX_DEPTH:
            self.seen.add(id(value))
            kept.append(value)
            found = self._failing_child(value)
            if found is None:
                break
            (step, value), error = found
            path.append(step)
            self.depth += 1
        return "".join(path), error

    def _failing_child(self, value: object) -> tuple[Child, Exception] | None:
        try:
            for group in _children(value):
                found = self._halve([child for child in group if id(child[1]) not in self.seen])
                if found is not None:
                    return found
        except Exception:  # the user's attribute access, or a container that changes: no way further down
            return None
        return None

    def _halve(self, children: list[Child]) -> tuple[Child, Exception] | None:
        error = self._probe(children)
        while error is not None and len(children) > 1:
            middle = len(children) // 2
            first, second = children[:middle], children[middle:]
            error = self._probe(first)
            if error is not None:
                children = first
            else:
                children = second
                error = self._probe(second)
        return (children[0], error) if error is not None else None

    def _probe(self, children: list[Child]) -> Exception | None:
        if not children or self.probes >= MAX_PROBES:
            return None
        self.probes += 1
        return why_not(children[0][1] if len(children) == 1 else [part for _, part in children])


def _key(key: object) -> str:
    try:
        text = repr(key)
    except Exception:
        text = f"<{type(key).__name__}>"
    return text if len(text) <= MAX_KEY_TEXT else text[: MAX_KEY_TEXT - 3] + "..."


def _children(value: object) -> Iterator[list[Child]]:
    """Groups of parts of `value`, the likeliest first. Calls only such methods as pickle calls."""
    if isinstance(value, dict):
        items = list(itertools.islice(dict.items(value), MAX_CHILDREN))
        yield [(f"[{_key(key)}]", part) for key, part in items]
        yield [(f".<key {_key(key)}>", key) for key, _ in items]
    elif isinstance(value, (list, tuple, deque)):
        yield [(f"[{index}]", part) for index, part in enumerate(itertools.islice(value, MAX_CHILDREN))]
    elif isinstance(value, (set, frozenset)):
        yield [(f".<element {_key(part)}>", part) for part in itertools.islice(value, MAX_CHILDREN)]
    elif isinstance(value, functools.partial):
        yield [(".func", value.func)]
        yield [(f".args[{index}]", part) for index, part in enumerate(value.args)]
        yield [(f".keywords[{key!r}]", part) for key, part in value.keywords.items()]
    elif isinstance(value, types.MethodType):
        yield [(".__self__", value.__self__), (".__func__", value.__func__)]
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, (staticmethod, classmethod)):
        yield [("", value.__func__)]
    elif isinstance(value, property):
        yield [("", part) for part in (value.fget, value.fset, value.fdel) if part is not None]
    elif isinstance(value, type):
        yield [(f".{key}", part) for key, part in vars(value).items() if key not in _CLASS_BOOKKEEPING]
        yield [(f".<base {base.__name__}>", base) for base in value.__bases__]
        return
    if isinstance(value, BaseException):
        yield [(f".args[{index}]", part) for index, part in enumerate(value.args)]
    if getattr(getattr(value, "dtype", None), "hasobject", False) is True:
        flat: Any = value.flat  # type: ignore[attr-defined]
        yield [(f".flat[{index}]", part) for index, part in enumerate(itertools.islice(flat, MAX_CHILDREN))]
    if not isinstance(value, types.FunctionType):
        yield from _attributes(value)


_CLASS_BOOKKEEPING = frozenset(
    ("__dict__", "__weakref__", "__module__", "__doc__", "__abstractmethods__", "_abc_impl")
)


def _parts_of_function(function: types.FunctionType) -> Iterator[list[Child]]:
    closure: list[Child] = []
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            closure.append((f".<closure {variable!r}>", cell.cell_contents))
        except ValueError:  # not bound yet
            continue
    yield closure
    known = function.__globals__
    used = sorted(_names(function.__code__) & known.keys())
    yield [(f".<global {key!r}>", known[key]) for key in used]
    defaults = function.__defaults__ or ()
    parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
    first = len(parameters) - len(defaults)
    yield [(f".<default of {parameters[first + index]!r}>", part) for index, part in enumerate(defaults)]
    yield [(f".<default of {key!r}>", part) for key, part in (function.__kwdefaults__ or {}).items()]
    yield [(f".{key}", part) for key, part in vars(function).items()]
    yield [(f".<annotation of {key!r}>", part) for key, part in function.__annotations__.items()]


def _names(code: types.CodeType) -> set[str]:
    """Global names that the code and the functions inside it use."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _attributes(value: object) -> Iterator[list[Child]]:
    """What pickle would take as the state of an object, then its other attributes."""
    cls = type(value)
    own_state = getattr(cls, "__getstate__", None)
    if own_state is not None and own_state is not getattr(object, "__getstate__", None):
        try:
            state = value.__getstate__()
        except Exception:  # it refuses to be pickled: its attributes may still say why
            state = None
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                yield [(f".{key}", attribute) for key, attribute in part.items()]
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield [(f".{key}", attribute) for key, attribute in attributes.items()]
    slots: list[Child] = []
    for base in cls.__mro__:
        declared = base.__dict__.get("__slots__", ())
        for slot in (declared,) if isinstance(declared, str) else tuple(declared):
            name = f"_{base.__name__.lstrip('_')}{slot}" if slot[:2] == "__" and slot[-2:] != "__" else slot
            try:
                slots.append((f".{slot}", object.__getattribute__(value, name)))
            except AttributeError:
                continue
    yield slots


_IN_TASK = "create it inside the task, or in the __init__ of an actor"
_ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("too deeply", "recursion"),
     "Pass a flatter structure (a list, a dict by key), or raise sys.setrecursionlimit"),
    (("TextIOWrapper", "BufferedReader", "BufferedWriter", "BufferedRandom", "FileIO"),
     "An open file belongs to its process: pass its path and open it inside the task"),
    (("lock'", "RLock", "Condition", "Semaphore", "_thread."),
     f"A lock works in one process only: {_IN_TASK}; an actor can guard shared state"),
    (("socket", "SSLContext", "Connection", "cursor", "Session"),
     f"A connection belongs to its process: {_IN_TASK}"),
    (("generator'",), "Pass a list, or make the producer a remote generator (num_returns='streaming')"),
    (("coroutine'", "Future", "Task'"), "Await it here and pass the result, or call it inside the task"),
    (("frame'", "traceback'"), "Pass the formatted text (traceback.format_exception) instead"),
    (("weakref", "weakproxy"), "Pass the object itself, or a key to find it by"),
    (("memoryview", "PickleBuffer"), "Pass bytes(view)"),
)  # fmt: skip


def advice_for(reason: str) -> str:
    """What to do about it, as one sentence."""
    for signs, advice in _ADVICE:
        if any(sign in reason for sign in signs):
            return advice + "."
    return f"To send such an object, {_IN_TASK}, or give its class a __reduce__ that leaves this part out."
