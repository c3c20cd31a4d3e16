"""The token store port: what the vault needs of a database.

Only single-key operations: read by key, insert if absent, replace if the revision is still the one read.
No constraint across rows, no lock, no read-modify-write in SQL: any database can do this, sharded ones too.
The store does not know what a row means: it keeps columns to look up by, and two opaque byte strings. How much one
atomic write may hold it says itself, by its `write_limits`.

`tokenvault.testing` has the conformance kit by which an adapter proves itself.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from inspect import isfunction
from itertools import accumulate
from typing import Any, Final, NamedTuple, NoReturn, Protocol, TypeAlias

from tokenvault.stores.index_rows import IndexPlace, IndexRow
from tokenvault.stores.write_limits import WriteLimits

PAGE_MAX: Final = 10_000
"""The most rows that one call reads, and the most records or events that one call writes."""

PAGE_BYTES: Final = 2**24
"""What the bodies of a page of `events` add up to: with the one by which they reach it, the page ends."""

USE_IDS_MAX: Final = 16
"""The most use ids that one use is looked for by: two names, each under some versions of a key."""

USE_EVENTS_MAX: Final = 2_000
"""The most events that one use is decided by: its own, and its original's with all that followed."""

USE_PAIRS_MAX: Final = 8 * PAGE_MAX
STATUS_MAX: Final = 127

INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1
"""The greatest revision, key version and event number."""

# Widths of the columns of SealedRecord and SealedEvent, of documents and of named values.
TOKEN_DIGITS_MIN: Final = 13
TOKEN_DIGITS_MAX: Final = 19
REFERENCE_BYTES: Final = 16
PAN_FINGERPRINT_BYTES: Final = 16
REQUESTOR_DIGITS: Final = 11
PROGRAM_CHARACTERS_MAX: Final = 64
CUSTOMER_CHARACTERS_MAX: Final = 64
LAST4_KEY_BYTES: Final = 16
SEAL_BYTES: Final = 45
STREAM_BYTES: Final = 16
MAC_BYTES: Final = 16
DIGEST_BYTES: Final = 32
META_NAME_CHARACTERS_MAX: Final = 64
META_VALUE_BYTES_MAX: Final = 4_096


class SealedRecord(NamedTuple):
    """One token record as a store keeps it.

    Attributes:
        token: 13 to 19 ASCII digits; the primary key.
        reference: 16 random bytes, unique by their randomness.
        pan_fingerprint: 16 bytes, the keyed fingerprint of the PAN; many records may share one.
        requestor: 11 ASCII digits.
        program: 1 to 64 ASCII characters.
        revision: 1 at insertion, one more with every replacement; below 2**63.
        key_version: version of the SEAL key of the seal.
        body: the other fields, in the canonical encoding of docs/formats.md; at most 16,384 bytes.
        seal: 45 bytes: nonce, ciphertext, tag.
        customer: the caller's own id of whom the token is for, up to 64 printable ASCII characters; empty: none.
        last4_key: 16 bytes by which tokens are found by the last four digits of the PAN; empty: not found so.
        status: 1 to 127, of the token; what lists are filtered by.
        created_ms: when the token was issued, milliseconds of the Unix epoch, below 2**63: the order of lists.
    """

    token: str
    reference: bytes
    pan_fingerprint: bytes
    requestor: str
    program: str
    revision: int
    key_version: int
    body: bytes
    seal: bytes
    customer: str = ""
    last4_key: bytes = b""
    status: int = 1
    created_ms: int = 0

    def __repr__(self) -> str:
        return f"<SealedRecord {self.reference.hex()}, revision {self.revision}>"


