from __future__ import annotations

import gc
import pickle
import threading
import weakref
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import exceptions
from framework._serial import errors
from framework._serial.errors import error_from_wire, error_to_wire
from framework._serial.refs import reduce_ref, register_ref_type, set_out_of_band_hook
from framework._serial.values import is_error, nested_refs, wire_size
from framework.exceptions import FrameworkError, GetTimeoutError, TaskError, UnserializableCause


def to_wire(exc: BaseException, name: str = "f") -> Any:
    wire = error_to_wire(exc, function_name=name, pid=7, ip="127.0.0.1", task_id="ab", actor=None)
    assert is_error(wire)
    assert wire_size(wire) > 0
    return msgpack.unpackb(msgpack.packb(wire))


def transfer(exc: BaseException, name: str = "f") -> Any:
    return error_from_wire(to_wire(exc, name))


def raised(make: Any) -> BaseException:
    try:
        make()
    except BaseException as exc:
        return exc
    raise AssertionError("nothing was raised")


def fail() -> None:
    local_variable = 3
    raise ValueError("bad", local_variable)


def test_user_errors_are_task_errors_and_of_their_class() -> None:
    error = transfer(raised(fail))
    assert isinstance(error, TaskError)
    assert isinstance(error, ValueError)
    assert error.args == ("bad", 3)
    assert (error.function_name, error.pid, error.ip, error.task_id) == ("f", 7, "127.0.0.1", "ab")
    text = str(error)
    assert "Traceback (most recent call last)" in text
    assert 'raise ValueError("bad", local_variable)' in text
    assert "ValueError: ('bad', 3)" in text


def test_chains_and_groups_and_notes_are_in_the_text() -> None:
    def chained() -> None:
        try:
            fail()
        except ValueError as first:
            second = KeyError("second")
            second.add_note("look here")
            raise ExceptionGroup("both", [second, OSError(2, "third")]) from first

    error = transfer(raised(chained))
    for part in (
        "ValueError: ('bad', 3)",
        "direct cause",
        "KeyError: 'second'",
        "look here",
        "third",
        "both",
    ):
        assert part in str(error)
    assert isinstance(error, ExceptionGroup)
    assert error.exceptions[1].errno == 2


def test_own_frames_are_stripped() -> None:
    from framework._serial.values import encode

    text = to_wire(raised(lambda: encode(threading.Lock())))[-1]
    assert "test_errors.py" in text
    assert "framework/_serial/" not in text
    assert "_thread.lock" in text


