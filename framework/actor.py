"""Actors: what ``@remote`` makes of a class; handles of living actors, ``@method``, `Actor`."""

from __future__ import annotations

import functools
import inspect
import os
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, cast

from framework._actor_types import Actor as Actor
from framework._base.hooks import has_shutdown_hook, save_every_of
from framework._base.ids import ACTOR_UNIQUE_SIZE, object_id_bytes, task_id_bytes
from framework._base.options import ActorOptions
from framework._base.signature import CallSignature, is_async_class
from framework._handle import ActorHandle as Handle
from framework._handle import ActorMethod as ActorMethod
from framework._methods import MethodTable, methods_of
from framework._methods import method as method
from framework._runtime.current import current
from framework._runtime.encoding import encode_args
from framework._serial.functions import dump_function
from framework._serial.values import decode, encode
from framework._state.tasks import Template
from framework._strategies import check_fits, inherited, strategy_wire, units_there
from framework._wire import messages as m
from framework.object_ref import ref_in
from framework.remote_function import environment

if TYPE_CHECKING:
    from framework._actor_types import ActorHandle as ActorHandle
    from framework._base.keywords import ActorKeywords
else:
    ActorHandle = Handle

T = TypeVar("T")


class ActorClass(Generic[T]):
    """A class whose instances are actors: ``Counter.remote(...)`` starts one in a process of its own and
    returns its handle."""

    def __init__(self, cls: type[T], options: ActorOptions) -> None:
        self._class = cls
        self._options = options
        self._name = cls.__name__
        self._methods: MethodTable | None = None
        self._constructor: CallSignature | None = None
        self._is_async = False
        self._is_supervised = False
        self._exported: tuple[bytes, bytes, list[Any]] | None = None
        functools.update_wrapper(cast(Any, self), cls, updated=())

    if not TYPE_CHECKING:  # for type checkers a direct call is an error

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise TypeError(
                f"the actor class {self._name} cannot be instantiated directly: use "
                f"{self._name}.remote(...), or {self._name}.__wrapped__(...) for a plain object"
            )

        def __getattr__(self, name: str) -> Any:
            return self._of_class(name)

    def _of_class(self, name: str) -> Any:
        """What the plain class has: its constants, static and class methods, which run here."""
        if name.startswith("_"):
            shown = self.__dict__.get("_name", "?")  # (a half-made one is asked too)
            raise AttributeError(f"the actor class {shown} has no attribute {name!r}")
        member = inspect.getattr_static(self._class, name, None)
        if inspect.isfunction(member):
            raise AttributeError(
                f"{name}() is a method of actors: make one, actor = {self._name}.remote(...), and call "
                f"actor.{name}.remote(...)"
            )
        return getattr(self._class, name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        # A class may extend a remote one: it then extends the plain class, and is not remote by itself.
        return (self._class,)

    def __getitem__(self, parameters: Any) -> ActorClass[T]:
        """``Box[int].remote(1)`` of a generic class: the parameters are for type checkers."""
        cast(Any, self._class)[parameters]
        return self

    def _supervised(self) -> ActorClass[T]:
        """The same class, for actors whose restarts are the business of a supervisor."""
        if self._options.max_restarts:
            raise ValueError(
                f"{self._name} has max_restarts={self._options.max_restarts}: of a supervised actor, the "
                "supervisor says when it is restarted"
            )
        if self._options.lifetime == "detached" or self._options.get_if_exists:
            raise ValueError(
                f"{self._name} has lifetime='detached' or get_if_exists=True: a supervised actor is made by "
                "its supervisor, and ends with it"
            )
        copy = ActorClass(self._class, self._options)
        copy._is_supervised = True
        return copy

    def options(self, **options: Unpack[ActorKeywords]) -> ActorClass[T]:
        """The same class with other options. Raises `ValueError` or `TypeError` for wrong ones."""
        return ActorClass(self._class, self._options.merged(**options))

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Start an actor; its handle is there at once, and calls wait for the constructor. Never blocks,
        except for a name that must be looked up (`get_if_exists`) outside of an event loop.

        Raises `TypeError` when the arguments do not fit the constructor or the class is abstract,
        `SerializationError` when one cannot be pickled. Errors of the constructor are raised by the calls, as
        `ActorDiedError`.
        """
        runtime = current()
        options = self._options
        if self._methods is None:
            if inspect.isabstract(self._class):
                missing = ", ".join(sorted(cast(Any, self._class).__abstractmethods__))
                raise TypeError(f"{self._name} is an abstract class: it leaves {missing} to its subclasses")
            self._methods = methods_of(self._class)
            self._constructor = _constructor_signature(self._class)
            self._is_async = is_async_class(self._class)
        if self._constructor is not None:
            self._constructor.check(self._name, args, kwargs)
        if options.name is not None and not _in_event_loop():
            existing = _look_up(options.name, options.namespace)
            if existing is not None:
                if options.get_if_exists:
                    return existing
                raise ValueError(
                    f"an actor named {options.name!r} exists already: choose another name, kill() that one "
                    "first, or pass get_if_exists=True to use it"
                )
        return self._create(runtime, options, args, kwargs)

    def _create(
        self, runtime: Any, options: ActorOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Handle[T]:
        if self._exported is None:
            self._exported = dump_function(self._class, where=f"the actor class {self._name}")
        function_hash, payload, class_refs = self._exported
        job = runtime.config.job
        strategy = self._strategy(runtime, options)
        actor_id = os.urandom(ACTOR_UNIQUE_SIZE) + job
        template = Template(0, f"{self._name}.__init__", 1, function_hash, {}, options, None)
        wire, wire_kwargs, refs, deps = encode_args(runtime, template, args, kwargs)
        creation = runtime.objects.new(object_id_bytes(task_id_bytes(0, actor_id), 1))
        assert self._methods is not None
        retries, pending = options.max_task_retries, options.max_pending_calls
        ref = ref_in(creation, runtime)
        unordered = self._is_unordered(options)
        handle: Handle[T] = Handle(actor_id, self._name, self._methods, ref, retries, pending, unordered)
        weak: Handle[T] = Handle(actor_id, self._name, self._methods, None, retries, pending, unordered)
        spec = {
            "class_name": self._name,
            "payload": payload,
            "args": wire,
            "kwargs": wire_kwargs,
            "resources": units_there(options.running_units(), strategy),
            "placement": units_there(self._placement_units(options), strategy),
            "env": environment(options.runtime_env, runtime),
            "strategy": strategy,
            "priority": options.priority,
            "name": options.name,
            "namespace": options.namespace or runtime.config.namespace,
            "lifetime": options.lifetime,
            "get_if_exists": bool(options.get_if_exists),
            "max_restarts": options.max_restarts,
            "max_task_retries": retries,
            "max_concurrency": options.max_concurrency,
            "concurrency_groups": options.concurrency_groups,
            "supervised": self._is_supervised,
            "save_every": save_every_of(self._class, options.save_every),
            "shutdown_hook": has_shutdown_hook(self._class),
            "max_pending_calls": pending,
            "unordered": unordered,
            "owner": runtime.address,
            "job": job,
            "job_info": runtime.job_info(),
            "handle": encode(weak).own().wire if options.name else None,
        }
        runtime.actors.create(actor_id, spec, deps, [*(refs or []), *class_refs] or None, creation)
        return handle

    def _strategy(self, runtime: Any, options: ActorOptions) -> list[Any] | None:
        if runtime.captures and options.scheduling_strategy is None and not options.label_selector:
            return inherited(runtime)
        check_fits(f"the actor {self._name}", options.running_units(), options.scheduling_strategy)
        return strategy_wire(options.scheduling_strategy, options.label_selector)

    @staticmethod
    def _placement_units(options: ActorOptions) -> dict[str, int]:
        """In a placement group it needs no CPU that it has not asked for: its bundles may have none."""
        if getattr(options.scheduling_strategy, "placement_group", None) is not None:
            return options.running_units()
        return options.placement_units()

    def _is_unordered(self, options: ActorOptions) -> bool:
        """Whether a call may overtake one that waits for its arguments."""
        wanted = options.allow_out_of_order_execution
        if wanted is not None:
            return wanted
        threaded = (options.max_concurrency or 1) > 1 or bool(options.concurrency_groups)
        return threaded or self._is_async

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


def get_actor(name: str, namespace: str | None = None) -> Any:
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


def _look_up(name: str, namespace: str | None) -> Handle[Any] | None:
    runtime = current()
    found = runtime.head_call(m.ACTOR_FIND, name, namespace or runtime.config.namespace)
    if found is None or found.get("handle") is None:
        return None
    return cast("Handle[Any]", decode(found["handle"]))