class SealedEvent(NamedTuple):
    """One audit event as a store keeps it.

    Attributes:
        stream: 16 bytes naming the vault instance that wrote it; greater for a younger one.
        number: position in the stream, from 1; (stream, number) is the primary key.
        reference: 16 bytes of the token record it is about, or empty; of a checkpoint, its stream.
        body: the event in its canonical encoding, at most 1 MiB; only a batch has events above 4,096 bytes.
        mac: 16 bytes, CMAC under an AUDIT key.
        index_rows: by which `events_about` finds it, distinct: a tuple, or a `stores.new_records.IndexColumns`.
            Of an event that was read it is empty, whatever was written.
    """

    stream: bytes
    number: int
    reference: bytes
    body: bytes
    mac: bytes
    index_rows: Sequence[IndexRow] = ()


Fence: TypeAlias = Sequence[tuple[str, int]]
"""Tokens, each with the revision that its record has to have still."""


class FoundUse(NamedTuple):
    """A record, if there is one, and the events of some of its uses."""

    record: SealedRecord | None
    events: list[SealedEvent]


class TokenGroup(NamedTuple):
    """What a list of tokens has in common; fields as in SealedRecord."""

    requestor: str
    program: str
    status: int


class EventPage(NamedTuple):
    """Events of a reference, in the order of the index.

    Attributes:
        events: one for each row of the index that was read. MALFORMED_EVENT takes the place of one that is not there,
            or has other types or lengths.
        next: where the next page begins, as `events_about` takes it; empty after the last one.
    """

    events: list[SealedEvent]
    next: bytes


def digest_of(document: bytes) -> bytes:
    """What a domain document is kept under: its SHA-256."""
    return hashlib.sha256(document).digest()


def rows_of_a_page(sizes: Sequence[int]) -> int:
    """How many events a page of `events` has, given the sizes of the bodies that there are."""
    return min(len(sizes), 1 + sum(total < PAGE_BYTES for total in accumulate(sizes)))


MALFORMED_EVENT: Final = SealedEvent(bytes(16), 1, b"", b"", bytes(16))
"""Takes the place of a malformed row where the other rows are still read. No vault writes this event."""


def unwritten() -> NoReturn:
    """Fail: a class that derives from a port has not written one of its methods.

    Without this it would return None, which some methods mean as "all was written".
    """
    raise TypeError("a token store writes every method of the port")


