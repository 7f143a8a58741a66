from __future__ import annotations

import asyncio
import copy
import errno
import gc
import inspect
import pickle
import threading
import traceback
from dataclasses import dataclass

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import framework.exceptions as exceptions
from framework.exceptions import FrameworkError, TaskError, UnserializableCause

CLASSES = sorted({getattr(exceptions, name) for name in exceptions.__all__}, key=lambda cls: cls.__name__)
TEXT = "Traceback (most recent call last):\n  File 'x.py', line 1, in f\nValueError: boom\n"


def failed(cause: BaseException, text: str = TEXT) -> TaskError:
    return TaskError("f", text, cause, pid=123, ip="127.0.0.1", task_id="ab", actor=None)


class NeedsArguments(Exception):
    def __init__(self, url: str, *, code: int) -> None:
        super().__init__(f"{url} failed")
        self.url = url
        self.code = code


class WithSlots(Exception):
    __slots__ = ("detail", "never_set")

    def __init__(self, detail: str) -> None:
        super().__init__("slots", detail)
        self.detail = detail


class SlottedOSError(OSError):
    __slots__ = ("hint",)
    hint: str


class Unfriendly(Exception):
    def __new__(cls, a: int, b: int) -> Unfriendly:
        return super().__new__(cls)

    def __init__(self, a: int, b: int) -> None:
        self.ab = (a, b)

    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


@dataclass(frozen=True)
class FrozenData(Exception):
    code: int


@dataclass
class UnhashableData(Exception):
    code: int


class OwnAttributes(Exception):
    """Uses names that TaskError has too."""

    def __init__(self) -> None:
        super().__init__("own")
        self.task_id = "user's"
        self.cause = "user's"

    @property
    def pid(self) -> str:
        return "user's"


class Registered(Exception):
    seen: list[str] = []

    def __init_subclass__(cls, *, code: int) -> None:
        Registered.seen.append(cls.__name__)


class Meta(type):
    def __call__(cls, *args: object, **kwargs: object) -> object:
        if cls.__name__.startswith("TaskError"):
            raise RuntimeError("derived classes cannot be called")
        return super().__call__(*args, **kwargs)


class WithMeta(Exception, metaclass=Meta):
    pass


class Underivable(type):
    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, object]) -> Underivable:
        if any(isinstance(base, Underivable) for base in bases):
            raise TypeError("final")
        return super().__new__(mcs, name, bases, body)


class Final(Exception, metaclass=Underivable):
    pass


