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
        response_code: the answer for ISO 8583 data element 39, two characters, where the error ends a payment.
    """

    response_code: str = "96"  # system malfunction


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
        self.response_code = violations[0].response_code

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
    """The key store failed; the message says what to check."""

    response_code = "91"  # issuer or switch inoperative


class TokenStoreError(TokenVaultError):
    """The database failed; whether a write happened is then unknown: retry with the same ids."""

    response_code = "91"


class ConflictError(TokenVaultError):
    """Others kept changing the same record; nothing was done. Retry."""

    response_code = "91"


class TokenSpaceExhaustedError(TokenVaultError):
    """A program has too few free tokens left to draw one."""


class ConfigurationError(TokenVaultError):
    """Programs, requestors, keys and database do not fit together."""


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

    def _begin(self) -> None:
        """Do what has to be done before each call."""


class Awaited(Protocol):
    """As `Called`, with coroutines."""

    _calls: list[None]

    async def _begin(self) -> None:
        """Do what has to be done before each call."""


S = TypeVar("S", bound=Called)
A = TypeVar("A", bound=Awaited)


def call_boundary(call: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """As `boundary`, for a method that closing waits for."""

    @functools.wraps(call)
    def bounded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        calls = self._calls
        calls.append(None)
        try:
            self._begin()
            return call(self, *args, **kwargs)
        except BaseException as error:
            failure = bare(error)
        finally:
            calls.pop()
        del args, kwargs
        raise failure

    return bounded


def async_call_boundary(
    call: Callable[Concatenate[A, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[A, P], Coroutine[Any, Any, T]]:
    """As `async_boundary`, for a method that closing waits for."""

    @functools.wraps(call)
    async def bounded(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        calls = self._calls
        calls.append(None)
        try:
            await self._begin()
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
