"""Remote functions: what ``@remote`` makes of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from framework._base.ids import tail_of, task_scope
from framework._base.options import TaskOptions
from framework._base.signature import CallSignature
from framework._runtime.current import current, here
from framework._serial.functions import dump_function
from framework._serial.values import encode
from framework._state.tasks import DEFAULT_WINDOW, DYNAMIC, STREAMING, Template
from framework._strategies import check_fits, inherited, strategy_wire, units_there
from framework.object_ref import ObjectRef, ObjectRefGenerator, ref_in

if TYPE_CHECKING:
    from framework._actor_types import ActorType
    from framework._base.keywords import TaskKeywords
    from framework.actor import ActorClass

_new: Callable[[type[ObjectRef[Any]]], ObjectRef[Any]] = object.__new__

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
#: the runtime, template, scope, retries, window, timeout; `tail_of` the scope, if its tasks are usual ones
_Prepared = tuple[Any, Template, bytes, int, int, float | None, bytes | None]
Out = TypeVar("Out", covariant=True)
_A = TypeVar("_A", contravariant=True)
_B = TypeVar("_B", contravariant=True)
_C = TypeVar("_C", contravariant=True)
_D = TypeVar("_D", contravariant=True)


class _Takes1(Protocol[_A, Out]):
    def _signature(self, a: _A, /) -> Out: ...


class _Takes2(Protocol[_A, _B, Out]):
    def _signature(self, a: _A, b: _B, /) -> Out: ...


class _Takes3(Protocol[_A, _B, _C, Out]):
    def _signature(self, a: _A, b: _B, c: _C, /) -> Out: ...


class _Takes4(Protocol[_A, _B, _C, _D, Out]):
    def _signature(self, a: _A, b: _B, c: _C, d: _D, /) -> Out: ...


class RemoteFunction(Generic[P, Out]):
    """A function that runs in other processes: ``f.remote(...)`` returns an `ObjectRef` at once.

    Arguments that are references are replaced by their values before the function runs; references inside
    other arguments stay references. Type checkers see the parameters of the function, and that each of the
    first four positional arguments may be a reference instead.
    """

    def __init__(self, function: Callable[..., Any], options: TaskOptions) -> None:
        self._function = function
        self._options = options
        self._name: str = options.name or getattr(function, "__name__", "") or type(function).__name__
        signature = CallSignature(function)
        self._check, self._bare = signature.check, signature.bare
        self._prepared: _Prepared | None = None
        self._within: tuple[Any, bytes, _Prepared] | None = None  #: in the placement group of its caller
        functools.update_wrapper(
            cast(Any, self), function
        )  # also lets pickle find an importable function by reference

    if not TYPE_CHECKING:  # for type checkers a direct call is an error

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise TypeError(
                f"the remote function {self._name}() cannot be called directly: use "
                f"{self._name}.remote(...), or "
                f"{self._name}.__wrapped__(...) to run it here"
            )

    def _signature(self, *args: P.args, **kwargs: P.kwargs) -> Out:
        """Only for type checkers: what the overloads of `remote` are matched with."""
        raise NotImplementedError

    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Out: ...
    @overload
    def remote(self: _Takes1[A, R], a: A | ObjectRef[A], /) -> R: ...
    @overload
    def remote(self: _Takes2[A, B, R], a: A | ObjectRef[A], b: B | ObjectRef[B], /) -> R: ...
    @overload
    def remote(
        self: _Takes3[A, B, C, R], a: A | ObjectRef[A], b: B | ObjectRef[B], c: C | ObjectRef[C], /
    ) -> R: ...
    @overload
    def remote(
        self: _Takes4[A, B, C, D, R],
        a: A | ObjectRef[A],
        b: B | ObjectRef[B],
        c: C | ObjectRef[C],
        d: D | ObjectRef[D],
        /,
    ) -> R: ...
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a call. Never waits, but for some 20 µs now and then in a burst of hundreds: so workers get
        the first of them.

        Returns an `ObjectRef`; a list of them for ``num_returns`` other than 1 (None for 0); an
        `ObjectRefGenerator` for generator functions.

        Raises `TypeError` when the arguments do not fit the signature, and `SerializationError` when one of
        them cannot be pickled.
        """
        runtime = here.runtime
        if runtime is None or here.may_be_fork:
            runtime = current()
        prepared = self._prepared
        if prepared is None or prepared[0] is not runtime:
            prepared = self._prepared = self._prepare(runtime, None)
        if runtime.captures and self._options.scheduling_strategy is None:
            prepared = self._prepared_within(runtime, prepared)
        _, template, scope, retries, window, timeout, tail = prepared
        if args or kwargs or not self._bare:
            self._check(self._name, args, kwargs)
        if tail is not None and not kwargs:
            task = runtime.submitter.submit_usual(template, args, tail, retries, None, None)
        else:
            task = runtime.submitter.submit(template, args, kwargs, scope, retries, timeout, window)
        if template.returns == 1:
            ref = _new(ObjectRef)
            ref._entry = task.entry
            ref._runtime = runtime
            return ref
        return results_of(runtime, task)

    def options(self, **options: Unpack[TaskKeywords]) -> RemoteFunction[P, Out]:
        """The same function with other options. Raises `ValueError` or `TypeError` for an option that does
        not exist or a value that it cannot have."""
        other: RemoteFunction[P, Out] = RemoteFunction(self._function, self._options.merged(**options))
        return other

    def _prepared_within(self, runtime: Any, plain: _Prepared) -> _Prepared:
        """As prepared for what code in a placement group starts, if that captures its children."""
        strategy = inherited(runtime)
        if strategy is None or self._options.label_selector:
            return plain
        if self._within is None or self._within[0] is not runtime or self._within[1] != strategy[1]:
            self._within = (runtime, strategy[1], self._prepare(runtime, strategy))
        return self._within[2]

    def _prepare(self, runtime: Any, strategy: list[Any] | None) -> _Prepared:
        """First call in this session: export the function, describe the constant part of its tasks."""
        options = self._options
        function_hash, payload, refs = dump_function(
            self._function, where=f"the remote function {self._name}()"
        )
        catalogue = runtime.catalogue
        function = catalogue.function(function_hash, payload, refs)
        scope = task_scope(runtime.config.job)
        resources = options.resources_units()
        if strategy is None:
            strategy = strategy_wire(options.scheduling_strategy, options.label_selector)
            check_fits(f"{self._name}()", resources, options.scheduling_strategy)
        resources = units_there(resources, strategy)
        env = environment(options.runtime_env, runtime)
        key = catalogue.key(resources, env, strategy, options.max_retries != 0, options.priority)
        spec: dict[str, Any] = {"scope": scope, "resources": resources}
        if strategy is not None and strategy[0] == "group":
            spec["strategy"] = strategy
        if options.max_calls:
            spec["max_calls"] = options.max_calls
        if options.max_retries == 0:
            spec["careful"] = True
        retry = retry_spec(options.retry_exceptions, options.retry_policy)
        if retry is not None:
            spec["retry"] = retry
        returns = number_of_returns(options.num_returns, self._function)
        template = catalogue.template(self._name, returns, function, spec, options, key)
        window = window_of(options.generator_window)
        tail = tail_of(scope) if returns == 1 and options.timeout is None else None
        return (runtime, template, scope, options.max_retries, window, options.timeout, tail)

    def __repr__(self) -> str:
        return f"<remote function {self._name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self._function, self._options))


