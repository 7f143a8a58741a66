"""Sessions: `init`, `shutdown`, and what `init` returns.

Light on purpose: nothing heavy is imported before the node process has been started, so that it starts while
this process loads the rest. That goes for all modules that are loaded by then: they do without `typing`,
`socket` and `threading`, which would take half of the time to get there.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping

from framework._base import limits
from framework._base.ids import WORKER_ID_SIZE
from framework._init_checks import (
    check_flags,
    check_names,
    check_namespace,
    checked_env,
    checked_labels,
    checked_logging,
    wanted_resources,
)
from framework._runtime.current import (
    existing,
    forget_shutdown,
    is_fork,
    set_auto_init,
    set_current,
    start_lock,
)
from framework._service.descriptors import raise_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from framework._base.cluster import ClusterFacts
    from framework._node.local import LocalNode, StartedNode
    from framework._runtime.output import LogPrinter
    from framework._runtime.runtime import Runtime
    from framework.exceptions import FrameworkError


class _Session:
    """What `shutdown` has to undo."""

    def __init__(self) -> None:
        self.node: StartedNode | None = None
        self.printer: LogPrinter | None = None
        self.context: Context | None = None
        self.registered = False


_session = _Session()


class Context(Mapping[str, "Any"]):
    """What `init` returns: facts of the session, to be used with ``with`` or ``async with``, which shut it
    down at the end.

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
            "gcs_address": config.cluster.head if config.cluster is not None else "",
        }

    @property
    def address_info(self) -> dict[str, Any]:
        """All facts in a dict."""
        return self._facts()

    @property
    def session_dir(self) -> str:
        """The directory with the session's logs and sockets."""
        directory: str = self._runtime.config.session_dir
        return directory

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
        try:
            self._runtime.node_ready.result(limits.NODE_START_TIMEOUT)
        except BaseException as error:
            raise _failed_start(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutdown()

    async def __aenter__(self) -> Self:
        import asyncio

        try:
            # Shielded: whoever stops waiting here must not cancel what others wait for.
            ready = asyncio.shield(asyncio.wrap_future(self._runtime.node_ready))
            await asyncio.wait_for(ready, limits.NODE_START_TIMEOUT)
        except BaseException as error:
            # No block, no end of the block: what was started is ended here.
            problem = await asyncio.shield(asyncio.to_thread(_failed_start, error))
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
    spill_directory: str | None = None,
    memory_usage_threshold: float | None = None,
    memory: float | None = None,
    labels: dict[str, str] | None = None,
    namespace: str | None = None,
    ignore_reinit_error: bool = False,
    log_to_driver: bool = True,
    runtime_env: dict[str, Any] | None = None,
    configure_logging: bool = True,
    logging_level: int | str | None = None,
    logging_format: str | None = None,
    include_dashboard: bool | None = None,
    local_mode: bool = False,
    **unknown: Any,
) -> Context:
    """Start a session, or connect to one.

    Without `address` (and without ``FRAMEWORK_ADDRESS`` in the environment) it starts a node process on this
    machine that ends with this process; ``"local"`` means that, whatever the environment says. Otherwise
    `address` is the directory of a running session, ``"auto"``: the latest that was started by
    ``python -m framework start``, or ``HOST:PORT`` of a cluster's head. A node of that cluster on this
    machine is used (its shared memory too); without one, this process starts a node of its own, without CPUs,
    which joins by the token in ``FRAMEWORK_TOKEN`` and ends with this process. The session goes on when this
    process leaves it.

    - `num_cpus`, `num_gpus`, `memory` (bytes), `resources`, `labels` (for scheduling by labels): what the new
      node offers; found out where not given. They, `object_store_memory`, `spill_directory` and
      `memory_usage_threshold` are for new nodes only.
    - `object_store_memory`: bytes of shared memory for large values; by default 30 % of the machine's (or the
      control group's).
    - `spill_directory`: where they go when that is full; by default the session directory. A URL of fsspec
      works with the extra ``spill``.
    - `memory_usage_threshold`: share of the machine's memory in use (0 to 1, by default 0.95) at which the
      worker that is cheapest to run again is ended, before the system's killer comes; 1 turns it off.
    - `namespace`: where names of actors are looked up; by default one of this job's own.
    - `ignore_reinit_error`: return the running session instead of raising when `init` was called before.
    - `log_to_driver`: show here what tasks print.
    - `configure_logging`, `logging_level` (by default ``logging.INFO``), `logging_format`: set up the logger
      ``framework`` here and in the workers of this job; with ``configure_logging=False`` it is left alone.
    - `runtime_env`: ``{"env_vars": {...}}`` for all tasks and actors of this job, which may add to it.

    Blocks until the node is up (about 0.2 s), except inside of a running event loop: there the start goes on
    in the background, ``async with init()`` waits for it, and calls made before it is done are queued.

    Raises `AlreadyInitializedError` when called twice, `ConnectionFailedError` (a `ConnectionError`) for an
    address where nothing answers or whose cluster does not accept the token, `ValueError` or `TypeError` for
    arguments that make no sense (among them ``include_dashboard=True``: there is none), `LocalNodeDiedError`
    when the node cannot start.
    """
    if unknown:
        check_names(unknown, [*(init.__kwdefaults__ or ()), "address"])
    check_flags(
        {
            "ignore_reinit_error": ignore_reinit_error,
            "log_to_driver": log_to_driver,
            "configure_logging": configure_logging,
        },
        include_dashboard,
        local_mode,
    )
    check_namespace(namespace)
    of_node = (
        num_cpus,
        num_gpus,
        memory,
        resources,
        object_store_memory,
        spill_directory,
        memory_usage_threshold,
        checked_labels(labels) or None,
    )
    facts = {
        "namespace": namespace,
        "log_to_driver": log_to_driver,
        "env": checked_env(runtime_env),
        "logging": checked_logging(configure_logging, logging_level, logging_format),
    }
    with start_lock():
        running = existing()
        if running is not None:
            if ignore_reinit_error and _session.context is not None:
                return _session.context
            if not running.config.is_driver:
                return Context(running, True)
            from framework.exceptions import AlreadyInitializedError

            raise AlreadyInitializedError(
                "init() was called before in this process: call shutdown() first, or pass "
                "ignore_reinit_error=True"
            )
        wanted = wanted_resources(*of_node)
        given = address
        address = address or os.environ.get("FRAMEWORK_ADDRESS") or None
        if address is not None and address != "local" and any(value is not None for value in of_node):
            raise ValueError(
                "num_cpus, num_gpus, memory, resources, labels, object_store_memory, spill_directory and "
                f"memory_usage_threshold are for a new node; this connects to {address!r}"
                + ("" if given else " (from the environment variable FRAMEWORK_ADDRESS)")
            )
        try:
            context = _start(address, wanted, facts)
        except Exception as error:
            if address is not None and not given:
                error.add_note(f"address={address!r} is that of the environment variable FRAMEWORK_ADDRESS")
            raise
    if not _in_loop():
        try:
            from framework import _api as _api  # what a program uses next is loaded while it waits

            context._runtime.node_ready.result(limits.NODE_START_TIMEOUT)
        except BaseException as error:
            raise _failed_start(error) from None
    return context


