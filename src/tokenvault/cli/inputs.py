"""What must not be an argument: card numbers and secrets. Arguments stand in process lists, histories and logs.

Card numbers come from the standard input, or from a prompt without echo. Where a text could be a card number, it is
refused before anything is parsed, since a message about a wrong argument would repeat it.
"""

from __future__ import annotations

import getpass
import os
import re
import stat
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tokenvault.errors import InvalidInputError
from tokenvault.keys.private_files import open_new, write_new
from tokenvault.model.pan import Pan, could_hold_pan, read_pan

LINE_CHARACTERS_MAX: Final = 256
DOCUMENT_CHARACTERS_MAX: Final = 65_536

_SECRET_OPTIONS: Final = {
    "pan": "a card number is read from the standard input or a prompt",
    "card": "a card number is read from the standard input or a prompt",
    "card-number": "a card number is read from the standard input or a prompt",
    "pin": "write pin-source=file:... or pin-source=env:... into the address of the key store",
    "passphrase": "set TOKENVAULT_PASSPHRASE, or write passphrase-source=file:... into the address of the key store",
    "password": "use libpq's password file, or TOKENVAULT_STORE",
    "secret": "secrets come from files and the environment",
    "key-store": "set TOKENVAULT_KEY_STORE, or key_store in the configuration file",
    "token-store": "set TOKENVAULT_STORE, or token_store in the configuration file",
}
_ADDRESS: Final = re.compile(r"(?:pkcs11|postgresql|file|sqlite):", re.IGNORECASE)
_REFERENCE: Final = re.compile(r"[0-9a-f]{32}")
_IN_HISTORY: Final = "It stands in the history of your shell now: remove it there."


def refuse_secrets(arguments: Sequence[str], token_bins: Callable[[], Sequence[str]]) -> None:
    """Raise InvalidInputError where an argument is, or could be, a secret or a card number.

    Args:
        arguments: of the command.
        token_bins: gives the token BINs of the configured programs: what begins with one is a token.
    """
    for argument in arguments:
        name, _, value = argument.partition("=")
        advice = _SECRET_OPTIONS.get(name.removeprefix("--")) if name.startswith("--") else None
        if advice is not None:
            raise InvalidInputError(
                f"{name} is no option, and secrets are no arguments: {advice}. {_IN_HISTORY}"
            )
        text = value if name.startswith("--") else argument
        if _ADDRESS.match(text):
            raise InvalidInputError(
                "addresses can hold secrets and are no arguments: set TOKENVAULT_KEY_STORE and TOKENVAULT_STORE, or"
                f" write them into the configuration file. {_IN_HISTORY}"
            )
        if (
            could_hold_pan(text)
            and not _REFERENCE.fullmatch(text)
            and not text.startswith(tuple(token_bins()))
        ):
            raise InvalidInputError(
                "an argument could be a card number, and is the token of no configured program: card numbers are read"
                f" from the standard input or a prompt. {_IN_HISTORY}"
            )


def ask_pan(prompt: str) -> Pan:
    """A card number, from a prompt without echo, or a line of the standard input where that is no terminal.

    Raises InvalidInputError, which never repeats what was read.
    """
    if not sys.stdin.isatty():
        line = sys.stdin.readline(LINE_CHARACTERS_MAX)
        if not line.strip():
            raise InvalidInputError("a card number is expected on the standard input, on a line of its own")
        return read_pan(line.strip())
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)  # it would go on with echo
        try:
            typed = getpass.getpass(f"{prompt} (not shown): ", stream=sys.stderr)
        except getpass.GetPassWarning:
            typed = None
    if typed is None:
        raise InvalidInputError(
            "this terminal can not hide what is typed: give the card number on the standard input"
        )
    return read_pan(typed.strip())


def confirm(question: str, *, yes: bool) -> None:
    """Ask whether to go on, unless it was said before. Raises InvalidInputError where the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInputError(f"{question} Say so with --yes: there is no terminal to ask")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline(LINE_CHARACTERS_MAX).strip().lower() not in ("y", "yes"):
        raise InvalidInputError("nothing was done")


def read_document(path: Path) -> str:
    """A text file, or the standard input for "-". Raises InvalidInputError."""
    text: str | None = None
    if str(path) == "-":
        text = sys.stdin.read(DOCUMENT_CHARACTERS_MAX + 1)
    else:
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(DOCUMENT_CHARACTERS_MAX + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{path.name} can not be read ({reason_of(error)})") from None
    if len(text) > DOCUMENT_CHARACTERS_MAX:
        raise InvalidInputError(f"a document has at most {DOCUMENT_CHARACTERS_MAX} characters")
    return text


def reason_of(error: Exception) -> str:
    """Why a file can not be used, without its path."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__


def require_private_output() -> None:
    """Raise InvalidInputError unless the standard output is a terminal, or a file that its owner alone can read.

    What a pipe leads to is not known: a log, a build's record, a message.
    """
    if sys.stdout.isatty():
        return
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
    except (OSError, ValueError):
        mode = 0
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise InvalidInputError(
            "a card number is shown on a terminal, or written into a file that you alone can read (umask 077), and"
            " nowhere else. The token was not used"
        )


def open_private(path: Path) -> int:
    """The descriptor of a new file that its owner alone can read. Raises InvalidInputError where there is one."""
    try:
        return open_new(str(path))
    except OSError as error:
        raise _not_made(path, error) from None


def write_private(path: Path, text: str) -> None:
    """Write a text, in UTF-8, into a new file of its owner's. Raises InvalidInputError where there is one."""
    try:
        write_new(str(path), text.encode())
    except OSError as error:
        raise _not_made(path, error) from None


def _not_made(path: Path, error: OSError) -> InvalidInputError:
    return InvalidInputError(f"{path.name} can not be made ({reason_of(error)}): name a new file")
