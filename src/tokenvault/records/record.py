"""Token records and their canonical encoding, which `layout` states.

A reader takes exactly what a writer writes: what parses encodes back to the same bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tokenvault.errors import IntegrityError
from tokenvault.model.counters import COUNTERS_MAX, Counter, Usage
from tokenvault.model.lifecycle import Actor, TokenStatus, may_be_suspended
from tokenvault.model.pan import CardExpiry
from tokenvault.model.transaction import CRYPTOGRAM_COUNTER_MAX
from tokenvault.records import layout
from tokenvault.stores.port import SealedRecord

_EXPIRY_MAX: Final = 1200
_ASSURANCE: Final = re.compile(rb"[0-9A-Z]{2}")
_PAR: Final = re.compile(rb"[0-9A-Z]{29}")
_MALFORMED: Final = "a token record is not one that this library writes"
STATUS_CODES: Final = {
    TokenStatus.INACTIVE: 1,
    TokenStatus.ACTIVE: 2,
    TokenStatus.SUSPENDED: 3,
    TokenStatus.DELETED: 4,
    TokenStatus.WINDING_DOWN: 5,
}
_ACTOR_BITS: Final = {
    Actor.ISSUER: 1,
    Actor.REQUESTOR: 2,
    Actor.CARDHOLDER: 4,
    Actor.VAULT: 8,
    Actor.GRANTOR: 16,
}
_ACTOR_SETS: Final = [
    frozenset(actor for actor, bit in _ACTOR_BITS.items() if bits & bit)
    for bits in range(1 << len(_ACTOR_BITS))
]
_LIFECYCLES: Final = {
    (code, bits): (status, actors)
    for status, code in STATUS_CODES.items()
    for bits, actors in enumerate(_ACTOR_SETS)
    if may_be_suspended(status, actors)
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
        customer: the caller's own id of whom the token is for; empty where none was given.
        last4_key: 16 bytes by which tokens are found by the last four digits of the PAN; empty where they are not.
        assurance: token assurance method, 2 characters.
        assurance_ms: when that was established; 0 where it is not stated.
        par: payment account reference, 29 characters.
        purge_after_ms: when a token that winds down may be purged; 0 where it does not wind down.
        batch: reference of the event of the batch that issued the token, 16 bytes; empty where it was issued singly.
        source: reference of the token that it was issued from, 16 bytes; empty where it was issued for a card.
        request: keyed digest of the request by which it was issued, 16 bytes; empty where that had no idempotency
            key.
        metadata: the caller's pairs, sealed (`sealing.seal_metadata`); empty where there are none.
        usage: velocity counters, the cryptogram counter, and when the token was used.
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
    customer: str = ""
    last4_key: bytes = b""
    assurance: str | None = None
    assurance_ms: int = 0
    par: str | None = None
    purge_after_ms: int = 0
    batch: bytes = b""
    source: bytes = b""
    request: bytes = b""
    metadata: bytes = b""
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
        if len(body) < layout.BODY.size or body[0] != layout.ENCODING_VERSION:
            raise IntegrityError(
                "a token record is cut short, or was written by a newer version of the library",
                code="WRITTEN_BY_NEWER_VERSION",
            )
        (
            _,
            parts,
            status_code,
            actor_bits,
            expiry,
            domain,
            created_ms,
            updated_ms,
            counters_count,
            metadata_bytes,
        ) = layout.BODY.unpack_from(body)
        lifecycle = _LIFECYCLES.get((status_code, actor_bits))
        if lifecycle is None or expiry > _EXPIRY_MAX or counters_count > COUNTERS_MAX or parts >= _PARTS_END:
            raise IntegrityError(_MALFORMED)
        optional, start = _read_parts(parts, body)
        end = start + counters_count * layout.COUNTER.size
        if len(body) != end + metadata_bytes or (row.status, row.created_ms) != (status_code, created_ms):
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
            customer=row.customer,
            last4_key=row.last4_key,
            metadata=body[end:],
            usage=Usage(_read_counters(body[start:end]), *optional.pop("used", ())),
            **optional,
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
            customer=self.customer,
            last4_key=self.last4_key,
            status=STATUS_CODES[self.status],
            created_ms=self.created_ms,
        )

    def used(self, usage: Usage, now_ms: int) -> TokenRecord:
        """The record after a use: the next revision."""
        return self._replace(revision=self.revision + 1, updated_ms=now_ms, usage=usage)

    def body(self) -> bytes:
        """The canonical encoding of the fields that the store does not look up by."""
        parts, encoded = 0, [b""]
        for part in _PARTS:
            values = part.values(self)
            if any(values):
                parts |= part.bit
                encoded.append(part.layout.pack(*values))
        encoded[0] = layout.BODY.pack(
            layout.ENCODING_VERSION,
            parts,
            *_LIFECYCLE_CODES[self.status, self.suspended_by],
            self.token_expiry.month_number if self.token_expiry else 0,
            self.domain,
            self.created_ms,
            self.updated_ms,
            len(self.usage.counters),
            len(self.metadata),
        )
        for counter in self.usage.counters:
            encoded.append(
                layout.COUNTER.pack(*counter._replace(previous_window=counter.previous_window + 1))
            )
        encoded.append(self.metadata)
        return b"".join(encoded)


# The optional parts of a body.


class _Part(NamedTuple):
    """An optional part of a body.

    Attributes:
        bit: by which a body states that it is there.
        layout: of its bytes.
        values: what a record has for it, in the order of the bytes; all empty or 0 where it is left out.
        fields: the arguments of a record that such values give. Raises ValueError for those no record has.
    """

    bit: int
    layout: struct.Struct
    values: Callable[[TokenRecord], tuple[Any, ...]]
    fields: Callable[..., dict[str, Any]]


def _assurance(method: bytes, established_ms: int) -> dict[str, Any]:
    return {"assurance": _matched(_ASSURANCE, method), "assurance_ms": established_ms}


def _used(cryptogram: int, authenticated: int, last_used: int, used_before: int) -> dict[str, Any]:
    if cryptogram > CRYPTOGRAM_COUNTER_MAX + 1 or used_before > last_used:
        raise ValueError(_MALFORMED)
    return {"used": tuple(stored - 1 for stored in (cryptogram, authenticated, last_used, used_before))}


def _matched(pattern: re.Pattern[bytes], text: bytes) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueError(_MALFORMED)
    return text.decode("ascii")


_PARTS: Final = (
    _Part(
        1,
        layout.ASSURANCE,
        lambda record: ((record.assurance or "").encode("ascii"), record.assurance_ms),
        _assurance,
    ),
    _Part(
        2,
        layout.PAR,
        lambda record: ((record.par or "").encode("ascii"),),
        lambda par: {"par": _matched(_PAR, par)},
    ),
    _Part(
        4,
        layout.USED,
        lambda record: (
            record.usage.cryptogram_counter + 1,
            record.usage.authenticated_ms + 1,
            record.usage.last_used_ms + 1,
            record.usage.used_before_ms + 1,
        ),
        _used,
    ),
    _Part(
        8,
        layout.PURGE,
        lambda record: (record.purge_after_ms,),
        lambda purge_after_ms: {"purge_after_ms": purge_after_ms},
    ),
    _Part(16, layout.BATCH, lambda record: (record.batch,), lambda batch: {"batch": batch}),
    _Part(32, layout.SOURCE, lambda record: (record.source,), lambda source: {"source": source}),
    _Part(64, layout.REQUEST, lambda record: (record.request,), lambda request: {"request": request}),
)
_PARTS_END: Final = 2 * _PARTS[-1].bit


def _read_parts(parts: int, body: bytes) -> tuple[dict[str, Any], int]:
    """What the optional parts of a body say, and where they end. Raises IntegrityError."""
    fields: dict[str, Any] = {}
    at = layout.BODY.size
    if not parts:
        return fields, at
    try:
        for part in _PARTS:
            if parts & part.bit:
                values = part.layout.unpack_from(body, at)
                _refuse_unset(values)
                fields.update(part.fields(*values))
                at += part.layout.size
    except (struct.error, ValueError):
        raise IntegrityError(_MALFORMED) from None
    return fields, at


def _refuse_unset(values: tuple[int | bytes, ...]) -> None:
    if not any(map(_is_set, values)):  # the part would have been left out
        raise ValueError(_MALFORMED)


def _is_set(value: int | bytes) -> bool:
    return any(value) if isinstance(value, bytes) else value != 0


def _read_counters(encoded: bytes) -> tuple[Counter, ...]:
    counters: list[Counter] = []
    for fields in layout.COUNTER.iter_unpack(encoded):
        counter = Counter(*fields)
        counter = counter._replace(previous_window=counter.previous_window - 1)
        if (counters and counter.key <= counters[-1].key) or counter.previous_window >= counter.window:
            raise IntegrityError(_MALFORMED)
        counters.append(counter)
    return tuple(counters)
