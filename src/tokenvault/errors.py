"""The errors of the library. Nothing else leaves a public call, whatever its input.

Messages say what was expected and what to do next. They never hold a PAN, a whole token, a key, or text that the
caller passed in. And an error leaves a public call without the frames below it: a traceback that prints locals
(structlog, Sentry) shows the arguments of every frame on its way, and a caller may have put a PAN anywhere.
"""

from __future__ import annotations

import functools
import inspect
import re
import time
import traceback
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, Protocol, TypeAlias, TypeVar

import attrs

from tokenvault.interrupts import is_interrupt

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=type)
B_co = TypeVar("B_co", covariant=True)

_LONG_NUMBER: Final = re.compile(r"[0-9](?:[^0-9A-Za-z]?[0-9]){12,}")
_ARGUMENT: Final = re.compile("[A-Za-z_]{1,40}[0-9]?")
_END: Final = object()
_FAILED_BEFORE: Final = (
    "this iterator failed before, and what it was about to give may be lost: begin another"
)
_OF_HANDLER: Final = "_raised_by_signal_handler"


def without_numbers(text: str) -> str:
    """A text to show: of each number that could be a card's, with or without separators, the last four digits."""
    return _LONG_NUMBER.sub(lambda number: f"************{number[0][-4:]}", text)


def shown_float(value: object) -> str:
    """A float as the repr of a class shows it: with so few digits that it is taken for no card's number."""
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


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


class ArgumentsError(InvalidInputError, TypeError):
    """A call with other arguments than it takes: a misspelt one, one too few or too many (a TypeError in Python)."""


class UnchangeableError(InvalidInputError, attrs.exceptions.FrozenInstanceError):
    """An object that does not change was to be changed."""


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


class RequestorLockedOutError(PermissionDeniedError):
    """The requestor asked for too many tokens that do not exist, or made too many uses that were refused."""

    code = "REQUESTOR_LOCKED_OUT"
    response_code = "59"  # suspected fraud


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


def boundary(call: Callable[P, T]) -> Callable[P, T]:
    """Let only the library's errors out of a function, without their frames."""

    @functools.wraps(call)
    def bounded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            failure = _outgoing(error, call, args, kwargs)
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
            failure = _outgoing(error, call, args, kwargs)
        del args, kwargs
        raise failure

    return bounded