def _in_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def _start(address: str | None, wanted: dict[str, Any], facts: dict[str, Any]) -> Context:
    forget_shutdown()
    raise_limit()
    identity = os.urandom(WORKER_ID_SIZE)
    node: StartedNode | None = None
    local: LocalNode | None = None
    runtime: Runtime | None = None
    try:
        if address is None or address == "local":
            from framework._node.local import LocalNode

            node = local = LocalNode(wanted)
            session_dir = node.session_dir
            joined = None
        else:
            session_dir, node, joined = _session_at(address)
        from framework import _boot  # the node process starts meanwhile
        from framework._runtime.output import LogPrinter

        config = _boot.Config(session_dir=session_dir, worker_id=identity, is_driver=True)
        config.namespace = facts["namespace"] or f"anonymous-{identity.hex()[:16]}"
        if joined is not None:
            config.join(joined)
        config.log_to_driver = facts["log_to_driver"]
        config.env = facts["env"]
        config.job_facts = {
            "sys_path": _search_path(),
            "cwd": _working_directory(),
            "namespace": config.namespace,
            "logging": facts["logging"],
        }
        if facts["logging"] is not None:
            _boot.logs.configure(*facts["logging"])
        runtime = _boot.make_runtime(config)
        runtime.start()
        if config.log_to_driver:
            _session.printer = LogPrinter(runtime)
        if local is not None:
            _boot.attach(local, runtime)
        else:
            _boot.connect(runtime)
    except BaseException:
        if _session.printer is not None:
            _session.printer.close()
            _session.printer = None
        if runtime is not None:
            runtime.stop()
        if node is not None:
            node.process.kill()
            node.wait()
        raise
    _session.node = node
    set_current(runtime)
    context = _session.context = Context(runtime, False)
    if not _session.registered:
        _session.registered = True
        atexit.register(_at_exit)
    return context


