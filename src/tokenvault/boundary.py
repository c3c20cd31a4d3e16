"""Where calls enter the library: only its own errors come out, and they carry nothing along.

A traceback that prints locals (structlog, Sentry) shows the arguments of every frame on its way, and a caller
may have put a PAN anywhere. So an error leaves a public call without the frames below it: its message says what
is wrong, and the caller's own frame where.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from tokenvault.errors import TokenVaultError

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=type)


def boundary(call: Callable[P, T]) -> Callable[P, T]:
    """Make a function part of the boundary."""

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
    """Make a coroutine function part of the boundary. A cancellation passes as it is, without the frames."""

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
    """Has calls under way: one entry each. `append` and `pop` of a list are one step for all threads."""

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
    """Make a class's constructor part of the boundary."""
    kind.__init__ = boundary(kind.__init__)  # type: ignore[misc] # mypy lets no __init__ be assigned; its signature stays
    return kind


def bare(error: BaseException) -> BaseException:
    """An error without frames and without what it was raised from; one that is not the library's is a defect."""
    where = error.__traceback__
    misspelt = isinstance(error, TypeError) and where is not None and where.tb_next is None  # the call itself
    if isinstance(error, Exception) and not isinstance(error, TokenVaultError) and not misspelt:
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = (
            f"{where.tb_frame.f_globals.get('__name__')}:{where.tb_lineno}" if where else "an unknown place"
        )
        return TokenVaultError(f"{type(error).__name__} in {place}: please report this as a defect")
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
