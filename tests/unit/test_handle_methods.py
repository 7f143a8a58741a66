"""The methods that a handle keeps, once they were used."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest

from framework._handle import ActorHandle
from framework._methods import methods_of


class Counter:
    def inc(self) -> int:
        return 1


def handle_of(ref: Any = None) -> Any:
    return ActorHandle(b"a" * 16, "Counter", methods_of(Counter), ref, 0)


def test_a_method_is_looked_up_once() -> None:
    handle = handle_of()
    assert handle.inc is handle.inc
    assert handle.inc.options(name="x") is not handle.inc
    with pytest.raises(AttributeError, match="no method 'dec'"):
        _ = handle.dec


class Counted:
    """In the place of the reference that counts the handles."""


def test_a_handle_with_methods_is_in_no_circle() -> None:
    gc.disable()
    try:
        ref = Counted()
        handle, counted = handle_of(ref), weakref.ref(ref)
        del ref
        method = handle.inc
        del handle
        assert counted() is not None  # a method keeps the actor
        del method
        assert counted() is None
    finally:
        gc.enable()


def test_a_method_alone_is_copied_and_travels() -> None:
    handle = handle_of()
    method = handle.inc
    for other in (copy.copy(method), copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert repr(other) == repr(method)
        assert other._handle == handle
        assert other._handle.inc is not method
