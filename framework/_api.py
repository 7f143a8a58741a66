"""The verbs: remote, get, put, wait, cancel, kill, and questions about the cluster."""

from __future__ import annotations

import inspect
import operator
import os
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack, cast, overload

from framework._base import resources as res
from framework._base.options import ActorOptions, TaskOptions
from framework._handle import ActorHandle as Handle
from framework._runtime.current import current
from framework._runtime.waiters import first_done, without
from framework._serial.values import is_stored
from framework._wire import messages as m
from framework.actor import ActorClass
from framework.object_ref import ObjectRef, ObjectRefGenerator
from framework.remote_function import RemoteDecorator, RemoteFunction
from framework.runtime_context import gpu_ids

if TYPE_CHECKING:
    from framework._actor_types import ActorType
    from framework._base.keywords import RemoteKeywords
    from framework._state.objects import Entry
    from framework.actor import ActorHandle

P = ParamSpec("P")
R = TypeVar("R")

# ---- remote ------------------------------------------------------------------------------------------


@overload
def remote(target: type[ActorType], /) -> type[ActorType]: ...  # type: ignore[overload-overlap]
@overload
def remote(target: type[R], /) -> ActorClass[R]: ...  # type: ignore[overload-overlap]
@overload
def remote(target: Callable[P, Coroutine[Any, Any, R]], /) -> RemoteFunction[P, ObjectRef[R]]: ...
@overload
def remote(  # type: ignore[overload-overlap]
    target: Callable[P, Iterator[R]], /
) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
@overload
def remote(  # type: ignore[overload-overlap]
    target: Callable[P, AsyncIterator[R]], /
) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
@overload
def remote(target: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...
@overload
def remote(**options: Unpack[RemoteKeywords]) -> RemoteDecorator: ...
def remote(*args: Any, **options: Any) -> Any:
    """Make a function or a class remote: ``@remote``, or ``@remote(num_cpus=2, ...)``; also as a call,
    ``remote(f)``.

    Functions become a `RemoteFunction`, classes an `ActorClass`. Options of functions are those of
    `TaskOptions`, of classes those of `ActorOptions`.

    Raises `ValueError` or `TypeError` for an option that does not exist or a value that it cannot have.
    """
    if len(args) == 1 and not options:
        return _make_remote(args[0], {})
    if args or not options:
        raise TypeError("use @remote, or @remote(option=value, ...) with options as keywords")
    return lambda target: _make_remote(target, options)


def _make_remote(target: Any, options: dict[str, Any]) -> Any:
    if isinstance(target, RemoteFunction | ActorClass):
        raise TypeError(f"{target!r} is remote already: use .options(...) to change its options")
    if inspect.isclass(target):
        return ActorClass(target, ActorOptions.parse(options))
    if callable(target):
        return RemoteFunction(target, TaskOptions.parse(options))
    raise TypeError(f"@remote is for functions and classes, not for {target!r}")


# ---- objects -----------------------------------------------------------------------------------------


@overload
def get(refs: ObjectRef[R], *, timeout: float | None = None, copy: bool = False) -> R: ...
@overload
def get(refs: Sequence[ObjectRef[R]], *, timeout: float | None = None, copy: bool = False) -> list[R]: ...
def get(refs: Any, *, timeout: float | None = None, copy: bool = False) -> Any:
    """The value of a reference, or a list with the values of several. Blocks until they are there.

    `timeout` in seconds; 0 means: only if it is there now. Arrays are read-only views; with `copy` they are
    private and writable.

    Raises what the task raised (an exception that is an instance of both `TaskError` and the task's exception
    class), `GetTimeoutError`, `TypeError` for what is not a reference. In a coroutine, ``await ref`` instead.
    """
    runtime = current()
    timeout = _checked_timeout(timeout)
    if type(refs) is ObjectRef:
        entry = refs._entry
        if timeout is not None and runtime.presence is not None:
            runtime.waiting.get(runtime.presence.of([entry]), timeout)
        elif not entry.state:
            runtime.waiting.get_one(entry, timeout)
        return runtime.value(entry, copy)
    if isinstance(refs, ObjectRefGenerator):
        raise TypeError("get() of a generator: iterate over it, each item is a reference")
    if not isinstance(refs, list | tuple):
        raise TypeError(f"get() takes an ObjectRef or a list of them, got {_shown(refs)}{_hint(refs)}")
    if set(map(type, refs)) == _JUST_REFS:
        entries = list(map(_entry_of, refs))
    else:
        entries = _checked_entries(refs)
    waited = entries
    if timeout is not None and runtime.presence is not None:
        waited = runtime.presence.of(entries)
    runtime.waiting.get(waited, timeout)
    return runtime.values(entries, copy)


_JUST_REFS: set[type] = {ObjectRef}
_entry_of = operator.attrgetter("_entry")


def _checked_entries(refs: Sequence[Any]) -> list[Entry]:
    for position, ref in enumerate(refs):
        if not isinstance(ref, ObjectRef):
            raise TypeError(
                f"get() takes references: item {position} of the list is {_shown(ref)}{_hint(ref)}"
            )
    return [ref._entry for ref in refs]


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout is a number of seconds or None, got {timeout!r}")
    if timeout != timeout or timeout < 0:
        raise ValueError(f"timeout must not be negative, got {timeout!r}")
    return timeout


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__}: {text if len(text) <= 80 else text[:77] + '...'}"


