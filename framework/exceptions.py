"""Every exception that the framework raises, under neutral names, with Ray's names as aliases.

All derive from `FrameworkError` (alias `RayError`), and all survive pickling with their attributes.

An exception raised by user code arrives as `TaskError`. What `get` and `await` raise is
`TaskError.as_instanceof_cause()`: a `TaskError` that also is an instance of the user's exception class,
so that both ``except TaskError`` and ``except ValueError`` catch it. Its text is the remote traceback.
Ids in attributes are hexadecimal text; process ids are those of the node in question.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, cast

import cloudpickle

from framework._base.limits import MAX_ERROR_TEXT

_TASK = "_framework_task"  # key, in the instance's __dict__, of the fields of a TaskError
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: set for classes made at run time, clear for built-in ones


class FrameworkError(Exception):
    """Base of all errors of the framework. Catch it to tell our failures from your own."""

    default_message: ClassVar[str] = ""
    """Text of an exception that was made without arguments."""

    def __str__(self) -> str:
        return super().__str__() if self.args else self.default_message

    def __reduce__(self) -> tuple[object, ...]:
        # Rebuilt without __init__: the arguments of constructors are not what is in `args`. What __new__ gets
        # is asked of the base, because OSError drops file names from `args`.
        new_args = cast("tuple[Any, ...]", super().__reduce__())[1]
        return (_restore, (type(self), new_args, self.args, dict(self.__dict__)))

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return self.__reduce__()


def _restore(
    cls: type[BaseException],
    new_args: tuple[object, ...],
    args: tuple[object, ...],
    state: dict[str, object],
) -> BaseException:
    exc = cls.__new__(cls, *new_args)
    exc.args = args
    exc.__dict__.update(state)
    return exc


# ---------------------------------------------------------------- exceptions of user code


class UnserializableCause(FrameworkError):
    """Stands in for an exception that could not be pickled, or not be unpickled here.

    `type_name` is the qualified name of its class, `text` what `str` said of it. What to do: read the remote
    traceback; make the class importable on both sides and its attributes picklable to get the original.
    """

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(f"{type_name}: {text}" if text else type_name)
        self.type_name = type_name
        self.text = text


class TaskError(FrameworkError):
    """A task or an actor method raised an exception. What to do: read the remote traceback in its text.

    function_name: name of the task, ``Class.method`` for actors.
    traceback_text: the remote traceback, formatted, without our own frames.
    cause: the exception itself. That of another `TaskError` is replaced by its own cause: an error that
        passes through several tasks is wrapped once, by the last.
    pid, ip: the process and node it was raised in.
    task_id, actor: hexadecimal task id, and the actor's id or repr, where known.

    These names always mean the attributes of `TaskError`; an attribute of the same name on the user's
    exception is reached through `cause`.
    """

    def __init__(
        self,
        function_name: str,
        traceback_text: str,
        cause: BaseException,
        *,
        pid: int,
        ip: str,
        task_id: str | None = None,
        actor: str | None = None,
    ) -> None:
        while isinstance(cause, TaskError):
            cause = cause.cause
        BaseException.__init__(self, function_name, traceback_text)
        # In one private entry, because the class of the cause may have properties of the public names.
        self.__dict__[_TASK] = (function_name, traceback_text, cause, pid, ip, task_id, actor)

    def __init_subclass__(cls, **_: object) -> None:
        """Stop here: the hook of a user's exception class shall neither see nor refuse our derived class."""

    @property
    def function_name(self) -> str:
        return cast(str, self.__dict__[_TASK][0])

    @property
    def traceback_text(self) -> str:
        return cast(str, self.__dict__[_TASK][1])

    @property
    def cause(self) -> BaseException:
        return cast(BaseException, self.__dict__[_TASK][2])

    @property
    def pid(self) -> int:
        return cast(int, self.__dict__[_TASK][3])

    @property
    def ip(self) -> str:
        return cast(str, self.__dict__[_TASK][4])

    @property
    def task_id(self) -> str | None:
        return cast("str | None", self.__dict__[_TASK][5])

    @property
    def actor(self) -> str | None:
        return cast("str | None", self.__dict__[_TASK][6])

    def __str__(self) -> str:
        actor = f", actor={self.actor}" if self.actor else ""
        head = f"framework::{self.function_name}() (pid={self.pid}, ip={self.ip}{actor})"
        return f"{head}\n{self.traceback_text.rstrip()}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(function_name={self.function_name!r}, pid={self.pid}, ip={self.ip!r})"

    def as_instanceof_cause(self) -> TaskError:
        """This error as an instance of the cause's class as well; never raises.

        The attributes of the cause (``args``, ``errno``, slots, custom ones) are visible on the result; its
        notes are not, since the remote traceback has them. A plain `TaskError` is returned where no such
        class can or should exist: causes that are no `Exception` (`SystemExit`, `KeyboardInterrupt`,
        `CancelledError`), causes that Python lets nobody deliver (`StopIteration`), and classes that cannot
        be derived from.
        """
        cause = self.cause
        cause_cls = type(cause)
        if isinstance(self, cause_cls) and type(self) is not TaskError:
            return self
        if not isinstance(cause, Exception) or isinstance(cause, StopIteration | StopAsyncIteration):
            return self
        try:
            return _dual_instance(cause, self.__dict__[_TASK])
        except Exception:  # whatever a user's class does when it is derived from
            return self

    def __reduce__(self) -> tuple[object, ...]:
        name, text, cause, *rest = self.__dict__[_TASK]
        dual = type(self) is not TaskError
        return (_restore_task_error, (dual, name, text, dump_exception(cause), *rest))

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return self.__reduce__()


