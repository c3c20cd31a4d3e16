"""Token records and their canonical encoding, which `layout` states.

A reader takes exactly what a writer writes: what parses encodes back to the same bytes.
"""

from __future__ import annotations

import functools
import re
from typing import Final, NamedTuple

from tokenvault.errors import IntegrityError
from tokenvault.model.counters import COUNTERS_MAX, MEMORY_BYTES, REMEMBERED_USES_MAX, Usage
from tokenvault.model.iso import CURRENCIES
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.limits import WINDOW_SECONDS_MAX, VelocityCounter
from tokenvault.model.pan import CardExpiry
from tokenvault.model.transaction import CRYPTOGRAM_COUNTER_MAX
from tokenvault.records.layout import BODY, COUNTER, ENCODING_VERSION
from tokenvault.stores.port import SealedRecord

_NO_ASSURANCE: Final = bytes(2)
_NO_PAR: Final = bytes(29)
_NO_CURRENCY: Final = bytes(3)
_EXPIRY_MAX: Final = 1200
_ASSURANCE: Final = re.compile(rb"[0-9A-Z]{2}|\x00{2}")
_PAR: Final = re.compile(rb"[0-9A-Z]{29}|\x00{29}")
_MALFORMED: Final = "a token record is not one that this library writes"
_STATUS_CODES: Final = {
    TokenStatus.INACTIVE: 1,
    TokenStatus.ACTIVE: 2,
    TokenStatus.SUSPENDED: 3,
    TokenStatus.DELETED: 4,
}
_ACTOR_BITS: Final = {Actor.ISSUER: 1, Actor.REQUESTOR: 2, Actor.CARDHOLDER: 4, Actor.VAULT: 8}
_ACTOR_SETS: Final = [
    frozenset(actor for actor, bit in _ACTOR_BITS.items() if bits & bit) for bits in range(16)
]
_LIFECYCLES: Final = {
    (code, bits): (status, actors)
    for status, code in _STATUS_CODES.items()
    for bits, actors in enumerate(_ACTOR_SETS)
    if (status is TokenStatus.SUSPENDED) == bool(actors)
}
_LIFECYCLE_CODES: Final = {lifecycle: codes for codes, lifecycle in _LIFECYCLES.items()}