class NeedsArguments(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


class Attributes(Exception):
    def __init__(self, message: str, **more: Any) -> None:
        super().__init__(message)
        self.__dict__.update(more)


def test_constructors_with_required_arguments_are_no_hindrance() -> None:
    error = transfer(NeedsArguments(4, "no"))
    assert isinstance(error, NeedsArguments)
    assert isinstance(error, TaskError)
    assert error.code == 4
    assert error.args == ("4: no",)


class NeverRebuilt(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")

    def __reduce__(self) -> Any:
        return (NeverRebuilt, ())


def test_what_cannot_be_rebuilt_arrives_as_text() -> None:
    error = transfer(raised(lambda: (_ for _ in ()).throw(NeverRebuilt(4, "no"))))
    assert type(error) is TaskError or isinstance(error, UnserializableCause)
    assert isinstance(error.cause, UnserializableCause)
    assert error.cause.type_name.endswith("NeverRebuilt")
    assert "4: no" in error.cause.text
    assert "4: no" in str(error)
    assert "Traceback" in str(error)


def test_attributes() -> None:
    assert transfer(Attributes("x", code=3)).code == 3
    assert isinstance(transfer(Attributes("x", lock=threading.Lock())).cause, UnserializableCause)
    assert isinstance(transfer(Attributes("x", data=bytes(errors.MAX_CAUSE))).cause, UnserializableCause)


def test_classes_of_main_by_value() -> None:
    class Local(LookupError):
        pass

    error = transfer(Local("here"))
    assert isinstance(error, LookupError)
    assert error.args == ("here",)


@pytest.mark.parametrize("make", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_base_exceptions_do_not_escape_as_themselves(make: Any) -> None:
    error = transfer(make(3))
    assert isinstance(error, TaskError)
    assert not isinstance(error, make)
    assert isinstance(error.cause, make)


def test_framework_errors_stay_what_they_are() -> None:
    error = transfer(exceptions.WorkerCrashedError("it died"))
    assert type(error) is exceptions.WorkerCrashedError
    assert "it died" in str(error)
    assert not hasattr(error, "__notes__")

    def late() -> None:
        raise GetTimeoutError("too late")

    error = transfer(raised(late))
    assert type(error) is GetTimeoutError
    assert "in late" in error.__notes__[0]


class UsersOwn(FrameworkError):
    pass


def test_users_subclasses_of_framework_errors_are_user_errors() -> None:
    error = transfer(UsersOwn("mine"))
    assert isinstance(error, TaskError)
    assert isinstance(error, UsersOwn)


def test_errors_passed_through_several_tasks() -> None:
    error: Any = raised(fail)
    for name in ("inner", "middle", "outer"):

        def get(error: BaseException = error) -> None:
            raise error

        error = transfer(error if name == "inner" else raised(get), name)
    assert isinstance(error, ValueError)
    assert type(error.cause) is ValueError
    assert error.function_name == "outer"
    text = str(error)
    assert text.count('raise ValueError("bad", local_variable)') == 1
    for name in ("inner", "middle", "outer"):
        assert f"framework::{name}()" in text


def test_a_lost_cause_keeps_its_name_through_tasks() -> None:
    error = transfer(transfer(NeverRebuilt(4, "no"), "inner"), "outer")
    assert isinstance(error.cause, UnserializableCause)
    assert error.cause.type_name.endswith("NeverRebuilt")


def test_long_texts_are_cut_in_the_middle() -> None:
    wire = to_wire(ValueError("start" + "é" * errors.MAX_TEXT + "end"))
    text = wire[8]
    assert len(text.encode()) <= errors.MAX_TEXT
    assert text.startswith("ValueError: start")
    assert text.endswith("end")
    assert "bytes cut" in text


@given(st.text(alphabet=st.characters(), max_size=200), st.integers(50, 120))
def test_any_text_becomes_packable_and_bounded(text: str, limit: int) -> None:
    plain = errors._plain(text, limit)
    assert len(plain.encode()) <= limit
    if len(text.encode("utf-8", "backslashreplace")) <= limit and not any(
        "\ud800" <= c <= "\udfff" for c in text
    ):
        assert plain == text


def hostile(method: str, error: BaseException) -> BaseException:
    def fails(*args: Any) -> Any:
        raise error

    made: BaseException = type("Hostile", (Exception,), {method: fails})("text")
    return made


METHODS = [
    "__reduce__",
    "__reduce_ex__",
    "__str__",
    "__repr__",
    "__getattribute__",
    "__getstate__",
    "__class__",
]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("method", [*METHODS, "__notes__", "__traceback__", "__cause__", "args", "__dict__"])
@pytest.mark.parametrize("as_property", [False, True])
def test_hostile_exceptions_arrive(method: str, error: BaseException, as_property: bool) -> None:
    def fails(*args: Any) -> Any:
        raise error

    body = {method: property(fails) if as_property else fails}
    exc: BaseException = type("Hostile", (Exception,), body)("text")
    result = transfer(exc)
    assert isinstance(result, TaskError)
    assert "Hostile" in str(result)


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise KeyboardInterrupt
        return super().__getattribute__(name)


class BadMeta(Exception, metaclass=Meta):
    pass


class BadOwn(FrameworkError, metaclass=Meta):
    pass


class BadTask(TaskError):
    @property
    def cause(self) -> Any:
        raise SystemExit


class LoadsBadly(Exception):
    def __reduce__(self) -> Any:
        return raise_interrupt, ()


class LoadsSomethingElse(Exception):
    def __reduce__(self) -> Any:
        return int, ()


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_more_hostility() -> None:
    bad_task = BadTask("g", "text", ValueError("x"), pid=1, ip="")
    for exc in (BadMeta("x"), BadOwn("x"), bad_task, LoadsBadly(), LoadsSomethingElse()):
        assert isinstance(transfer(exc), TaskError)
    surrogate = transfer(ValueError("\ud800"), "\udfff")
    assert "ValueError: \\ud800" in str(surrogate)
    assert isinstance(surrogate, ValueError)
    loop = ValueError("loop")
    loop.__cause__ = loop.__context__ = loop
    assert isinstance(transfer(loop), ValueError)
    deep: BaseException = ValueError("deep")
    for _ in range(3_000):
        deep = ExceptionGroup("g", [deep])  # type: ignore[type-var]
    assert isinstance(transfer(deep), TaskError)


@pytest.mark.slow
@given(st.lists(st.none() | st.integers() | st.text() | st.binary() | st.just("Traceback"), max_size=12))
def test_any_wire_gives_an_exception(parts: list[Any]) -> None:
    # Junk pickles could name anything to import: keep to what cannot.
    parts = [
        part.translate(None, b"ci\x93\x82\x83\x84") if isinstance(part, bytes) else part for part in parts
    ]
    for wire in (parts, [2, 0, *parts], [2, 1, *parts]):
        assert isinstance(error_from_wire(wire), BaseException)


def test_cause_whose_class_is_missing_here() -> None:
    wire = to_wire(ValueError("x"))
    wire[9] = b"cno_such_module_here\nError\n."
    error: Any = error_from_wire(wire)
    assert isinstance(error.cause, UnserializableCause)
    wire = to_wire(exceptions.WorkerCrashedError("it died"))
    wire[2] = pickle.dumps(3)
    assert "it died" in str(error_from_wire(wire))


class Big:
    pass


def test_nothing_of_the_frames_is_kept() -> None:
    def work() -> weakref.ref[Big]:
        big = Big()
        try:
            raise ValueError("x")
        except ValueError as exc:
            wires.append(to_wire(exc))
        return weakref.ref(big)

    wires: list[Any] = []
    gone = work()
    gc.collect()
    assert gone() is None
    error = error_from_wire(wires[0])
    assert error.__traceback__ is None
    assert error.__context__ is None


# ---- references --------------------------------------------------------------------------------------


class Reference:
    """What the owner of a reference class registers."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return reduce_ref(self)


register_ref_type(
    Reference,
    lambda ref: (ref.number.to_bytes(28, "big"), "unix:owner"),
    lambda object_id, _: Reference(int.from_bytes(object_id, "big")),
    kind="errors test",
)


class Carrier(Exception):
    def __init__(self, number: int, ref: Any) -> None:
        super().__init__(f"number {number}")
        self.ref = ref


def passed_on(error: BaseException) -> BaseException:
    """As a task gets it that another has raised."""
    return error_from_wire(errors.encode_error(error, function_name="g", pid=7, ip="")[0])


def chained() -> BaseException:
    error = ValueError("outer", Reference(5))
    error.__cause__ = ValueError(Reference(6))
    error.__context__ = ValueError(Reference(7))
    return error


@pytest.mark.parametrize(
    ("make", "find"),
    [
        (lambda: ValueError("x", Reference(5)), lambda e: e.args[1]),
        (lambda: Carrier(1, Reference(5)), lambda e: e.ref),
        (lambda: ExceptionGroup("g", [Carrier(1, Reference(5))]), lambda e: e.exceptions[0].ref),
        (lambda: GetTimeoutError(Reference(5)), lambda e: e.args[0]),
        (lambda: passed_on(ValueError(Reference(5))), lambda e: e.args[0]),
        (chained, lambda e: e.args[1]),
    ],
)
def test_references_are_named_beside_the_pickle(make: Any, find: Any) -> None:
    told: list[Any] = []
    set_out_of_band_hook(told.append)
    try:
        wire, refs = errors.encode_error(make(), function_name="f", pid=7, ip="")
        plain = error_to_wire(make(), function_name="f", pid=7, ip="")
    finally:
        set_out_of_band_hook(None)
    assert told == [], "nothing is pinned for good"
    assert [ref.number for ref in refs] == [5]
    wire = msgpack.unpackb(msgpack.packb(wire))
    assert nested_refs(wire) == [[(5).to_bytes(28, "big"), "unix:owner"]]
    assert find(error_from_wire(wire)).number == 5
    assert nested_refs(plain) == [], "for those who keep nothing: the text"
    assert isinstance(error_from_wire(plain).cause, UnserializableCause)  # type: ignore[attr-defined]
    assert not is_error(wire[-1])


def test_errors_without_references_have_no_place_for_them() -> None:
    for make in (lambda: ValueError(1), GetTimeoutError, lambda: UnserializableCause("x", "y")):
        wire, refs = errors.encode_error(make(), function_name="f", pid=7, ip="")
        assert (refs, nested_refs(wire)) == ([], [])
        assert error_to_wire(make(), function_name="f", pid=7, ip="") == wire
    assert nested_refs([2, 2, "ValueError", "of the head"]) == []


def test_a_cause_that_is_too_large_takes_its_references_along() -> None:
    wire, refs = errors.encode_error(
        Carrier(1, [Reference(5), b"x" * errors.MAX_CAUSE]), function_name="f", pid=7, ip=""
    )
    assert (refs, nested_refs(wire)) == ([], [])
    assert "number 1" in str(error_from_wire(wire))