class OwnReduce(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__("text")
        self.sum = a + b

    def __reduce__(self) -> tuple[object, ...]:
        return (OwnReduce, (self.sum, 0))


class OnlyBase(BaseException):
    pass


class Explosive(Exception):
    def __reduce__(self) -> tuple[object, ...]:
        raise RuntimeError("no pickling")


def decode_error() -> UnicodeDecodeError:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    return caught.value


def slotted_os_error() -> SlottedOSError:
    error = SlottedOSError(errno.ENOENT, "gone", "/some/file")
    error.hint = "look elsewhere"
    return error


CAUSES: list[Exception] = [
    ValueError("boom", 2),
    Exception("plain"),
    KeyError("key"),
    FileNotFoundError(errno.ENOENT, "gone", "/some/file"),
    decode_error(),
    ImportError("no", name="module"),
    SyntaxError("bad", ("f.py", 3, 4, "text")),
    ExceptionGroup("group", [ValueError(1), NeedsArguments("u", code=7)]),
    NeedsArguments("http://x", code=404),
    WithSlots("d"),
    slotted_os_error(),
    Unfriendly(1, 2),
    FrozenData(5),
    UnhashableData(6),
    OwnAttributes(),
    Registered("no subclass may be made without a code"),
    WithMeta("m"),
    OwnReduce(1, 2),
    exceptions.GetTimeoutError("nested get"),
    exceptions.ActorDiedError("why", actor_id="aa", pid=7),
    UnserializableCause("m.Type", "text"),
]
ATTRIBUTES: tuple[str, ...] = (
    "args",
    "errno",
    "filename",
    "url",
    "code",
    "detail",
    "hint",
    "ab",
    "sum",
    "exceptions",
)
ATTRIBUTES += ("name", "lineno", "encoding", "object", "start", "end", "reason", "actor_id", "type_name")


def same_attributes(one: BaseException, other: BaseException) -> None:
    for name in ATTRIBUTES:
        if name in ("args", "exceptions"):
            assert repr_of(getattr(one, name, None)) == repr_of(getattr(other, name, None))
        else:
            assert getattr(one, name, None) == getattr(other, name, None), name


def repr_of(values: object) -> object:
    """Exceptions compare by identity, copies of them by class and attributes."""
    if isinstance(values, list | tuple):
        return [repr_of(value) for value in values]
    return (type(values), values.args) if isinstance(values, BaseException) else values


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
def test_an_instance_of_both(cause: Exception) -> None:
    error = failed(cause).as_instanceof_cause()
    assert isinstance(error, TaskError)
    assert isinstance(error, type(cause))
    assert error.cause is cause
    assert (error.function_name, error.traceback_text, error.pid, error.ip) == ("f", TEXT, 123, "127.0.0.1")
    assert (error.task_id, error.actor) == ("ab", None)
    assert str(error) == "framework::f() (pid=123, ip=127.0.0.1)\n" + TEXT.rstrip()
    assert type(error).__name__ == f"TaskError({type(cause).__name__})"
    same_attributes(error, cause)
    assert error.as_instanceof_cause() is error
    hash(error)
    repr(error)
    with pytest.raises(type(cause)) as caught:
        raise error
    assert caught.value is error
    shown = "".join(traceback.format_exception(caught.value)).replace("\n  | ", "\n")  # as groups are set
    assert TEXT.rstrip() in shown


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
def test_round_trip_of_both_forms(cause: Exception, dumps: object) -> None:
    plain = failed(cause)
    for error in (plain, plain.as_instanceof_cause()):
        back = pickle.loads(dumps(error))  # type: ignore[operator]
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert type(back.cause) is type(cause)
        assert (back.function_name, back.pid, back.ip, back.task_id) == ("f", 123, "127.0.0.1", "ab")
        same_attributes(back.cause, cause)
        same_attributes(back, error)


def test_copies() -> None:
    error = failed(NeedsArguments("u", code=1)).as_instanceof_cause()
    for twin in (copy.copy(error), copy.deepcopy(error)):
        assert isinstance(twin, NeedsArguments)
        assert twin.code == 1


def test_the_hook_for_subclasses_is_not_called() -> None:
    failed(Registered("x")).as_instanceof_cause()
    assert Registered.seen == []


@pytest.mark.parametrize(
    "cause",
    [
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
        asyncio.CancelledError(),
        OnlyBase("x"),
        StopIteration(1),
        StopAsyncIteration(),
        BaseExceptionGroup("g", [KeyboardInterrupt()]),
        Final("x"),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_causes_that_stay_plain(cause: BaseException) -> None:
    plain = failed(cause)
    error = plain.as_instanceof_cause()
    assert error is plain
    assert not isinstance(error, type(cause))
    assert type(pickle.loads(pickle.dumps(error)).cause) is type(cause)


def test_attributes_of_the_user_do_not_hide_ours() -> None:
    cause = OwnAttributes()
    error = failed(cause).as_instanceof_cause()
    assert (error.task_id, error.pid, error.cause) == ("ab", 123, cause)
    assert error.cause.task_id == error.cause.pid == "user's"  # type: ignore[attr-defined]


def test_an_error_that_passes_through_tasks_is_wrapped_once() -> None:
    root = NeedsArguments("u", code=1)
    inner = failed(root).as_instanceof_cause()
    outer = failed(failed(inner), "outer text")
    assert outer.cause is root
    error = outer.as_instanceof_cause()
    assert isinstance(error, NeedsArguments)
    assert type(error) is type(inner)
    assert str(error).endswith("outer text")


def test_text_names_the_actor() -> None:
    error = TaskError("Counter.inc", "text\n\n", ValueError(), pid=1, ip="10.0.0.1", actor="Counter(7)")
    assert str(error) == "framework::Counter.inc() (pid=1, ip=10.0.0.1, actor=Counter(7))\ntext"


def test_notes_are_shown_once() -> None:
    cause = ValueError("x")
    cause.add_note("remember this")
    error = failed(cause, "".join(traceback.format_exception(cause))).as_instanceof_cause()
    assert "".join(traceback.format_exception(error)).count("remember this") == 1
    error.add_note("more")
    assert cause.__notes__ == ["remember this"]


def test_what_cannot_be_pickled_arrives_as_text() -> None:
    holds_lock = ValueError("locked")
    holds_lock.lock = threading.Lock()  # type: ignore[attr-defined]
    for cause in (holds_lock, Explosive("bang")):
        error = pickle.loads(pickle.dumps(failed(cause).as_instanceof_cause()))
        assert isinstance(error, TaskError)
        assert isinstance(error.cause, UnserializableCause)
        assert error.cause.type_name.endswith(type(cause).__name__)
        assert error.cause.text == str(cause)
        assert str(error) == str(failed(cause))


def test_a_cause_without_text_that_cannot_be_pickled() -> None:
    cause = Unfriendly(1, 2)
    cause.lock = threading.Lock()  # type: ignore[attr-defined]
    payload, type_name, text = exceptions.dump_exception(cause)
    assert payload is None
    assert type_name.endswith("Unfriendly")
    assert "RuntimeError" in text


@given(st.binary(max_size=60))
def test_junk_is_loaded_as_text(payload: bytes) -> None:
    error = exceptions.load_exception((b"\x80\x05" + payload, "m.Type", "text"))
    assert isinstance(error, UnserializableCause)
    assert (error.type_name, error.text) == ("m.Type", "text")


def test_a_pickle_of_something_else_is_no_exception() -> None:
    assert isinstance(exceptions.load_exception((pickle.dumps(7), "m.T", "t")), UnserializableCause)


def test_cyclic_exceptions() -> None:
    cause = ValueError("cycle")
    cause.me = cause  # type: ignore[attr-defined]
    back = exceptions.load_exception(exceptions.dump_exception(cause))
    assert isinstance(back, ValueError)
    assert back.me is back  # type: ignore[attr-defined]


def test_classes_defined_in_functions_travel_and_do_not_pile_up() -> None:
    def make() -> Exception:
        class Local(Exception):
            def __init__(self, a: int, b: int) -> None:
                super().__init__(a)
                self.b = b

        return Local(1, 2)

    error = pickle.loads(pickle.dumps(failed(make()).as_instanceof_cause()))
    assert type(error).__name__ == "TaskError(Local)"
    assert error.b == 2
    del error
    gc.collect()
    assert not [cls for cls in exceptions._dual_classes if cls.__name__ == "Local"]


def test_futures_take_every_form() -> None:
    async def through_a_future(error: TaskError) -> None:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        await future

    for cause in (*CAUSES, StopIteration(1), KeyboardInterrupt()):
        with pytest.raises(TaskError):
            asyncio.run(through_a_future(failed(cause).as_instanceof_cause()))


# ---------------------------------------------------------------- all classes

values = {
    "str": st.text(max_size=20),
    "int": st.integers(0, 2**31),
    "float": st.floats(0, 1e9),
    "BaseException": st.builds(ValueError, st.text(max_size=5)),
}


@st.composite
def instances(draw: st.DrawFn, cls: type[FrameworkError]) -> FrameworkError:
    if "__init__" not in {
        name for base in cls.__mro__ if base.__module__ == cls.__module__ for name in vars(base)
    }:
        return cls(*draw(st.lists(st.text(max_size=20), max_size=3)))
    positional, named = [], {}
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        strategy = values[str(parameter.annotation).split(" | ")[0]]
        if parameter.default is not parameter.empty and parameter.default is None:
            strategy = st.none() | strategy
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[parameter.name] = draw(strategy)
        else:
            positional.append(draw(strategy))
    return cls(*positional, **named)


@pytest.mark.parametrize("cls", CLASSES)
@settings(max_examples=20)
@given(data=st.data())
def test_every_class_survives_pickling_with_its_attributes(
    cls: type[FrameworkError], data: st.DataObject
) -> None:
    error = data.draw(instances(cls))
    error.extra = [1, "two"]  # type: ignore[attr-defined]
    for dumps in (pickle.dumps, cloudpickle.dumps):
        back = pickle.loads(dumps(error))
        if cls is TaskError:
            assert repr_of(back.cause) == repr_of(error.cause)  # type: ignore[attr-defined]
            assert str(back) == str(error)
            continue
        assert type(back) is cls
        assert (str(back), back.args, back.__dict__) == (str(error), error.args, error.__dict__)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_has_a_text_and_a_docstring(cls: type[FrameworkError]) -> None:
    assert cls.__doc__ and len(cls.__doc__) > 40
    if cls not in (TaskError, UnserializableCause):
        assert (
            str(cls())
            or cls.__doc__.startswith("For Ray's")
            or cls
            in (
                FrameworkError,
                exceptions.AsyncioActorExit,
            )
        )


def test_every_exception_of_ray_has_its_name_here() -> None:
    names = [
        "RayError",
        "RayTaskError",
        "RayActorError",
        "RaySystemError",
        "TaskCancelledError",
        "WorkerCrashedError",
        "ActorDiedError",
        "ActorUnavailableError",
        "LocalRayletDiedError",
        "NodeDiedError",
        "ObjectLostError",
        "ObjectFetchTimedOutError",
        "ReferenceCountingAssertionError",
        "ObjectFreedError",
        "OwnerDiedError",
        "ObjectReconstructionFailedError",
        "ObjectReconstructionFailedMaxAttemptsExceededError",
        "ObjectReconstructionFailedLineageEvictedError",
        "ObjectStoreFullError",
        "OutOfDiskError",
        "OutOfMemoryError",
        "GetTimeoutError",
        "PlasmaObjectNotAvailable",
        "AsyncioActorExit",
        "RuntimeEnvSetupError",
        "TaskPlacementGroupRemoved",
        "ActorPlacementGroupRemoved",
        "PendingCallsLimitExceeded",
        "TaskUnschedulableError",
        "ActorUnschedulableError",
        "ActorAlreadyExistsError",
        "ObjectRefStreamEndOfStreamError",
        "UserCodeException",
        "CrossLanguageError",
        "RpcError",
        "UnserializableException",
        "AuthenticationError",
        "RayChannelError",
        "RayChannelTimeoutError",
        "RayCgraphCapacityExceeded",
        "RayDirectTransportError",
    ]
    for name in names:
        assert issubclass(getattr(exceptions, name), exceptions.RayError), name
    assert exceptions.RayTaskError is TaskError


@pytest.mark.parametrize(
    ("cls", "bases"),
    [
        ("GetTimeoutError", (TimeoutError,)),
        ("TaskTimeoutError", (TimeoutError,)),
        ("NotInitializedError", (RuntimeError,)),
        ("AlreadyInitializedError", (RuntimeError,)),
        ("ForkedProcessError", (RuntimeError,)),
        ("ConnectionFailedError", (ConnectionError,)),
        ("SerializationError", (TypeError, pickle.PicklingError)),
        ("ActorAlreadyExistsError", (ValueError,)),
        ("ActorDiedError", (exceptions.ActorError,)),
        ("ActorUnavailableError", (exceptions.ActorError,)),
        ("OwnerDiedError", (exceptions.ObjectLostError,)),
        ("ReferenceCountingAssertionError", (exceptions.ObjectLostError, AssertionError)),
        ("ObjectReconstructionFailedMaxAttemptsExceededError", (exceptions.ObjectReconstructionFailedError,)),
        ("OutOfMemoryError", (FrameworkError,)),
        ("ActorOutOfMemoryError", (exceptions.ActorDiedError, exceptions.OutOfMemoryError)),
    ],
)
def test_hierarchy(cls: str, bases: tuple[type, ...]) -> None:
    assert all(issubclass(getattr(exceptions, cls), base) for base in (*bases, FrameworkError))


def test_texts() -> None:
    assert (
        str(exceptions.TaskCancelledError("ab", "By its parent.")) == "Task ab was cancelled. By its parent."
    )
    assert str(exceptions.TaskCancelledError()) == "The task was cancelled."
    crash = exceptions.WorkerCrashedError(pid=7, exit_detail="killed by signal 9 (SIGKILL)")
    assert str(crash) == "The worker (pid=7) died while it ran the task: killed by signal 9 (SIGKILL)."
    died = exceptions.ActorDiedError(
        "It was killed by kill().",
        actor_id="aa",
        class_name="Counter",
        name="c",
        pid=7,
        exit_detail="exit code 1",
    )
    assert str(died) == (
        "The actor Counter (name=c, actor_id=aa, pid=7) is dead: exit code 1. It was killed by kill()."
    )
    lost = exceptions.OwnerDiedError("ff")
    assert str(lost) == "Object ff cannot be had: the process that owned it died."
