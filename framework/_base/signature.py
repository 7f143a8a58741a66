"""Checking the arguments of a call against a signature, before the call leaves: a wrong argument is an error
at the line that made it. Picklable, so that it travels with actor handles."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class CallSignature:
    """What a function can be called with. `check` is fast for positional arguments."""

    __slots__ = (
        "_keywords",
        "_most",
        "_names",
        "_positional",
        "_required",
        "_required_keywords",
        "_text",
        "_variadic",
    )

    def __init__(self, function: Callable[..., Any], *, skip_first: bool = False) -> None:
        """`skip_first`: leave out ``self``. A function without a readable signature takes anything."""
        self._text = ""
        self._required = 0
        self._most: int | None = None
        self._names: tuple[str, ...] = ()
        self._positional = 0
        # (Tuples: the bytes of a pickled set differ from process to process.)
        self._keywords: tuple[str, ...] | None = None
        self._required_keywords: tuple[str, ...] = ()
        self._variadic = True
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            return
        if skip_first and parameters and parameters[0].kind in _POSITIONAL:
            parameters = parameters[1:]
        self._take(parameters)

    def _take(self, parameters: list[inspect.Parameter]) -> None:
        kind = inspect.Parameter
        empty = kind.empty
        positional = [p for p in parameters if p.kind in _POSITIONAL]
        has_args = any(p.kind == kind.VAR_POSITIONAL for p in parameters)
        has_kwargs = any(p.kind == kind.VAR_KEYWORD for p in parameters)
        only = [p for p in parameters if p.kind == kind.KEYWORD_ONLY]
        self._required = sum(1 for p in positional if p.default is empty)
        self._most = None if has_args else len(positional)
        self._positional = sum(1 for p in positional if p.kind == kind.POSITIONAL_ONLY)
        self._names = tuple(p.name for p in positional)
        self._keywords = (
            None
            if has_kwargs
            else tuple(p.name for p in [*positional, *only] if p.kind != kind.POSITIONAL_ONLY)
        )
        self._required_keywords = tuple(p.name for p in only if p.default is empty)
        self._variadic = False
        shown = [
            p.replace(annotation=empty, default=empty if p.default is empty else "...") for p in parameters
        ]
        self._text = str(inspect.Signature(shown))[1:-1].replace("'...'", "...")

    @property
    def bare(self) -> bool:
        """Whether it can be called without arguments."""
        return self._variadic or self._problem(0, {}) is None

    def check(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """`TypeError` that names the function and the argument, when the call cannot work."""
        if self._variadic:
            return
        count = len(args)
        if not kwargs and not self._required_keywords:
            if self._required <= count and (self._most is None or count <= self._most):
                return
        problem = self._problem(count, kwargs)
        if problem:
            raise TypeError(f"{name}() {problem}. Its signature is {name}({self._text})")

    def _problem(self, count: int, kwargs: Mapping[str, Any]) -> str | None:
        if self._most is not None and count > self._most:
            most = (
                f"at most {_counted(self._most, 'positional argument')}"
                if self._most
                else "no positional arguments"
            )
            return f"takes {most}, but {count} {'was' if count == 1 else 'were'} given"
        by_name = self._names[self._positional :]  # what stands before can only be given by position
        twice = set(by_name[: max(0, count - self._positional)])
        for keyword in kwargs:
            if keyword in twice:
                return f"got two values for the argument {keyword!r}"
            if self._keywords is not None and keyword not in self._keywords:
                only = " (it can only be given by position)" if keyword in self._names else ""
                return f"got an unexpected keyword argument {keyword!r}{only}"
        missing = [
            name
            for position, name in enumerate(self._names[: self._required])
            if position >= count and (position < self._positional or name not in kwargs)
        ]
        missing += sorted(name for name in self._required_keywords if name not in kwargs)
        if missing:
            return f"misses the argument{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}"
        return None

    def __getstate__(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(self.__slots__, state, strict=True):
            setattr(self, name, value)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def is_async_class(cls: type) -> bool:
    """Whether the actors of a class run their methods on an event loop: one of them is a coroutine."""
    seen: set[str] = set()
    for base in cls.__mro__[:-1]:  # (inspect.getmembers_static takes long, at each start of an actor)
        for name, member in vars(base).items():
            if name in seen:
                continue
            seen.add(name)
            function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
            if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                return True
    return False
