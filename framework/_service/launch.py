"""Starting our own Python processes, with next to nothing imported: a driver does this first and loads the
rest meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping

# Not `-m`: that costs 10 ms. The package comes from where its parent has it; nothing else there may hide
# modules of the standard library, so the rest of the parent's path goes to the end.
_PROGRAM = (
    "import sys, json; root, *rest = json.loads(sys.argv[1]); sys.path.insert(0, root); import framework; "
    "sys.path.remove(root); sys.path += [p for p in rest if p not in sys.path]; from {} import main; main()"
)


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `main()` of `module` of this package in a fresh interpreter, where
    ``sys.argv[2:]`` are `arguments`. `RuntimeError` when the interpreter is not known."""
    if not sys.executable:
        raise RuntimeError(
            "sys.executable is empty: the path of the Python interpreter is needed to start processes"
        )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    rest = [entry for entry in sys.path if isinstance(entry, str) and entry]
    return [sys.executable, "-P", "-c", _PROGRAM.format(module), json.dumps([root, *rest]), *arguments]


class Child:
    """A process that we have started. It may be reaped behind our back (by ``os.wait`` of the user): then it
    counts as ended with code None."""

    __slots__ = ("_ended", "code", "group", "pid")

    def __init__(self, pid: int, group: bool) -> None:
        self.pid = pid
        self.group = group  #: it leads a process group of its own
        self.code: int | None = None  #: exit code, or the negative number of a signal
        self._ended = False

    def poll(self) -> bool:
        """Whether it has ended. Then what is left of its process group is killed too, and it is reaped."""
        if self._ended:
            return True
        try:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if found is None:
                return False
            self._kill_group()  # as long as it is not reaped, nobody else can have its number
            _, status = os.waitpid(self.pid, 0)
            self.code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            pass
        self._ended = True
        return True

    def wait(self, timeout: float) -> bool:
        """Wait for its end; False when it has not come within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        import select  # not before it is needed: see `framework._session`

        with contextlib.suppress(OSError, AttributeError):  # no pidfd: poll
            fd = os.pidfd_open(self.pid)
            try:
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                poll.poll(timeout * 1000)
            finally:
                os.close(fd)
        while not self.poll():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        return True

    def kill(self) -> None:
        """SIGKILL, for the whole group if it has one."""
        if not self.poll():
            self._kill_group()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait_for_group(self, timeout: float) -> bool:
        """After its end: wait for that of the processes of its group, which are dying; False when that takes
        longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.group and _group_runs(self.pid):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        return True

    def _kill_group(self) -> None:
        if self.group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


def _group_runs(group: int) -> bool:
    """Whether processes of a group run. Those that only wait to be reaped do not count, where the system
    tells: nobody may ever do it."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        names = os.listdir("/proc")
    except OSError:
        return True
    for name in names:
        if name.isdigit():
            with (
                contextlib.suppress(OSError, ValueError, IndexError),
                open(f"/proc/{name}/stat", "rb") as file,
            ):
                state, _, of_group = file.read().rpartition(b")")[2].split()[:3]
                if int(of_group) == group and state not in (b"Z", b"X"):
                    return True
    return False


def spawn(
    argv: list[str],
    *,
    env: Mapping[str, str],
    keep: Iterable[int] = (),
    output: int | None = None,
    new_session: bool = False,
) -> Child:
    """Start a process with its standard input closed to us, the descriptors `keep` under the same numbers,
    and its output and errors sent to the descriptor `output`. With `new_session` no signal of our terminal
    reaches it. OSError if that fails.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        out = null if output is None else output
        actions = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            *(((os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)) if output is not None else ()),
            # Onto itself: clears close-on-exec in the child alone, unlike os.set_inheritable.
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep),
        ]
        pid = os.posix_spawn(
            argv[0],
            argv,
            env,
            file_actions=actions,
            setsid=new_session,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD),
        )
    finally:
        os.close(null)
    return Child(pid, new_session)


def close_others(keep: Iterable[int]) -> None:
    """In the new process: close what it has inherited by accident."""
    kept = {0, 1, 2, *keep}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                with contextlib.suppress(OSError):
                    os.close(int(name))
