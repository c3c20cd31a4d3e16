"""PINs and passphrases: how they are read, and held without being shown."""

from __future__ import annotations

import os
from typing import Final

from tokenvault.errors import InvalidInputError, KeyStoreError
from tokenvault.keys.private_files import open_private

SECRET_BYTES_MAX: Final = 1_024


class Secret:
    """Text that no repr, traceback with locals, pickle or copy shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: use it in the same expression, keep it in no variable."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> str:
        raise InvalidInputError("a secret can not be pickled or copied")


def read_secret_file(path: str, what: str) -> Secret:
    """Read a secret from a file: UTF-8 text, less one line end.

    Raises:
        KeyStoreError: others can write the file, it can not be read, or does not hold 1 to 1,024 bytes of text. The
            message names `what`, never the content.
    """
    reason = None
    secret = None
    try:
        with open_private(path, f"the file that {what} names") as file:
            secret = _text(file.read(SECRET_BYTES_MAX + 1))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if reason is not None:
        raise KeyStoreError(
            f"the file that {what} names can not be read ({reason}): correct the path or its mode",
            code="KEY_STORE_SECRET_UNREADABLE",
        )
    if secret is None:
        raise KeyStoreError(
            f"the file that {what} names holds no secret: one line of UTF-8 text is expected",
            code="KEY_STORE_SECRET_UNREADABLE",
        )
    return secret


def read_secret_variable(name: str, what: str) -> Secret:
    """Read a secret from an environment variable, which says nothing else.

    Raises:
        KeyStoreError: there is no such variable, or it does not hold 1 to 1,024 bytes of text. The message names
            `what` and the variable, never the content.
    """
    content = os.environb.get(name.encode())
    secret = None if content is None else _text(content)
    if secret is None:
        raise KeyStoreError(
            f"the environment variable {name} that {what} names "
            + ("is not set" if content is None else "holds no secret: one line of UTF-8 text is expected"),
            code="KEY_STORE_SECRET_UNREADABLE",
        )
    return secret


def _text(content: bytes) -> Secret | None:
    if len(content) > SECRET_BYTES_MAX:
        return None
    try:
        line = content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        return None
    return Secret(line) if line and "\0" not in line and "\n" not in line else None