class TokenStore(Protocol):
    """A database of token records, audit events, domain documents and a few named values.

    Safe to share between threads and to use in a forked child. A read sees each write that was acknowledged before it
    began, whoever made it, and nothing of one that is under way or failed. It raises only the errors listed here.

    Attributes:
        write_limits: the most that it takes in one atomic step. A constant of the store.

    Raises:
        TokenStoreError: the database failed. After one from a write, the write may have
            happened or not, wholly, never in part.
        IntegrityError: a row does not have the types and lengths that SealedRecord and SealedEvent state,
            or a domain document is not the one of its digest. What else may be wrong with a row is for
            its seal to show.
        InvalidInputError: an argument is outside what the call states, or above `write_limits`; nothing was done.
    """

    write_limits: WriteLimits = WriteLimits()

    def provision(self) -> None:
        """Create the schema where it is missing. Idempotent, and safe when many processes do it at once.

        Raises ConfigurationError for a database that holds something else, or a schema newer than this code.
        """
        unwritten()

    def check_schema(self) -> None:
        """Raise ConfigurationError unless the database has a schema of the version that this code writes."""
        unwritten()

    def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        """The records of these tokens, each once; those that do not exist are left out; in no set order.

        A list, or a `stores.found_records.RecordColumns`, which has them as columns too.
        """
        unwritten()

    def find(
        self, pan_fingerprint: bytes | Sequence[bytes], *, requestor: str | None = None, program: str | None = None,
        after: str = "", limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        """The records of a pan_fingerprint, or of several, whose token is greater than `after`, by token, ascending.

        With `requestor` or `program`, only theirs.
        """
        unwritten()

    def by_reference(self, reference: bytes) -> SealedRecord | None:
        """The record with this reference."""
        unwritten()

    def get_use(self, name: str | bytes, use_ids: Sequence[bytes]) -> FoundUse:
        """The record of a token, or of a reference of 16 bytes, and the events of some uses of it: in one round trip.

        The events are read with the record, or after it: never as they were before. Each that has an index row of the
        record's reference and one of the use ids is there once, in no set order. At most 16 use ids, none of them
        NO_USE; without any, the record alone.

        Raises IntegrityError where over USE_EVENTS_MAX events have the use ids, or one of the index is not there.
        """
        unwritten()

    def uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
        """The events that have an index row among these pairs of reference and use id: each once, in no set order.

        As of `get_use`, for many uses at once: at most USE_PAIRS_MAX pairs, few of which have any event, and at most
        PAGE_MAX events.
        """
        unwritten()

    def list_tokens(
        self, requestor: str, program: str, status: int, *, after: tuple[int, str] = (-1, ""),
        limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        """The records of one group, ascending by (created_ms, token), that come after such a pair.

        By an index: what is read depends on `limit` alone.
        """
        unwritten()

    def groups(self) -> list[TokenGroup]:
        """Every group that has records, ascending. What is read depends on their number, not on the records'."""
        unwritten()

    def count(self, requestor: str, program: str, status: int) -> int:
        """How many records a group has: exact once a write returns, also after one that was refused or interrupted.

        A store of many records keeps the number beside them: what is read does not depend on it.
        """
        unwritten()

    def find_customer(self, customer: str, *, after: str = "", limit: int = PAGE_MAX) -> list[SealedRecord]:
        """The records of a customer whose token is greater than `after`, by token, ascending."""
        unwritten()

    def find_last4(
        self, last4_keys: Sequence[bytes], *, after: str = "", limit: int = PAGE_MAX
    ) -> list[SealedRecord]:
        """The records with one of these keys, at most 16, whose token is greater than `after`, by token."""
        unwritten()

    def insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> list[str]:
        """Insert records and events in one atomic step, or, where a token exists already, nothing at all.

        No two of the records have one token; each has revision 1. Records may come as a
        `stores.new_records.RecordBatch`, which has them as columns too. A domain document that goes along is kept
        as by `put_domain`: before the records or with them, and it may stay where they are refused.

        An event that exists already is a TokenStoreError, unless a token exists too: then that is the answer.

        Returns:
            The tokens that already existed; empty when everything was written.
        """
        unwritten()

    def replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence = ()
    ) -> list[str]:
        """Replace each record whose stored revision is one less than its own, and append the events.

        No two of the records have one token; each has revision 2 or more, and any field may be new. One
        atomic step: where any record is missing or has another revision, nothing is written. An event that exists
        already is a TokenStoreError, unless a revision has moved too: then that is the answer. A fence is as of
        `append`, of other tokens than the records'.

        Returns:
            The tokens whose revision had moved (or that do not exist); empty when everything was written.
        """
        unwritten()

    def append(self, events: Sequence[SealedEvent], fence: Fence = ()) -> list[str]:
        """Append events in one atomic step, if the records of a fence still have the revisions that it states.

        The records are looked at and the events written in one step with respect to `replace`: of a replacement
        that was acknowledged before the events are, either the revision is seen to have moved, or it comes after the
        events, and waited for them. An event that exists already is a TokenStoreError, unless a revision has moved
        too: then that is the answer. At most PAGE_MAX tokens, all different.

        Returns:
            The tokens whose revision had moved (or that do not exist); empty when everything was written.
        """
        unwritten()

    def prune(self, events: Sequence[SealedEvent], records: Fence = ()) -> None:
        """Delete events, with the rows of the index that they name, and records, in one atomic step.

        For what a purge has noted in the audit trail. What is not there is no error: the call can be repeated. A
        record goes only if it has the revision that is stated for its token still; `count` falls with it.
        """
        unwritten()

    def events(self, stream: bytes, *, after: int = 0, limit: int = PAGE_MAX) -> list[SealedEvent]:
        """Events of one stream with a number above `after`, ascending: `limit` of them, or those that there are.

        A page may end earlier, with the event by which its bodies reach PAGE_BYTES: what a reader holds of a trail
        is then bounded. With `after` -1, also rows are looked at whose number is below 1: an IntegrityError, where
        someone planted them.
        """
        unwritten()

    def events_about(self, reference: bytes, *, after: bytes = b"", limit: int = PAGE_MAX) -> EventPage:
        """Events that have index rows of one reference, by these rows: by use id, stream and number, ascending.

        That order is the same whenever the rows came, also in a replica. An event with two rows of the reference
        comes twice. `after` is the `next` of the page before: rows may have come since, and none is skipped or
        repeated. What is read depends on the rows of this reference alone. `limit` is from 1 to PAGE_MAX.
        """
        unwritten()

    def index_rows(self, *, after: IndexPlace | None = None, limit: int = PAGE_MAX) -> list[IndexPlace]:
        """The rows of the index behind one of them, in its order: reference, use id, stream and number, ascending.

        Those of other lengths, or with a number below 1, may be left out: no vault wrote them.
        """
        unwritten()

    def streams(self) -> list[bytes]:
        """Every event stream there is, in no particular order; also a name of another length, if one was planted."""
        unwritten()

    def latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        """The newest streams' last checkpoints, in one round trip, in no particular order.

        Of the `limit` streams with the greatest names: of each the last event with an index row whose reference is
        the stream's own name and that has no use; of a stream without one, its first event. MALFORMED_EVENT takes
        the place of a row of other types or lengths, and of one that is not there. `limit` is from 1 to PAGE_MAX.
        """
        unwritten()

    def put_domain(self, digest: bytes, document: bytes) -> None:
        """Keep a document under its SHA-256; nothing happens where it is there already."""
        unwritten()

    def get_domain(self, digest: bytes) -> bytes | None:
        """The document kept under a digest."""
        unwritten()

    def scan(
        self, *, after: str = "", limit: int = PAGE_MAX, key_version: int | None = None
    ) -> list[SealedRecord]:
        """Records with a token greater than `after`, by token, ascending.

        With `key_version`, only those sealed under that version.
        """
        unwritten()

    def get_meta(self, name: str) -> bytes | None:
        """A named value, or None. A name is 1 to 64 printable ASCII characters."""
        unwritten()

    def put_meta(self, name: str, value: bytes) -> bytes:
        """Set a named value if it is not set yet. Returns the value that is set now: the first one wins."""
        unwritten()

    def close(self) -> None:
        """Release connections; idempotent. Every later call raises TokenStoreError."""
        unwritten()


class AsyncTokenStore(Protocol):
    """A database as `TokenStore` describes it, method by method, whose methods are coroutines."""

    write_limits: WriteLimits = WriteLimits()

    async def provision(self) -> None:
        """Create the schema where it is missing. Idempotent."""
        unwritten()

    async def check_schema(self) -> None:
        """Raise ConfigurationError unless the database has a schema of the version that this code writes."""
        unwritten()

    async def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        """The records of these tokens, each once; those that do not exist are left out; in no set order."""
        unwritten()

    async def find(
        self, pan_fingerprint: bytes | Sequence[bytes], *, requestor: str | None = None, program: str | None = None,
        after: str = "", limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        """The records of a pan_fingerprint, or of several, whose token is greater than `after`, by token."""
        unwritten()

    async def by_reference(self, reference: bytes) -> SealedRecord | None:
        """The record with this reference."""
        unwritten()

    async def get_use(self, name: str | bytes, use_ids: Sequence[bytes]) -> FoundUse:
        """The record of a token or reference, and the events of some uses of it: in one round trip."""
        unwritten()

    async def uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
        """The events that have an index row among these pairs of reference and use id."""
        unwritten()

    async def list_tokens(
        self, requestor: str, program: str, status: int, *, after: tuple[int, str] = (-1, ""),
        limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        """The records of one group, ascending by (created_ms, token), that come after such a pair."""
        unwritten()

    async def groups(self) -> list[TokenGroup]:
        """Every group that has records, ascending."""
        unwritten()

    async def count(self, requestor: str, program: str, status: int) -> int:
        """How many records a group has."""
        unwritten()

    async def find_customer(
        self, customer: str, *, after: str = "", limit: int = PAGE_MAX
    ) -> list[SealedRecord]:
        """The records of a customer whose token is greater than `after`, by token."""
        unwritten()

    async def find_last4(
        self, last4_keys: Sequence[bytes], *, after: str = "", limit: int = PAGE_MAX
    ) -> list[SealedRecord]:
        """The records with one of these keys whose token is greater than `after`, by token."""
        unwritten()

    async def insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> list[str]:
        """Insert all, or, where a token exists already, nothing. Returns the tokens that already existed."""
        unwritten()

    async def replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence = ()
    ) -> list[str]:
        """Replace all, or, where a revision has moved, nothing. Returns the tokens whose revision had moved."""
        unwritten()

    async def append(self, events: Sequence[SealedEvent], fence: Fence = ()) -> list[str]:
        """Append events, if the records of a fence have the revisions that it states. Returns those that moved."""
        unwritten()

    async def prune(self, events: Sequence[SealedEvent], records: Fence = ()) -> None:
        """Delete events, with the rows of the index that they name, and records, in one atomic step."""
        unwritten()

    async def events(self, stream: bytes, *, after: int = 0, limit: int = PAGE_MAX) -> list[SealedEvent]:
        """Events of one stream with a number above `after`, ascending."""
        unwritten()

    async def events_about(self, reference: bytes, *, after: bytes = b"", limit: int = PAGE_MAX) -> EventPage:
        """Events that have index rows of one reference, by these rows."""
        unwritten()

    async def index_rows(self, *, after: IndexPlace | None = None, limit: int = PAGE_MAX) -> list[IndexPlace]:
        """The rows of the index behind one of them, in its order."""
        unwritten()

    async def streams(self) -> list[bytes]:
        """Every event stream there is, in no particular order."""
        unwritten()

    async def latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        """The last checkpoints of the `limit` newest streams, in no particular order."""
        unwritten()

    async def put_domain(self, digest: bytes, document: bytes) -> None:
        """Keep a document under its SHA-256; nothing happens where it is there already."""
        unwritten()

    async def get_domain(self, digest: bytes) -> bytes | None:
        """The document kept under a digest."""
        unwritten()

    async def scan(
        self, *, after: str = "", limit: int = PAGE_MAX, key_version: int | None = None
    ) -> list[SealedRecord]:
        """Records with a token greater than `after`, by token; with `key_version`, only those sealed under it."""
        unwritten()

    async def get_meta(self, name: str) -> bytes | None:
        """A named value, or None."""
        unwritten()

    async def put_meta(self, name: str, value: bytes) -> bytes:
        """Set a named value if it is not set yet. Returns the value that is set now: the first one wins."""
        unwritten()

    async def close(self) -> None:
        """Release connections; idempotent. Every later call raises TokenStoreError."""
        unwritten()


METHODS: Final = tuple(
    name for name, value in vars(TokenStore).items() if isfunction(value) and name[0] != "_"
)
"""The names of the methods of both ports."""


def class_over(port: type, method_of: Callable[[str], Callable[..., Any]]) -> type:
    """A class with every method of a port, each made by its name, with the signature and docstring of the port's."""
    methods = {name: functools.wraps(getattr(port, name))(method_of(name)) for name in METHODS}
    return type(f"{port.__name__}Methods", (), {**methods, "write_limits": WriteLimits()})
