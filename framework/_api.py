"""The verbs: init, shutdown, remote, get, put, wait, cancel, kill, and questions about the cluster."""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast, overload

from framework._base import limits
from framework._base import resources as res
from framework._base.options import ActorOptions, TaskOptions
from framework._runtime.current import current, existing, forget_shutdown, set_auto_init, set_current, start_lock
from framework._runtime.output import OutputPrinter
from framework._wire import messages as m
from framework.actor import ActorClass, ActorHandle
from framework.exceptions import AlreadyInitializedError, FrameworkError
from framework.object_ref import ObjectRef, ObjectRefGenerator
from framework.remote_function import RemoteDecorator, RemoteFunction
from framework.runtime_context import gpu_ids

P = ParamSpec("P")
R = TypeVar("R")

# ---- sessions ----------------------------------------------------------------------------------------


class _Session:
    """What `shutdown` has to undo."""

    def __init__(self) -> None:
        self.node: Any = None
        self.printer: Any = None
        self.context: Context | None = None
        self.registered = False


_session = _Session()


class Context(Mapping[str, Any]):
    """What `init` returns: facts of the session, to be used with ``with`` or ``async with``, which shut it down at the end.

    As a mapping it has ``session_dir``, ``node_id``, ``job_id``, ``namespace`` and ``address``.
    """

    def __init__(self, runtime: Any, ready: bool) -> None:
        self._runtime = runtime
        self._ready = ready

    def _facts(self) -> dict[str, Any]:
        config = self._runtime.config
        return {
            "session_dir": config.session_dir,
            "address": config.session_dir,
            "node_id": config.node_id.hex(),
            "job_id": config.job.hex(),
            "namespace": config.namespace,
            "node_ip_address": config.node_ip,
        }

    @property
    def address_info(self) -> dict[str, Any]:
        """All facts in a dict."""
        return self._facts()

    @property
    def session_dir(self) -> str:
        """The directory with the session's logs and sockets."""
        return cast(str, self._runtime.config.session_dir)

    @property
    def dashboard_url(self) -> str:
        """There is none yet: an empty string."""
        return ""

    def __getitem__(self, name: str) -> Any:
        return self._facts()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts())

    def __len__(self) -> int:
        return len(self._facts())

    def disconnect(self) -> None:
        """As `shutdown`."""
        shutdown()

    def __enter__(self) -> Self:
        self._runtime.node_ready.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutdown()

    async def __aenter__(self) -> Self:
        import asyncio

        try:
            await asyncio.wrap_future(self._runtime.node_ready)
        except FrameworkError as error:
            problem = _explain(error)
            await asyncio.to_thread(shutdown)
            raise problem from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(shutdown)

    def __repr__(self) -> str:
        return f"<framework session {self.session_dir}>"


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: dict[str, float] | None = None,
    object_store_memory: int | None = None,
    memory: float | None = None,
    namespace: str | None = None,
    ignore_reinit_error: bool = False,
    log_to_driver: bool = True,
    runtime_env: dict[str, Any] | None = None,
    configure_logging: bool = True,
    logging_level: int | str | None = None,
    include_dashboard: bool | None = None,
    local_mode: bool = False,
    **unknown: Any,
) -> Context:
    """Start a session, or connect to one.

    Without `address` (and without ``FRAMEWORK_ADDRESS`` in the environment) it starts a node process on this machine that ends
    with this process. `address` is the session directory of a running node.

    - `num_cpus`, `num_gpus`, `memory` (bytes), `resources`: what the new node offers; found out where not given.
    - `namespace`: where names of actors are looked up; by default one of this job's own.
    - `ignore_reinit_error`: return the running session instead of raising when `init` was called before.
    - `log_to_driver`: show here what tasks print.

    Blocks until the node is up (about 0.2 s), except inside of a running event loop: there the start goes on in the background,
    ``async with init()`` waits for it, and calls made before it is done are queued.

    Raises `AlreadyInitializedError` when called twice, `ConnectionFailedError` for an address where nothing answers,
    `ValueError` or `TypeError` for arguments that make no sense, `LocalNodeDiedError` when the node cannot start.
    """
    _check_init(unknown, local_mode, object_store_memory, namespace)
    with start_lock():
        running = existing()
        if running is not None:
            if ignore_reinit_error and _session.context is not None:
                return _session.context
            if not running.config.is_driver:
                return Context(running, True)
            raise AlreadyInitializedError(
                "init() was called before in this process: call shutdown() first, or pass ignore_reinit_error=True"
            )
        wanted = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "memory": memory,
            "resources": resources,
        }
        res.parse(num_cpus, num_gpus, memory, resources, default_cpus=1)  # errors before anything is started
        address = address or os.environ.get("FRAMEWORK_ADDRESS") or None
        context = _start(address, wanted, namespace, log_to_driver)
    if not _in_loop():
        try:
            context._runtime.node_ready.result(limits.NODE_START_TIMEOUT)
        except FrameworkError as error:
            problem = _explain(error)
            shutdown()
            raise problem from None
        except BaseException:
            shutdown()
            raise
    return context


