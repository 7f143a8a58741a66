"""The session directory: sockets while the session lives, logs beyond it.

``$FRAMEWORK_TMPDIR`` (or the system's directory for temporary files) ``/framework-<uid>/session-<time>-<pid>/``,
mode 0700, with ``sockets/`` and ``logs/``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time

from framework._base import limits


def sessions_root() -> str:
    """The directory of all sessions of this user: created with mode 0700; `PermissionError` when it belongs to someone
    else or is open to others."""
    base = os.environ.get("FRAMEWORK_TMPDIR") or tempfile.gettempdir()
    root = os.path.join(base, f"framework-{os.getuid()}")
    os.makedirs(root, mode=0o700, exist_ok=True)
    found = os.lstat(root)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{root} is not a directory of this user: set FRAMEWORK_TMPDIR to another place")
    if found.st_mode & 0o077:
        os.chmod(root, 0o700)
    return root


def create_session(unique: str) -> str:
    """Make the directories of a new session; `unique` (hexadecimal) tells two apart that start at once."""
    name = time.strftime("session-%Y%m%d-%H%M%S-") + f"{os.getpid()}-{unique}"
    path = os.path.join(sessions_root(), name)
    os.mkdir(path, 0o700)
    os.mkdir(os.path.join(path, "sockets"), 0o700)
    os.mkdir(os.path.join(path, "logs"), 0o700)
    return path


def sweep_session(path: str) -> None:
    """The session is over: its sockets go, and empty logs; the directory too, if nothing is left in it."""
    shutil.rmtree(os.path.join(path, "sockets"), ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(path, "node.pid"))
    logs = os.path.join(path, "logs")
    with contextlib.suppress(OSError):
        for entry in os.scandir(logs):
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_size == 0:
                    os.unlink(entry.path)
    for directory in (logs, path):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def sweep_stale_sessions(keep: int = limits.SESSIONS_KEPT) -> None:
    """Clean up after sessions that could not do it themselves (kill -9), and remove the oldest logs."""
    root = sessions_root()
    finished = []
    for entry in os.scandir(root):
        if not entry.name.startswith("session-") or not entry.is_dir(follow_symlinks=False):
            continue
        if _alive(entry.path):
            continue
        sweep_session(entry.path)
        if os.path.isdir(entry.path):
            finished.append(entry.path)
    for path in sorted(finished)[:-keep] if keep else finished:
        shutil.rmtree(path, ignore_errors=True)


def _alive(session: str) -> bool:
    """Whether the node process of a session, or its driver, still runs."""
    pids = []
    try:
        with open(os.path.join(session, "node.pid")) as file:
            pids.append(int(file.read()))
    except (OSError, ValueError):
        pass
    parts = os.path.basename(session).split("-")
    if len(parts) >= 4 and parts[3].isdigit():
        pids.append(int(parts[3]))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            try:
                os.kill(pid, 0)
            except PermissionError:
                continue  # somebody else's process has the number now
            return True
    return False
