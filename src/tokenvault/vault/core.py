"""What all flows share: the ports of a vault, its permissions, and reading and writing authenticated records."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple

import attrs

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.trail import Trail
from tokenvault.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    PermissionDeniedError,
    TokenNotFoundError,
    TokenStoreError,
    TokenVaultError,
)
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import USUAL_PANS, Card, Pan, PanRule, could_hold_pan, read_pan
from tokenvault.model.programs import Permission, TokenProgram, TokenRequestor
from tokenvault.records.keyring import KeyRing
from tokenvault.records.record import TokenRecord
from tokenvault.records.token_info import TokenInfo, info_of
from tokenvault.runtime import Clock, Runtime
from tokenvault.stores.port import AsyncTokenStore, SealedRecord
from tokenvault.vault.documents import Documents
from tokenvault.vault.observer import ConflictMet, Deliveries

CONFLICTS_MAX: Final = 512
"""How often a change starts over because others changed the same record first."""

BACKOFF_MICROSECONDS_MAX: Final = 20_000

CARD_PAGE: Final = 100
"""Records of one card that are read at once."""

CARD_PAGES_MAX: Final = 1_000

OTHERS_RECORD: Final = "the database answered with another token's record"
ONLY_DELETED: Final = "only the record of a deleted token has no card"


class Unsealed(NamedTuple):
    """An authenticated record, and its card unless it is a tombstone."""

    record: TokenRecord
    card: Card | None


def unsealed(record: TokenRecord, card: Card | None) -> Unsealed:
    """An authenticated record and its card. Raises IntegrityError where no vault writes it so."""
    if (card is None) != (record.status is TokenStatus.DELETED):
        raise IntegrityError(ONLY_DELETED)
    return Unsealed(record, card)


@attrs.frozen
class Core:
    """The ports and configuration of one vault."""

    store: AsyncTokenStore
    runtime: Runtime
    clock: Clock
    keys: KeyRing
    trail: Trail
    documents: Documents
    programs: Mapping[str, TokenProgram]
    requestors: Mapping[str, TokenRequestor]
    finds_last4: bool = False
    deliveries: Deliveries | None = None
    token_bins: tuple[str, ...] = attrs.field(init=False)
    _any_pan: PanRule = attrs.field(init=False)

    @token_bins.default
    def _bins_of_programs(self) -> tuple[str, ...]:
        return tuple(program.format.bin for program in self.programs.values())

    @_any_pan.default
    def _rule_of_any_program(self) -> PanRule:
        rules = [program.pans for program in self.programs.values()] or [USUAL_PANS]
        fewest, most = zip(*(rule.lengths for rule in rules), strict=True)
        return PanRule(lengths=(min(fewest), max(most)), luhn=all(rule.luhn for rule in rules))

    # Permissions

    async def permit(
        self, requestor: str, permission: Permission, action: Action, transaction_id: str | None = None
    ) -> TokenRequestor:
        """The registered requestor, if it has a permission. Raises PermissionDeniedError, once that is noted."""
        denied = self.denial(requestor, permission)
        if denied is not None:
            await self.deny(action, requestor, "PERMISSION_DENIED", transaction_id=safe_id(transaction_id))
            raise denied
        return self.requestors[requestor]

    def denial(self, requestor: str, permission: Permission) -> PermissionDeniedError | None:
        """Why a requestor may not do something; None if it may."""
        registered = self.requestors.get(requestor)
        if registered is None:
            return PermissionDeniedError(
                "this requestor is not registered with the vault", code="REQUESTOR_UNKNOWN"
            )
        if permission not in registered.permissions:
            return PermissionDeniedError(f"this requestor does not have the permission {permission.name}")
        return None

    async def deny(
        self,
        action: Action,
        requestor: str | None,
        *codes: str,
        reference: bytes = b"",
        transaction_id: str | None = None,
        operator: str | None = None,
        outcome: Outcome = Outcome.DENIED,
    ) -> None:
        """Note that something was refused. Raises TokenStoreError."""
        await self.trail.note(
            Event(
                time_ms=self.clock.now_ms(),
                action=action,
                outcome=outcome,
                requestor=requestor,
                reference=reference,
                transaction_id=transaction_id,
                operator=operator,
                codes=codes,
            )
        )

    # Records

    async def read(
        self,
        name: str | bytes,
        action: Action | None,
        requestor: str | None = None,
        transaction_id: str | None = None,
    ) -> Unsealed:
        """The record of a token or reference, authenticated; with an action, a failure is noted as one of it.

        Raises TokenNotFoundError, IntegrityError, KeyStoreError, TokenStoreError.
        """
        if isinstance(name, bytes):
            row = await self.store.by_reference(name)
        else:
            rows = await self.store.get([name])
            row = rows[0] if rows else None
        return await self.found(name, row, action, requestor, transaction_id)

    async def found(
        self,
        name: str | bytes,
        row: SealedRecord | None,
        action: Action | None,
        requestor: str | None = None,
        transaction_id: str | None = None,
    ) -> Unsealed:
        """As `read`, of what the store found under the name."""
        failure: TokenVaultError
        if row is not None:
            outcome, reference = Outcome.TAMPERED, row.reference  # as the row claims it
            try:
                return await self.open(row, name)
            except IntegrityError as error:
                failure = error
        else:
            outcome, reference = Outcome.NOT_FOUND, b""
            named = "no such token" if isinstance(name, str) else "no token with this reference"
            failure = TokenNotFoundError(f"{named} in this vault")
        if action is not None:
            shown = safe_id(transaction_id)
            await self.deny(action, requestor, reference=reference, transaction_id=shown, outcome=outcome)
        raise failure

    def open(self, row: SealedRecord, name: str | bytes | None = None) -> Coroutine[Any, Any, Unsealed]:
        """The record of a row, authenticated: of this token or reference. Raises IntegrityError, KeyStoreError."""
        return self.runtime.call(self._unseal, row, name)

    def _unseal(self, row: SealedRecord, name: str | bytes | None) -> Unsealed:
        if name is not None and name not in (row.token, row.reference):
            raise IntegrityError(OTHERS_RECORD)
        return unsealed(*self.keys.unseal(row))

    async def info(self, unsealed: Unsealed) -> TokenInfo:
        """What the vault returns of a record. Raises IntegrityError, KeyStoreError."""
        record, card = unsealed
        if not record.metadata:
            return info_of(record, card)
        return info_of(record, card, await self.runtime.call(self.keys.metadata, record))

    async def of_card(
        self, pan_fingerprints: Sequence[bytes], requestor: str | None, program: str | None = None
    ) -> AsyncIterator[Unsealed]:
        """The records of a card's PAN fingerprints, by token, tombstones too; of all requestors, or of one.

        Raises IntegrityError, KeyStoreError, TokenStoreError.
        """
        after = ""
        for _ in range(CARD_PAGES_MAX):
            rows = await self.store.find(
                pan_fingerprints, requestor=requestor, program=program, after=after, limit=CARD_PAGE
            )
            for row in rows:
                yield await self.open(row)
            if len(rows) < CARD_PAGE:
                return
            after = rows[-1].token
        raise TokenStoreError(
            f"this card has over {CARD_PAGE * CARD_PAGES_MAX} tokens: ask for one requestor's",
            code="TOO_MANY_TOKENS",
        )

    def replace(self, changed: Unsealed, event: Event) -> Coroutine[Any, Any, list[str]]:
        """Write a changed record with its event.

        Returns the token if another change came first: then nothing is written.
        """
        return self.trail.write(
            event, lambda: self.keys.seal(*changed), lambda events, row: self.store.replace((row,), events)
        )

    async def conflict(self, attempts: int) -> int:
        """Wait a little before a change starts over. Returns the attempts so far; raises ConflictError after many."""
        if attempts >= CONFLICTS_MAX:
            raise ConflictError("others keep changing this token; nothing was done: retry later")
        if self.deliveries is not None:
            self.deliveries.put(ConflictMet(attempts=attempts + 1))
        ceiling_us = min(100 << min(attempts, 16), BACKOFF_MICROSECONDS_MAX)
        await self.runtime.sleep(secrets.randbelow(ceiling_us) / 1e6)
        return attempts + 1

    # Configuration

    def pan(self, value: str | Pan, program: str | None = None) -> Pan:
        """A PAN, by the rule of a program; without one, or of one that there is not, as any program takes it.

        Raises InvalidInputError.
        """
        known = self.programs.get(program or "")
        return read_pan(value, self._any_pan if known is None else known.pans)

    def refuse_token_as_pan(self, pan: Pan) -> None:
        """Raise InvalidInputError if a PAN lies in the token BIN of any program: it is a token already."""
        if pan.reveal().startswith(self.token_bins):
            raise InvalidInputError(
                "this number lies in a token BIN: it is a token already, not a PAN", code="PAN_IS_TOKEN"
            )


def safe_id(transaction_id: str | None, pan: Pan | None = None) -> str | None:
    """A transaction id as an event may hold it: masked if it is, or could be, a card number."""
    if transaction_id is None:
        return None
    if could_hold_pan(transaction_id) or (pan is not None and pan.stands_in(transaction_id)):
        return f"masked {transaction_id[-4:]}"
    return transaction_id