def _restore_task_error(
    dual: bool,
    name: str,
    text: str,
    cause: tuple[bytes | None, str, str],
    pid: int,
    ip: str,
    task_id: str | None,
    actor: str | None,
) -> TaskError:
    error = TaskError(name, text, load_exception(cause), pid=pid, ip=ip, task_id=task_id, actor=actor)
    return error.as_instanceof_cause() if dual else error


# Weak values: a class is remade after the last error of its kind is gone, so classes that tasks
# define anew in each run do not pile up.
_dual_classes: weakref.WeakValueDictionary[type, type[TaskError]] = weakref.WeakValueDictionary()


def _dual_class(cause_cls: type[Exception]) -> type[TaskError]:
    found = _dual_classes.get(cause_cls)
    if found is None:
        body = {
            "__doc__": TaskError.__doc__,
            "__module__": TaskError.__module__,
            "__qualname__": f"TaskError({cause_cls.__qualname__})",
            # Dataclass exceptions may be frozen and unhashable; tracebacks and futures set and hash.
            "__setattr__": BaseException.__setattr__,
            "__delattr__": BaseException.__delattr__,
            "__eq__": object.__eq__,
            "__ne__": object.__ne__,
            "__hash__": object.__hash__,
        }
        name = f"TaskError({cause_cls.__name__})"
        bases = (TaskError, cause_cls)
        found = cast(type[TaskError], types.new_class(name, bases, {}, lambda ns: ns.update(body)))
        _dual_classes[cause_cls] = found
    return found


def _dual_instance(cause: Exception, task: tuple[object, ...]) -> TaskError:
    dual = _dual_class(type(cause))
    args = (cause.message, cause.exceptions) if isinstance(cause, BaseExceptionGroup) else ()
    new: Callable[..., TaskError] = _native_class(type(cause)).__new__
    error = new(dual, *args)
    BaseException.__setattr__(error, "args", cause.args)
    fields, attributes = _exception_state(cause)
    attributes.pop("__notes__", None)  # the remote traceback has them: they would be printed twice
    _set_exception_state(error, (fields, attributes))
    error.__dict__[_TASK] = task
    if isinstance(error, SyntaxError):
        error.add_note(str(error))  # Python displays a SyntaxError by its fields, without its text
    return error


def _native_class(cls: type[BaseException]) -> Any:
    """The built-in class below it, whose ``__new__`` makes an instance past the user's constructors."""
    return next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)


_State = tuple[dict[str, object], dict[str, object]]
"""Slots and fields of built-in classes (errno), and the ``__dict__``, of an exception."""


