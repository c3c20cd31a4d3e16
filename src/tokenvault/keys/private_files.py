"""Files that hold keys, PINs and passphrases: who else could read them, or put another in their place.

What others may **write** is refused, as they choose the keys then: the file itself, a folder that anyone may change,
and a file or a symbolic link that belongs to another user. What others may only **read** is warned of in the log of
this module: a container's secrets are often mounted so, and are then private to the container.

A symbolic link of this user or of root is followed, as mounted secrets are links.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import stat
from contextlib import suppress
from typing import BinaryIO, Final

from tokenvault.errors import KeyStoreError
from tokenvault.runtime import put_result

PATHS_REMEMBERED_MAX: Final = 1_000

_log: Final = logging.getLogger(__name__)
_CODE: Final = "KEY_STORE_FILE_EXPOSED"
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_PRIVATE: Final = stat.S_IRUSR | stat.S_IWUSR
_GROUP_AND_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_GROUP_AND_OTHERS_READ: Final = stat.S_IRGRP | stat.S_IROTH


def open_private(path: str, what: str) -> BinaryIO:
    """Open a file for reading, once it is seen that nobody else can write it.

    Args:
        path: of a file; a pipe or a device is refused, as reading it has no end.
        what: for messages, which do not name the path.

    Raises:
        OSError: it can not be opened.
        KeyStoreError: it is no file, or others can write it.
    """
    _check_place(path, what)
    file = open(path, "rb", opener=_open_file)  # noqa: SIM115 # the caller closes it
    try:
        found = os.fstat(file.fileno())
        _check_file(found, what)
        _warn_of_readers(path, what, stat.S_IMODE(found.st_mode))
    except BaseException:
        file.close()
        raise
    return file


def _open_file(path: str, _flags: int) -> int:
    # A pipe without a writer would be waited for.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def open_lock(place: list[int], path: str, flags: int) -> None:
    """Open a lock file for its owner alone into a list, in one step; make it where there is none.

    A symbolic link is not followed. Raises OSError.
    """
    put_result(place, os.open, path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def open_new(path: str) -> int:
    """The descriptor of a new file that its owner alone can read. Raises OSError, also where there is one."""
    return os.open(path, _NEW, _PRIVATE)


def write_new(path: str, content: bytes) -> None:
    """Write a new file that its owner alone can read. Once it ends, the content is on the disk.

    Raises:
        OSError: there is a file, or none can be made or written. Whatever is raised, there is no new file.
    """
    # Filled by one step (see `runtime`): whatever interrupts, it is known whether the file is this one.
    made: list[int] = []
    try:
        put_result(made, os.open, path, _NEW, _PRIVATE)
        with os.fdopen(made[0], "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(made[0])
    except BaseException:
        if made:
            os.unlink(path)
        raise


def replace_file(path: str, content: bytes) -> None:
    """Make a file hold a content, in one step, for its owner alone. Raises OSError: then it holds what it held.

    That the step itself is on the disk, its folder has to be flushed for.
    """
    folder, name = os.path.split(path)
    new = os.path.join(folder, f".{name}.{secrets.token_hex(8)}")
    try:
        write_new(new, content)
        os.replace(new, path)
    except BaseException:
        with suppress(FileNotFoundError):  # it was never made, or has its place already
            os.unlink(new)
        raise


def _check_place(path: str, what: str) -> None:
    """Refuse a name that somebody else can let mean another file."""
    folder = os.stat(os.path.dirname(os.path.abspath(path)))
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        raise KeyStoreError(
            f"anyone can put another file in the place of {what}: chmod o-w its folder", code=_CODE
        )
    if not _is_trusted(os.lstat(path)):
        raise KeyStoreError(f"{what} belongs to another user: chown it", code=_CODE)


def _check_file(found: os.stat_result, what: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise KeyStoreError(f"{what} can not be read: it is a folder, a pipe or a device", code=_CODE)
    if not _is_trusted(found):
        raise KeyStoreError(f"{what} belongs to another user: chown it", code=_CODE)
    if found.st_mode & _GROUP_AND_OTHERS_WRITE:
        raise KeyStoreError(f"others can write {what}: chmod 600 it", code=_CODE)


@functools.lru_cache(PATHS_REMEMBERED_MAX)  # each once: a key file is read for each question about it
def _warn_of_readers(_path: str, what: str, mode: int) -> None:
    if mode & _GROUP_AND_OTHERS_READ:
        _log.warning("others can read %s: chmod 600 it, unless no other user sees it here", what)


def _is_trusted(found: os.stat_result) -> bool:
    """Whether a file, folder or link is of this user, or of root, who can read and change everything anyway."""
    return found.st_uid in (0, os.geteuid())