def _hint(value: object) -> str:
    if isinstance(value, RemoteFunction):
        return " (call .remote() on it first)"
    if isinstance(value, Handle):
        return " (an actor handle: call one of its methods with .remote())"
    if inspect.iscoroutine(value):
        return " (a coroutine: await it)"
    return ""


def put(value: R, *, replicas: int = 1, _owner: Any = None) -> ObjectRef[R]:
    """Store a copy of `value`; its reference. Raises `SerializationError` when it cannot be pickled,
    `TypeError` for a reference.

    With `replicas` of 2 or more there are so many copies, on different nodes, before this returns: the value
    survives the death of all these nodes but one, if not that of this process, which owns it (`detach` does
    that). When there are not enough nodes with room, a `RuntimeWarning` says how many copies there are. Small
    values (up to 100 KiB) live with their owner alone.
    """
    if isinstance(value, ObjectRef):
        raise TypeError(
            "put() of an ObjectRef is not allowed: it is a reference already (put([ref]) stores the "
            "reference)"
        )
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
        raise ValueError(f"replicas is a number of copies, 1 or more; got {replicas!r}")
    ref = current().put(value)
    if replicas > 1:
        _replicate(ref, replicas)
    return cast("ObjectRef[R]", ref)


def _replicate(ref: Any, replicas: int) -> None:
    wire = ref._entry.value
    if is_stored(wire):
        copies = 1 + current().store.replicate(wire, replicas - 1)
        if copies < replicas:
            text = (
                f"put(replicas={replicas}): only {copies} of them could be made, for want of nodes with room"
            )
            warnings.warn(text, RuntimeWarning, stacklevel=3)


def wait(
    refs: Sequence[ObjectRef[R]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef[R]], list[ObjectRef[R]]]:
    """Block until `num_returns` of `refs` are done (or failed), or `timeout` seconds have passed.

    Returns (done, others): at most `num_returns` done ones, both lists in the order of `refs`. A generator
    among them is done when its next item is there. In a cluster an object is done when its value has been
    copied to this node, unless `fetch_local` is false: then, when it exists. Raises `ValueError` for an
    empty list, duplicates, or `num_returns` out of range; `TypeError` for what is not a list of references.
    """
    runtime = current()
    timeout = _checked_timeout(timeout)
    if isinstance(refs, ObjectRef):
        raise TypeError("wait() takes a list of references, got a single one")
    if not isinstance(refs, list | tuple):
        raise TypeError(f"wait() takes a list of references, got {_shown(refs)}")
    if not refs:
        raise ValueError("wait() needs at least one reference")
    asked = entries = _entries_of(refs)
    waiting = runtime.waiting
    # (To compare with what was left of the last call, which had no duplicates, takes next to nothing.)
    if entries != waiting.distinct and len(set(entries)) != len(refs):
        raise ValueError("wait() takes each reference once: the list has duplicates")
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"num_returns is an int, got {num_returns!r}")
    if not 1 <= num_returns <= len(refs):
        raise ValueError(
            f"num_returns must be between 1 and the number of references ({len(refs)}), got {num_returns}"
        )
    if fetch_local and runtime.presence is not None:
        entries = runtime.presence.of(entries)
    done = first_done(entries, num_returns)
    if len(done) < num_returns:
        waiting.wait(entries, num_returns, timeout, False, "wait")
        done = first_done(entries, num_returns)
    waiting.distinct = without(asked, done)
    return [refs[position] for position in done], without(refs, done)