def _exception_fields(cls: type[BaseException]) -> Iterator[tuple[str, Any]]:
    for base in cls.__mro__:
        if base is not BaseException and base is not object:
            for name, member in vars(base).items():
                is_field = isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType)
                if is_field and not name.startswith("__"):
                    yield name, member


def _exception_state(exc: BaseException) -> _State:
    fields: dict[str, object] = {}
    for name, member in _exception_fields(type(exc)):
        with contextlib.suppress(AttributeError):  # a slot that was never set
            value = member.__get__(exc)
            if value is not None:
                fields.setdefault(name, value)
    return fields, dict(exc.__dict__)


def _set_exception_state(exc: BaseException, state: _State) -> None:
    fields, attributes = state
    for name, member in _exception_fields(type(exc)):
        if name in fields:
            with contextlib.suppress(AttributeError, TypeError):  # read-only: set by __new__
                member.__set__(exc, fields[name])
    exc.__dict__.update(attributes)


def _rebuild_exception(cls: type[BaseException], args: tuple[object, ...]) -> BaseException:
    try:
        exc = cls(*args)
    except Exception:  # the constructor wants something else than `args`
        exc = _native_class(cls).__new__(cls, *args)
    BaseException.__setattr__(exc, "args", args)
    return exc


_PICKLE_HOOKS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__")


class _ExceptionPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Cloudpickle, but an exception, at any depth, that has no pickling of its own is taken apart by us.

    By default an exception is called again with its ``args``, which fails for every constructor that takes
    something else, and loses slots.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException):
            python_classes = [cls for cls in type(obj).__mro__ if cls.__flags__ & _HEAP_TYPE]
            if not any(hook in vars(cls) for cls in python_classes for hook in _PICKLE_HOOKS):
                making = (type(obj), obj.args)
                return (_rebuild_exception, making, _exception_state(obj), None, None, _set_exception_state)
        return super().reducer_override(obj)


def dump_exception(exc: BaseException) -> tuple[bytes | None, str, str]:
    """``(pickle or None, type name, text)`` of an exception, for `load_exception`.

    Unlike plain pickling it copes with classes whose constructor takes other arguments than ``args``, and
    keeps slots. The traceback and the chained exceptions are left out. Never raises an `Exception`.
    """
    cls = type(exc)
    type_name = f"{cls.__module__}.{cls.__qualname__}"
    try:
        text = str(exc)[:MAX_ERROR_TEXT]
    except Exception as error:
        text = f"<its text cannot be had: str() raised {type(error).__name__}>"
    try:
        with io.BytesIO() as file:
            _ExceptionPickler(file, protocol=5).dump(exc)
            return (file.getvalue(), type_name, text)
    except Exception:
        return (None, type_name, text)


def load_exception(dumped: tuple[bytes | None, str, str]) -> BaseException:
    """The exception that `dump_exception` took apart, or an `UnserializableCause`. Never raises an
    `Exception`.
    """
    payload, type_name, text = dumped
    if payload is not None:
        with contextlib.suppress(Exception):
            exc = pickle.loads(payload)
            if isinstance(exc, BaseException):
                return exc
    return UnserializableCause(type_name, text)


# ---------------------------------------------------------------- tasks


class TaskCancelledError(FrameworkError):
    """The task was cancelled: by `cancel`, or with its parent or its task group. Nothing to do unless
    unexpected.

    task_id: hexadecimal id; reason: who or what cancelled it; both may be None.
    """

    def __init__(self, task_id: str | None = None, reason: str | None = None) -> None:
        which = f"Task {task_id}" if task_id else "The task"
        super().__init__(_sentence(f"{which} was cancelled", reason))
        self.task_id = task_id
        self.reason = reason


class TaskTimeoutError(FrameworkError, TimeoutError):
    """A task passed the deadline of its ``timeout`` option, or one it got from its parent.

    What to do: give it more time, or find out what it waits for. timeout: seconds allowed, task_id:
    hexadecimal.
    """

    default_message = "The task did not finish in the time allowed by its timeout option."

    def __init__(
        self, message: str | None = None, *, task_id: str | None = None, timeout: float | None = None
    ) -> None:
        super().__init__(message or self.default_message)
        self.task_id = task_id
        self.timeout = timeout


