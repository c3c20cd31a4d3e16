"""A token without a vault: its usage and its ledger in memory, decided on by the pure model alone."""

from __future__ import annotations

import hashlib

from tokenvault.model.accounting import record
from tokenvault.model.counters import Usage
from tokenvault.model.decision import Decision, decide
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.ledger import LedgerEntry, Uses
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.pan import CardExpiry
from tokenvault.model.restrictions import Restrictions
from tokenvault.model.transaction import Transaction

OWNER = "40012345678"


def use_id(requestor: str, transaction_id: str) -> bytes:
    """A use id, as a vault makes one, without a key."""
    return hashlib.sha256(f"{requestor}\x1f{transaction_id}".encode()).digest()[:16]


class PureToken:
    """A token under domains; `do` decides and records, as a vault does."""

    def __init__(
        self,
        domain: Domain = NO_RESTRICTION,
        *,
        program: Domain = NO_RESTRICTION,
        owner_domain: Domain = NO_RESTRICTION,
        acting: dict[str, Domain] | None = None,
        owner: str = OWNER,
        expiry_zone: str | None = None,
    ) -> None:
        self.program, self.owner_domain, self.domain, self.acting = (
            program,
            owner_domain,
            domain,
            acting or {},
        )
        self.owner = self.requestor = owner
        self.expiry_zone = expiry_zone
        self.status, self.suspended_by = TokenStatus.ACTIVE, frozenset[Actor]()
        self.assurance: str | None = None
        self.expiry: CardExpiry | None = None
        self.usage = Usage()
        self.entries: list[LedgerEntry] = []

    def restrictions(self, requestor: str) -> Restrictions:
        """The documents that hold for a use by a requestor."""
        acting = None if requestor == self.owner else self.acting.get(requestor)
        return Restrictions(
            self.program,
            self.owner_domain,
            self.domain,
            acting,
            "" if acting is None else requestor,
            self.expiry_zone,
        )

    def uses(self, transaction: Transaction) -> Uses:
        """What the ledger has on a transaction."""
        original = transaction.original
        return Uses.of(
            self.entries,
            use_id(transaction.requestor, transaction.id),
            None if original is None else use_id(transaction.requestor, original),
        )

    def check(self, transaction: Transaction, now_ms: int) -> Decision:
        """The decision on a transaction."""
        restrictions = self.restrictions(transaction.requestor)
        return decide(self, self.expiry, restrictions, transaction, now_ms, self.uses(transaction))

    def do(self, transaction: Transaction, now_ms: int) -> Decision:
        """The decision on a transaction, which is recorded where it is allowed."""
        decision = self.check(transaction, now_ms)
        if decision.allowed:
            restrictions = self.restrictions(transaction.requestor)
            self.usage, entry = record(self.usage, restrictions, transaction, now_ms, self.uses(transaction))
            if entry is not None:
                self.entries.append(entry)
        return decision