def _check_init(
    unknown: dict[str, Any], local_mode: bool, object_store_memory: int | None, namespace: str | None
) -> None:
    if unknown:
        import difflib

        name = next(iter(unknown))
        valid = [p for p in inspect.signature(init).parameters if p != "unknown"]
        ignored = [n for n in unknown if n.startswith("_") or n.startswith("dashboard") or n in _IGNORED]
        if len(ignored) < len(unknown):
            name = next(n for n in unknown if n not in ignored)
            close = difflib.get_close_matches(name, valid, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"init() has no argument {name!r}{hint} Valid: {', '.join(valid)}")
    if local_mode:
        raise ValueError("local_mode is not supported: a session starts fast enough to be used in tests")
    if object_store_memory is not None and (
        isinstance(object_store_memory, bool) or not isinstance(object_store_memory, int | float) or object_store_memory <= 0
    ):
        raise ValueError(f"object_store_memory is a positive number of bytes, got {object_store_memory!r}")
    if namespace is not None and (not isinstance(namespace, str) or not namespace):
        raise ValueError(f"namespace is a non-empty str, got {namespace!r}")


_IGNORED = frozenset({"logging_format", "log_level", "enable_resource_isolation", "labels", "job_config"})


def _in_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def _start(address: str | None, wanted: dict[str, Any], namespace: str | None, log_to_driver: bool) -> Context:
    from framework import _boot
    from framework._node.session import create_session
    from framework._runtime.runtime import Config

    forget_shutdown()
    identity = _boot.worker_id()
    local = address is None or address == "local"
    session_dir = create_session(identity.hex()[:8]) if local else _session_at(cast(str, address))
    config = Config(session_dir=session_dir, worker_id=identity, is_driver=True)
    config.namespace = namespace or f"anonymous-{identity.hex()[:16]}"
    config.log_to_driver = log_to_driver
    config.job_facts = {"sys_path": _search_path(), "cwd": os.getcwd(), "namespace": config.namespace}
    runtime = _boot.make_runtime(config)
    if log_to_driver:
        _session.printer = _Printer(runtime)
    runtime.start()
    try:
        if local:
            _session.node = _boot.start_local(config, runtime, wanted)
        else:
            _boot.connect(config, runtime)
    except BaseException:
        runtime.stop()
        _session.printer = None
        raise
    set_current(runtime)
    context = _session.context = Context(runtime, False)
    if not _session.registered:
        _session.registered = True
        atexit.register(_at_exit)
    return context


def _session_at(address: str) -> str:
    if not isinstance(address, str):
        raise TypeError(f"address is a str, got {address!r}")
    from framework.exceptions import ConnectionFailedError

    if os.path.isdir(os.path.join(address, "sockets")):
        return os.path.abspath(address)
    raise ConnectionFailedError(
        f"nothing answers at address {address!r}: it is not the directory of a running session (clusters of several machines, "
        "with addresses host:port, are not supported yet). Without an address, init() starts a node on this machine"
    )


def _search_path() -> list[str]:
    """`sys.path` as other processes can use it: the empty entry means this process's working directory."""
    here = os.getcwd()
    return [here if entry == "" else entry for entry in sys.path if isinstance(entry, str)]


def _explain(error: FrameworkError) -> FrameworkError:
    from framework._boot import startup_failure

    context = _session.context
    node = _session.node
    if context is None or node is None:
        return error
    with contextlib.suppress(Exception):
        node.process.wait(1.0)
    return startup_failure(context.session_dir, node)