class WorkerCrashedError(FrameworkError):
    """The process that ran the task ended (exit, signal, crash), and no retries were left.

    pid: its process id; exit_detail: exit code or signal, in words. What to do: see its log; look for crashes
    in native code and for memory limits; allow more ``max_retries``.
    """

    def __init__(
        self, reason: str | None = None, *, pid: int | None = None, exit_detail: str | None = None
    ) -> None:
        where = f"The worker (pid={pid})" if pid is not None else "The worker"
        text = f"{where} died while it ran the task"
        super().__init__(_sentence(f"{text}: {exit_detail}" if exit_detail else text, reason))
        self.reason = reason
        self.pid = pid
        self.exit_detail = exit_detail


class GetTimeoutError(FrameworkError, TimeoutError):
    """`get` did not have all values within its ``timeout``. The tasks go on: ask again, or cancel them."""

    default_message = "get() timed out: some objects are not ready yet."


class TaskUnschedulableError(FrameworkError):
    """No node can ever run the task: its resources, labels or affinity match none. Change them, or add a
    node.
    """

    default_message = "The task cannot be scheduled on any node."


class PlacementGroupRemovedError(FrameworkError):
    """A placement group was removed: by `remove_placement_group`, or with the job that had made it.

    What to do: keep the group as long as anything uses it; ``lifetime="detached"`` keeps it beyond its job.
    """

    default_message = "The placement group has been removed."


class TaskPlacementGroupRemoved(PlacementGroupRemovedError):
    """The placement group that the task was to run in was removed. Keep the group until its tasks are
    done.
    """

    default_message = "The placement group of this task has been removed."


# ---------------------------------------------------------------- actors


class ActorError(FrameworkError):
    """Base of what goes wrong with an actor itself (an exception in a method is a `TaskError`).

    actor_id: hexadecimal id of the actor, None where unknown.
    """

    default_message = "The actor failed."

    def __init__(self, message: str | None = None, *, actor_id: str | None = None) -> None:
        super().__init__(message or self.default_message)
        self.actor_id = actor_id


class ActorDiedError(ActorError):
    """The actor is dead and will not be restarted: killed, crashed, failed in ``__init__``, or out of
    restarts.

    What to do: make a new actor; ``max_restarts`` restarts it by itself, ``max_task_retries`` repeats its
    calls. cause: why, in words (with the traceback where ``__init__`` failed); actor_id, class_name, name,
    pid: which; exit_detail: exit code or signal of its process. All None or empty where unknown.
    """

    def __init__(
        self,
        cause: str = "",
        *,
        actor_id: str | None = None,
        class_name: str | None = None,
        name: str | None = None,
        pid: int | None = None,
        exit_detail: str | None = None,
    ) -> None:
        known = (("name", name), ("actor_id", actor_id), ("pid", pid))
        facts = ", ".join(f"{key}={value}" for key, value in known if value is not None)
        which = f"The actor {class_name}" if class_name else "The actor"
        text = f"{which} ({facts}) is dead" if facts else f"{which} is dead"
        text = f"{text}: {exit_detail}" if exit_detail else text
        super().__init__(_sentence(text, cause), actor_id=actor_id)
        self.cause = cause
        self.class_name = class_name
        self.name = name
        self.pid = pid
        self.exit_detail = exit_detail


class ActorUnavailableError(ActorError):
    """The actor cannot be reached now, but may come back (restart, network). The call may or may not have
    run.

    What to do: try again where running twice does no harm, or set ``max_task_retries``.
    """

    default_message = "The actor is unavailable at the moment."


class ActorUnschedulableError(ActorError):
    """No node can ever host the actor. Change its resources, labels or affinity, or add a node."""

    default_message = "The actor cannot be scheduled on any node."


class ActorPlacementGroupRemoved(ActorDiedError, PlacementGroupRemovedError):
    """The placement group that the actor lived in, or was to live in, was removed, and the actor with it.
    Keep the group as long as the actor."""


