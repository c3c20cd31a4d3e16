"""What a token takes along to another vault beside its card: status, counters, times, in the record's own encoding.

Without what only the vault's own keys and trail can read: sealed metadata, the digest of the request, the batch.
"""

from __future__ import annotations

import base64
import binascii
import struct
from contextlib import suppress
from typing import Final

from tokenvault.errors import IntegrityError, InvalidInputError
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.records import layout
from tokenvault.records.record import TokenRecord

STATE_CHARACTERS_MAX: Final = 16_384
_MALFORMED: Final = "state is what export_cards writes, of a token that is not deleted, with its domain"


def state_of(record: TokenRecord) -> str:
    """The state of a record: its body, in base64url."""
    plain = record._replace(metadata=b"", batch=b"", request=b"")
    return base64.urlsafe_b64encode(plain.body()).decode("ascii")


def read_state(state: object, new: TokenRecord) -> TokenRecord:
    """A new record with the state of another vault's; it has the same domain. Raises InvalidInputError."""
    if isinstance(state, str) and state.isascii() and len(state) <= STATE_CHARACTERS_MAX:
        with suppress(binascii.Error, struct.error, IntegrityError, ValueError):
            return _read(base64.b64decode(state, altchars=b"-_", validate=True), new)
    raise InvalidInputError(_MALFORMED)


def _read(body: bytes, new: TokenRecord) -> TokenRecord:
    _, _, status, _, _, domain, created_ms, *_ = layout.BODY.unpack_from(body)
    row = new.row(0, b"")._replace(body=body, status=status, created_ms=created_ms)
    record = TokenRecord.parse(row)
    own = (record.metadata, record.batch, record.request) == (b"", b"", b"")
    if not own or record.body() != body or domain != new.domain or record.status is TokenStatus.DELETED:
        raise ValueError(_MALFORMED)
    return record
