"""What outlives the head's process: an SQLite file in the head's directory.

Tables of keys and values, both bytes. Changes are collected and written in one short transaction per turn of
the loop (`commit`), before anybody is told of them. A transaction that was committed is safe from the end of
the process at any moment (WAL); of the machine, as far as ``synchronous=NORMAL`` goes: the file stays sound,
the latest moments may be missing. The log is folded into the file by a thread: the loop does not wait for the
disk, but for the moment in which the thread takes the last of it and begins the log anew. (Without that
moment the log would grow for as long as there is always something to write.)
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
from typing import Any

import msgpack

from framework._base import limits
from framework.exceptions import FrameworkError

log = logging.getLogger("framework.head")

_SCHEMA = "CREATE TABLE IF NOT EXISTS kept (kind TEXT, key BLOB, value BLOB, PRIMARY KEY (kind, key))"


def pack(value: Any) -> bytes:
    """A value that msgpack can hold, as bytes."""
    data: bytes = msgpack.packb(value)
    return data


def unpack(data: bytes) -> Any:
    """The other way."""
    return msgpack.unpackb(data, strict_map_key=False, use_list=True)


class StorageError(FrameworkError):
    """The head's state cannot be read, or is in use by another head."""

    default_message = "The state of the cluster's head cannot be read."


class Storage:
    """The file. `path` None: nothing is kept beyond this object (tests). Raises `StorageError`."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._pending: dict[tuple[str, bytes], bytes | None] = {}
        self._folded = 0  #: size of the log when it was folded in last; 0 when it has begun anew since
        self._folding: threading.Thread | None = None
        self._lock = -1
        self._failed = False
        if path is not None:
            self._take(path)
        try:
            self._db = self._open(path or ":memory:")
        except sqlite3.Error as error:
            self._release()
            raise StorageError(
                f"the state of the cluster in {path} cannot be read ({error}). Put a sound copy there, or "
                f"move the file (and {path}-wal) away: then a cluster without actors and placement groups "
                "begins"
            ) from None

    @staticmethod
    def _open(path: str) -> sqlite3.Connection:
        if path != ":memory:":
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA wal_autocheckpoint=0")
            problems = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
            if problems != ["ok"]:
                raise sqlite3.DatabaseError("; ".join(map(str, problems)))
            db.execute(_SCHEMA)
        except BaseException:
            db.close()
            raise
        return db

    def _take(self, path: str) -> None:
        """One head at a time. The system lets go when the process ends, however that is."""
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._release()
            raise StorageError(f"another head uses {path}") from None

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ---- tables --------------------------------------------------------------------------------------

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Keep a value, at the next `commit`."""
        self._pending[table, key] = value

    def delete(self, table: str, key: bytes) -> None:
        """Forget one, at the next `commit`."""
        self._pending[table, key] = None

    def all(self, table: str) -> dict[bytes, bytes]:
        """Everything in a table, in the order of first insertion."""
        self.commit()
        query = "SELECT key, value FROM kept WHERE kind = ? ORDER BY rowid"
        try:
            return {bytes(key): bytes(value) for key, value in self._db.execute(query, (table,))}
        except sqlite3.Error as error:
            raise StorageError(f"the state of the cluster in {self.path} cannot be read ({error})") from None

    def commit(self) -> None:
        """Write what has changed. A disk that does not take it is reported; it is tried again next time."""
        if not self._pending:
            return
        pending = self._pending
        try:
            self._write(pending)
        except sqlite3.Error as error:
            if not self._failed:
                log.error("the state cannot be written: %s. A restart of the head would lose it", error)
            self._failed = True
            return
        self._failed = False
        self._pending = {}
        self._look_at_log()

    def _write(self, pending: dict[tuple[str, bytes], bytes | None]) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            for (table, key), value in pending.items():
                if value is None:
                    db.execute("DELETE FROM kept WHERE kind = ? AND key = ?", (table, key))
                else:
                    db.execute(
                        "INSERT INTO kept VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                        (table, key, value),
                    )
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    # ---- the log -------------------------------------------------------------------------------------

    def _look_at_log(self) -> None:
        if self.path is None:
            return
        try:
            size = os.stat(f"{self.path}-wal").st_size  # (whole pages: a multiple of what was put)
        except OSError:
            return
        if size < self._folded:
            self._folded = 0
        if size - self._folded >= limits.HEAD_LOG_BYTES:
            self._fold(size)

    def _fold(self, size: int) -> None:
        if self._folding is not None and self._folding.is_alive():
            return
        self._folded = size
        self._folding = threading.Thread(target=self._checkpoint, name="head storage", daemon=True)
        self._folding.start()

    def _checkpoint(self) -> None:
        assert self.path is not None
        try:
            db = sqlite3.connect(self.path, isolation_level=None, timeout=5.0)
            try:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")  # nearly all of it, while more is written
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                db.close()
        except sqlite3.Error as error:
            log.warning("the log of the head's state could not be folded in: %s", error)

    def close(self) -> None:
        """Write what is left."""
        self.commit()
        if self._folding is not None:
            self._folding.join()
        self._db.close()
        self._release()