class ActorAlreadyExistsError(FrameworkError, ValueError):
    """A living actor has this name in this namespace. Use another name, or ``get_if_exists=True``."""

    default_message = "An actor of this name exists already."


class SupervisionError(FrameworkError):
    """A supervisor has given up: its children needed more restarts than it allows. The last death is its
    ``__cause__``."""

    default_message = "A supervisor has given up."


class PendingCallsLimitExceeded(FrameworkError):
    """More calls wait for the actor than its ``max_pending_calls``. Wait for some of them before the next
    call.
    """

    default_message = "The actor has as many pending calls as max_pending_calls allows."


class AsyncioActorExit(FrameworkError):
    """Raised inside an async actor by `exit_actor` to end it. Let it pass."""


# ---------------------------------------------------------------- objects


class ObjectLostError(FrameworkError):
    """All copies of an object are lost (node death, eviction) and it could not be made again.

    object_id: hexadecimal id; reason: what is known; owner_address: of the process that owns it. All may be
    None. What to do: run the task again; give it ``max_retries`` so that this happens by itself. An object
    made by `put` has no task that could make it again.
    """

    explanation: ClassVar[str] = "all its copies are lost"

    def __init__(
        self, object_id: str | None = None, reason: str | None = None, *, owner_address: str | None = None
    ) -> None:
        which = f"Object {object_id}" if object_id else "The object"
        super().__init__(_sentence(f"{which} cannot be had: {self.explanation}", reason))
        self.object_id = object_id
        self.reason = reason
        self.owner_address = owner_address


class OwnerDiedError(ObjectLostError):
    """The process that owned the object died, and the object with it.

    What to do: let a process that lives longer (the driver, an actor) make objects that outlive their maker.
    """

    explanation = "the process that owned it died"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was freed although a reference to it exists: an error of ours, or a ref that was smuggled.

    What to do: pass refs as refs, not as ids in bytes or text; otherwise report it.
    """

    explanation = "it was freed while a reference to it existed"


class ObjectFreedError(ObjectLostError):
    """The object was freed on request while a reference to it was still in use. Free later."""

    explanation = "it was freed explicitly"


class ObjectFetchTimedOutError(ObjectLostError):
    """A copy of the object is known, but could not be fetched in time. Check the network and load of the
    nodes.
    """

    explanation = "fetching it from another node took too long"


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost and making it again failed. Run the task again."""

    explanation = "it was lost and could not be made again"


class ObjectReconstructionFailedMaxAttemptsExceededError(ObjectReconstructionFailedError):
    """The object was lost more often than the ``max_retries`` of its task allows. Allow more, or run it
    again.
    """

    explanation = "it was lost, and the max_retries of its task are used up"


class ObjectReconstructionFailedLineageEvictedError(ObjectReconstructionFailedError):
    """The object was lost and its lineage is gone (bounded memory). Store long chains' results now and
    then.
    """

    explanation = "it was lost, and the record of how it was made has been dropped"


class ObjectStoreFullError(FrameworkError):
    """The object store has no room, even after spilling. Drop refs, or give ``object_store_memory`` more."""

    default_message = "The object store is full."


class OutOfDiskError(FrameworkError):
    """The disk that objects are spilled to is full. Make room, or spill elsewhere."""

    default_message = "The disk for spilled objects is full."


class ObjectNotAvailableError(FrameworkError):
    """The object is not in the local store yet (asked without waiting). Wait for it."""

    default_message = "The object is not available in the local object store."


class ObjectRefStreamEndOfStreamError(FrameworkError):
    """The stream of a generator has ended. Loops end by themselves; seen only when indexing past the end."""

    default_message = "The generator has no more values."


# ---------------------------------------------------------------- nodes and system


class SystemError_(FrameworkError):  # the plain name is a built-in's
    """Something inside the framework failed (alias `RaySystemError`). See the logs of the session; report
    it.
    """

    default_message = "The framework failed internally."


class NodeDiedError(FrameworkError):
    """The node that ran the task, or held the object, died. Retried by itself while ``max_retries`` are
    left.
    """

    default_message = "The node died."


class NodeFencedError(FrameworkError):
    """The head has declared this node dead: it may not come back, and ends itself."""

    default_message = "The head has declared this node dead."


