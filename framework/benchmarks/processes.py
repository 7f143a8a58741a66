"""Child processes that leave nothing behind.

A benchmark may start clusters, pools and node processes that detach from it. On Linux the invoking process
makes itself the reaper of its orphaned descendants, so that whatever a child leaves is found again, and
ended, by its id.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_GRACE = 3.0  # seconds that leftovers get to end by themselves before they are killed
_POLL = 0.02
_TAIL = 4000

#: The directory that holds the package: children find `framework` there, whatever their working directory is.
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended. `code` is None when it took too long. `leftovers` counts killed processes."""

    code: int | None
    stdout: str
    stderr: str
    leftovers: int


def adopt_orphans() -> bool:
    """Make this process the parent of descendants whose own parent dies. False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def parent_of(stat: str) -> tuple[int, str]:
    """Parent id and state letter from the text of /proc/<pid>/stat (the name in it may hold anything)."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]), fields[0]


def descendants(pid: int) -> list[int]:
    """Ids of all living processes below `pid`; empty where there is no /proc. Zombies do not count."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent, state = parent_of((entry / "stat").read_text(errors="replace"))
        except (OSError, IndexError, ValueError):
            continue  # it ended meanwhile
        if state != "Z":
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found.extend(below)
        queue.extend(below)
    return found


def children(pid: int) -> list[int]:
    """Ids of the living processes that `pid` started itself."""
    below = descendants(pid)
    return [child for child in below if _parent_or_none(child) == pid]


def _parent_or_none(pid: int) -> int | None:
    try:
        return parent_of(Path(f"/proc/{pid}/stat").read_text(errors="replace"))[0]
    except (OSError, IndexError, ValueError):
        return None


def private_memory(pid: int) -> int:
    """Bytes that a process shares with no other. `RuntimeError` where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError as error:
        raise RuntimeError(f"the memory of a process cannot be read here: {error}") from None
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def resident_memory(pid: int) -> int:
    """Bytes of a process that are in memory. `RuntimeError` where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError as error:
        raise RuntimeError(f"the memory of a process cannot be read here: {error}") from None
    return pages * os.sysconf("SC_PAGE_SIZE")


def processor_seconds(pid: int) -> float:
    """CPU time that the living threads of a process have used, to the nanosecond. `RuntimeError` where the
    system does not tell, or the process has ended."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except (OSError, IndexError, ValueError) as error:
        raise RuntimeError(f"the CPU time of a process cannot be read here: {error}") from None


def voluntary_switches(pid: int) -> int:
    """How often the living threads of a process have gone to sleep. `RuntimeError` as above."""
    total = 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for line in (thread / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])
    except (OSError, ValueError) as error:
        raise RuntimeError(f"context switches cannot be read here: {error}") from None
    return total


def _reap_orphans(keep: int) -> None:
    """Collect the exit status of adopted processes; `keep` is the child that subprocess itself waits for."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent, state = parent_of((entry / "stat").read_text(errors="replace"))
        except (OSError, IndexError, ValueError):
            continue
        if parent == os.getpid() and state == "Z" and int(entry.name) != keep:
            try:
                os.waitpid(int(entry.name), os.WNOHANG)
            except ChildProcessError:
                continue


def _end(pids: Sequence[int], how: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            continue


def end_descendants(before: frozenset[int], keep: int = -1, grace: float = _GRACE) -> int:
    """End every process below this one that is not in `before`; returns how many had to be killed.

    They get `grace` seconds to end by themselves.
    """
    deadline = time.monotonic() + grace
    while True:
        _reap_orphans(keep)
        left = [pid for pid in descendants(os.getpid()) if pid not in before]
        if not left:
            return 0
        if time.monotonic() >= deadline:
            break
        time.sleep(_POLL)
    _end(left, signal.SIGKILL)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and [p for p in descendants(os.getpid()) if p not in before]:
        _reap_orphans(keep)
        time.sleep(_POLL)
    _reap_orphans(keep)
    return len(left)


def child_environment() -> dict[str, str]:
    """The environment of children: this one's, with the package importable."""
    path = os.environ.get("PYTHONPATH")
    entries = [str(PACKAGE_ROOT), *([path] if path else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entries)}


@contextmanager
def compiled_modules() -> Iterator[dict[str, str]]:
    """Environment variables with which children find their modules compiled from the second one on, as
    installers leave them, even where Python is told to write none (``PYTHONDONTWRITEBYTECODE``): then they
    are kept in a directory of their own meanwhile."""
    if not sys.dont_write_bytecode:
        yield {}
        return
    with tempfile.TemporaryDirectory() as directory:
        yield {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": directory}


def run_child(
    arguments: Sequence[str],
    timeout: float,
    executable: str | None = None,
    tail: int = _TAIL,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run this interpreter (or `executable`) with `arguments`, and more variables in its `environment`; wait
    for it at most `timeout` seconds; leave no process of it. Of what it prints, the last `tail` bytes are
    kept.

    Output goes to temporary files: a leftover that holds a pipe open would keep its reader waiting.
    """
    before = frozenset(descendants(os.getpid()))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [executable or sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**child_environment(), **(environment or {})},
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                _end(descendants(process.pid), signal.SIGKILL)
                process.kill()
                process.wait()
            leftovers = end_descendants(before, keep=process.pid, grace=_GRACE if code is not None else 0.0)
        return Outcome(code, _tail(out.fileno(), tail), _tail(err.fileno(), tail), leftovers)


def _tail(descriptor: int, count: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, count, max(0, size - count)).decode(errors="replace")