def _entries_of(refs: Sequence[Any]) -> list[Entry]:
    """What to wait for. Fast: a loop around `wait` comes here with all that is left, each time."""
    try:
        return [ref._entry for ref in refs]  # (half the time of `map`)
    except AttributeError:  # a generator among them, or what is none of ours
        pass
    entries = []
    for position, ref in enumerate(refs):
        if isinstance(ref, ObjectRefGenerator):
            entries.append(current().streams.readiness(ref._ref))
        elif isinstance(ref, ObjectRef):
            entries.append(ref._entry)
        else:
            raise TypeError(
                f"wait() takes references: item {position} of the list is {_shown(ref)}{_hint(ref)}"
            )
    return entries


def cancel(
    ref: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True
) -> None:
    """End the task that makes an object. A queued task is dropped. A running one gets an exception, also in
    the middle of a blocking call such as ``time.sleep``; an ``async`` one gets ``CancelledError``. Whoever
    waits for its result gets `TaskCancelledError`. A task that is done is left alone.

    `force` kills the worker process (not for actor calls: `ValueError`); `recursive` also cancels the tasks
    that it has submitted. Never blocks.
    """
    if isinstance(ref, ObjectRefGenerator):
        ref = ref._ref
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"cancel() takes the reference of a task's result, got {_shown(ref)}{_hint(ref)}")
    runtime = current()
    task = ref._entry.task
    if force and getattr(task, "actor", None) is not None:
        raise ValueError("force=True is not for calls of actors: kill() the actor instead")
    runtime.cancel(ref._entry, bool(force), bool(recursive))


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """End an actor's process at once. Calls under way and later ones fail with `ActorDiedError`. With
    ``no_restart=False`` it counts as a crash: the actor is restarted if its `max_restarts` allow. Blocks for
    one round trip to the head.

    Raises `TypeError` for what is not a handle.
    """
    if not isinstance(actor, Handle):
        raise TypeError(
            f"kill() takes the handle of an actor, got {_shown(actor)}; for tasks there is cancel()"
        )
    runtime = current()
    client = actor._client_of(runtime)
    del client
    runtime.run_sync(
        runtime.actors.kill_and_wait(actor._actor_id, bool(no_restart), "it was ended by kill()")
    )


# ---- the cluster -------------------------------------------------------------------------------------


def cluster_resources() -> dict[str, float]:
    """All resources of the cluster, by name; memory in bytes."""
    return _with_node_names(current().head_call(m.RESOURCES, False))


def available_resources() -> dict[str, float]:
    """The resources that are free now, by name; those that are used up are left out."""
    return _with_node_names(current().head_call(m.RESOURCES, True))


def _with_node_names(units: dict[str, int]) -> dict[str, float]:
    ip = current().config.node_ip
    amounts = {name: amount for name, amount in res.to_floats(units).items() if amount > 0}
    nodes = {f"node:{ip}": 1.0}
    if current().config.cluster is not None:
        rows = current().head_call(m.NODES)
        nodes = {f"node:{row['host']}": 1.0 for row in rows if row.get("alive", True)}
    return {**amounts, **nodes, "node:__internal_head__": 1.0}


def nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, each a dict with Ray's keys: NodeID, Alive, Resources, NodeManagerAddress,
    …
    """
    runtime = current()
    return [
        {
            "NodeID": node["node_id"].hex(),
            "Alive": node.get("alive", True),
            "NodeManagerAddress": (ip := node.get("host") or runtime.config.node_ip),
            "NodeManagerHostname": node.get("hostname") or os.uname().nodename,
            "NodeManagerPort": node.get("port", 0),
            "NodeName": ip,
            "ObjectManagerPort": node.get("data_port", 0),
            "ObjectStoreSocketName": "",
            "RayletSocketName": os.path.join(node["session_dir"], "sockets", "node"),
            "Resources": _node_resources(node, ip) if node.get("alive", True) else {},
            "Labels": {"ray.io/node-id": node["node_id"].hex(), **node.get("labels", {})},
            "alive": node.get("alive", True),
            "pid": node["pid"],
            "draining": node.get("draining", False),
        }
        for node in runtime.head_call(m.NODES)
    ]


def _node_resources(node: dict[str, Any], ip: str) -> dict[str, float]:
    """Without the parts of placement groups, which stand for what is in it already."""
    amounts = {name: amount for name, amount in res.to_floats(node["total"]).items() if "_group_" not in name}
    return {
        **amounts,
        f"node:{ip}": 1.0,
        **({"node:__internal_head__": 1.0} if node.get("head", True) else {}),
    }


def get_gpu_ids() -> list[int]:
    """Indices of the GPUs that the running task or actor may use."""
    return gpu_ids()