class LocalNodeDiedError(FrameworkError):
    """The node process that this process is connected to is gone. Call `shutdown` and `init` again."""

    default_message = "The local node process died; nothing more can be run in this session."


class OutOfMemoryError(FrameworkError):
    """The task or actor was killed because its node ran out of memory. Reserve ``memory=``, run fewer at
    once.
    """

    default_message = "The node ran out of memory."


class ActorOutOfMemoryError(ActorDiedError, OutOfMemoryError):
    """The actor is dead because its node ran out of memory, and its process was the one to end.

    Caught by ``except ActorDiedError`` and by ``except OutOfMemoryError``. The text has the memory of its
    process and the top consumers. What to do: as for `OutOfMemoryError`; ``max_restarts`` restarts it.
    """


class RuntimeEnvSetupError(FrameworkError):
    """The ``runtime_env`` of a task or actor could not be set up. The text says which part of it."""

    default_message = "The runtime environment could not be set up."


class NotInitializedError(FrameworkError, RuntimeError):
    """Used before `init`, or after `shutdown` (refs and handles do not outlive their session)."""

    default_message = "The framework is not initialized, or was shut down: call init() first."


class AlreadyInitializedError(FrameworkError, RuntimeError):
    """`init` was called twice. Call `shutdown` first, or pass ``ignore_reinit_error=True``."""

    default_message = "init() was called before: call shutdown() first, or pass ignore_reinit_error=True."


class ConnectionFailedError(FrameworkError, ConnectionError):
    """An address cannot be reached, or the peer is gone. Check the address and that the cluster runs."""

    default_message = "The connection failed."


class ProtocolError(FrameworkError):
    """A peer sent what the protocol does not allow: another version, or no member of the cluster."""

    default_message = "The peer broke the protocol."


class AuthenticationError(FrameworkError):
    """The cluster token is missing or wrong. Use the token of the cluster that you join."""

    default_message = "Authentication failed: the cluster token is missing or wrong."


class ForkedProcessError(FrameworkError, RuntimeError):
    """Used in a forked child of a connected process. Use tasks, start the child by spawn, or `init` in it."""

    default_message = "This process is a fork of a connected one and cannot use its connections."


class SerializationError(FrameworkError, TypeError, pickle.PicklingError):
    """A value, function or argument cannot be pickled or unpickled. The text has the path to the culprit."""

    default_message = "The value cannot be serialized."


# ---------------------------------------------------------------- Ray names


class UserCodeError(FrameworkError):
    """For Ray's `UserCodeException`. Never raised here: exceptions of user code are `TaskError`."""


class CrossLanguageError(FrameworkError):
    """For Ray's name. Never raised here: there is one language."""


class RpcError(FrameworkError):
    """For Ray's name. Never raised here: see `ConnectionFailedError`."""


class ChannelError(SystemError_):
    """For Ray's `RayChannelError`. Never raised here: there are no compiled graphs."""


class ChannelTimeoutError(ChannelError, TimeoutError):
    """For Ray's `RayChannelTimeoutError`. Never raised here: there are no compiled graphs."""


class CompiledGraphCapacityExceeded(SystemError_):
    """For Ray's `RayCgraphCapacityExceeded`. Never raised here: there are no compiled graphs."""


class DirectTransportError(SystemError_):
    """For Ray's `RayDirectTransportError`. Never raised here: there are no device transports."""


RayError = FrameworkError
RayTaskError = TaskError
RayActorError = ActorError
RaySystemError = SystemError_
LocalRayletDiedError = LocalNodeDiedError
UnserializableException = UnserializableCause
PlasmaObjectNotAvailable = ObjectNotAvailableError
UserCodeException = UserCodeError
RayChannelError = ChannelError
RayChannelTimeoutError = ChannelTimeoutError
RayCgraphCapacityExceeded = CompiledGraphCapacityExceeded
RayDirectTransportError = DirectTransportError


def _sentence(text: str, reason: str | None) -> str:
    return f"{text}. {reason}" if reason else f"{text}."


__all__ = [
    name
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, FrameworkError) and not name.startswith("_")
]
