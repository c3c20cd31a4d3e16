"""The errors of the library. Nothing else leaves a public call, whatever its input.

Messages say what was expected and what to do next. They never hold a PAN, a whole token, a key, or text that the
caller passed in. And an error leaves a public call without the frames below it: a traceback that prints locals
(structlog, Sentry) shows the arguments of every frame on its way, and a caller may have put a PAN anywhere.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import attrs

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=type)


@attrs.frozen
class Violation:
    """One control that a use failed.

    Attributes:
        control: the control's name, such as "merchants" or "limits".
        code: stable upper-case code, such as "MERCHANT_NOT_ALLOWED".
        message: what is allowed and what to do next; never a PAN or a whole token.
        response_code: the answer for ISO 8583 data element 39, two characters.
    """

    control: str
    code: str
    message: str
    response_code: str


class TokenVaultError(Exception):
    """Base of every error that the library raises.

    Attributes:
        code: what happened, in upper case: stable, for programs and alarms; docs/reference/codes.md lists all.
        response_code: the answer for ISO 8583 data element 39, two characters, where the error ends a payment.
    """

    code: str = "DEFECT"
    response_code: str = "96"  # system malfunction

    def __init__(self, *args: object, code: str | None = None) -> None:
        super().__init__(*args)
        if code is not None:  # kept by the instance, so that pickle and copy take it along
            self.code = code


class InvalidInputError(TokenVaultError, ValueError):
    """An argument is outside what the call accepts; the message says what is accepted."""

    code = "INVALID_INPUT"
    response_code = "12"  # invalid transaction


class TokenNotFoundError(TokenVaultError):
    """No such token or reference in this vault."""

    code = "TOKEN_NOT_FOUND"
    response_code = "14"  # no such card number


class DomainRestrictionError(TokenVaultError):
    """The token's domain does not allow this use. Its codes are those of the first violation.

    Attributes:
        violations: every control that failed, in a stable order; never empty.
    """

    violations: tuple[Violation, ...]

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        super().__init__("; ".join(violation.message for violation in violations))
        self.violations = violations
        self.code = violations[0].code
        self.response_code = violations[0].response_code

    def __reduce__(self) -> tuple[type[DomainRestrictionError], tuple[tuple[Violation, ...]]]:
        return (type(self), (self.violations,))


class LifecycleError(TokenVaultError):
    """The token's status does not allow this change."""

    code = "STATUS_NOT_FITTING"
    response_code = "57"  # not permitted


class PermissionDeniedError(TokenVaultError):
    """The requestor is unknown or may not do this."""

    code = "PERMISSION_DENIED"
    response_code = "58"  # not permitted to this acceptor


class IntegrityError(TokenVaultError):
    """What was read is not what the vault wrote: changed, moved, or sealed under another key."""

    code = "INTEGRITY"


class KeyStoreError(TokenVaultError):
    """The key store failed; the message says what to check."""

    code = "KEY_STORE_FAILED"
    response_code = "91"  # issuer or switch inoperative


class TokenStoreError(TokenVaultError):
    """The database failed; whether a write happened is then unknown: retry with the same ids."""

    code = "STORE_FAILED"
    response_code = "91"


class ConflictError(TokenVaultError):
    """Others kept changing the same record; nothing was done. Retry."""

    code = "CONFLICT"
    response_code = "91"


class TokenSpaceExhaustedError(TokenVaultError):
    """A program has too few free tokens left to draw one."""

    code = "TOKEN_SPACE_EXHAUSTED"


class ConfigurationError(TokenVaultError):
    """Programs, requestors, keys and database do not fit together."""

    code = "CONFIGURATION"


# The boundary.


def boundary(call: Callable[P, T]) -> Callable[P, T]:
    """Let only the library's errors out of a function, without their frames."""

    @functools.wraps(call)
    def bounded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            failure = bare(error)
        del args, kwargs
        raise failure

    return bounded


def async_boundary(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """As `boundary`, for a coroutine function. A cancellation passes as it is, without its frames."""

    @functools.wraps(call)
    async def bounded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await call(*args, **kwargs)
        except BaseException as error:
            failure = bare(error)
        del args, kwargs
        raise failure

    return bounded


class Called(Protocol):
    """Counts its calls under way, by an entry each: `append` and `pop` of a list are atomic between threads."""

    _calls: list[None]


S = TypeVar("S", bound=Called)


def call_boundary(call: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """As `boundary`, for a method that closing waits for."""

    @functools.wraps(call)
    def bounded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        calls = self._calls
        calls.append(None)
        try:
            return call(self, *args, **kwargs)
        except BaseException as error:
            failure = bare(error)
        finally:
            calls.pop()
        del args, kwargs
        raise failure

    return bounded


def async_call_boundary(
    call: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """As `async_boundary`, for a method that closing waits for."""

    @functools.wraps(call)
    async def bounded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        calls = self._calls
        calls.append(None)
        try:
            return await call(self, *args, **kwargs)
        except BaseException as error:
            failure = bare(error)
        finally:
            calls.pop()
        del args, kwargs
        raise failure

    return bounded


def boundary_init(kind: C) -> C:
    """As `boundary`, for the constructor of a class."""
    kind.__init__ = boundary(kind.__init__)  # type: ignore[misc] # mypy lets no __init__ be assigned; its signature stays
    return kind


def bare(error: BaseException) -> BaseException:
    """An error without frames and without what it was raised from; one that is not the library's is a defect."""
    where = error.__traceback__
    misspelt = isinstance(error, TypeError) and where is not None and where.tb_next is None  # wrong arguments
    if isinstance(error, Exception) and not isinstance(error, TokenVaultError) and not misspelt:
        place = "an unknown place"
        for frame, line in traceback.walk_tb(where):
            place = f"{frame.f_globals.get('__name__')}:{line}"
        return TokenVaultError(f"{type(error).__name__} in {place}: please report this as a defect")
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
