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
import stat
from typing import BinaryIO, Final

from tokenvault.errors import KeyStoreError

PATHS_REMEMBERED_MAX: Final = 1_000

_log: Final = logging.getLogger(__name__)
_CODE: Final = "KEY_STORE_FILE_EXPOSED"
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


def open_lock(path: str, flags: int) -> int:
    """Open a lock file for its owner alone, and make it where there is none. A symbolic link is not followed."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


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
