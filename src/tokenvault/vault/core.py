"""What all flows share: the ports of a vault, its permissions, and reading and writing authenticated records."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple

import attrs

from tokenvault.audit.batch_event import BatchEvent
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.trail import Trail
from tokenvault.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    PermissionDeniedError,
    TokenNotFoundError,
)
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import Card, Pan, could_hold_pan
from tokenvault.model.programs import Permission, TokenProgram, TokenRequestor
from tokenvault.records.keyring import KeyRing
from tokenvault.records.record import TokenRecord
from tokenvault.runtime import Clock, Runtime
from tokenvault.stores.port import AsyncTokenStore, SealedEvent, SealedRecord
from tokenvault.vault.documents import Documents

CONFLICTS_MAX: Final = 512
"""How often a change starts over because others changed the same record first."""

BACKOFF_MICROSECONDS_MAX: Final = 20_000

OTHERS_RECORD: Final = "the database answered with another token's record"
ONLY_DELETED: Final = "only the record of a deleted token has no card"


class Unsealed(NamedTuple):
    """An authenticated record, and its card unless it is a tombstone."""

    record: TokenRecord
    card: Card | None


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
    token_bins: tuple[str, ...] = attrs.field(init=False)

    @token_bins.default
    def _bins_of_programs(self) -> tuple[str, ...]:
        return tuple(program.format.bin for program in self.programs.values())

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
            return PermissionDeniedError("this requestor is not registered with the vault")
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
        outcome: Outcome = Outcome.DENIED,
    ) -> None:
        """Note that something was refused. Raises TokenStoreError."""
        await self.note(
            Event(
                time_ms=self.clock.now_ms(),
                action=action,
                outcome=outcome,
                requestor=requestor,
                reference=reference,
                transaction_id=transaction_id,
                codes=codes,
            )
        )

    # Records

    async def read(
        self,
        token: str,
        action: Action | None,
        requestor: str | None = None,
        transaction_id: str | None = None,
    ) -> Unsealed:
        """The record of a token, authenticated.

        Args:
            token: the token.
            action: what a failure is noted as in the audit trail; unset, it is not noted.
            requestor: who asks.
            transaction_id: of the use, if it is one.

        Raises:
            TokenNotFoundError, IntegrityError, KeyStoreError, TokenStoreError.
        """
        rows = await self.store.get([token])
        if not rows:
            if action is not None:
                await self.deny(
                    action, requestor, transaction_id=safe_id(transaction_id), outcome=Outcome.NOT_FOUND
                )
            raise TokenNotFoundError("no such token in this vault")
        row = rows[0]
        try:
            if row.token != token:
                raise IntegrityError(OTHERS_RECORD)  # noqa: TRY301 # as any other row that is not the vault's
            return await self.open(row)
        except IntegrityError:
            if action is not None:
                await self.deny(
                    action,
                    requestor,
                    reference=row.reference,  # as the row claims it
                    transaction_id=safe_id(transaction_id),
                    outcome=Outcome.TAMPERED,
                )
            raise

    async def open(self, row: SealedRecord) -> Unsealed:
        """The record of a row, authenticated. Raises IntegrityError, KeyStoreError."""
        record, card = await self.runtime.call(self.keys.unseal, row)
        if (card is None) != (record.status is TokenStatus.DELETED):
            raise IntegrityError(ONLY_DELETED)
        return Unsealed(record, card)

    async def insert(self, unsealed: Unsealed, event: Event, document: bytes | None) -> list[str]:
        """Write a new record with its event, and with a domain document that is not in the database yet.

        Returns the token if it exists already: then nothing is written.
        """
        return await self.trail.write(
            event,
            lambda: self.keys.seal(*unsealed),
            lambda events, row: self.store.insert((row,), events, document),
        )

    async def replace(self, unsealed: Unsealed, event: Event) -> list[str]:
        """Write a changed record with its event.

        Returns the token if another change came first: then nothing is written.
        """
        return await self.trail.write(
            event, lambda: self.keys.seal(*unsealed), lambda events, row: self.store.replace((row,), events)
        )

    async def note(self, event: Event) -> None:
        """Write an event that goes with no change."""
        await self.trail.note(event)

    async def write(
        self,
        event: BatchEvent,
        change: Callable[[Sequence[SealedEvent]], Coroutine[Any, Any, list[str] | None]],
    ) -> list[str]:
        """Write a batch's event by a change of the store that takes it along. Returns the tokens in the way."""
        return await self.trail.write(event, lambda: None, lambda events, _: change(events))

    async def conflict(self, attempts: int) -> int:
        """Wait a little before a change starts over. Returns the attempts so far; raises ConflictError after many."""
        if attempts >= CONFLICTS_MAX:
            raise ConflictError("others keep changing this token; nothing was done: retry later")
        ceiling_us = min(100 << min(attempts, 16), BACKOFF_MICROSECONDS_MAX)
        await self.runtime.sleep(secrets.randbelow(ceiling_us) / 1e6)
        return attempts + 1

    # Configuration

    def refuse_token_as_pan(self, pan: Pan) -> None:
        """Raise InvalidInputError if a PAN lies in the token BIN of any program: it is a token already."""
        if pan.reveal().startswith(self.token_bins):
            raise InvalidInputError("this number lies in a token BIN: it is a token already, not a PAN")


def safe_id(transaction_id: str | None, pan: Pan | None = None) -> str | None:
    """A transaction id as an event may hold it: masked if it is, or could be, a card number."""
    if transaction_id is None:
        return None
    if could_hold_pan(transaction_id) or (pan is not None and pan.stands_in(transaction_id)):
        return f"masked {transaction_id[-4:]}"
    return transaction_id
