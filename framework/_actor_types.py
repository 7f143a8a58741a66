"""What type checkers see of actors whose class extends `Actor`.

No checker lets a generic ``ActorHandle[Counter]`` take its attributes from ``Counter``. So for checkers a
handle *is* a ``Counter``: `ActorHandle` is an alias, and the methods under ``@method`` are descriptors whose
values can be called (``self.f()``, in the class) and have ``remote`` and ``options`` (``handle.f.remote()``,
everywhere else). The class itself has ``remote`` and ``options`` from `Actor`; as ``@remote`` gives type
checkers the class that it got, it stays a name for annotations. At run time none of this exists but an empty
class `Actor`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    overload,
)

if TYPE_CHECKING:
    from framework._base.ids import ActorID
    from framework._base.keywords import ActorKeywords, OneResultKeywords
    from framework.object_ref import ObjectRef, ObjectRefGenerator
    from framework.remote_function import _Takes1, _Takes2, _Takes3, _Takes4

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
Plain = TypeVar("Plain", covariant=True)  #: what a direct call gives
Remote = TypeVar("Remote", covariant=True)  #: what a remote call gives
Made = TypeVar("Made", covariant=True)


class Actor:
    """Optional base of actor classes, for type checkers. It is empty: nothing but typing changes.

    With it, and with ``@method`` above each method that is to be called from elsewhere, mypy and pyright
    know handles: ``Counter.remote(1)`` checks the constructor's arguments and gives an
    ``ActorHandle[Counter]``, on which ``handle.increment.remote(1)`` checks those of the method and gives an
    ``ObjectRef[int]``.

        @fw.remote
        class Counter(fw.Actor):
            @fw.method
            def increment(self, by: int = 1) -> int: ...

    Without it all of this works alike, unchecked.
    """

    if TYPE_CHECKING:

        @overload
        @classmethod
        def remote(cls: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> ActorHandle[T]: ...
        @overload
        @classmethod
        def remote(cls: Callable[[A], T], a: A | ObjectRef[A], /) -> ActorHandle[T]: ...
        @overload
        @classmethod
        def remote(
            cls: Callable[[A, B], T], a: A | ObjectRef[A], b: B | ObjectRef[B], /
        ) -> ActorHandle[T]: ...
        @overload
        @classmethod
        def remote(
            cls: Callable[[A, B, C], T], a: A | ObjectRef[A], b: B | ObjectRef[B], c: C | ObjectRef[C], /
        ) -> ActorHandle[T]: ...
        @overload
        @classmethod
        def remote(
            cls: Callable[[A, B, C, D], T],
            a: A | ObjectRef[A],
            b: B | ObjectRef[B],
            c: C | ObjectRef[C],
            d: D | ObjectRef[D],
            /,
        ) -> ActorHandle[T]: ...
        @classmethod
        def remote(cls: Any, *args: Any, **kwargs: Any) -> Any:
            """See `ActorClass.remote`."""

        @classmethod
        def options(cls: Callable[P, T], **options: Unpack[ActorKeywords]) -> TypedActorClass[P, T]:
            """See `ActorClass.options`."""
            raise NotImplementedError

        @property
        def __ray_ready__(self) -> RemoteMethod[[], bool, ObjectRef[bool]]: ...
        @property
        def __ray_terminate__(self) -> RemoteMethod[[], None, ObjectRef[None]]: ...
        @property
        def __ray_call__(self) -> RemoteMethod[..., Any, ObjectRef[Any]]: ...
        @property
        def __framework_ready__(self) -> RemoteMethod[[], bool, ObjectRef[bool]]: ...
        @property
        def __framework_terminate__(self) -> RemoteMethod[[], None, ObjectRef[None]]: ...
        @property
        def __framework_call__(self) -> RemoteMethod[..., Any, ObjectRef[Any]]: ...
        @property
        def _ray_actor_id(self) -> ActorID: ...


if TYPE_CHECKING:
    ActorType = TypeVar("ActorType", bound=Actor)
    ActorHandle = Annotated[T, "the handle of an actor of this class"]

    class Callee(Generic[P, Made]):
        """What has ``remote``. Any of the first four positional arguments may be a reference."""

        def _signature(self, *args: P.args, **kwargs: P.kwargs) -> Made: ...
        @overload
        def remote(self, *args: P.args, **kwargs: P.kwargs) -> Made: ...
        @overload
        def remote(self: _Takes1[A, T], a: A | ObjectRef[A], /) -> T: ...
        @overload
        def remote(self: _Takes2[A, B, T], a: A | ObjectRef[A], b: B | ObjectRef[B], /) -> T: ...
        @overload
        def remote(
            self: _Takes3[A, B, C, T], a: A | ObjectRef[A], b: B | ObjectRef[B], c: C | ObjectRef[C], /
        ) -> T: ...
        @overload
        def remote(
            self: _Takes4[A, B, C, D, T],
            a: A | ObjectRef[A],
            b: B | ObjectRef[B],
            c: C | ObjectRef[C],
            d: D | ObjectRef[D],
            /,
        ) -> T: ...
        def remote(self, *args: Any, **kwargs: Any) -> Any: ...

    class TypedActorClass(Callee[P, Made]):
        """An actor class with options."""

        def options(self, **options: Unpack[ActorKeywords]) -> TypedActorClass[P, Made]: ...

    class RemoteMethod(Callee[P, Remote], Generic[P, Plain, Remote]):
        """A method of an actor: called inside of its class, ``remote`` through a handle."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Plain: ...
        @overload
        def options(self, **options: Unpack[OneResultKeywords]) -> RemoteMethod[P, Plain, Remote]: ...
        @overload
        def options(  # type: ignore[overload-overlap]
            self, *, num_returns: Literal[0], **options: Unpack[OneResultKeywords]
        ) -> RemoteMethod[P, Plain, None]: ...
        @overload
        def options(  # type: ignore[overload-overlap]
            self, *, num_returns: Literal[1, "dynamic"], **options: Unpack[OneResultKeywords]
        ) -> RemoteMethod[P, Plain, ObjectRef[Any]]: ...
        @overload
        def options(
            self, *, num_returns: Literal["streaming"], **options: Unpack[OneResultKeywords]
        ) -> RemoteMethod[P, Plain, ObjectRefGenerator[Any]]: ...
        @overload
        def options(
            self, *, num_returns: int, **options: Unpack[OneResultKeywords]
        ) -> RemoteMethod[P, Plain, list[ObjectRef[Any]]]: ...
        def options(self, **options: Any) -> Any: ...

    class MethodOf(Generic[P, Plain, Remote]):
        """What ``@method`` puts into the class."""

        def __get__(self, instance: Any, owner: Any) -> RemoteMethod[P, Plain, Remote]: ...

    class Decorator(Protocol):
        """What ``method(name=...)`` gives, with any option but `num_returns`."""

        @overload
        def __call__(self, function: classmethod[Any, P, R], /) -> MethodOf[P, R, ObjectRef[R]]: ...
        @overload
        def __call__(
            self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
        ) -> MethodOf[P, Coroutine[Any, Any, R], ObjectRef[R]]: ...
        @overload
        def __call__(  # type: ignore[overload-overlap]
            self, function: Callable[Concatenate[Any, P], Iterator[R]], /
        ) -> MethodOf[P, Iterator[R], ObjectRefGenerator[R]]: ...
        @overload
        def __call__(  # type: ignore[overload-overlap]
            self, function: Callable[Concatenate[Any, P], AsyncIterator[R]], /
        ) -> MethodOf[P, AsyncIterator[R], ObjectRefGenerator[R]]: ...
        @overload
        def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> MethodOf[P, R, ObjectRef[R]]: ...
        def __call__(self, function: Any, /) -> Any: ...

    class DecoratorFor(Protocol[Remote]):
        """What ``method(num_returns=...)`` gives: the result of remote calls is known."""

        @overload
        def __call__(self, function: classmethod[Any, P, R], /) -> MethodOf[P, R, Remote]: ...
        @overload
        def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> MethodOf[P, R, Remote]: ...
        def __call__(self, function: Any, /) -> Any: ...

    @overload
    def method(function: classmethod[Any, P, R], /) -> MethodOf[P, R, ObjectRef[R]]: ...
    @overload
    def method(
        function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> MethodOf[P, Coroutine[Any, Any, R], ObjectRef[R]]: ...
    @overload
    def method(  # type: ignore[overload-overlap]
        function: Callable[Concatenate[Any, P], Iterator[R]], /
    ) -> MethodOf[P, Iterator[R], ObjectRefGenerator[R]]: ...
    @overload
    def method(  # type: ignore[overload-overlap]
        function: Callable[Concatenate[Any, P], AsyncIterator[R]], /
    ) -> MethodOf[P, AsyncIterator[R], ObjectRefGenerator[R]]: ...
    @overload
    def method(function: Callable[Concatenate[Any, P], R], /) -> MethodOf[P, R, ObjectRef[R]]: ...
    @overload
    def method(  # type: ignore[overload-overlap]
        *, num_returns: Literal[0], **options: Unpack[OneResultKeywords]
    ) -> DecoratorFor[None]: ...
    @overload
    def method(
        *, num_returns: Literal["dynamic"], **options: Unpack[OneResultKeywords]
    ) -> DecoratorFor[ObjectRef[Any]]: ...
    @overload
    def method(  # type: ignore[overload-overlap]
        *, num_returns: Literal[1, "streaming"] | None = None, **options: Unpack[OneResultKeywords]
    ) -> Decorator: ...
    @overload
    def method(
        *, num_returns: int, **options: Unpack[OneResultKeywords]
    ) -> DecoratorFor[list[ObjectRef[Any]]]: ...
    def method(function: Any = None, /, **options: Any) -> Any: ...
