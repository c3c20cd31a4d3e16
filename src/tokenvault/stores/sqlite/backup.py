"""Copying a SQLite file that is open: by SQLite itself, and to a file that was not there.

Not by `cp` or by reading the file: what was committed last stands in the write-ahead log beside it. And in a process
that has the file open, closing any other descriptor of it drops all locks that SQLite has on it (POSIX advisory
locks, https://www.sqlite.org/howtocorrupt.html section 2.2): two writers then destroy the file.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import suppress
from functools import partial
from typing import Final

from tokenvault.errors import InvalidInputError
from tokenvault.runtime import put_result
from tokenvault.stores.sqlite.file import Connection

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

PAGES: Final = 1_024
"""Copied at once: between two lots the process hears its signals."""


def back_up(source: Connection, path: str) -> None:
    """Copy all that is committed now to a new file, for its owner alone, and have it on disk.

    Raises:
        InvalidInputError: there is a file already.
    """
    made: list[int] = []  # the handle, from when the file is ours
    closed: list[None] = []
    try:
        try:
            put_result(made, os.open, path, _NEW, stat.S_IRUSR | stat.S_IWUSR)
        except FileExistsError:
            raise InvalidInputError(
                "there is a file already where the backup is to be: name another"
            ) from None
        put_result(closed, os.close, made[0])
        # One moment of the file, held until the copy is whole: else each write of others would begin it anew.
        source.run("BEGIN")
        source.run("SELECT count(*) FROM sqlite_schema")
        _copy(source, path)
        source.run("ROLLBACK")
        _flush(path)
        _flush(os.path.dirname(os.path.abspath(path)))
    except BaseException:
        if made and not closed:
            os.close(made[0])
        if made:
            for name in (path, f"{path}-wal", f"{path}-shm", f"{path}-journal"):
                with suppress(FileNotFoundError):
                    os.unlink(name)
        raise


def _copy(source: Connection, path: str) -> None:
    target: list[sqlite3.Connection] = []
    try:
        put_result(target, partial(sqlite3.Connection, path, isolation_level=None))
        source.backup(target[0], pages=PAGES, sleep=0)
    finally:
        if target:
            target[0].close()


def _flush(path: str) -> None:
    handle: list[int] = []
    try:
        put_result(handle, os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(handle[0])
    finally:
        if handle:
            os.close(handle[0])
