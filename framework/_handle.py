"""Handles of actors, and their methods to call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from framework._base import limits
from framework._base.ids import ActorID, object_id_bytes, tail_of, task_id_bytes, task_scope
from framework._base.options import MethodOptions
from framework._methods import SPECIAL, MethodInfo, MethodTable, methods_of
from framework._runtime.current import current, here
from framework._state.tasks import Template
from framework.object_ref import ObjectRef
from framework.remote_function import number_of_returns, results_of, retry_spec, window_of

if TYPE_CHECKING:
    from framework._base.keywords import MethodKeywords

T = TypeVar("T")
_new: Callable[[type[ObjectRef[Any]]], ObjectRef[Any]] = object.__new__
#: the runtime, template, client, retries, window; `tail_of` the actor, if its calls are usual ones
_Prepared = tuple[Any, Template, Any, int, int, bytes | None]


class ActorHandle(Generic[T]):
    """A living actor, to call: ``handle.method.remote(...)``. Can be passed to tasks and other actors.

    The actor ends when the last handle that goes back to its creation is gone (unless it is detached). `ref`
    is what counts them; without one the handle counts for nothing. With an `owner`, the process that made the
    actor, copies of it count: so an actor may keep its own handle and end, and pass it on and live.
    """

    __module__ = "framework.actor"

    def __init__(
        self,
        actor_id: bytes,
        class_name: str,
        methods: MethodTable,
        ref: ObjectRef[Any] | None,
        max_task_retries: int,
        max_pending_calls: int = -1,
        unordered: bool = False,
        owner: str = "",
    ) -> None:
        self._actor_id = actor_id
        self._class_name = class_name
        self._methods = methods
        self._ref = ref
        self._max_task_retries = max_task_retries
        self._max_pending_calls = max_pending_calls
        self._unordered = unordered
        self._owner = owner
        self._cores: dict[str, _MethodCore] = {}
        self._client: tuple[Any, Any] | None = None
        self._twin: ActorHandle[T] | None = None
        self._is_twin = False

    def __getattr__(self, name: str) -> ActorMethod:
        """A method. From the second time on Python finds it in `__dict__`: to come here costs a third of what
        a call does."""
        try:
            core = self.__dict__["_cores"][name]
        except KeyError:  # its first use, or the handle is not complete yet
            core = self._first_use(name)
        if self._is_twin:
            return ActorMethod(self, name, core)
        method = self.__dict__[name] = ActorMethod(self._twin or self._make_twin(), name, core)
        return method

    def _make_twin(self) -> ActorHandle[T]:
        """The same handle, for the methods that this one keeps. Should they know this one itself, both would
        be in a circle, which is collected late, and the actor would end late."""
        twin: ActorHandle[T] = object.__new__(ActorHandle)
        twin.__dict__.update(self.__dict__, _is_twin=True)
        self._twin = twin
        return twin

    def _first_use(self, name: str) -> _MethodCore:
        if name.startswith("_framework_") or (
            name.startswith("__") and name.endswith("__") and name not in SPECIAL
        ):
            if name not in self.__dict__.get("_methods", {}):
                raise AttributeError(name)
        info = self._methods.get(name)
        if info is None:
            if name not in SPECIAL:
                raise AttributeError(
                    f"the actor class {self._class_name} has no method {name!r}; it has: "
                    + (", ".join(self._public_names()) or "none")
                    + ". (Attributes and properties cannot be read through a handle: let a method "
                    "return them.)"
                )
            info = MethodInfo(None, 1, {})
        core = self._cores[name] = _MethodCore(info, {})
        return core

    def _public_names(self) -> list[str]:
        return [name for name in self._methods if not name.startswith("_")]

    @property
    def _ray_actor_id(self) -> ActorID:
        return ActorID(self._actor_id)

    @property
    def _actor_id_hex(self) -> str:
        return self._actor_id.hex()

    def _client_of(self, runtime: Any) -> Any:
        client = self._client
        if client is None or client[0] is not runtime:
            client = self._client = (runtime, runtime.actors.client(self._actor_id, self._class_name))
            client[1].unordered = self._unordered
        return client[1]

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self._methods})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._actor_id == self._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __repr__(self) -> str:
        return f"Actor({self._class_name}, {self._actor_id.hex()})"

    def __copy__(self) -> ActorHandle[T]:
        return self

    def __deepcopy__(self, memo: Any) -> ActorHandle[T]:
        return self  # its reference, copied by pickling, could never be known to be gone

    def __reduce__(self) -> tuple[Any, ...]:
        ref = self._ref
        if ref is None and self._owner:
            ref = current().make_ref(object_id_bytes(task_id_bytes(0, self._actor_id), 1), self._owner)
        return (
            ActorHandle,
            (
                self._actor_id,
                self._class_name,
                self._methods,
                ref,
                self._max_task_retries,
                self._max_pending_calls,
                self._unordered,
            ),
        )


class _MethodCore:
    """What is worked out once for a method with certain options. It does not know the handle: a handle that
    could be reached from what it keeps would be collected late, and its actor end late."""

    __slots__ = ("bare", "given", "info", "options", "prepared")

    def __init__(self, info: MethodInfo, given: dict[str, Any]) -> None:
        self.info = info
        self.bare = info.signature is None or info.signature.bare
        self.given = given
        self.options = MethodOptions.parse({**info.options, **given})
        self.prepared: _Prepared | None = None

    def prepare(self, runtime: Any, handle: ActorHandle[Any], name: str) -> _Prepared:
        """First call in this session: describe the constant part of calls, or find it where another handle
        has."""
        options = self.options
        returns = self.info.returns
        if options.num_returns is not None:
            returns = number_of_returns(options.num_returns, lambda: None)
        retries = options.max_task_retries
        if retries is None:
            retries = handle._max_task_retries
        spec: dict[str, Any] = {"scope": task_scope(runtime.config.job, handle._actor_id), "method": name}
        if options.concurrency_group:
            spec["group"] = options.concurrency_group
        retry = retry_spec(options.retry_exceptions or False, None)
        if retry is not None:
            spec["retry"] = retry
        shown = options.name or f"{handle._class_name}.{name}"
        client = handle._client_of(runtime)
        key = (name, returns, retries, options.concurrency_group, retry, shown)
        template = client.templates.get(key)
        if template is None:
            template = runtime.catalogue.template(shown, returns, None, spec, _CallOptions(retries), None)
            template = client.templates.setdefault(key, template)
            while len(client.templates) > limits.METHOD_TEMPLATES_KEPT:
                with contextlib.suppress(StopIteration, RuntimeError, KeyError):  # other threads do so, too
                    del client.templates[next(iter(client.templates))]
        tail = tail_of(handle._actor_id) if returns == 1 and options.timeout is None else None
        self.prepared = (runtime, template, client, retries, window_of(options.generator_window), tail)
        return self.prepared


class ActorMethod:
    """A method of an actor, to call: ``handle.method.remote(...)``."""

    __slots__ = ("_core", "_handle", "_name")

    def __init__(self, handle: ActorHandle[Any], name: str, core: _MethodCore) -> None:
        self._handle = handle
        self._name = name
        self._core = core

    if not TYPE_CHECKING:  # for type checkers a direct call is an error

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise TypeError(
                f"the method {self._name}() of an actor cannot be called directly: "
                f"use {self._name}.remote(...)"
            )

    def options(self, **options: Unpack[MethodKeywords]) -> ActorMethod:
        """The same method with other options. Raises `ValueError` or `TypeError` for wrong ones."""
        core = self._core
        return ActorMethod(self._handle, self._name, _MethodCore(core.info, {**core.given, **options}))

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a call; returns as `RemoteFunction.remote` does. Calls of one caller run in the order in
        which they were made (sync actors). Raises `TypeError` when the arguments do not fit,
        `PendingCallsLimitExceeded` when more calls are under way than the actor's `max_pending_calls`."""
        runtime = here.runtime
        if runtime is None or here.may_be_fork:
            runtime = current()
        core, handle = self._core, self._handle
        prepared = core.prepared
        if prepared is None or prepared[0] is not runtime:
            prepared = core.prepare(runtime, handle, self._name)
        _, template, client, retries, window, tail = prepared
        if (args or kwargs or not core.bare) and core.info.signature is not None:
            core.info.signature.check(f"{handle._class_name}.{self._name}", args, kwargs)
        limit = handle._max_pending_calls
        if limit > 0:
            client.check_pending(limit)
        if tail is not None and not kwargs:
            task = runtime.submitter.submit_usual(template, args, tail, retries, client, handle._ref)
        else:
            scope, timeout = handle._actor_id, core.options.timeout
            task = runtime.submitter.submit(
                template, args, kwargs, scope, retries, timeout, window, client, handle._ref
            )
        if limit > 0:
            client.open.add(task.unique)
        if template.returns == 1:
            ref = _new(ObjectRef)
            ref._entry = task.entry
            ref._runtime = runtime
            return ref
        return results_of(runtime, task)

    def __repr__(self) -> str:
        return f"<method {self._name} of {self._handle!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_method_of, (self._handle, self._name, self._core.given))


class _CallOptions:
    """What the submitter asks of the options of a call."""

    __slots__ = ("max_retries", "retry_policy")

    def __init__(self, max_retries: int) -> None:
        self.max_retries = max_retries
        self.retry_policy = None


def _method_of(handle: ActorHandle[Any], name: str, options: dict[str, Any]) -> ActorMethod:
    found: ActorMethod = getattr(handle, name)
    return found.options(**options) if options else found


def self_handle(host: Any) -> ActorHandle[Any]:
    """The handle that an actor has of itself. Kept, it does not keep the actor; passed on, it does."""
    spec = host._spec
    owner = "" if spec.get("lifetime") == "detached" else spec["owner"]
    return ActorHandle(
        host.actor_id,
        host.class_name,
        methods_of(host.cls),
        None,
        host.max_task_retries,
        spec.get("max_pending_calls", -1),
        bool(spec.get("unordered")),
        owner,
    )
