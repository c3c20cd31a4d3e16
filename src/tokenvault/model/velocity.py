"""A limit as a domain has it: which velocity counter it reads, and what a use adds to that."""

from __future__ import annotations

import hashlib
from functools import cached_property

import attrs

from tokenvault.model import checks, domain_document
from tokenvault.model.authentication import Strength
from tokenvault.model.counters import KEY_BYTES, NAME_BYTES, Usage
from tokenvault.model.kinds import KINDS, Kind
from tokenvault.model.limits import Limit
from tokenvault.model.transaction import Transaction


@attrs.frozen
class VelocityLimit:
    """A limit of a domain.

    Attributes:
        limit: the limit.
        strength: what the domain takes for strong authentication.
    """

    limit: Limit
    strength: Strength

    @cached_property
    def key(self) -> bytes:
        """Names the counter that it reads: 16 bytes of SHA-256 of what is counted.

        Limits that count the same thing read one counter, whichever document they stand in and whatever their
        maximum: a limit that is raised from 10 uses to 20 leaves what was used as used. This is the key of one that
        strong authentication starts again, until it does: `key_in` has those that follow.
        """
        counted = domain_document.counted_of(self.limit)
        if self.limit.light:
            counted["strong_factors"] = self.strength.factors
            if self.strength.max_age is not None:
                counted["strong_max_age"] = checks.seconds(self.strength.max_age)
        key = hashlib.sha256(domain_document.canonical(counted)).digest()[:KEY_BYTES]
        return key[:NAME_BYTES].ljust(KEY_BYTES, b"\0") if self.limit.since_authentication else key

    def key_in(self, usage: Usage) -> bytes:
        """The key of its counter as a token has it: another one since each time that it was started again."""
        if self.limit.since_authentication:
            for counter in usage.counters:
                if counter.key.startswith(self._name):
                    return counter.key
        return self.key

    @cached_property
    def _name(self) -> bytes:
        return self.key[:NAME_BYTES]

    @property
    def most(self) -> int:
        """Its maximum: uses, or minor units."""
        return self.limit.uses or (self.limit.amount.amount if self.limit.amount else 0)

    def of_requestor(self, requestor: str) -> VelocityLimit:
        """The limit for the uses of one requestor, unless it says itself whose uses it counts."""
        if self.limit.requestors is not None:
            return self
        return VelocityLimit(attrs.evolve(self.limit, requestors=frozenset({requestor})), self.strength)

    def binds(self, transaction: Transaction, kind: Kind, now_ms: int) -> bool:
        """Whether it counts and bounds a transaction; `kind` is that of the use that it belongs to."""
        rule = KINDS[transaction.kind]
        if not (rule.counts_use if self.limit.amount is None else rule.counts_money):
            return False
        if not self.limit.concerns(transaction, kind):
            return False
        return not (self.limit.light and self.strength.met_by(transaction.authentication, now_ms))

    def starts_again(self, transaction: Transaction, now_ms: int) -> bool:
        """Whether a transaction's strong authentication starts it again."""
        return self.limit.since_authentication and self.strength.met_by(transaction.authentication, now_ms)

    def within(self, transaction: Transaction, usage: Usage, now_ms: int) -> bool:
        """Whether it has room for a transaction that it binds."""
        used = usage.used(self.key_in(usage), self.limit.window(now_ms).number)
        most, amount = self.limit.amount, transaction.amount
        if most is None:
            return used < self.most
        return amount is not None and amount.currency == most.currency and used + amount.amount <= most.amount

    def adds(self, transaction: Transaction) -> int:
        """What a transaction that it binds adds to its counter: one use, or minor units."""
        if self.limit.amount is None:
            return 1
        return transaction.amount.amount if transaction.amount else 0

    def __str__(self) -> str:
        return str(self.limit)
