"""What all flows share: reading and writing authenticated records, domains, permissions, events."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple

import attrs

from tokenvault.audit.batch_event import BatchEvent
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.trail import Trail
from tokenvault.errors import (
    ConfigurationError,
    ConflictError,
    IntegrityError,
    InvalidInputError,
    PermissionDeniedError,
    TokenNotFoundError,
)
from tokenvault.model.decision import Restrictions
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import Card, Pan, could_hold_pan
from tokenvault.model.programs import Permission, TokenProgram, TokenRequestor
from tokenvault.records.keyring import KeyRing
from tokenvault.records.record import TokenRecord
from tokenvault.runtime import Clock, Runtime
from tokenvault.stores.port import AsyncTokenStore, SealedEvent, SealedRecord, digest_of

CONFLICTS_MAX: Final = 512
"""How often a change starts over because others changed the same record first."""

OTHERS_RECORD: Final = "the database answered with another token's record"
BACKOFF_MICROSECONDS_MAX: Final = 20_000
DOMAINS_CACHED_MAX: Final = 10_000

# Python 3.11 looks a member of an enum up through its metaclass: as slow as a call.
_DELETED: Final = TokenStatus.DELETED


class Unsealed(NamedTuple):
    """An authenticated record, and its card unless it is a tombstone."""

    record: TokenRecord
    card: Card | None


class Documents:
    """Domain documents by their SHA-256. Immutable, so a cached one stays right."""

    def __init__(
        self,
        store: AsyncTokenStore,
        programs: Mapping[str, TokenProgram],
        requestors: Mapping[str, TokenRequestor],
    ) -> None:
        self._store = store
        self._programs = programs
        self._requestors = requestors
        self._cached: dict[bytes, Domain] = {NO_RESTRICTION.digest: NO_RESTRICTION}
        self._joined: dict[tuple[str, str, bytes], Restrictions] = {}

    async def get(self, digest: bytes) -> Domain:
        """The domain kept under a digest. Raises IntegrityError, TokenStoreError."""
        cached = self._cached.get(digest)
        if cached is not None:
            return cached
        document = await self._store.get_domain(digest)
        if document is None or digest_of(document) != digest:
            raise IntegrityError("a domain document is missing from the database or was changed")
        try:
            domain = Domain.from_json(document)
        except InvalidInputError:
            domain = None
        if domain is None:
            raise IntegrityError("a domain document was written by a newer version of the library")
        self.written(domain)
        return domain

    def unwritten(self, domain: Domain) -> bytes | None:
        """Its document, unless it is known to be in the database."""
        return None if domain.digest in self._cached else domain.document

    async def put(self, domain: Domain) -> None:
        """Keep a domain in the database. Raises TokenStoreError."""
        document = self.unwritten(domain)
        if document is not None:
            await self._store.put_domain(domain.digest, document)
            self.written(domain)

    def known(self, record: TokenRecord) -> Restrictions | None:
        """What `restrictions` gives, if it was asked for before."""
        return self._joined.get((record.program, record.requestor, record.domain))

    async def restrictions(self, record: TokenRecord) -> Restrictions:
        """The three documents that apply to a token. Raises ConfigurationError, IntegrityError, TokenStoreError."""
        joined = self.known(record)
        if joined is not None:
            return joined
        program, requestor = self._programs.get(record.program), self._requestors.get(record.requestor)
        if program is None:
            raise ConfigurationError("the token's program is not among the programs of this vault: add it")
        if requestor is None:
            raise ConfigurationError(
                "the token's requestor is not among the requestors of this vault: add it"
            )
        joined = Restrictions(program.domain, requestor.domain, await self.get(record.domain))
        if len(self._joined) >= DOMAINS_CACHED_MAX:
            self._joined.clear()
        self._joined[record.program, record.requestor, record.domain] = joined
        return joined

    def written(self, domain: Domain) -> None:
        """Note that a domain is in the database."""
        if len(self._cached) >= DOMAINS_CACHED_MAX:
            # In one step, as other threads read meanwhile: the empty domain stands in no database.
            self._cached = {NO_RESTRICTION.digest: NO_RESTRICTION}
        self._cached[domain.digest] = domain


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

    def __attrs_post_init__(self) -> None:
        bins = tuple(program.format.bin for program in self.programs.values())
        object.__setattr__(self, "token_bins", bins)

    # Permissions

    async def permit(
        self, requestor: str, permission: Permission, action: Action, transaction_id: str | None = None
    ) -> TokenRequestor:
        """The registered requestor, if it has a permission. Raises PermissionDeniedError, once it is noted."""
        refused = self.denial(requestor, permission)
        if refused is None:
            return self.requestors[requestor]
        await self.deny(action, requestor, "PERMISSION_DENIED", transaction_id=safe_id(transaction_id))
        raise refused

    def denial(self, requestor: str, permission: Permission) -> PermissionDeniedError | None:
        """Why a requestor may not do something; None where it may."""
        known = self.requestors.get(requestor)
        if known is None:
            return PermissionDeniedError("this requestor is not registered with the vault")
        if permission not in known.permissions:
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

        Where an action is given, a failure is noted. Raises TokenNotFoundError, IntegrityError.
        """
        rows = await self.store.get([token])
        if not rows:
            if action is not None:
                await self.deny(
                    action, requestor, transaction_id=safe_id(transaction_id), outcome=Outcome.NOT_FOUND
                )
            raise TokenNotFoundError("no such token in this vault")
        tampered: IntegrityError | None = None
        if rows[0].token != token:
            tampered = IntegrityError(OTHERS_RECORD)
        else:
            try:
                if self.runtime.inline:
                    return self.unseal(rows[0])
                return await self.runtime.call(self.unseal, rows[0])
            except IntegrityError as error:
                tampered = error
        if action is not None:
            await self.deny(
                action,
                requestor,
                reference=rows[0].reference,  # as the row claims it
                transaction_id=safe_id(transaction_id),
                outcome=Outcome.TAMPERED,
            )
        raise tampered

    async def open(self, row: SealedRecord) -> Unsealed:
        """A row, authenticated. Raises IntegrityError, KeyStoreError."""
        return await self.runtime.call(self.unseal, row)

    def unseal(self, row: SealedRecord) -> Unsealed:
        """As `open`, in this thread."""
        record, card = self.keys.unseal(row)
        if (card is None) != (record.status is _DELETED):
            raise IntegrityError("only the record of a deleted token has no card")
        return Unsealed(record, card)

    def insert(
        self, record: TokenRecord, card: Card | None, event: Event, document: bytes | None
    ) -> Coroutine[Any, Any, list[str]]:
        """Write a new record with its event, and a domain document that goes along.

        Returns the token where it exists already: then nothing is written.
        """
        seal, insert = self.keys.seal, self.store.insert
        return self.trail.write(
            event, lambda: seal(record, card), lambda events, row: insert((row,), events, document)
        )

    def replace(self, record: TokenRecord, card: Card | None, event: Event) -> Coroutine[Any, Any, list[str]]:
        """Write a changed record with its event; returns the token where another change came first, likewise."""
        seal, replace = self.keys.seal, self.store.replace
        return self.trail.write(
            event, lambda: seal(record, card), lambda events, row: replace((row,), events)
        )

    async def note(self, event: Event) -> None:
        """Write an event that goes with no change."""
        await self.trail.note(event)

    async def write(
        self,
        event: BatchEvent,
        change: Callable[[Sequence[SealedEvent]], Coroutine[Any, Any, list[str] | None]],
    ) -> list[str]:
        """Write a batch's event by a change of the store that takes it along; returns the tokens in the way."""
        return await self.trail.write(event, _nothing, lambda events, _: change(events))

    async def conflict(self, attempts: int) -> int:
        """Wait a little before a change starts over, and count. Raises ConflictError once that is enough."""
        if attempts >= CONFLICTS_MAX:
            raise ConflictError("others keep changing this token; nothing was done: retry later")
        ceiling_us = min(100 << min(attempts, 16), BACKOFF_MICROSECONDS_MAX)
        await self.runtime.sleep(secrets.randbelow(ceiling_us) / 1e6)
        return attempts + 1

    # Configuration

    def refuse_token_as_pan(self, pan: Pan) -> None:
        """Raise InvalidInputError where a PAN lies in the token BIN of any program: it is a token already."""
        if pan.reveal().startswith(self.token_bins):
            raise InvalidInputError("this number lies in a token BIN: it is a token already, not a PAN")


def _nothing() -> None:
    return None


def safe_id(transaction_id: str | None, pan: Pan | None = None) -> str | None:
    """A transaction id as an event may hold it: masked where it is, or could be, a card number."""
    if transaction_id is None:
        return None
    if could_hold_pan(transaction_id) or (pan is not None and pan.stands_in(transaction_id)):
        return f"masked {transaction_id[-4:]}"
    return transaction_id
