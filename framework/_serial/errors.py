"""Errors on the wire. Whatever the exception is, something readable arrives, with the traceback.

- of user code: ``[2, 0, function, pid, ip, task id, actor, class of the cause, text, pickled cause]``
- of the framework itself: ``[2, 1, pickle, class, text]``

Both end with one more field, ``[[object id, owner], ...]``, when references are nested in what is pickled:
whoever keeps such an error keeps them alive, as those in a value (`values.nested_refs` has them).

The task id is hexadecimal text or None, `actor` text or None. The cause is None when it cannot be pickled or
read back; the text always is there. Nothing here raises, whatever an exception's ``__reduce__``, ``__str__``
or ``__repr__`` does.
"""

from __future__ import annotations

import os
import pickle
import traceback
from typing import Any

from framework import exceptions
from framework._base.limits import MAX_ERROR_CAUSE as MAX_CAUSE
from framework._base.limits import MAX_ERROR_NAME as MAX_NAME
from framework._base.limits import MAX_ERROR_TEXT as MAX_TEXT
from framework._serial.pickler import pickle_in_band
from framework._serial.refs import NotedRef, noting
from framework._serial.values import ATOM_TYPES, FORM_ERROR
from framework.exceptions import FrameworkError, TaskError, UnserializableCause

KIND_USER = 0
KIND_FRAMEWORK = 1
KIND_NAMED = 2
"""``[2, 2, class name, text]``: a framework exception that is made where nothing is pickled (node, head)."""

# The running frames of the framework between user code and the worker's loop say nothing to the user.
# (Without `pathlib`, which takes as long to load as all of the framework's own serialization.)
_OWN_FRAMES = os.path.dirname(os.path.dirname(os.path.realpath(__file__))) + "/"


def encode_error(
    exc: BaseException,
    *,
    function_name: str,
    pid: int,
    ip: str,
    task_id: str | None = None,
    actor: str | None = None,
) -> tuple[list[Any], list[Any]]:
    """The wire form of an exception that a task raised, or that says what happened to it, and the reference
    objects nested in it: the sender keeps them until the receiver has registered. Never raises.

    References in chained exceptions (``__cause__``, ``__context__``), which pickle leaves out, do not travel.
    """
    text = _traceback_text(exc)
    if _is_own(type(exc)):
        pickled, noted = _pickled_framework_error(exc)
        if pickled is not None:
            wire = [FORM_ERROR, KIND_FRAMEWORK, pickled, _class_name(type(exc)), text]
            return _with_refs(wire, noted)
    cause = _original(exc)
    pickled, noted = _pickled_cause(cause)
    wire = [
        FORM_ERROR,
        KIND_USER,
        _plain(function_name, MAX_NAME),
        pid,
        _plain(ip, MAX_NAME),
        _plain(task_id, MAX_NAME) if task_id is not None else None,
        _plain(actor, MAX_NAME) if actor is not None else None,
        _class_name(type(cause)),
        text,
        pickled,
    ]
    return _with_refs(wire, noted)


def _with_refs(wire: list[Any], noted: list[NotedRef]) -> tuple[list[Any], list[Any]]:
    if noted:
        wire.append([[object_id, owner] for _, object_id, owner in noted])
    return wire, [ref for ref, _, _ in noted]


def error_to_wire(
    exc: BaseException,
    *,
    function_name: str,
    pid: int,
    ip: str,
    task_id: str | None = None,
    actor: str | None = None,
) -> list[Any]:
    """As `encode_error`, for errors that nobody keeps references for: one that has any goes as its text.
    Never raises.
    """
    wire, refs = encode_error(exc, function_name=function_name, pid=pid, ip=ip, task_id=task_id, actor=actor)
    if not refs:
        return wire
    text, class_name = (wire[4], wire[3]) if wire[1] == KIND_FRAMEWORK else (wire[8], wire[7])
    names = [
        _plain(function_name, MAX_NAME),
        pid,
        _plain(ip, MAX_NAME),
        _plain(task_id, MAX_NAME) if task_id is not None else None,
        _plain(actor, MAX_NAME) if actor is not None else None,
    ]
    return [FORM_ERROR, KIND_USER, *names, class_name, text, None]


def error_from_wire(wire: Any) -> BaseException:
    """The exception to raise for an error (form 2). Never raises.

    Errors of user code are instances of `TaskError` and of the cause's class.
    """
    try:
        if wire[1] == KIND_FRAMEWORK:
            return _framework_error(wire)
        if wire[1] == KIND_NAMED:
            named = getattr(exceptions, wire[2], FrameworkError)
            return named(wire[3]) if issubclass(named, FrameworkError) else FrameworkError(wire[3])
        _, _, function_name, pid, ip, task_id, actor, class_name, text, pickled = wire[:10]
        cause = _load_cause(pickled) or UnserializableCause(class_name, _last_line(text))
        error = TaskError(function_name, text, cause, pid=pid, ip=ip, task_id=task_id, actor=actor)
        try:
            return error.as_instanceof_cause()
        except BaseException:
            return error
    except BaseException as problem:
        reason = _class_name(type(problem))
        return FrameworkError(f"a task failed, but its error cannot be read ({reason}): {_shown(wire)}")


