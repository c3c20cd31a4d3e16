"""Copying a SQLite file that is open: by SQLite itself, and to a file that was not there.

Not by `cp` or by reading the file: what was committed last stands in the write-ahead log beside it. And in a process
that has the file open, closing any other descriptor of it drops all locks that SQLite has on it (POSIX advisory
locks, https://www.sqlite.org/howtocorrupt.html section 2.2): two writers then destroy the file.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
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
    made: list[int] = []  # filled by one step (see `runtime`): no interrupt leaves the file behind
    try:
        try:
            put_result(made, os.open, path, _NEW, 0o600)
        except FileExistsError:
            raise InvalidInputError(
                "there is a file already where the backup is to be: name another"
            ) from None
        os.close(made[0])
        # One moment of the file, held until the copy is whole: else each write of others would begin it anew.
        source.run("BEGIN")
        source.run("SELECT count(*) FROM sqlite_schema")
        with closing(sqlite3.connect(path, isolation_level=None)) as target:
            source.backup(target, pages=PAGES, sleep=0)
        source.run("ROLLBACK")
        _flush(path)
        _flush(os.path.dirname(os.path.abspath(path)))
    except BaseException:
        for name in (path, f"{path}-wal", f"{path}-shm", f"{path}-journal") if made else ():
            with suppress(FileNotFoundError):
                os.unlink(name)
        raise


def _flush(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
