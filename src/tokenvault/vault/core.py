"""What all flows share: the ports of a vault, its permissions, and reading and writing authenticated records."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Coroutine, Sequence, Set
from typing import Any, Final, NamedTuple

import attrs

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.trail import Trail
from tokenvault.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    PermissionDeniedError,
    RequestorLockedOutError,
    TokenNotFoundError,
    TokenStoreError,
)
from tokenvault.model.dual_control import RevealPolicy
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import Card, Pan, read_pan
from tokenvault.model.programs import Permission, TokenRequestor
from tokenvault.records.keyring import KeyRing
from tokenvault.records.record import TokenRecord
from tokenvault.records.token_info import TokenInfo, info_of
from tokenvault.runtime import Clock, Runtime
from tokenvault.stores.port import AsyncTokenStore, SealedRecord
from tokenvault.vault.documents import Documents
from tokenvault.vault.guard import Guards, Tally
from tokenvault.vault.key_versions import KeyVersions
from tokenvault.vault.observer import ConflictMet, Deliveries
from tokenvault.vault.parties import Parties
from tokenvault.vault.risk import RiskDesk, RiskPolicy
from tokenvault.vault.stored_parties import Registry, not_stored

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

    def at(self, now_ms: int, revision: int) -> Unsealed:
        """It as it is written at a time, as a revision."""
        return Unsealed(self.record._replace(updated_ms=now_ms, revision=revision), self.card)


def unsealed(record: TokenRecord, card: Card | None) -> Unsealed:
    """An authenticated record and its card. Raises IntegrityError where no vault writes it so."""
    if (card is None) != (record.status is TokenStatus.DELETED):
        raise IntegrityError(ONLY_DELETED)
    return Unsealed(record, card)


def not_found(name: str | bytes) -> TokenNotFoundError:
    """The error of a token, or a reference, that no record has."""
    named = "no such token" if isinstance(name, str) else "no token with this reference"
    return TokenNotFoundError(f"{named} in this vault")


@attrs.frozen
class Core:
    """The ports and configuration of one vault.

    Attributes:
        registry: changes its parties, where the vault does that.
        outer: the vault that this one is a part of, in a transaction of the host's; None of others.
        touched: the references of tokens whose rows that transaction may have locked.
    """

    store: AsyncTokenStore
    runtime: Runtime
    clock: Clock
    key_versions: KeyVersions
    trail: Trail
    documents: Documents
    parties: Parties
    guards: Guards
    registry: Registry | None = None
    finds_last4: bool = False
    deliveries: Deliveries | None = None
    risk: RiskPolicy | None = None
    reveal: RevealPolicy | None = None
    outer: Core | None = None
    touched: Set[bytes] = frozenset()

    @property
    def keys(self) -> KeyRing:
        """The keys, by the key table in force. What has to fit together comes from one ring: ask for it once."""
        return self.key_versions.ring

    def lasting(self, reference: bytes) -> Core:
        """Where a change of a token outlives a host's transaction, unless that has the token locked."""
        return self if self.outer is None or reference in self.touched else self.outer

    async def rekeyed(self, keys: KeyRing) -> bool:
        """Whether other keys are in force by now than those of a ring; read again where that is due."""
        if self.key_versions.stale:
            await self.key_versions.refresh()
        return self.keys is not keys

    # Permissions

    async def permit(
        self, requestor: str, permission: Permission, action: Action, transaction_id: str | None = None
    ) -> TokenRequestor:
        """The registered requestor, if it has a permission. Raises PermissionDeniedError, once that is noted."""
        registered = await self.parties.requestor(requestor)
        if registered is not None:
            await self.guards.refresh(requestor)
        denied = denial_of(registered, permission) or self.guards.locked_out(requestor)
        if denied is not None or registered is None:
            denied = denied or requestor_unknown()
            await self.deny(action, requestor, denial_code(denied), transaction_id=transaction_id)
            raise denied
        return registered

    async def permit_by_card(self, requestor: str, action: Action) -> None:
        """Let a requestor manage tokens by a card number. Raises PermissionDeniedError, once that is noted.

        Whether a card has a token, and which, confirms a guess of its number: only who handles card numbers may ask.
        """
        await self.permit(requestor, Permission.MANAGE, action)
        denied = await self.denial_by_card(requestor)
        if denied is not None:
            await self.deny(action, requestor, denied.code)
            raise denied

    async def denial_by_card(self, requestor: str | None) -> PermissionDeniedError | None:
        """Why a requestor that may manage tokens may not name them by a card number; None if it may."""
        registered = None if requestor is None else await self.parties.requestor(requestor)
        if registered is None or registered.permissions & {Permission.ISSUE, Permission.DETOKENIZE}:
            return None
        return PermissionDeniedError(
            "a card is named by its number with Permission.ISSUE or DETOKENIZE only: name the token",
            code="CARD_NUMBER_NOT_ALLOWED",
        )

    async def refuse_locked_out(self, requestor: str, action: Action, transaction_id: str | None) -> None:
        """Raise RequestorLockedOutError, once it is noted, if a requestor was locked out since it was permitted."""
        locked_out = self.guards.locked_out(requestor)
        if locked_out is not None:
            await self.deny(action, requestor, locked_out.code, transaction_id=transaction_id)
            raise locked_out

    async def denial(self, requestor: str, permission: Permission) -> PermissionDeniedError | None:
        """Why a requestor may not do something, as far as is known in this process; None if it may."""
        denied = denial_of(await self.parties.requestor(requestor), permission)
        return denied or self.guards.locked_out(requestor)

    async def deny(
        self,
        action: Action,
        requestor: str | None,
        *codes: str,
        reference: bytes = b"",
        transaction_id: str | None = None,
        operator: str | None = None,
        outcome: Outcome = Outcome.DENIED,
        tally: Tally | None = None,
    ) -> None:
        """Note that something was refused, and what the guard counts of it.

        Raises TokenStoreError, and RequestorLockedOutError where the guard answers in place of the caller.
        """
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
                failures=() if tally is None else tally.failures,
            )
        )
        if tally is not None and (locked_out := await tally.settle()) is not None:
            raise locked_out

    async def deny_miss(
        self,
        action: Action,
        requestor: str | None,
        *what: str,
        transaction_id: str | None = None,
        operator: str | None = None,
    ) -> None:
        """Note that what a requestor asked for is not there, and count it. Raises as `deny`."""
        tally = Tally(self.guards)
        locked_out = None if requestor is None else tally.miss(requestor, self.keys.failure(*what))
        await self.deny(
            action,
            requestor,
            *(() if locked_out is None else (locked_out.code,)),
            transaction_id=transaction_id,
            operator=operator,
            outcome=Outcome.NOT_FOUND if locked_out is None else Outcome.DENIED,
            tally=tally,
        )
        if locked_out is not None:
            raise locked_out

    def risk_desk(self, deadlines: int = 1) -> RiskDesk | None:
        """Who asks about the uses of one call, if a risk control is to be asked."""
        return None if self.risk is None else RiskDesk(self.risk, self.runtime, deadlines)

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
        if row is None:
            if action is not None:
                await self.deny_miss(action, requestor, *failed(name), transaction_id=transaction_id)
            raise not_found(name)
        try:
            return await self.open(row, name)
        except IntegrityError as error:
            failure = error
        if action is not None:
            reference = row.reference  # as the row claims it
            await self.deny(
                action,
                requestor,
                reference=reference,
                transaction_id=transaction_id,
                outcome=Outcome.TAMPERED,
            )
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
            f"this card has {CARD_PAGE * CARD_PAGES_MAX} tokens or more: ask for one requestor's",
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
        known = self.parties.known.by_name.get(program or "")
        return read_pan(value, self.parties.known.any_pan if known is None else known.pans)

    @property
    def changing(self) -> Registry:
        """What changes programs and requestors. Raises ConfigurationError where they are not in the database."""
        if self.registry is None:
            raise not_stored()
        return self.registry

    def refuse_token_as_pan(self, pan: Pan) -> None:
        """Raise InvalidInputError if a PAN lies in the token BIN of any program: it is a token already."""
        if pan.reveal().startswith(self.parties.known.token_bins):
            raise InvalidInputError(
                "this number lies in a token BIN: it is a token already, not a PAN", code="PAN_IS_TOKEN"
            )


def denial_of(registered: TokenRequestor | None, permission: Permission) -> PermissionDeniedError | None:
    """Why a requestor may not do something; None if it may."""
    if registered is None:
        return requestor_unknown()
    if registered.disabled:
        return PermissionDeniedError("this requestor is disabled", code="REQUESTOR_DISABLED")
    if permission not in registered.permissions:
        return PermissionDeniedError(f"this requestor does not have the permission {permission.name}")
    return None


def requestor_unknown() -> PermissionDeniedError:
    """The error for a requestor that is not configured."""
    return PermissionDeniedError("this requestor is not registered with the vault", code="REQUESTOR_UNKNOWN")


def denial_code(denied: PermissionDeniedError) -> str:
    """What the event says of a requestor that may not do something."""
    return denied.code if isinstance(denied, RequestorLockedOutError) else "PERMISSION_DENIED"


def failed(name: str | bytes) -> tuple[str, ...]:
    """By what a token or reference that failed is known to the guard."""
    return ("token", name) if isinstance(name, str) else ("reference", name.hex())
