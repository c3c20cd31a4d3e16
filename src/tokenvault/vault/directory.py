"""Where a vault finds its programs and requestors: in its arguments, in the database, or in tables of the host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Protocol, TypeAlias, TypeVar

import attrs

from tokenvault.errors import ConfigurationError, InvalidInputError, boundary_init, shown_float
from tokenvault.model import checks
from tokenvault.model.programs import TokenProgram, TokenRequestor

T = TypeVar("T")

CONFIGURED_MAX: Final = 100_000
"""The most programs, and the most requestors, of a StaticDirectory."""

AGE_SECONDS: Final = 5.0
AGE_SECONDS_MAX: Final = 86_400.0

Found: TypeAlias = Awaitable[T | None] | T | None
"""What is known under a name; of a vault with coroutines it may be awaited."""


class Directory(Protocol):
    """The programs and requestors of a vault, looked up as they are used. A host may write its own.

    A vault asks from many threads at once, and keeps an answer, also that there is none, for `max_age_seconds`
    (5 where the directory does not say): nobody acts on an older one. A directory whose attribute is 0 is asked each
    time. One that also has `programs`, without arguments, which gives all programs, lets the vault tell a token of
    any of them from a card number; without it, the vault knows the programs that it has met.

    `AsyncVault` takes coroutines too, and calls a directory without them in a thread of its own. An exception is a
    TokenStoreError of the call, DIRECTORY_FAILED.
    """

    def program(self, name: str, /) -> Found[TokenProgram]:
        """The program of a name; None where there is none."""
        ...

    def requestor(self, id: str, /) -> Found[TokenRequestor]:  # noqa: A002 # the field's word
        """The requestor of an id of 11 digits; None where there is none."""
        ...


@boundary_init
class StaticDirectory:
    """Programs and requestors that stay as they are while the vault is open. What `programs=` and `requestors=` make.

    Args:
        programs: the token programs; every program that has tokens in the store belongs here.
        requestors: the parties that may use the vault.

    Raises:
        ConfigurationError: two have one name, or a requestor has a program that is not among the programs.
        InvalidInputError: one is of another kind.
    """

    max_age_seconds: Final = float("inf")

    def __init__(
        self, programs: Iterable[TokenProgram] = (), requestors: Iterable[TokenRequestor] = ()
    ) -> None:
        self._programs: Final = _named("programs", programs, TokenProgram, lambda program: program.name)
        self._requestors: Final = _named(
            "requestors", requestors, TokenRequestor, lambda requestor: requestor.id
        )
        for requestor in self._requestors.values():
            if not requestor.programs <= self._programs.keys():
                raise ConfigurationError(
                    "a requestor may issue tokens of a program that this vault does not have",
                    code="PROGRAM_OR_REQUESTOR_MISSING",
                )

    def program(self, name: str, /) -> TokenProgram | None:
        """The program of a name."""
        return self._programs.get(name)

    def requestor(self, id: str, /) -> TokenRequestor | None:  # noqa: A002 # the field's word
        """The requestor of an id."""
        return self._requestors.get(id)

    def programs(self) -> Mapping[str, TokenProgram]:
        """All programs, by name."""
        return self._programs

    def requestors(self) -> Mapping[str, TokenRequestor]:
        """All requestors, by id."""
        return self._requestors


@boundary_init
@attrs.frozen
class StoredDirectory:
    """Programs and requestors in the vault's own database, authenticated and versioned.

    `put_program`, `put_requestor` and `disable_requestor` of a vault change them, each with an audit event. Every
    running vault sees a change within `max_age_seconds`. A requestor takes memory only while it is used.

    Attributes:
        max_age_seconds: for how long a vault acts on what it has read, above 0 and at most a day.
    """

    max_age_seconds: float = attrs.field(default=AGE_SECONDS, kw_only=True, repr=shown_float)

    def __attrs_post_init__(self) -> None:
        checked_age(self.max_age_seconds)
        if not self.max_age_seconds:
            raise InvalidInputError("max_age_seconds of a StoredDirectory is above 0")


def checked_age(value: object) -> float:
    """Seconds for which an answer is used. Raises InvalidInputError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError("max_age_seconds is a number of seconds")
    if not (0 <= value <= AGE_SECONDS_MAX or value == float("inf")):
        raise InvalidInputError(f"max_age_seconds is from 0 to {AGE_SECONDS_MAX:,.0f}")
    return float(value)


def _named(argument: str, values: Iterable[T], kind: type[T], name_of: Callable[[T], str]) -> dict[str, T]:
    """The programs or requestors of an argument by their names: each of its kind, no two with one name."""
    listed = [
        checks.instance(f"each of {argument}", value, kind)
        for value in checks.listed(argument, values, CONFIGURED_MAX)
    ]
    if len(listed) > CONFIGURED_MAX:
        raise ConfigurationError(
            f"a vault has at most {CONFIGURED_MAX} {argument}", code="TOO_MANY_CONFIGURED"
        )
    named = {name_of(value): value for value in listed}
    if len(named) != len(listed):
        raise ConfigurationError(f"two {argument} have the same name", code="NAME_TAKEN")
    return named