class TokenRecord(NamedTuple):
    """What the vault keeps of a token, except the card, which is sealed.

    Attributes:
        token: 13 to 19 digits.
        reference: 16 random bytes.
        pan_fingerprint: 16 bytes, keyed fingerprint of the PAN.
        requestor: the token requestor it was issued to, 11 digits.
        program: name of the token program.
        revision: 1 at issue, one more with each change.
        domain: SHA-256 of the document of the token's own domain.
        status: where the token is in its lifecycle.
        created_ms, updated_ms: milliseconds of the Unix epoch.
        suspended_by: the actors who suspended it and have not resumed it.
        token_expiry: last month of validity; None: the card's own expiry.
        assurance: token assurance method, 2 characters.
        par: payment account reference, 29 characters.
        usage: counters and remembered transactions.
    """

    token: str
    reference: bytes
    pan_fingerprint: bytes
    requestor: str
    program: str
    revision: int
    domain: bytes
    status: TokenStatus
    created_ms: int
    updated_ms: int
    suspended_by: frozenset[Actor] = frozenset()
    token_expiry: CardExpiry | None = None
    assurance: str | None = None
    par: str | None = None
    usage: Usage = Usage()

    def __repr__(self) -> str:
        return f"<TokenRecord {self.reference.hex()}, revision {self.revision}>"

    @classmethod
    def parse(cls, row: SealedRecord) -> TokenRecord:
        """The record of a row as a store keeps it.

        Raises:
            IntegrityError: the body is not one that `body` writes.
        """
        body = row.body
        if len(body) < BODY.size or body[0] != ENCODING_VERSION:
            raise IntegrityError(
                "a token record is cut short, or was written by a newer version of the library",
                code="WRITTEN_BY_NEWER_VERSION",
            )
        (
            _,
            status_code,
            actor_bits,
            expiry,
            domain,
            created_ms,
            updated_ms,
            assurance,
            par,
            cryptogram,
            counters,
            memories,
        ) = BODY.unpack_from(body)
        memories_start = BODY.size + counters * COUNTER.size
        lifecycle = _LIFECYCLES.get((status_code, actor_bits))
        if (
            lifecycle is None
            or expiry > _EXPIRY_MAX
            or not _ASSURANCE.fullmatch(assurance)
            or not _PAR.fullmatch(par)
            or cryptogram > CRYPTOGRAM_COUNTER_MAX + 1
            or counters > COUNTERS_MAX
            or memories > REMEMBERED_USES_MAX
            or len(body) != memories_start + memories * MEMORY_BYTES
        ):
            raise IntegrityError(_MALFORMED)
        status, suspended_by = lifecycle
        return cls(
            token=row.token,
            reference=row.reference,
            pan_fingerprint=row.pan_fingerprint,
            requestor=row.requestor,
            program=row.program,
            revision=row.revision,
            domain=domain,
            status=status,
            created_ms=created_ms,
            updated_ms=updated_ms,
            suspended_by=suspended_by,
            token_expiry=CardExpiry.from_month_number(expiry) if expiry else None,
            assurance=None if assurance == _NO_ASSURANCE else assurance.decode("ascii"),
            par=None if par == _NO_PAR else par.decode("ascii"),
            usage=Usage(
                _parse_counters(body[BODY.size : memories_start]), body[memories_start:], cryptogram - 1
            ),
        )

    def row(self, key_version: int, seal: bytes) -> SealedRecord:
        """The record as a store keeps it, with its seal, or before that with the nonce alone."""
        return SealedRecord(
            token=self.token,
            reference=self.reference,
            pan_fingerprint=self.pan_fingerprint,
            requestor=self.requestor,
            program=self.program,
            revision=self.revision,
            key_version=key_version,
            body=self.body(),
            seal=seal,
        )

    def used(self, usage: Usage, now_ms: int) -> TokenRecord:
        """The record after a use: the next revision."""
        return self._replace(revision=self.revision + 1, updated_ms=now_ms, usage=usage)

    def body(self) -> bytes:
        """The canonical encoding of the fields that the store does not look up by."""
        usage = self.usage
        fixed = BODY.pack(
            ENCODING_VERSION,
            *_LIFECYCLE_CODES[self.status, self.suspended_by],
            self.token_expiry.month_number if self.token_expiry else 0,
            self.domain,
            self.created_ms,
            self.updated_ms,
            self.assurance.encode("ascii") if self.assurance else _NO_ASSURANCE,
            self.par.encode("ascii") if self.par else _NO_PAR,
            usage.cryptogram_counter + 1,
            len(usage.counters),
            len(usage.memories) // MEMORY_BYTES,
        )
        counters = [
            COUNTER.pack(currency.encode("ascii") or _NO_CURRENCY, window_seconds, window, value)
            for (currency, window_seconds), (window, value) in usage.counters.items()
        ]
        return b"".join((fixed, *counters, usage.memories))


def _parse_counters(encoded: bytes) -> dict[VelocityCounter, tuple[int, int]]:
    counters: dict[VelocityCounter, tuple[int, int]] = {}
    last: VelocityCounter | None = None
    for currency, window_seconds, window, value in COUNTER.iter_unpack(encoded):
        counter = _counter(currency, window_seconds)
        if last is not None and counter <= last:
            raise IntegrityError(_MALFORMED)
        counters[counter], last = (window, value), counter
    return counters


@functools.lru_cache(1_024)  # a vault's limits have few, which stand in every record
def _counter(currency: bytes, window_seconds: int) -> VelocityCounter:
    name = "" if currency == _NO_CURRENCY else currency.decode("latin-1")
    if (name and name not in CURRENCIES) or window_seconds > WINDOW_SECONDS_MAX:
        raise IntegrityError(_MALFORMED)
    return VelocityCounter(name, window_seconds)
