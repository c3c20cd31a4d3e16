"""Where `audit export` writes lines, and keeps how far it has come: a kill at any moment loses and repeats none.

The position stands in a file of its own, with the size that the file of lines had then. It is replaced in one step,
and only once the lines before it are on the disk. Whoever goes on cuts the lines back to that size.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from pathlib import Path
from typing import IO, Final

import attrs

from tokenvault.audit.position import TEXT_CHARACTERS_MAX
from tokenvault.cli.inputs import open_private, reason_of
from tokenvault.errors import InvalidInputError
from tokenvault.keys.private_files import replace_file

_FIELDS: Final = {"to", "bytes", "position"}


@attrs.frozen
class _Kept:
    """What a file of a position holds.

    Attributes:
        to: the name of the file of lines; None where they went to the standard output.
        bytes: the size that it had.
        position: None where nothing was read yet.
    """

    to: str | None
    bytes: int
    position: str | None


class FeedFiles:
    """A file of lines, or another output, and the file of the position behind them.

    Args:
        output: where lines go without `to`.
        to: the file of lines: a new one, or the one that the position is of.
        after: the file of the position, which may be new; None keeps none.
    """

    def __init__(self, output: IO[str], to: Path | None, after: Path | None) -> None:
        self._after: Final = after
        kept = None if after is None else _read(after)
        name = None if to is None else to.name
        if kept is not None and kept.to != name:
            raise InvalidInputError(
                "the position is of lines that went elsewhere: name the same --to, or a new --after"
            )
        self.position: Final = None if kept is None else kept.position
        self._name: Final = name
        self._file: Final = output if to is None else self._opened(to, kept)

    def _opened(self, to: Path, kept: _Kept | None) -> IO[str]:
        if kept is None and self._after is not None and not to.exists():
            self._keep(None)  # from now on the file of lines is known as its own
        if kept is None or not to.exists():
            return os.fdopen(open_private(to), "w", encoding="ascii")
        try:
            descriptor = os.open(to, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise InvalidInputError(f"{to.name} can not be opened ({reason_of(error)})") from None
        file = os.fdopen(descriptor, "r+", encoding="ascii")
        _lock(file, to)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size < kept.bytes:
            file.close()
            raise InvalidInputError(f"{to.name} is shorter than it was at the position: it is another file")
        file.truncate(kept.bytes)
        file.seek(0, os.SEEK_END)
        return file

    def write(self, line: str) -> None:
        """Write a line."""
        self._file.write(f"{line}\n")

    def save(self, position: str) -> None:
        """Make sure of the lines that were written, and then of the position behind them."""
        self._file.flush()
        if self._name is not None:
            os.fsync(self._file.fileno())
        if self._after is not None:
            self._keep(position)

    def close(self) -> None:
        """Close the file of lines; another output stays open."""
        if self._name is not None:
            self._file.close()

    def _keep(self, position: str | None) -> None:
        size = 0 if position is None or self._name is None else os.fstat(self._file.fileno()).st_size
        _replace(self._after or Path(), json.dumps({"to": self._name, "bytes": size, "position": position}))


def _lock(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InvalidInputError(f"another run writes {path.name}") from None


def _read(path: Path) -> _Kept | None:
    """What a file of a position holds; None where there is none. Raises InvalidInputError."""
    try:
        with path.open(encoding="ascii") as file:
            document = json.loads(file.read(2 * TEXT_CHARACTERS_MAX))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidInputError(f"{path.name} can not be read ({reason_of(error)})") from None
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and document.keys() == _FIELDS:
        to, size, position = document["to"], document["bytes"], document["position"]
        if (
            isinstance(to, str | None)
            and type(size) is int
            and size >= 0
            and isinstance(position, str | None)
        ):
            return _Kept(to, size, position)
    raise InvalidInputError(f"{path.name} holds no position that `audit export` kept")


def _replace(path: Path, text: str) -> None:
    """Make a file hold a text, in one step, and wait until it is on the disk."""
    try:
        replace_file(str(path), text.encode())
    except OSError as error:
        raise InvalidInputError(f"{path.name} can not be written ({reason_of(error)})") from None