def iterator_boundary(
    call: Callable[P, Generator[T, None, None]],
) -> Callable[P, Generator[T, None, None]]:
    """As `boundary`, for a generator function: also for each step of what it gives."""

    @functools.wraps(call)
    def bounded(*args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        try:
            return _BoundedIterator(call(*args, **kwargs))
        except BaseException as error:
            failure = _outgoing(error, call, args, kwargs)
        del args, kwargs
        raise failure

    return bounded


class _BoundedIterator(Generator[T, None, None]):
    def __init__(self, source: Generator[T, None, None]) -> None:
        self._source = source
        self._failed = False

    def __next__(self) -> T:
        item = self._step()
        self._failed = False
        if item is _END:
            raise StopIteration
        return item  # type: ignore[return-value] # the source's, not the mark of its end

    def send(self, _value: None) -> T:
        return next(self)

    def throw(self, *error: Any) -> NoReturn:
        """End the source. Raises the error, or what ending it raises."""
        self.close()
        raise error[0]

    @boundary
    def close(self) -> None:
        self._source.close()

    @boundary
    def _step(self) -> T | object:
        if self._failed:
            raise InvalidInputError(_FAILED_BEFORE)
        self._failed = True  # until its caller has the item: an interrupt may lose that, or end the source
        return next(self._source, _END)


CallEnd: TypeAlias = Callable[[str, int, object, BaseException | None], None]
"""Is told a method's name, when it began (`time.perf_counter_ns`), and its result or its error."""


class Called(Protocol[B_co]):
    """Knows its calls under way, by a mark each: to put one into a set, and to take it out, is one step."""

    _calls: set[object]
    _ended: CallEnd | None

    def _begin(self) -> B_co:
        """Do what has to be done before each call."""


S = TypeVar("S", bound=Called[None])
A = TypeVar("A", bound=Called[Coroutine[Any, Any, None]])


def call_boundary(call: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """As `boundary`, for a method that closing waits for."""

    @functools.wraps(call)
    def bounded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        mark, calls, ended = object(), self._calls, self._ended
        begun_ns = 0 if ended is None else time.perf_counter_ns()
        try:
            calls.add(mark)
            self._begin()
            result = call(self, *args, **kwargs)
            if ended is not None:
                ended(call.__name__, begun_ns, result, None)
        except BaseException as error:
            failure = _outgoing(error, call, (self, *args), kwargs)
            if ended is not None:
                ended(call.__name__, begun_ns, None, failure)
        else:
            return result
        finally:
            calls.discard(mark)
        del args, kwargs
        raise failure

    return bounded


def async_call_boundary(
    call: Callable[Concatenate[A, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[A, P], Coroutine[Any, Any, T]]:
    """As `async_boundary`, for a method that closing waits for."""

    @functools.wraps(call)
    async def bounded(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        mark, calls, ended = object(), self._calls, self._ended
        begun_ns = 0 if ended is None else time.perf_counter_ns()
        try:
            calls.add(mark)
            await self._begin()
            result = await call(self, *args, **kwargs)
            if ended is not None:
                ended(call.__name__, begun_ns, result, None)
        except BaseException as error:
            failure = _outgoing(error, call, (self, *args), kwargs)
            if ended is not None:
                ended(call.__name__, begun_ns, None, failure)
        else:
            return result
        finally:
            calls.discard(mark)
        del args, kwargs
        raise failure

    return bounded


def boundary_init(kind: C) -> C:
    """The boundary of a class that callers make objects of.

    Errors of its constructor come out as those of `boundary`. Where its objects do not change (attrs.frozen), an
    attempt to change one leaves no frame with the value either. Where it has a repr of its own, that shows no number
    that could be a card's: a caller may have put one into any field.
    """
    kind.__init__ = boundary(kind.__init__)  # type: ignore[misc] # mypy lets no __init__ be assigned; its signature stays
    methods: dict[str, Any] = {}
    if attrs.has(kind) and kind.__setattr__ is not object.__setattr__:
        methods["__setattr__"] = methods["__delattr__"] = _refuse_change
    shown: Callable[[object], str] = vars(kind).get("__repr__", object.__repr__)
    if shown is not object.__repr__:
        methods["__repr__"] = lambda self: without_numbers(shown(self))
    for name, method in methods.items():
        setattr(kind, name, method)
    return kind


@boundary
def _refuse_change(self: object, _name: str, _value: object = None) -> NoReturn:
    raise UnchangeableError(f"a {type(self).__name__} does not change: make another")


def asked(problem: str, call: Callable[..., T], *arguments: object) -> T:
    """What a method or function of the caller's gives.

    It can raise anything, with whatever that holds: then the problem is all that is told. What is raised by the
    library itself, as where an iterator of its own is passed on, comes out as it is.
    """
    try:
        return call(*arguments)
    except TokenVaultError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        raise InvalidInputError(problem) from None


def given(problem: str, values: Iterable[T]) -> Iterator[T]:
    """What an iterable of the caller's gives, which may fail as in `asked`."""
    try:
        yield from values
    except TokenVaultError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        raise InvalidInputError(problem) from None


def _outgoing(
    error: BaseException, call: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> BaseException:
    """What leaves a call in place of an error: without frames, and without what it was raised from."""
    where = error.__traceback__
    if isinstance(error, TypeError) and where is not None and where.tb_next is None:
        return _wrong_arguments(call, args, kwargs)
    return bare(error)


def shown_name(name: object) -> str:
    """A name that a caller gave, where it could be a name; else what stands for it."""
    return f"'{name}'" if isinstance(name, str) and _ARGUMENT.fullmatch(name) else "of such a name"


def _wrong_arguments(
    call: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> ArgumentsError:
    """The error for a call that Python could not make. A name given by the caller is shown if it can be one."""
    parameters = inspect.signature(call).parameters
    names = [name for name in parameters if name not in ("self", "cls")]
    by_position = [name for name, each in parameters.items() if each.kind is not each.KEYWORD_ONLY]
    misspelt = [shown_name(name) for name in kwargs if name not in names]
    missing = [
        name
        for name, each in parameters.items()
        if each.default is each.empty and name not in kwargs and name not in by_position[: len(args)]
    ]
    if misspelt:
        wrong = f"has no argument {', '.join(misspelt)}"
    elif len(args) > len(by_position):
        wrong = f"takes at most {len(by_position) - (len(parameters) - len(names))} arguments by position"
    elif missing:
        wrong = f"needs {', '.join(missing)}"
    else:
        wrong = "has an argument given twice, by position and by name"
    called = call.__qualname__.removesuffix(".__init__")
    return ArgumentsError(f"{called} {wrong}; its arguments are: {', '.join(names)}")


def bare(error: BaseException) -> BaseException:
    """An error without frames and without what it was raised from; one that is not the library's is a defect."""
    if isinstance(error, Exception) and not isinstance(error, TokenVaultError) and not is_interrupt(error):
        place = "an unknown place"
        for frame, line in traceback.walk_tb(error.__traceback__):
            place = f"{frame.f_globals.get('__name__')}:{line}"
        return TokenVaultError(f"{type(error).__name__} in {place}: please report this as a defect")
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


boundary_init(Violation)  # which stands above what it takes