def _is_own(cls: type[BaseException]) -> bool:
    # By class and not by isinstance(), which asks the exception for its __class__.
    if not issubclass(cls, FrameworkError) or issubclass(cls, TaskError):
        return False
    try:
        return cls.__module__ == exceptions.__name__
    except BaseException:
        return False


def _original(exc: BaseException) -> BaseException:
    """What a chain of tasks that passed an error on started from."""
    seen = 0
    while issubclass(type(exc), TaskError) and seen < 100:
        try:
            inner = exc.cause  # type: ignore[attr-defined]
        except BaseException:
            break
        exc = inner
        seen += 1
    return exc


_Pickled = tuple[bytes | None, list[NotedRef]]
"""A pickle, or None, and the references met on the way."""


def _pickled_framework_error(exc: BaseException) -> _Pickled:
    try:
        with noting() as noted:
            payload = pickle.dumps(exc, 5)
        if len(payload) <= MAX_CAUSE and type(pickle.loads(payload)) is type(exc):
            return payload, noted
    except BaseException:
        pass
    return None, []


def _pickled_cause(cause: BaseException) -> _Pickled:
    if type(cause) is UnserializableCause:
        return _pickled_framework_error(cause)
    try:
        payload, noted = pickle_in_band(cause)
        # Classes with required constructor arguments pickle well and then cannot be read: try.
        if _is_plain(cause) or isinstance(pickle.loads(payload), BaseException):
            return (payload, noted) if len(payload) <= MAX_CAUSE else (None, [])
    except BaseException:
        pass
    return _taken_apart(cause)


def _is_plain(cause: BaseException) -> bool:
    """A built-in exception with nothing of the user's inside."""
    return (
        type(cause).__module__ == "builtins"
        and not cause.__dict__
        and all(type(argument) in ATOM_TYPES for argument in cause.args)
    )


def _taken_apart(cause: BaseException) -> _Pickled:
    """A pickle that is read without the constructor of the exception's class."""
    try:
        with noting() as noted:
            payload = exceptions.dump_exception(cause)[0]
        if payload is None or len(payload) > MAX_CAUSE or type(pickle.loads(payload)) is not type(cause):
            return None, []
        return payload, noted
    except BaseException:
        return None, []


def _load_cause(pickled: Any) -> BaseException | None:
    if pickled is None:
        return None
    try:
        cause = pickle.loads(pickled)
    except BaseException:
        return None
    return cause if isinstance(cause, BaseException) else None


def _framework_error(wire: Any) -> BaseException:
    _, _, pickled, class_name, text = wire[:5]
    try:
        error = pickle.loads(pickled)
        if isinstance(error, BaseException):
            if "Traceback (most recent call last)" in text:
                error.add_note("It was raised remotely:\n" + text)
            return error
    except BaseException:
        pass
    return FrameworkError(f"{class_name}, which cannot be read in this process:\n{text}")


def _traceback_text(exc: BaseException) -> str:
    try:
        formatted = traceback.TracebackException(type(exc), exc, exc.__traceback__, compact=True)
        _strip_own_frames(formatted)
        return _plain("".join(formatted.format()).rstrip("\n"), MAX_TEXT)
    except BaseException:
        return f"{_class_name(type(exc))}: (its traceback cannot be formatted)"


def _strip_own_frames(formatted: traceback.TracebackException) -> None:
    """Take the framework's frames out of a formatted exception and all that it chains or groups."""
    waiting = [formatted]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.stack[:] = [frame for frame in one.stack if not frame.filename.startswith(_OWN_FRAMES)]
        linked = (one.__cause__, one.__context__, *(one.exceptions or ()))
        waiting += [other for other in linked if other is not None]


def _plain(text: object, limit: int) -> str:
    """An exact str of at most `limit` bytes that msgpack can hold (no lone surrogates), cut in the middle."""
    try:
        if not isinstance(text, str):
            text = str(text)
        data = str.encode(text, "utf-8", "backslashreplace")
    except BaseException:
        return "(cannot be shown)"
    if len(data) > limit:
        note = f"\n... {len(data) - limit} bytes cut ...\n".encode()
        half = max(0, limit - len(note)) // 2
        data = data[:half] + note + data[-half:] if half else data[:limit]
    return data.decode("utf-8", "ignore")


def _shown(wire: object) -> str:
    try:
        return f"{wire!r:.2000}"
    except BaseException:
        return "(cannot be shown)"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _class_name(cls: type) -> str:
    try:
        module, name = cls.__module__, cls.__qualname__
        return _plain(name if module == "builtins" else f"{module}.{name}", MAX_NAME)
    except BaseException:
        # A metaclass may lie about the name; this reads it past the metaclass.
        return _plain(type.__dict__["__name__"].__get__(cls), MAX_NAME)
