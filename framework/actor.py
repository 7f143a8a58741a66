"""Actors: what ``@remote`` makes of a class, handles of living actors, and ``@method``."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, cast

from framework._base.ids import ACTOR_UNIQUE_SIZE, ActorID, object_id_bytes, task_id_bytes, task_scope
from framework._base.options import ActorOptions, MethodOptions
from framework._base.signature import CallSignature
from framework._runtime.current import current
from framework._serial.functions import dump_function
from framework._serial.values import decode, encode
from framework._state.tasks import Template
from framework._wire import messages as m
from framework.object_ref import ObjectRef, ref_in

if TYPE_CHECKING:
    from framework._base.keywords import ActorKeywords, MethodKeywords

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_METHOD_OPTIONS = "__framework_method_options__"
_SPECIAL = (
    "__ray_ready__",
    "__ray_call__",
    "__ray_terminate__",
    "__framework_ready__",
    "__framework_call__",
    "__framework_terminate__",
)


def method(**options: Unpack[MethodKeywords]) -> Callable[[F], F]:
    """Options of one method of an actor class: ``@method(num_returns=2)``.

    Raises `ValueError` or `TypeError` for an option that does not exist or a value that it cannot have.
    """
    if not options:
        raise ValueError("@method needs options, as in @method(num_returns=2)")
    MethodOptions.parse(options)

    def mark(function: F) -> F:
        setattr(function, _METHOD_OPTIONS, options)
        return function

    return mark


class MethodInfo:
    """What a handle knows of a method."""

    __slots__ = ("options", "returns", "signature")

    def __init__(self, signature: CallSignature | None, returns: int, options: dict[str, Any]) -> None:
        self.signature = signature
        self.returns = returns
        self.options = options

    def __reduce__(self) -> tuple[Any, ...]:
        return (MethodInfo, (self.signature, self.returns, self.options))


def methods_of(cls: type) -> dict[str, MethodInfo]:
    """The methods of an actor class, those of its bases included."""
    from framework.remote_function import number_of_returns

    found = {}
    for name, member in inspect.getmembers_static(cls):
        if name.startswith("__") and name.endswith("__") and name not in ("__call__", *_SPECIAL):
            if name not in vars(cls) or not callable(member):
                continue
        function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
        if not inspect.isroutine(function):
            continue
        skip = not isinstance(member, staticmethod)
        options = getattr(function, _METHOD_OPTIONS, {})
        checked = MethodOptions.parse(options)
        try:
            signature = CallSignature(function, skip_first=skip)
        except Exception:
            signature = None
        found[name] = MethodInfo(signature, number_of_returns(checked.num_returns, function), dict(options))
    return found


class ActorClass(Generic[T]):
    """A class whose instances are actors: ``Counter.remote(...)`` starts one in a process of its own and
    returns its handle."""

    def __init__(self, cls: type[T], options: ActorOptions) -> None:
        self._class = cls
        self._options = options
        self._name = cls.__name__
        self._methods: dict[str, MethodInfo] | None = None
        self._constructor: CallSignature | None = None
        self._exported: tuple[bytes, bytes, list[Any]] | None = None
        functools.update_wrapper(cast(Any, self), cls, updated=())

    if not TYPE_CHECKING:  # for type checkers a direct call is an error

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise TypeError(
                f"the actor class {self._name} cannot be instantiated directly: use "
                f"{self._name}.remote(...), or {self._name}.__wrapped__(...) for a plain object"
            )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (self._class,)

    def options(self, **options: Unpack[ActorKeywords]) -> ActorClass[T]:
        """The same class with other options. Raises `ValueError` or `TypeError` for wrong ones."""
        return ActorClass(self._class, self._options.merged(**options))

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Start an actor; its handle is there at once, and calls wait for the constructor. Never blocks,
        except for a name that must be looked up (`get_if_exists`) outside of an event loop.

        Raises `TypeError` when the arguments do not fit the constructor, `SerializationError` when one cannot
        be pickled. Errors of the constructor are raised by the calls, as `ActorDiedError`.
        """
        runtime = current()
        options = self._options
        if self._methods is None:
            self._methods = methods_of(self._class)
            self._constructor = _constructor_signature(self._class)
        if self._constructor is not None:
            self._constructor.check(self._name, args, kwargs)
        if options.name is not None and not _in_event_loop():
            existing = _look_up(options.name, options.namespace)
            if existing is not None:
                if options.get_if_exists:
                    return cast("ActorHandle[T]", existing)
                raise ValueError(
                    f"an actor named {options.name!r} exists already: choose another name, kill() that one "
                    "first, or pass get_if_exists=True to use it"
                )
        return self._create(runtime, options, args, kwargs)

    def _create(
        self, runtime: Any, options: ActorOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorHandle[T]:
        from framework.remote_function import environment, strategy_key

        if self._exported is None:
            self._exported = dump_function(self._class, where=f"the actor class {self._name}")
        function_hash, payload, class_refs = self._exported
        job = runtime.config.job
        actor_id = os.urandom(ACTOR_UNIQUE_SIZE) + job
        template = Template(0, f"{self._name}.__init__", 1, function_hash, {}, options, None)
        wire, wire_kwargs, refs, deps = runtime.submitter.encode_args(template, args, kwargs)
        creation = runtime.objects.new(object_id_bytes(task_id_bytes(0, actor_id), 1))
        assert self._methods is not None
        retries, pending = options.max_task_retries, options.max_pending_calls
        ref = ref_in(creation, runtime)
        handle: ActorHandle[T] = ActorHandle(actor_id, self._name, self._methods, ref, retries, pending)
        weak: ActorHandle[T] = ActorHandle(actor_id, self._name, self._methods, None, retries, pending)
        spec = {
            "class_name": self._name,
            "payload": payload,
            "args": wire,
            "kwargs": wire_kwargs,
            "resources": options.running_units(),
            "placement": options.placement_units(),
            "env": environment(options.runtime_env, runtime),
            "strategy": strategy_key(options.scheduling_strategy),
            "name": options.name,
            "namespace": options.namespace or runtime.config.namespace,
            "lifetime": options.lifetime,
            "get_if_exists": bool(options.get_if_exists),
            "max_restarts": options.max_restarts,
            "max_task_retries": retries,
            "max_concurrency": options.max_concurrency,
            "concurrency_groups": options.concurrency_groups,
            "job": job,
            "job_info": runtime.job_info(),
            "handle": encode(weak).own().wire if options.name else None,
        }
        runtime.actors.create(actor_id, spec, deps, [*(refs or []), *class_refs] or None, creation)
        return handle

    def __repr__(self) -> str:
        return f"ActorClass({self._name})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (ActorClass, (self._class, self._options))


def _constructor_signature(cls: type) -> CallSignature:
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return CallSignature(lambda: None)
    return CallSignature(cls.__init__, skip_first=True)  # type: ignore[misc]


def _in_event_loop() -> bool:
    import asyncio

    return asyncio._get_running_loop() is not None


_NO_CORES: dict[str, Any] = {}  #: of a handle that is not complete yet


class ActorHandle(Generic[T]):
    """A living actor, to call: ``handle.method.remote(...)``. Can be passed to tasks and other actors.

    The actor ends when the last handle that goes back to its creation is gone (unless it is detached).
    """

    def __init__(
        self,
        actor_id: bytes,
        class_name: str,
        methods: dict[str, MethodInfo],
        ref: ObjectRef[Any] | None,
        max_task_retries: int,
        max_pending_calls: int = -1,
    ) -> None:
        self._actor_id = actor_id
        self._class_name = class_name
        self._methods = methods
        self._ref = ref
        self._max_task_retries = max_task_retries
        self._max_pending_calls = max_pending_calls
        self._cores: dict[str, _MethodCore] = {}
        self._client: tuple[Any, Any] | None = None

    def __getattr__(self, name: str) -> ActorMethod:
        core = self.__dict__.get("_cores", _NO_CORES).get(name)
        if core is not None:
            return ActorMethod(self, name, core)
        if name.startswith("_framework_") or (
            name.startswith("__") and name.endswith("__") and name not in _SPECIAL
        ):
            if name not in self.__dict__.get("_methods", {}):
                raise AttributeError(name)
        info = self._methods.get(name)
        if info is None:
            if name not in _SPECIAL:
                raise AttributeError(
                    f"the actor class {self._class_name} has no method {name!r}; it has: "
                    + (", ".join(self._public_names()) or "none")
                )
            info = MethodInfo(None, 1, {})
        core = self._cores[name] = _MethodCore(info, {})
        return ActorMethod(self, name, core)

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
        return client[1]

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self._methods})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._actor_id == self._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __repr__(self) -> str:
        return f"Actor({self._class_name}, {self._actor_id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            ActorHandle,
            (
                self._actor_id,
                self._class_name,
                self._methods,
                self._ref,
                self._max_task_retries,
                self._max_pending_calls,
            ),
        )


