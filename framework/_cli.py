"""``python -m framework start | status | stop``: sessions that stay when their drivers leave."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from framework._base import resources as res
from framework._init_checks import wanted_resources
from framework._node.control import Client, running_sessions, start_session, stop_session, wait_for_session
from framework._node.session import node_pid
from framework._wire import messages as m
from framework.exceptions import FrameworkError

PROGRAM = "python -m framework"


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit code: 0, 1 when it fails, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except (FrameworkError, OSError, ValueError, TypeError) as error:
        print(f"{PROGRAM} {options.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Sessions that stay when their drivers leave.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    start = commands.add_parser("start", help="start a session on this machine, in the background")
    start.add_argument("--head", action="store_true", help="the first (and for now only) node of a session")
    start.add_argument("--num-cpus", type=float, help="CPUs that it offers (default: those of the machine)")
    start.add_argument("--num-gpus", type=float, help="GPUs that it offers (default: those of the machine)")
    start.add_argument(
        "--resources", type=_resources, metavar="JSON", help='custom amounts: {"name": amount}'
    )
    start.add_argument(
        "--object-store-memory", type=int, metavar="BYTES", help="shared memory for large values"
    )
    start.add_argument(
        "--block", action="store_true", help="stay in the foreground; Ctrl-C stops the session"
    )
    start.set_defaults(run=_start)
    for name, run, text in (
        ("status", _status, "what the sessions have and what runs in them"),
        ("stop", _stop, "end sessions with all that runs in them"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument(
            "address", nargs="?", help="the directory of one session (default: all of this user)"
        )
        command.set_defaults(run=run)
    return parser


def _resources(text: str) -> dict[str, float]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError('an object is expected: {"name": amount}')
    return found


def _start(options: argparse.Namespace) -> int:
    if not options.head:
        raise ValueError("--head is missing: nodes that join a session are not supported yet")
    wanted = wanted_resources(
        options.num_cpus,
        options.num_gpus,
        resources=options.resources,
        object_store_memory=options.object_store_memory,
    )
    address = start_session(wanted)
    print(
        f"A session runs at {address}\n\n"
        f"Connect to it:   framework.init(address={address!r})\n"
        '           or:   framework.init(address="auto"), which takes the latest\n'
        f"           or:   export FRAMEWORK_ADDRESS={address}\n"
        f"Look at it:      {PROGRAM} status\n"
        f"Stop it:         {PROGRAM} stop {address}",
        flush=True,
    )
    return _block(address) if options.block else 0


def _block(address: str) -> int:
    """Until the session ends, or somebody ends this process, which then stops it."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        orderly = wait_for_session(address)
    except KeyboardInterrupt:
        stop_session(address)
        print("The session was stopped.", flush=True)
        return 0
    stop_session(address)  # what is left of it
    print("The session has ended." if orderly else "The session's node process has died.", flush=True)
    return 0 if orderly else 1


def _chosen(options: argparse.Namespace) -> list[str]:
    return [os.path.abspath(options.address)] if options.address else running_sessions()


def _stop(options: argparse.Namespace) -> int:
    sessions = _chosen(options)
    for address in sessions:
        if stop_session(address):
            print(f"Stopped the session at {address}")
        elif options.address:
            raise FrameworkError(f"no session runs at {address}")
    if not sessions:
        print("No session runs.")
    return 0


def _status(options: argparse.Namespace) -> int:
    sessions = _chosen(options)
    for address in sessions:
        print("\n".join(_described(address)))
    if not sessions:
        print(f"No session runs. Start one: {PROGRAM} start --head")
    return 0


def _described(address: str) -> list[str]:
    with Client(address, "head") as head, Client(address, "node") as node:
        total: dict[str, Any] = res.to_floats(head.call(m.RESOURCES, False))
        free: dict[str, Any] = res.to_floats(head.call(m.RESOURCES, True))
        actors = head.call(m.ACTOR_LIST, None)
        kinds = [row["kind"] for row in node.call(m.PROCESSES)]
    lines = [
        f"Session {address}",
        f"  node process {node_pid(address)}; drivers: {kinds.count('driver')}, "
        f"workers: {kinds.count('worker')}",
    ]
    for name, amount in total.items():
        if amount:
            used = amount - free.get(name, 0.0)
            if name in ("memory", "object_store_memory"):
                lines.append(f"  {name}: {used / 2**30:.2f} of {amount / 2**30:.2f} GiB in use")
            else:
                lines.append(f"  {name}: {used:g} of {amount:g} in use")
    lines += [f"  actor {name!r} in namespace {namespace!r}" for namespace, name in actors]
    return lines
