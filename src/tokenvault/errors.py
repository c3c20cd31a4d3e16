"""The errors of the library. Nothing else leaves a public call, whatever its input.

Messages say what was expected and what to do next. They never hold a PAN, a whole token, a key, or
text that the caller passed in. `response_code` is the ISO 8583 data element 39 answer that fits when
the error ends a payment.
"""

from __future__ import annotations

from typing import ClassVar

from tokenvault.violation import Violation


class TokenVaultError(Exception):
    """Base of every error that the library raises."""

    response_code: ClassVar[str] = "96"  # system malfunction


class InvalidInputError(TokenVaultError, ValueError):
    """An argument is outside what the call accepts; the message says what is accepted."""

    response_code = "12"  # invalid transaction


class TokenNotFoundError(TokenVaultError):
    """No such token or reference in this vault."""

    response_code = "14"  # no such card number


class DomainRestrictionError(TokenVaultError):
    """The token's domain does not allow this use.

    Attributes:
        violations: every control that failed, in a stable order; never empty.
    """

    violations: tuple[Violation, ...]

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        super().__init__("; ".join(violation.message for violation in violations))
        self.violations = violations
        self.response_code = violations[0].response_code  # type: ignore[misc] # an instance knows better than its class

    def __reduce__(self) -> tuple[type[DomainRestrictionError], tuple[tuple[Violation, ...]]]:
        return (type(self), (self.violations,))


class LifecycleError(TokenVaultError):
    """The token's status does not allow this change."""

    response_code = "57"  # not permitted


class PermissionDeniedError(TokenVaultError):
    """The requestor is unknown or may not do this."""

    response_code = "58"  # not permitted to this acceptor


class IntegrityError(TokenVaultError):
    """What was read is not what the vault wrote: changed, moved, or sealed under another key."""


class KeyStoreError(TokenVaultError):
    """The key store did not do as asked; the message says what to look at."""

    response_code = "91"  # issuer or switch inoperative


class TokenStoreError(TokenVaultError):
    """The database did not do as asked; whether a write happened is then unknown: retry with the same ids."""

    response_code = "91"


class ConflictError(TokenVaultError):
    """Others kept changing the same record; nothing was done. Retry."""

    response_code = "91"


class TokenSpaceExhausted(TokenVaultError):
    """A program has too few free tokens left to draw one."""


class ConfigurationError(TokenVaultError):
    """Programs, requestors, keys and database do not fit together."""