class _Printer:
    """Shows what workers print: lines come on the runtime's loop, and are printed by a thread, because a terminal may be
    slow."""

    def __init__(self, runtime: Any) -> None:
        import queue
        import threading
        import time

        from framework._state.logdedup import Deduplicator

        dedup = None
        if os.environ.get("FRAMEWORK_DEDUP_LOGS", "1") != "0":
            window = float(os.environ.get("FRAMEWORK_DEDUP_LOGS_AGG_WINDOW_S", "5"))
            dedup = Deduplicator(window)
        self._clock = time.monotonic
        self._printer = OutputPrinter(None, None, dedup, self._clock)
        self._queue: queue.Queue[tuple[Any, ...] | None] = queue.Queue(10_000)
        self._due: float | None = None
        runtime.node_handlers[m.LOG_LINES] = self._lines
        self._thread = threading.Thread(target=self._run, name="framework-output", daemon=True)
        self._thread.start()

    def _lines(self, connection: Any, frame: list[Any]) -> None:
        import queue

        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((frame[1], frame[2], [tuple(line) for line in frame[3]]))

    def _run(self) -> None:
        import queue

        while True:
            due = self._printer.tick(self._clock())
            try:
                item = self._queue.get(timeout=None if due is None else max(0.01, due - self._clock()))
            except queue.Empty:
                continue
            if item is None:
                self._printer.close()
                return
            pid, is_err, lines = item
            self._printer.show(pid, None, is_err, lines)

    def close(self) -> None:
        """Print what is left."""
        self._queue.put(None)
        self._thread.join(1.0)


def shutdown(_exiting_interpreter: bool = False) -> None:
    """End the session: its tasks and actors, its node if this process started it. Does nothing when there is none. What
    tasks have printed is shown first. Afterwards `init` may be called again."""
    with start_lock():
        runtime = existing()
        if runtime is None:
            set_current(None) if _is_fork() else None
            return
        if not runtime.config.is_driver:
            return
        node, printer = _session.node, _session.printer
        _session.node = _session.printer = _session.context = None
        runtime.closing = True
        try:
            _say_goodbye(runtime, node is not None)
            if printer is not None:
                printer.close()
        finally:
            set_current(None)
            runtime.stop()
            if node is not None:
                node.wait()


def _is_fork() -> bool:
    try:
        current()
    except FrameworkError as error:
        return type(error).__name__ == "ForkedProcessError"
    return False


def _say_goodbye(runtime: Any, stop_node: bool) -> None:
    """Collect what was printed, drop our references, ask our node to end."""

    async def farewell() -> None:
        import asyncio

        node = runtime.node
        if node is None or node.closed:
            return
        if runtime.config.log_to_driver:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(node.call(m.LOG_FLUSH), limits.SHUTDOWN_GRACE)
        if stop_node:
            node.cast(m.NODE_STOP, "its driver has called shutdown()")
            node.flush()

    if runtime.node_ready.done() and runtime.dead is None:
        with contextlib.suppress(Exception):
            runtime.run_sync(farewell(), 2 * limits.SHUTDOWN_GRACE)


def _at_exit() -> None:
    runtime = existing()
    if runtime is not None:
        shutdown()


def is_initialized() -> bool:
    """Whether this process has a session (a worker always has)."""
    return existing() is not None


def _auto_init() -> None:
    init()


set_auto_init(_auto_init)

# ---- remote ------------------------------------------------------------------------------------------


@overload
def remote(target: type[R], /) -> ActorClass[R]: ...
@overload
def remote(target: Callable[P, Coroutine[Any, Any, R]], /) -> RemoteFunction[P, ObjectRef[R]]: ...
@overload
def remote(target: Callable[P, Iterator[R]], /) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
@overload
def remote(target: Callable[P, AsyncIterator[R]], /) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
@overload
def remote(target: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...
@overload
def remote(**options: Any) -> RemoteDecorator: ...
def remote(*args: Any, **options: Any) -> Any:
    """Make a function or a class remote: ``@remote``, or ``@remote(num_cpus=2, ...)``; also as a call, ``remote(f)``.

    Functions become a `RemoteFunction`, classes an `ActorClass`. Options of functions are those of `TaskOptions`, of classes
    those of `ActorOptions`.

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

    `timeout` in seconds; 0 means: only if it is there now. Arrays are read-only views; with `copy` they are private and
    writable.

    Raises what the task raised (an exception that is an instance of both `TaskError` and the task's exception class),
    `GetTimeoutError`, `TypeError` for what is not a reference. In a coroutine, ``await ref`` instead.
    """
    runtime = current()
    timeout = _checked_timeout(timeout)
    if type(refs) is ObjectRef:
        entry = refs._entry
        if not entry.state:
            runtime.get([entry], timeout)
        value = runtime.value(entry)
        return _private_copy(value) if copy else value
    if isinstance(refs, ObjectRefGenerator):
        raise TypeError("get() of a generator: iterate over it, each item is a reference")
    if not isinstance(refs, list | tuple):
        raise TypeError(f"get() takes an ObjectRef or a list of them, got {_shown(refs)}{_hint(refs)}")
    entries = []
    for position, ref in enumerate(refs):
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"get() takes references: item {position} of the list is {_shown(ref)}{_hint(ref)}")
        entries.append(ref._entry)
    runtime.get(entries, timeout)
    for entry in entries:
        if entry.state == 2:
            raise runtime.objects.error(entry)
    result = [runtime.value(entry) for entry in entries]
    return [_private_copy(value) for value in result] if copy else result