class _MethodCore:
    """What is worked out once for a method with certain options. It does not know the handle: a handle that
    could be reached from what it keeps would be collected late, and its actor end late."""

    __slots__ = ("given", "info", "options", "prepared")

    def __init__(self, info: MethodInfo, given: dict[str, Any]) -> None:
        self.info = info
        self.given = given
        self.options = MethodOptions.parse({**info.options, **given})
        self.prepared: tuple[Any, Template, Any, int, int] | None = None

    def prepare(
        self, runtime: Any, handle: ActorHandle[Any], name: str
    ) -> tuple[Any, Template, Any, int, int]:
        """First call in this session: describe the constant part of calls, or find it where another handle
        has."""
        from framework.remote_function import number_of_returns, retry_spec, window_of

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
            template = runtime.submitter.template(shown, returns, b"", spec, _CallOptions(retries), None)
            template = client.templates.setdefault(key, template)
        self.prepared = (runtime, template, client, retries, window_of(options.generator_window))
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
        from framework.remote_function import results_of

        runtime = current()
        core, handle = self._core, self._handle
        prepared = core.prepared
        if prepared is None or prepared[0] is not runtime:
            prepared = core.prepare(runtime, handle, self._name)
        _, template, client, retries, window = prepared
        if core.info.signature is not None:
            core.info.signature.check(f"{handle._class_name}.{self._name}", args, kwargs)
        limit = handle._max_pending_calls
        if limit > 0:
            client.check_pending(limit)
        task = runtime.submitter.submit(
            template,
            args,
            kwargs,
            scope=handle._actor_id,
            retries=retries,
            timeout=core.options.timeout,
            window=window,
            actor=client,
            keep=handle._ref,
        )
        if limit > 0:
            client.open.add(task.unique)
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


class ActorExit(SystemExit):
    """Raised by `exit_actor`: let it pass."""


def exit_actor() -> None:
    """End the actor whose method calls this. The call, those that wait behind it and later ones fail with
    `ActorDiedError`; the actor is not restarted.

    Raises `TypeError` outside of actors.
    """
    if current().actor_host is None:
        raise TypeError(
            "exit_actor() can only be called inside of an actor: this code runs in a task or in the driver"
        )
    raise ActorExit(0)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """The handle of a named actor. Blocks for one round trip to the head.

    Raises `ValueError` when there is no living actor of that name in the namespace (by default, that of
    `init`).
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of an actor is a non-empty str, got {name!r}")
    handle = _look_up(name, namespace)
    if handle is None:
        raise ValueError(
            f"no actor named {name!r} was found in namespace {namespace or current().config.namespace!r}: "
            "it was never created, has ended, or lives in another namespace"
        )
    return handle


def _look_up(name: str, namespace: str | None) -> ActorHandle[Any] | None:
    runtime = current()
    found = runtime.head_call(m.ACTOR_FIND, name, namespace or runtime.config.namespace)
    if found is None or found.get("handle") is None:
        return None
    return cast("ActorHandle[Any]", decode(found["handle"]))
