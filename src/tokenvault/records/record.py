"""Token records and their canonical encoding.

Layout of a record's body, encoding version 1, big endian (docs/formats.md has it too, with the seal):

    1   encoding version, 1
    1   status: 1 inactive, 2 active, 3 suspended, 4 deleted
    1   suspended by: 1 issuer, 2 requestor, 4 cardholder, 8 vault, added up; not 0 exactly while suspended
    2   token expiry: months from January 2000, which is 1; 0: the card's own
    32  SHA-256 of the domain document
    8   created, milliseconds of the Unix epoch
    8   updated, likewise
    2   assurance method, ASCII; or zeros
    29  payment account reference, ASCII; or zeros
    8   highest cryptogram counter plus 1; 0: none seen
    1   number of counters, at most 64
    1   number of remembered transactions, at most 32
    ..  counters, sorted by the first two fields: 3 currency (ASCII, or zeros for uses), 4 window in seconds
        (0: for life), 8 window number, 8 value
    ..  remembered transactions, 32 bytes each, oldest first

A reader takes exactly what a writer writes: what parses encodes back to the same bytes.
"""

from __future__ import annotations

import functools
import re
import struct
from typing import Final, NamedTuple

from tokenvault.errors import IntegrityError
from tokenvault.model.counters import COUNTERS_MAX, MEMORY_BYTES, REMEMBERED_USES_MAX, Usage
from tokenvault.model.iso import CURRENCIES
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.limits import WINDOW_SECONDS_MAX, VelocityCounter
from tokenvault.model.pan import CardExpiry
from tokenvault.model.transaction import CRYPTOGRAM_COUNTER_MAX
from tokenvault.stores.port import SealedRecord

ENCODING_VERSION: Final = 1
REFERENCE_BYTES: Final = 16
PAN_FINGERPRINT_BYTES: Final = 16

_FIXED: Final = struct.Struct(">BBBH32sQQ2s29sQBB")
TIMES: Final = slice(37, 53)
"""Where a body says when the record was created and updated."""

_COUNTER: Final = struct.Struct(">3sIQQ")
_NO_ASSURANCE: Final = bytes(2)
_NO_PAR: Final = bytes(29)
_NO_CURRENCY: Final = bytes(3)
_EXPIRY_MAX: Final = 1200
_ASSURANCE: Final = re.compile(rb"[0-9A-Z]{2}")
_PAR: Final = re.compile(rb"[0-9A-Z]{29}")
_MALFORMED: Final = "a token record is not one that this library writes"
_STATUS_CODES: Final = {
    TokenStatus.INACTIVE: 1,
    TokenStatus.ACTIVE: 2,
    TokenStatus.SUSPENDED: 3,
    TokenStatus.DELETED: 4,
}
_ACTOR_BITS: Final = {Actor.ISSUER: 1, Actor.REQUESTOR: 2, Actor.CARDHOLDER: 4, Actor.VAULT: 8}
_ACTOR_SETS: Final = {
    bits: frozenset(actor for actor, bit in _ACTOR_BITS.items() if bits & bit) for bits in range(16)
}
_ACTOR_SET_BITS: Final = {actors: bits for bits, actors in _ACTOR_SETS.items()}
_LIFECYCLES: Final = {
    (code, bits): (status, actors)
    for status, code in _STATUS_CODES.items()
    for bits, actors in _ACTOR_SETS.items()
    if (status is TokenStatus.SUSPENDED) == bool(actors)
}
_METERS_CACHED_MAX: Final = 1_024


class TokenRecord(NamedTuple):
    """All that the vault keeps of a token, but for the card, which is sealed.

    Attributes:
        token: 13 to 19 digits.
        reference: 16 random bytes.
        pan_fingerprint: 16 bytes, keyed fingerprint of the PAN.
        requestor: the token requestor it was issued to, 11 digits.
        program: name of the token program.
        revision: 1 at issue, one more with each change.
        domain: SHA-256 of the document of the token's own domain.
        status: its status; suspended_by: who suspended it.
        token_expiry: last month of validity; unset: the card's own expiry.
        assurance: token assurance method, 2 characters.
        par: payment account reference, 29 characters.
        usage: what it was used for.
        created_ms, updated_ms: milliseconds of the Unix epoch.
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
        if len(body) < _FIXED.size or body[0] != ENCODING_VERSION:
            raise IntegrityError(
                "a token record is cut short, or was written by a newer version of the library"
            )
        (
            _,
            status,
            suspended,
            expiry,
            domain,
            created_ms,
            updated_ms,
            assurance,
            par,
            cryptogram,
            counters,
            memories,
        ) = _FIXED.unpack_from(body)
        usage_start = _FIXED.size
        memories_start = usage_start + counters * _COUNTER.size
        lifecycle = _LIFECYCLES.get((status, suspended))
        if (
            lifecycle is None
            or expiry > _EXPIRY_MAX
            or not (assurance == _NO_ASSURANCE or _ASSURANCE.fullmatch(assurance))
            or not (par == _NO_PAR or _PAR.fullmatch(par))
            or cryptogram > CRYPTOGRAM_COUNTER_MAX + 1
            or counters > COUNTERS_MAX
            or memories > REMEMBERED_USES_MAX
            or len(body) != memories_start + memories * MEMORY_BYTES
        ):
            raise IntegrityError(_MALFORMED)
        return cls._make(
            (
                *row[:6],
                domain,
                lifecycle[0],
                created_ms,
                updated_ms,
                lifecycle[1],
                CardExpiry.from_month_number(expiry) if expiry else None,
                None if assurance == _NO_ASSURANCE else assurance.decode("ascii"),
                None if par == _NO_PAR else par.decode("ascii"),
                Usage(
                    _parse_counters(body[usage_start:memories_start]), body[memories_start:], cryptogram - 1
                ),
            )
        )

    def used(self, usage: Usage, now_ms: int) -> TokenRecord:
        """The record after a use: the next revision."""
        # As `_replace(revision=, updated_ms=, usage=)`, in half the time: this comes with each counted use.
        return TokenRecord._make((*self[:5], self.revision + 1, *self[6:9], now_ms, *self[10:14], usage))

    def body(self) -> bytes:
        """The canonical encoding of what the store does not look up by."""
        usage = self.usage
        fixed = _FIXED.pack(
            ENCODING_VERSION,
            _STATUS_CODES[self.status],
            _ACTOR_SET_BITS[self.suspended_by],
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
            _COUNTER.pack(
                currency.encode("ascii") or _NO_CURRENCY,
                window_seconds,
                window,
                value,
            )
            for (currency, window_seconds), (window, value) in usage.counters.items()
        ]
        return b"".join((fixed, *counters, usage.memories))


def _parse_counters(encoded: bytes) -> dict[VelocityCounter, tuple[int, int]]:
    counters: dict[VelocityCounter, tuple[int, int]] = {}
    last: VelocityCounter | None = None
    for currency, window_seconds, window, value in _COUNTER.iter_unpack(encoded):
        counter = _counter(currency, window_seconds)
        if last is not None and counter <= last:
            raise IntegrityError(_MALFORMED)
        counters[counter], last = (window, value), counter
    return counters


@functools.lru_cache(_METERS_CACHED_MAX)  # a vault's limits read a few, in each record
def _counter(currency: bytes, window_seconds: int) -> VelocityCounter:
    name = "" if currency == _NO_CURRENCY else currency.decode("latin-1")
    if (name and name not in CURRENCIES) or window_seconds > WINDOW_SECONDS_MAX:
        raise IntegrityError(_MALFORMED)
    return VelocityCounter(name, window_seconds)
