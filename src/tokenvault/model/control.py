"""What a control of a domain is, and what it checks."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import attrs

from tokenvault.errors import Violation
from tokenvault.model.authentication import Strength
from tokenvault.model.counters import Usage
from tokenvault.model.kinds import KINDS, Binding, Kind
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.listing import AllBut
from tokenvault.model.money import Money
from tokenvault.model.transaction import Transaction

VALUES_SHOWN_MAX: Final = 5


class TokenState(Protocol):
    """What a decision has to know of a token; a TokenRecord is one."""

    @property
    def requestor(self) -> str:
        """Id of the requestor that it was issued to."""
        ...

    @property
    def status(self) -> TokenStatus:
        """Its status."""
        ...

    @property
    def suspended_by(self) -> frozenset[Actor]:
        """The actors who suspended it and have not resumed it."""
        ...

    @property
    def assurance(self) -> str | None:
        """Its token assurance method, if any."""
        ...

    @property
    def usage(self) -> Usage:
        """Its uses so far."""
        ...


@attrs.define
class Use:
    """What controls check.

    Attributes:
        token: the token.
        transaction: what is done with it.
        now_ms: the time, in milliseconds of the Unix epoch.
        kind: that of the use that the transaction makes or belongs to.
        amount: what the use is of, with an increment; or what a follow-up is of.
    """

    token: TokenState
    transaction: Transaction
    now_ms: int
    kind: Kind
    amount: Money | None

    @property
    def counts(self) -> bool:
        """Whether the transaction is a use that limits of uses count."""
        return KINDS[self.transaction.kind].counts_use


def _as_it_is(value: object, _strength: Strength) -> object:
    return value


@attrs.frozen(kw_only=True)
class Control:
    """One control.

    Attributes:
        name: of the field of `Domain`, of the member of its document, and of the control in a violation.
        parse: reads and checks an argument of `Domain`. Raises InvalidInputError.
        from_json: gives such an argument of what stands in a document. Raises InvalidInputError.
        binding: which kinds it binds.
        given: reads from a use what the control checks.
        holds: whether that is allowed by the control's value, or by each member of it if the value is a tuple.
        violation: the violation where it does not hold, given the same two.
        bound: the value with what the domain takes for strong authentication, where that matters.
        unset: the value that does not restrict.
        once: whether it is judged once: a retry is not held against it again.
        counted: whether a use has to be recorded with the token.
    """

    name: str
    parse: Callable[[object], object]
    from_json: Callable[[object], object]
    binding: Binding
    given: Callable[[Use], Any]
    holds: Callable[[Any, Any], bool]
    violation: Callable[[Any, Any], Violation]
    bound: Callable[[Any, Strength], object] = _as_it_is
    unset: object = None
    once: bool = False
    counted: bool = False


@attrs.frozen(kw_only=True)
class Term:
    """A field of a domain that restricts nothing by itself, but says how others are read.

    Attributes:
        name, parse, from_json, unset: as of a control.
    """

    name: str
    parse: Callable[[object], object]
    from_json: Callable[[object], object]
    unset: object


def shown(allowed: Iterable[object] | AllBut[Any]) -> str:
    """A list of allowed values for people: the first few, and how many more."""
    if isinstance(allowed, AllBut):
        return f"all but {shown(allowed.values)}"
    listed = sorted(str(value.value if isinstance(value, enum.Enum) else value) for value in allowed)
    more = f" and {len(listed) - VALUES_SHOWN_MAX} more" if len(listed) > VALUES_SHOWN_MAX else ""
    return ", ".join(listed[:VALUES_SHOWN_MAX]) + more
