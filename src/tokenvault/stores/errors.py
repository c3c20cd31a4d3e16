"""What a caller of a token store sees in place of what an adapter raised."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Final

from tokenvault.errors import (
    ConfigurationError,
    IntegrityError,
    InvalidInputError,
    TokenStoreError,
    TokenVaultError,
)

UNEXPLAINED: Final = "the token store failed in a way it does not explain; look at the database's own log"
CLOSED: Final = "the token store is closed; open it again with open_token_store"

_SHOWN: Final = "unsafe_debug is on: an error shows what the adapter raised, which can hold row data"
_PASSED: Final = (TokenStoreError, IntegrityError, InvalidInputError)
_ABOUT_THE_SCHEMA: Final = ("provision", "check_schema")


def port_error(name: str, error: Exception, explain: Callable[[Exception], str]) -> TokenVaultError:
    """The error that a caller sees in place of what an adapter raised; chained to nothing.

    Args:
        name: of the method of the port that was called.
        error: what came out of the adapter.
        explain: what the adapter says of errors that are not the library's.
    """
    if isinstance(error, _PASSED) or (isinstance(error, ConfigurationError) and name in _ABOUT_THE_SCHEMA):
        # An adapter may have raised it inside an except block; what it handled there can hold row data.
        error.__cause__ = error.__context__ = None
        return error
    if isinstance(error, TokenVaultError):
        return TokenStoreError(str(error))
    try:
        return TokenStoreError(explain(error))
    except Exception:  # noqa: BLE001  a hook of the adapter must not let anything else out either
        return TokenStoreError(UNEXPLAINED)


def show_cause(failure: TokenVaultError, error: Exception) -> None:
    """Chain what an adapter raised to the error in its place, with a warning: it can hold row data."""
    failure.__cause__ = error
    warnings.warn(_SHOWN, RuntimeWarning, stacklevel=2)