def _rebuild(function: Callable[..., Any], options: TaskOptions) -> RemoteFunction[Any, Any]:
    return RemoteFunction(function, options)


def results_of(runtime: Any, task: Any) -> Any:
    """What `remote` returns for a submitted task."""
    returns = task.template.returns
    entries = task.entries
    if returns == 1 or returns == DYNAMIC:
        return ref_in(entries[0], runtime)
    if returns == STREAMING:
        runtime.streams.add(task)
        return ObjectRefGenerator(ref_in(entries[0], runtime))
    refs = []
    for entry in entries:  # as `ref_in`
        ref: ObjectRef[Any] = _new(ObjectRef)
        ref._entry = entry
        ref._runtime = runtime
        refs.append(ref)
    return refs or None


def number_of_returns(num_returns: int | str | None, function: Callable[..., Any]) -> int:
    """The option `num_returns` as templates have it."""
    if num_returns is None:
        streams = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        return STREAMING if streams else 1
    if num_returns == "streaming":
        return STREAMING
    if num_returns == "dynamic":
        return DYNAMIC
    assert isinstance(num_returns, int)
    return num_returns


def retry_spec(retry_exceptions: bool | tuple[type[BaseException], ...], policy: Any) -> bytes | None:
    """Which exceptions to retry for, for the worker to decide: the owner never unpickles them."""
    predicate = policy.retry_if if policy is not None else None
    if not retry_exceptions and predicate is None:
        return None
    wanted: Any = True if isinstance(retry_exceptions, bool) else retry_exceptions
    wire = encode([wanted, predicate], where="retry_exceptions or the retry policy").own().wire
    return wire if isinstance(wire, bytes) else bytes(wire[1])


def environment(runtime_env: dict[str, Any] | None, runtime: Any) -> dict[str, str] | None:
    """The environment variables of a runtime environment, those that it inherits included."""
    own = (runtime_env or {}).get("env_vars") or {}
    return {**runtime.config.env, **own} or None


def window_of(window: int | None) -> int:
    """The option `generator_window`, with its default."""
    return DEFAULT_WINDOW if window is None else window


class RemoteDecorator(Protocol):
    """What ``remote(num_cpus=...)`` returns."""

    @overload
    def __call__(self, target: type[ActorType], /) -> type[ActorType]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, target: type[R], /) -> ActorClass[R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, target: Callable[P, Coroutine[Any, Any, R]], /) -> RemoteFunction[P, ObjectRef[R]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, target: Callable[P, Iterator[R]], /
    ) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, target: Callable[P, AsyncIterator[R]], /
    ) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
    @overload
    def __call__(self, target: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...
