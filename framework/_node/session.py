"""The session directory: sockets while the session lives, logs beyond it.

``$FRAMEWORK_TMPDIR`` (or the system's directory for temporary files)
``/framework-<uid>/session-<time>-<pid>/``, mode 0700, with ``sockets/`` and ``logs/``.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable

from framework._base import limits
from framework._service.private import open_private as open_private
from framework._service.private import write_whole


def sessions_root() -> str:
    """The directory of all sessions of this user, created with mode 0700.

    `PermissionError` when it belongs to someone else, OSError when it cannot be made."""
    base = os.environ.get("FRAMEWORK_TMPDIR") or _temporary()
    root = os.path.join(os.path.abspath(base), f"framework-{os.getuid()}")
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"no directory for sessions can be made here ({error.strerror}): set FRAMEWORK_TMPDIR to a "
            "directory that can be "
            "written to",
            root,
        ) from None
    found = os.lstat(root)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(
            f"{root} is not a directory of this user: set FRAMEWORK_TMPDIR to another place"
        )
    if found.st_mode & 0o077:
        os.chmod(root, 0o700)
    return root


def _temporary() -> str:
    """As `tempfile.gettempdir`, which takes long to load, in the usual cases."""
    base = os.environ.get("TMPDIR") or "/tmp"
    if os.access(base, os.W_OK | os.X_OK) and os.path.isdir(base):
        return base
    import tempfile

    return tempfile.gettempdir()


def create_session(unique: str) -> str:
    """Make the directories of a new session; `unique` (hexadecimal) tells two apart that start at once."""
    name = time.strftime("session-%Y%m%d-%H%M%S-") + f"{os.getpid()}-{unique}"
    path = os.path.join(sessions_root(), name)
    try:
        os.mkdir(path, 0o700)
        os.mkdir(os.path.join(path, "sockets"), 0o700)
        os.mkdir(os.path.join(path, "logs"), 0o700)
    except OSError as error:
        sweep_session(path)
        raise type(error)(
            error.errno,
            f"the session directory cannot be made ({error.strerror}): set FRAMEWORK_TMPDIR to a directory "
            "that can be written "
            "to",
            path,
        ) from None
    return path


#: what a node keeps in the directory of its session
_OF_NODE = ("node.pid", "node.pid.new", "cluster.json", "join.json", "token")

#: what the head of a cluster keeps in the directory of its node's session
_OF_HEAD = (
    "head.pid",
    "head.pid.new",
    "head.json",
    *(f"head.db{ending}" for ending in ("", "-wal", "-shm", "-journal", ".lock")),
)


def sweep_session(path: str) -> None:
    """The session is over: its sockets go, and empty logs; the directory too, if nothing is left in it. What
    belongs to a head that still runs is left to it. Never raises.

    Loads no modules: at the exit of an interpreter that is not safe (`shutil`, of all things, makes Python
    forget that it ends because of Ctrl-C)."""
    sockets, logs = os.path.join(path, "sockets"), os.path.join(path, "logs")
    head_runs = head_pid(path) is not None
    _remove(
        entry.path
        for entry in _entries(sockets)
        if not entry.is_dir(follow_symlinks=False) and not (head_runs and entry.name == "head")
    )
    _remove(os.path.join(path, name) for name in _OF_NODE)
    if not head_runs:
        _remove(os.path.join(path, name) for name in _OF_HEAD)
    _remove(entry.path for entry in _entries(logs) if _is_empty(entry))
    for directory in (sockets, logs, path):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def sweep_head(path: str) -> None:
    """The head that belongs to a session has ended for good: what was its own goes, and the directory, if
    nothing else is left in it. Never raises."""
    sockets, logs = os.path.join(path, "sockets"), os.path.join(path, "logs")
    _remove([os.path.join(sockets, "head"), *(os.path.join(path, name) for name in _OF_HEAD)])
    if node_pid(path) is None:
        _remove(os.path.join(path, name) for name in _OF_NODE)
        _remove(entry.path for entry in _entries(logs) if _is_empty(entry))
    for directory in (sockets, logs, path):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []


def _is_own(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_uid == os.getuid()
    except OSError:
        return False


def _is_empty(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.stat(follow_symlinks=False).st_size
    except OSError:
        return False


def _remove(paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


def sweep_stale_sessions(keep: int = limits.SESSIONS_KEPT) -> None:
    """Clean up after sessions that could not do it themselves (kill -9), and remove the oldest logs."""
    import shutil

    finished = []
    for path in session_dirs():
        if _alive(path):
            continue
        sweep_session(path)
        if os.path.isdir(path):
            finished.append(path)
    for path in sorted(finished)[:-keep] if keep else finished:
        shutil.rmtree(path, ignore_errors=True)


def _alive(session: str) -> bool:
    """Whether the node process of a session, its head, or its driver, still runs."""
    if head_pid(session) is not None:
        return True
    pids = []
    pid = node_pid(session)
    if pid is not None:
        pids.append(pid)
    parts = os.path.basename(session).split("-")
    if len(parts) >= 4 and parts[3].isdigit():
        pids.append(int(parts[3]))
    return any(map(_runs, pids))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # the latter: somebody else's process has the number now
        return False
    return True


def write_node_pid(session: str, stays: bool) -> None:
    """This process is the node of the session, which `stays` when no driver is connected."""
    write_whole(os.path.join(session, "node.pid"), f"{os.getpid()}\n{_STAYS if stays else ''}")


_STAYS = "stays"


def _read_node_pid(session: str) -> list[str]:
    try:
        with open(os.path.join(session, "node.pid")) as file:
            return file.read().split()
    except (OSError, ValueError):
        return []


def node_pid(session: str) -> int | None:
    """The number of a session's node process, as far as that is known."""
    words = _read_node_pid(session)
    return int(words[0]) if words and words[0].isdigit() else None


def head_pid(session: str) -> int | None:
    """The number of the process of a cluster's head that belongs to a session, if it runs. It may be this
    one."""
    try:
        with open(os.path.join(session, "head.pid")) as file:
            pid = int(file.read())
    except (OSError, ValueError):
        return None
    return pid if _runs(pid) else None


def is_of_session(pid: int, session: str) -> bool:
    """Whether this process is one that was started for that session, as its node or its head: its number may
    belong to another one by now."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsencode(session) in file.read()
    except OSError:
        return False


def session_dirs() -> list[str]:
    """The directories of all sessions of this user, those that are over included."""
    return [
        entry.path
        for entry in _entries(sessions_root())
        if entry.name.startswith("session-") and entry.is_dir(follow_symlinks=False) and _is_own(entry)
    ]


def staying_sessions() -> list[str]:
    """The directories of this user's sessions that were started to stay and whose node runs, the latest
    first."""
    return [path for path in live_sessions() if _STAYS in _read_node_pid(path)]


def live_sessions() -> list[str]:
    """The directories of this user's sessions whose node runs, whoever it was started by, the latest
    first."""
    found = []
    for path in session_dirs():
        pid = node_pid(path)
        if pid is not None and _runs(pid):
            found.append((_started(path), path))
    return [path for _, path in sorted(found, reverse=True)]


def _started(session: str) -> float:
    try:
        return os.stat(os.path.join(session, "node.pid")).st_mtime
    except OSError:
        return 0.0
