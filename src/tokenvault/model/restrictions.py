"""The domains that a use must satisfy, together."""

from __future__ import annotations

from functools import cached_property
from typing import Final

import attrs

from tokenvault.model.control import Control
from tokenvault.model.counters import Usage
from tokenvault.model.domain import Domain
from tokenvault.model.kinds import KINDS, Binding, Kind
from tokenvault.model.transaction import Transaction
from tokenvault.model.velocity import VelocityLimit

_WITHOUT_ORIGINAL: Final = frozenset({Binding.PARTIES, Binding.LISTS, Binding.AMOUNTS})
"""What binds a refund that names no original: nothing else bounds it."""


@attrs.frozen
class Restrictions:
    """The documents that a use must satisfy.

    Attributes:
        program: of the token's program.
        requestor: of the requestor that it was issued to.
        token: its own.
        acting: of the requestor that uses it, if that is another. Its limits count that requestor's uses alone.
        acting_id: id of that requestor; empty where there is none.
        expiry_zone: the time zone that the program's expiries are judged in; None: the last one of the earth.
    """

    program: Domain
    requestor: Domain
    token: Domain
    acting: Domain | None = None
    acting_id: str = ""
    expiry_zone: str | None = None

    @cached_property
    def checks(self) -> tuple[tuple[Control, object], ...]:
        """Every control that is set, with what it checks against, document by document."""
        acting = () if self.acting is None else self.acting._checks
        own = (
            (control, check.of_requestor(self.acting_id) if isinstance(check, VelocityLimit) else check)
            for control, check in acting
        )
        return (*self.program._checks, *self.requestor._checks, *self.token._checks, *own)

    @cached_property
    def _by_kind(self) -> dict[Kind, tuple[tuple[Control, object], ...]]:
        return {kind: self._bound_by(rule.bound_by) for kind, rule in KINDS.items()}

    @cached_property
    def _without_original(self) -> dict[Kind, tuple[tuple[Control, object], ...]]:
        bindings = {
            kind: _WITHOUT_ORIGINAL if rule.follow_up else rule.bound_by for kind, rule in KINDS.items()
        }
        return {kind: self._bound_by(found) for kind, found in bindings.items()}

    def _bound_by(self, bindings: frozenset[Binding]) -> tuple[tuple[Control, object], ...]:
        return tuple(check for check in self.checks if check[0].binding in bindings)

    def checks_of(self, transaction: Transaction) -> tuple[tuple[Control, object], ...]:
        """The controls that bind a transaction."""
        by_kind = self._without_original if transaction.original is None else self._by_kind
        return by_kind[transaction.kind]

    @cached_property
    def velocity_limits(self) -> tuple[VelocityLimit, ...]:
        """Every limit, document by document."""
        return tuple(check for _, check in self.checks if isinstance(check, VelocityLimit))

    @cached_property
    def limits_by_key(self) -> dict[bytes, VelocityLimit]:
        """One limit of each counter that uses are added to, before any is started again."""
        return {limit.key: limit for limit in self.velocity_limits}

    def limits_in(self, usage: Usage) -> dict[bytes, VelocityLimit]:
        """One limit of each counter that uses are added to, by its key as a token has it."""
        if not self._any_starts_again:
            return self.limits_by_key
        return {limit.key_in(usage): limit for limit in self.limits_by_key.values()}

    @cached_property
    def _any_starts_again(self) -> bool:
        return any(limit.limit.since_authentication for limit in self.velocity_limits)

    @cached_property
    def counted(self) -> bool:
        """Whether a use has to be recorded in the token record."""
        return any(control.counted for control, _ in self.checks)

    @property
    def follow_ups_without_original(self) -> bool:
        """Whether any that the host configures lets a refund or a dispute name no original.

        Not the token's own, which its requestor writes: limits and expiry do not bind such a use, so it would get
        itself the card at any time.
        """
        documents = (self.program, self.requestor, self.acting)
        return any(document is not None and document.follow_ups_without_original for document in documents)