def _private_copy(value: Any) -> Any:
    import copy

    return copy.deepcopy(value)


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
    if isinstance(value, ActorHandle):
        return " (an actor handle: call one of its methods with .remote())"
    if inspect.iscoroutine(value):
        return " (a coroutine: await it)"
    return ""


def put(value: R, *, _owner: Any = None) -> ObjectRef[R]:
    """Store a copy of `value`; its reference. Raises `SerializationError` when it cannot be pickled, `TypeError` for a
    reference."""
    if isinstance(value, ObjectRef):
        raise TypeError("put() of an ObjectRef is not allowed: it is a reference already (put([ref]) stores the reference)")
    return cast("ObjectRef[R]", current().put(value))


def wait(
    refs: Sequence[ObjectRef[R]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef[R]], list[ObjectRef[R]]]:
    """Block until `num_returns` of `refs` are done (or failed), or `timeout` seconds have passed.

    Returns (done, others): at most `num_returns` done ones, both lists in the order of `refs`. Raises `ValueError` for an
    empty list, duplicates, or `num_returns` out of range; `TypeError` for what is not a list of references.
    """
    runtime = current()
    timeout = _checked_timeout(timeout)
    if isinstance(refs, ObjectRef):
        raise TypeError("wait() takes a list of references, got a single one")
    if not isinstance(refs, list | tuple):
        raise TypeError(f"wait() takes a list of references, got {_shown(refs)}")
    for position, ref in enumerate(refs):
        if isinstance(ref, ObjectRefGenerator):
            continue
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"wait() takes references: item {position} of the list is {_shown(ref)}{_hint(ref)}")
    if not refs:
        raise ValueError("wait() needs at least one reference")
    if len(set(refs)) != len(refs):
        raise ValueError("wait() takes each reference once: the list has duplicates")
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"num_returns is an int, got {num_returns!r}")
    if not 1 <= num_returns <= len(refs):
        raise ValueError(f"num_returns must be between 1 and the number of references ({len(refs)}), got {num_returns}")
    runtime.wait([ref._entry for ref in refs], num_returns, timeout, False, "wait")
    ready: list[ObjectRef[R]] = []
    rest: list[ObjectRef[R]] = []
    for ref in refs:
        if ref._entry.state and len(ready) < num_returns:
            ready.append(ref)
        else:
            rest.append(ref)
    return ready, rest


def cancel(ref: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True) -> None:
    """End the task that makes an object. A queued task is dropped. A running one gets an exception, also in the middle of
    a blocking call such as ``time.sleep``; an ``async`` one gets ``CancelledError``. Whoever waits for its result gets
    `TaskCancelledError`. A task that is done is left alone.

    `force` kills the worker process (not for actor calls: `ValueError`); `recursive` also cancels the tasks that it has
    submitted. Never blocks.
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
    """End an actor's process at once. Calls under way and later ones fail with `ActorDiedError`. With ``no_restart=False`` it
    counts as a crash: the actor is restarted if its `max_restarts` allow. Blocks for one round trip to the head.

    Raises `TypeError` for what is not a handle.
    """
    if not isinstance(actor, ActorHandle):
        raise TypeError(f"kill() takes the handle of an actor, got {_shown(actor)}; for tasks there is cancel()")
    runtime = current()
    client = actor._client_of(runtime)
    del client
    runtime.head_call(m.ACTOR_KILL, actor._actor_id, bool(no_restart), "it was ended by kill()")


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
    return {**amounts, f"node:{ip}": 1.0, "node:__internal_head__": 1.0}


def nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, each a dict with Ray's keys: NodeID, Alive, Resources, NodeManagerAddress, …"""
    runtime = current()
    return [
        {
            "NodeID": node["node_id"].hex(),
            "Alive": True,
            "NodeManagerAddress": runtime.config.node_ip,
            "NodeManagerHostname": os.uname().nodename,
            "NodeName": runtime.config.node_ip,
            "ObjectStoreSocketName": "",
            "RayletSocketName": os.path.join(node["session_dir"], "sockets", "node"),
            "Resources": {**res.to_floats(node["total"]), f"node:{runtime.config.node_ip}": 1.0},
            "Labels": {},
            "alive": True,
            "pid": node["pid"],
        }
        for node in runtime.head_call(m.NODES)
    ]


def get_gpu_ids() -> list[int]:
    """Indices of the GPUs that the running task or actor may use."""
    return gpu_ids()
