"""Machines of one's own: network namespaces joined by a switch, each with an address, so that nothing of one
is reachable from another but over the wire. For root, on Linux.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from support.command_line import run_command_line
from support.drivers import ROOT, Driver


class NotPermitted(Exception):
    """Namespaces cannot be made here; the text says why."""


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise NotPermitted(f"`{' '.join(command)}`: {done.stderr.strip() or done.returncode}")


class Machine:
    """One namespace, with a directory of its own for sessions."""

    def __init__(self, network: Network, number: int, root: Path) -> None:
        self._network = network
        self.name = f"{network.prefix}{number}"
        self.address = f"{network.subnet}.{number + 1}"
        self.root = root
        self._wire = f"w{number}"
        _run("ip", "netns", "add", self.name)
        network.made.append(self.name)
        _run(
            "ip",
            "link",
            "add",
            "eth0",
            "netns",
            self.name,
            "type",
            "veth",
            "peer",
            "name",
            self._wire,
            "netns",
            network.switch,
        )
        _run("ip", "-n", network.switch, "link", "set", self._wire, "master", "switch", "up")
        _run("ip", "-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", self.name, "link", "set", device, "up")

    def environment(self, **variables: str) -> dict[str, str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "FRAMEWORK_TMPDIR": str(self.root), **variables}
        env.pop("FRAMEWORK_ADDRESS", None)
        return env

    def cli(self, *arguments: str, code: int = 0, **variables: str) -> str:
        """What ``python -m framework`` prints here."""
        within = ("ip", "netns", "exec", self.name)
        return run_command_line(*arguments, env=self.environment(**variables), code=code, within=within)

    def driver(self, source: str, **variables: str) -> Driver:
        """A program that runs here."""
        code = f"import os, sys; os.execvp('ip', ['ip', 'netns', 'exec', {self.name!r}, *sys.argv[1:]])"
        return Driver(
            "", self.root, arguments=["-c", code, sys.executable, "-u", "-c", source], env=variables
        )

    def cut(self) -> None:
        """Pull its cable."""
        _run("ip", "-n", self._network.switch, "link", "set", self._wire, "down")

    def mend(self) -> None:
        """Put it back."""
        _run("ip", "-n", self._network.switch, "link", "set", self._wire, "up")

    def lose(self, other: Machine) -> None:
        """What goes from here to that one machine is lost, while both reach all others."""
        nobody = ("lladdr", "02:00:00:00:00:77", "nud", "permanent")
        _run("ip", "-n", self.name, "neigh", "replace", other.address, *nobody, "dev", "eth0")

    def trouble(self, milliseconds: float, loss_percent: float) -> None:
        """What it sends is delayed, and some of it lost. `NotPermitted` where the kernel has no netem."""
        _run(
            "tc", "-n", self.name, "qdisc", "add", "dev", "eth0", "root", "netem",
            "delay", f"{milliseconds}ms", "loss", f"{loss_percent}%",
        )  # fmt: skip


class Network:
    """The machines and their switch; all of it is gone at the end of the block. `NotPermitted` where it
    cannot be made."""

    def __init__(self, root: Path) -> None:
        if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
            raise NotPermitted("network namespaces take Linux, root and the program ip")
        number = os.getpid() % 200
        self.prefix = f"fw{os.getpid()}-"
        self.subnet = f"10.{20 + number}.77"
        self.switch = f"{self.prefix}switch"
        self.made: list[str] = []
        self.machines: list[Machine] = []
        self._root = root
        try:
            _run("ip", "netns", "add", self.switch)
            self.made.append(self.switch)
            _run("ip", "-n", self.switch, "link", "add", "switch", "type", "bridge")
            _run("ip", "-n", self.switch, "link", "set", "switch", "up")
        except BaseException:
            self.close()
            raise

    def machine(self) -> Machine:
        """One more."""
        number = len(self.machines)
        root = self._root / f"m{number}"
        root.mkdir()
        self.machines.append(Machine(self, number, root))
        return self.machines[-1]

    def close(self) -> None:
        """Remove everything that was made."""
        for name in reversed(self.made):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False, timeout=20)
        self.made.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
