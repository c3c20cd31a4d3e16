"""Exit codes: one table, which the documentation repeats and a test compares."""

from __future__ import annotations

from typing import Final

import attrs

from tokenvault.errors import (
    ConfigurationError,
    ConflictError,
    DomainRestrictionError,
    IntegrityError,
    InvalidInputError,
    KeyStoreError,
    LifecycleError,
    PermissionDeniedError,
    TokenNotFoundError,
    TokenSpaceExhaustedError,
    TokenStoreError,
    TokenVaultError,
)


@attrs.frozen
class ExitCode:
    """An exit code, what it means, and the errors that end with it."""

    code: int
    meaning: str
    errors: tuple[type[TokenVaultError], ...] = ()


DONE: Final = ExitCode(0, "done")
NO: Final = ExitCode(
    1,
    "the answer is no: a use is not allowed, a trail is not intact, something is not well, a row was rejected",
)
USAGE: Final = ExitCode(2, "the command line or a value is wrong", (InvalidInputError,))
EXIT_CODES: Final = (
    DONE,
    NO,
    USAGE,
    ExitCode(3, "the configuration is wrong, or nothing is provisioned yet", (ConfigurationError,)),
    ExitCode(4, "there is no such token", (TokenNotFoundError,)),
    ExitCode(5, "refused: a domain or a permission", (DomainRestrictionError, PermissionDeniedError)),
    ExitCode(6, "the token's status does not allow that", (LifecycleError,)),
    ExitCode(7, "the key store failed", (KeyStoreError,)),
    ExitCode(8, "the database failed: retry with the same ids", (TokenStoreError,)),
    ExitCode(9, "others kept changing the same token: retry", (ConflictError,)),
    ExitCode(10, "the program has too few free tokens left", (TokenSpaceExhaustedError,)),
    ExitCode(11, "what was read is not what the vault wrote", (IntegrityError,)),
    ExitCode(70, "a defect: please report it"),
    ExitCode(130, "interrupted"),
    ExitCode(141, "whoever read the output went away"),
)
DEFECT, INTERRUPTED, READER_GONE = EXIT_CODES[-3:]


def exit_code_of(error: BaseException) -> int:
    """The exit code that an error ends with."""
    for exit_code in EXIT_CODES:
        if isinstance(error, exit_code.errors):
            return exit_code.code
    return DEFECT.code
