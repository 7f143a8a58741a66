"""Calls are checked against signatures as Python itself would, before they are sent."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework._base.signature import CallSignature

NAMES = "abcdef"


@st.composite
def functions(draw: st.DrawFn) -> Callable[..., Any]:
    """A function with any mixture of the five kinds of parameters."""
    names = iter(NAMES)
    defaults = False

    def positional(count: int) -> list[str]:
        nonlocal defaults
        parts = []
        for _ in range(count):
            defaults = defaults or draw(st.booleans())
            parts.append(next(names) + ("=0" if defaults else ""))
        return parts

    parts = positional(draw(st.integers(0, 2)))
    if parts:
        parts.append("/")
    parts += positional(draw(st.integers(0, 2)))
    keywords = [next(names) + draw(st.sampled_from(["", "=0"])) for _ in range(draw(st.integers(0, 2)))]
    if draw(st.booleans()):
        parts.append("*args")
    elif keywords:
        parts.append("*")
    parts += keywords
    if draw(st.booleans()):
        parts.append("**kwargs")
    namespace: dict[str, Any] = {}
    exec(f"def f({', '.join(parts)}): pass", namespace)
    found: Callable[..., Any] = namespace["f"]
    return found


def fits(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        function(
            *args, **kwargs
        )  # not `inspect.Signature.bind`, which refuses f(a=1) of `def f(a=0, /, **kwargs)`
    except TypeError:
        return False
    return True


def accepts(signature: CallSignature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.check("f", args, kwargs)
    except TypeError as error:
        assert "f()" in str(error)
        return False
    return True


@settings(max_examples=50)
@given(functions(), st.integers(0, 6), st.sets(st.sampled_from(NAMES + "z")))
def test_accepts_what_python_accepts(function: Callable[..., Any], count: int, keywords: set[str]) -> None:
    args, kwargs = (0,) * count, dict.fromkeys(keywords, 0)
    signature = CallSignature(function)
    wanted = fits(function, args, kwargs)
    assert accepts(signature, args, kwargs) is wanted
    assert accepts(pickle.loads(pickle.dumps(signature)), args, kwargs) is wanted


def example(a: int, b: str = "text", /, c: int = 1, *, d: float, e: None = None) -> None: ...


SHOWN = "example(a, b=..., /, c=..., *, d, e=...)"


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        ((), {}, "misses the arguments 'a', 'd'"),
        ((1,), {}, "misses the argument 'd'"),
        ((1, 2, 3, 4), {"d": 1}, "takes at most 3 positional arguments, but 4 were given"),
        ((1,), {"d": 1, "f": 2}, "got an unexpected keyword argument 'f'"),
        (
            (1,),
            {"d": 1, "b": ""},
            "got an unexpected keyword argument 'b' (it can only be given by position)",
        ),
        ((1, "", 3), {"c": 3, "d": 1}, "got two values for the argument 'c'"),
    ],
)
def test_message_says_what_is_wrong_and_shows_the_signature(
    args: tuple[Any, ...], kwargs: dict[str, Any], problem: str
) -> None:
    with pytest.raises(TypeError) as caught:
        CallSignature(example).check("example", args, kwargs)
    assert str(caught.value) == f"example() {problem}. Its signature is {SHOWN}"


def test_no_and_one_positional_argument() -> None:
    with pytest.raises(TypeError, match=r"takes no positional arguments, but 1 was given"):
        CallSignature(lambda: None).check("f", (1,), {})
    with pytest.raises(TypeError, match=r"takes at most 1 positional argument, but 2 were given"):
        CallSignature(lambda a: None).check("f", (1, 2), {})


def test_a_positional_only_name_is_free_for_keywords() -> None:
    def f(a: int, /, **kwargs: int) -> None: ...

    CallSignature(f).check("f", (1,), {"a": 2})
    with pytest.raises(TypeError, match="misses the argument 'a'"):
        CallSignature(f).check("f", (), {"a": 2})


def test_self_is_left_out() -> None:
    class A:
        def f(self, x: int) -> None: ...
        def g(*args: int) -> None: ...  # type: ignore[misc]

    signature = CallSignature(A.f, skip_first=True)
    signature.check("f", (1,), {})
    with pytest.raises(TypeError, match=r"Its signature is f\(x\)"):
        signature.check("f", (1, 2), {})
    CallSignature(A.g, skip_first=True).check("g", (1, 2, 3), {})


def test_wrapped_and_partial_functions_have_the_signature_that_python_sees() -> None:
    @functools.wraps(example)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(TypeError, match="misses"):
        CallSignature(wrapper).check("f", (), {})
    bound = CallSignature(functools.partial(example, 1, d=2.0))
    bound.check("f", (), {})
    with pytest.raises(TypeError, match="takes at most 2"):
        bound.check("f", ("", 1, 1), {})


def test_what_has_no_signature_takes_anything() -> None:
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(dict.fromkeys.__self__)  # the premise: CPython cannot tell it for `dict`
    CallSignature(dict).check("dict", (1, 2, 3), {"a": 1})


def test_the_bytes_of_a_pickled_signature_are_the_same_in_each_process() -> None:
    """Those of a set depend on the hash seed of the process."""

    def function(first: int, /, second: int, *, third: int, fourth: int = 4) -> None: ...

    state = CallSignature(function).__getstate__()
    assert not any(isinstance(value, set | frozenset) for value in state)
    assert ("second", "third", "fourth") in state and ("third",) in state
