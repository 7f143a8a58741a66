"""``python -m framework``: clusters started, joined, looked at and stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from framework._base import limits
from framework._init_checks import checked_labels, wanted_resources
from framework._node.control import (
    Client,
    client_of_head,
    cluster_facts,
    headed_sessions,
    join_session,
    running_sessions,
    sessions_of_cluster,
    start_session,
    stop_session,
    wait_for_session,
)
from framework._node.launching import is_loopback
from framework._node.session import node_pid
from framework._wire import messages as m
from framework.exceptions import FrameworkError

PROGRAM = "python -m framework"

F = TypeVar("F", bound=Callable[..., Any])


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit code: 0, 1 when it fails, 2 for wrong arguments."""
    try:
        code = cli.main(list(arguments), prog_name=PROGRAM, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (FrameworkError, OSError, ValueError, TypeError, RuntimeError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1


@click.group()
def cli() -> None:
    """Clusters, and sessions that stay when their drivers leave."""


class _Json(click.ParamType[dict[str, Any]]):
    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, dict):
            return value
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail("a JSON object is expected: '{\"name\": value}'", param, ctx)
        return found


_START = (
    click.option("--head", is_flag=True, help="Start a new cluster: its head, and the head's node."),
    click.option("--address", metavar="HOST:PORT", help="Join the cluster whose head is there."),
    click.option("--host", help="The address under which others reach this node (default: loopback)."),
    click.option("--bind", help="The address to listen at, if that is another (such as 0.0.0.0)."),
    click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the head (default: any free)."),
    click.option("--num-cpus", type=float, help="CPUs that it offers (default: those of the machine)."),
    click.option("--num-gpus", type=float, help="GPUs that it offers (default: those of the machine)."),
    click.option("--memory", type=float, metavar="BYTES", help="Memory that it offers to tasks."),
    click.option("--resources", type=_Json(), help="Custom amounts: '{\"name\": amount}'."),
    click.option("--labels", type=_Json(), help='Labels of the node: \'{"name": "value"}\'.'),
    click.option("--object-store-memory", type=int, metavar="BYTES", help="Shared memory for large values."),
    click.option("--tls/--no-tls", default=None, help="Encrypt connections (default: beyond loopback)."),
    click.option(
        "--autoscale", type=click.Path(exists=True, dir_okay=False), help="Add and end nodes, as told."
    ),
    click.option("--block", is_flag=True, help="Stay in the foreground; Ctrl-C stops it."),
)


def _with(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@cli.command()
@_with(_START)
def start(head: bool, address: str | None, **options: Any) -> int:
    """Start a cluster on this machine, or join one; in the background."""
    if head == (address is not None):
        raise ValueError("either --head (a new cluster) or --address=HOST:PORT (join one) is needed")
    wanted = wanted_resources(
        options["num_cpus"],
        options["num_gpus"],
        options["memory"],
        options["resources"],
        options["object_store_memory"],
        labels=checked_labels(options["labels"]),
    )
    if head:
        if options["autoscale"]:
            from framework.autoscaler.config import read_config

            read_config(options["autoscale"])  # what is wrong with it is said before anything starts
        session_dir = _start_head(wanted, options)
    else:
        assert address is not None
        _refuse_for_join(options)
        session_dir = join_session(address, wanted, host=options["host"], bind=options["bind"])
        print(f"A node has joined the cluster at {address}: session {session_dir}\n")
        print(f"Stop it:         {PROGRAM} stop {session_dir}", flush=True)
    if options["autoscale"]:
        return _autoscale(session_dir, options["autoscale"])
    return _block(session_dir) if options["block"] else 0


def _refuse_for_join(options: dict[str, Any]) -> None:
    for name in ("port", "tls", "autoscale"):
        if options[name]:
            raise ValueError(f"--{name} is for --head: a node that joins takes it from the head")


def _start_head(wanted: dict[str, Any], options: dict[str, Any]) -> str:
    host = options["host"] or "127.0.0.1"
    bind = options["bind"] or host
    if host in ("0.0.0.0", "::"):
        raise ValueError(
            f"--host={host} is no address that others could reach: pass --bind={host} with a --host"
        )
    if options["tls"] is False and not is_loopback(bind):
        print("Connections between nodes are not encrypted (--no-tls).", file=sys.stderr)
    began = start_session(wanted, host=host, bind=bind, port=options["port"], tls=options["tls"])
    token = began.token
    if options["block"] and not sys.stdout.isatty():  # what a service manager hears, it keeps in a log
        token = f"$(cat {began.write_token()})"
    print(
        f"A session runs at {began.session_dir}\n\n"
        f"Connect to it:   framework.init(address={began.session_dir!r})\n"
        '           or:   framework.init(address="auto"), which takes the latest\n'
        f"           or:   export FRAMEWORK_ADDRESS={began.session_dir}\n"
        f"           or:   framework.init(address={began.address!r})\n"
        f"Join it:         FRAMEWORK_TOKEN={token} {PROGRAM} start --address={began.address}\n"
        f"Look at it:      {PROGRAM} status\n"
        f"Stop it:         {PROGRAM} stop {began.session_dir}",
        flush=True,
    )
    return began.session_dir


def _autoscale(session_dir: str, path: str) -> int:
    from framework.autoscaler.config import autoscaler_of

    print(f"Nodes come and go as {path} says; Ctrl-C stops all of it.", flush=True)
    with autoscaler_of(session_dir, path):
        return _block(session_dir)


def _block(session_dir: str) -> int:
    """Until the session ends, or somebody ends this process, which then stops it."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        orderly = wait_for_session(session_dir)
    except KeyboardInterrupt:
        stop_session(session_dir)
        print("The session was stopped.", flush=True)
        return 0
    stop_session(session_dir)  # what is left of it
    print("The session has ended." if orderly else "The session's node process has died.", flush=True)
    return 0 if orderly else 1


def chosen_sessions(address: str | None) -> list[str]:
    """The sessions that a command is about: one by its directory or by the address of its cluster's head; all
    of this user that were started to stay."""
    if address is None:
        return running_sessions()
    if ":" in address and not os.path.isdir(address):
        found = sessions_of_cluster(address)
        if not found:
            raise FrameworkError(f"no node of the cluster at {address} runs on this machine")
        return found
    return [os.path.abspath(address)]


def one_of_each_cluster(sessions: Sequence[str]) -> list[str]:
    """Without those whose cluster is that of another one: the head's is preferred, then the first."""
    found: dict[str, str] = {}
    for session_dir in sorted(sessions, key=lambda path: not os.path.exists(os.path.join(path, "head.json"))):
        facts = cluster_facts(session_dir)
        found.setdefault(facts.cluster_id.hex() if facts is not None else session_dir, session_dir)
    return [session_dir for session_dir in sessions if session_dir in found.values()]


_ADDRESS = click.argument("address", required=False)


@cli.command()
@_ADDRESS
@click.option("--force", is_flag=True, help="Kill at once what would have to be asked to end.")
def stop(address: str | None, force: bool) -> int:
    """End sessions with all that runs in them (default: all of this user); a head takes its cluster along."""
    sessions = chosen_sessions(address)
    if address is None:
        sessions += headed_sessions()
    stopped = False
    for session_dir in sessions:
        if stop_session(session_dir, force):
            stopped = True
            print(f"Stopped the session at {session_dir}")
    if address and not stopped:
        raise FrameworkError(f"no session runs at {address}")
    if not sessions:
        print("No session runs.")
    return 0


@cli.command()
@_ADDRESS
def status(address: str | None) -> int:
    """What the sessions have and what runs in them."""
    from framework._cli_status import show_status

    sessions = one_of_each_cluster(chosen_sessions(address))
    for session_dir in sessions:
        show_status(session_dir)
    if not sessions:
        print(f"No session runs. Start one: {PROGRAM} start --head")
    return 0


@cli.command()
@click.argument("node")
@click.option("--address", help="The session or cluster (default: the latest of this user).")
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=limits.DRAIN_TIMEOUT,
    help="Seconds that its work may take.",
)
@click.option("--stop/--keep", "ends", default=True, help="Whether the node ends afterwards.")
def drain(node: str, address: str | None, timeout: float, ends: bool) -> int:
    """Move all work off a node (the beginning of its id), then stop it."""
    from framework._cli_status import drain_node

    sessions = chosen_sessions(address)
    if not sessions:
        raise FrameworkError("no session runs")
    return drain_node(sessions[0], node, timeout, ends)


@cli.command(name="list")
@click.argument(
    "what", type=click.Choice(["actors", "nodes", "objects", "placement-groups", "tasks", "workers"])
)
@click.option("--filter", "filters", multiple=True, help="KEY=VALUE or KEY!=VALUE; may be repeated.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Rows to show at the most."
)
@click.option("--detail", is_flag=True, help="All columns.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--address", help="The session or cluster (default: FRAMEWORK_ADDRESS, or the latest).")
def list_(
    what: str, filters: tuple[str, ...], limit: int, detail: bool, form: str, address: str | None
) -> int:
    """What is alive in a session: actors, nodes, objects, tasks, ..."""
    from framework._cli_listing import show_list

    return show_list(what, filters, limit=limit, detail=detail, form=form, address=address)


@cli.command()
@click.option("--address", help="The session or cluster (default: FRAMEWORK_ADDRESS, or the latest).")
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="Objects to show at the most."
)
def memory(address: str | None, limit: int) -> int:
    """The object stores, and what holds the objects in them."""
    from framework._cli_listing import show_memory

    return show_memory(limit, address)


__all__ = ["Client", "chosen_sessions", "cli", "client_of_head", "cluster_facts", "m", "main", "node_pid"]