def _session_at(address: str) -> tuple[str, StartedNode | None, ClusterFacts | None]:
    """The directory of the session that is meant, its node if that was started for it, and its cluster."""
    from framework._node import control
    from framework.exceptions import ConnectionFailedError

    if not isinstance(address, str):
        raise TypeError(f"address is a str, got {address!r}")
    if address == "auto":
        found = control.running_sessions()
        if not found:
            raise ConnectionFailedError(
                "address='auto', but no session of this user runs: start one with "
                "`python -m framework start --head`"
            )
        return found[0], None, control.cluster_facts(found[0])
    if os.path.isdir(os.path.join(address, "sockets")):
        session_dir = os.path.abspath(address)
        return session_dir, None, control.cluster_facts(session_dir)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or os.sep in address:
        raise ConnectionFailedError(
            f"nothing answers at address {address!r}: it is neither the directory of a running session nor "
            "HOST:PORT of a cluster's head. Without an address, init() starts a node on this machine; "
            "`python -m framework start --head` starts one that stays"
        )
    found = control.sessions_of_cluster(address)
    if found:
        return found[0], None, control.cluster_facts(found[0])
    return _join(address)


def _join(address: str) -> tuple[str, StartedNode | None, ClusterFacts | None]:
    """Start a node for this process alone, which joins a cluster that has none on this machine."""
    from framework._node import control

    wanted = wanted_resources(0, 0, 0, {})
    node = control.joining_node(address, wanted, parent_pid=os.getpid())
    node.expect_ready()
    return node.session_dir, node, control.cluster_facts(node.session_dir)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _search_path() -> list[str]:
    """`sys.path` as other processes can use it: the empty entry means this process's working directory."""
    here = _working_directory()
    entries = [here if entry == "" else entry for entry in sys.path if isinstance(entry, str)]
    return [entry for entry in entries if entry]


def _failed_start(error: BaseException) -> BaseException:
    """Clean up after a start that did not succeed; the error to raise."""
    from framework.exceptions import FrameworkError, LocalNodeDiedError

    problem = _explain(error) if isinstance(error, FrameworkError) else error
    context = _session.context
    if isinstance(error, TimeoutError) and context is not None:
        problem = LocalNodeDiedError(
            f"the node process did not come up within {limits.NODE_START_TIMEOUT:g} s; its log is in "
            f"{context.session_dir}/logs"
        )
    shutdown()
    return problem


def _explain(error: FrameworkError) -> FrameworkError:
    node = _session.node
    if node is None or not node.process.wait(1.0):
        return error
    from framework.exceptions import LocalNodeDiedError

    return LocalNodeDiedError(node.last_words())


def shutdown(_exiting_interpreter: bool = False) -> None:
    """End the session: its tasks and actors, its node if this process started it. Does nothing when there is
    none. What tasks have printed is shown first. Afterwards `init` may be called again. A second Ctrl-C ends
    the waiting.
    """
    with start_lock():
        runtime = existing()
        if runtime is None:
            if is_fork():
                set_current(None)  # the session is our parent's: only let go of it
            return
        if not runtime.config.is_driver:
            return
        node, printer = _session.node, _session.printer
        _session.node = _session.printer = _session.context = None
        runtime.closing = True
        orderly = False
        try:
            orderly = _say_goodbye(runtime, node is not None)
            if printer is not None:
                printer.close()
        except BaseException:
            orderly = False
            raise
        finally:
            if node is not None and not orderly:
                node.process.kill()
            set_current(None)
            try:
                runtime.stop()
            finally:
                if node is not None:
                    node.wait()


def _say_goodbye(runtime: Runtime, stop_node: bool) -> bool:
    """Collect what was printed, ask our node to end. False when it does not answer."""
    from framework._wire import messages as m

    async def farewell() -> None:
        import asyncio

        node = runtime.node
        if node is None or node.closed:
            return
        if runtime.config.log_to_driver:
            await asyncio.wait_for(node.call(m.LOG_FLUSH), limits.SHUTDOWN_GRACE)
        if stop_node:
            node.cast(m.NODE_STOP, "its driver has called shutdown()")
            # What actors print in their shutdown hooks comes before the end of the connection.
            await asyncio.wait_for(runtime.node_gone.wait(), limits.SESSION_HOOK_GRACE + limits.EXIT_GRACE)

    if not runtime.node_ready.done() or runtime.dead is not None:
        return False
    try:
        runtime.run_sync(farewell(), 2 * limits.SHUTDOWN_GRACE)
    except Exception:
        return False
    return True


def _at_exit() -> None:
    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: its traceback would be of no use
        shutdown()


def is_initialized() -> bool:
    """Whether this process has a session (a worker always has)."""
    return existing() is not None


def _auto_init() -> None:
    init()


set_auto_init(_auto_init)
