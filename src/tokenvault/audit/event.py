"""Audit events: what was decided and changed, for whom and when. Never a PAN, never a whole token.

Layout of an event's body, encoding version 3, big endian:

    1   encoding version, 3
    8   time, milliseconds of the Unix epoch
    1   action, codes below
    1   outcome, codes below
    8   revision of the record that was written with this event; 0 where none was
    1   length of the requestor (0 or 11), then its digits
    1   length of the transaction id, then its ASCII
    1   length of the operator, then its ASCII
    1   number of codes; each: 1 length and its ASCII. Every length and number here is below 128
    ..  only of a use (action DETOKENIZE) of a token that there is: its note (`use_note`)
    ..  only of a checkpoint: its payload (`checkpoint`); of a lock-out: its payload (`guard_note`)
    ..  only of action ACKNOWLEDGE: its payload (`acknowledgement`); of PURGE_EVENTS: its payload (`purge_note`)
    ..  only where it counts failures: these (`guard_note`)

Input of the leaf hash, which is SHA-256 (the layout of RFC 9162: a leaf begins with a byte 00):

    1   00
    16  stream
    8   number
    1   length of the reference (0 or 16), then the reference
    ..  body

The MAC is AES-CMAC under an AUDIT key, of the first 16 bytes of the leaf hash: one AES call, whatever the length.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple, Protocol, TypeVar

from tokenvault.audit.acknowledgement import Acknowledgement
from tokenvault.audit.checkpoint import Checkpoint
from tokenvault.audit.guard_note import (
    Failure,
    LockOut,
    failure_rows,
    lock_rows,
    packed_failures,
    read_failures,
)
from tokenvault.audit.merkle import LEAF
from tokenvault.audit.purge_note import PurgeNote
from tokenvault.audit.use_note import UseNote
from tokenvault.errors import IntegrityError
from tokenvault.model import dual_control
from tokenvault.stores.index_rows import NO_USE, USE_ID_BYTES, IndexRow
from tokenvault.stores.port import MALFORMED_EVENT, REFERENCE_BYTES, SealedEvent

ENCODING_VERSION: Final = 3

AUTHENTICATED_BYTES: Final = 16
"""Bytes of the leaf hash that the MAC covers."""

_FIXED: Final = struct.Struct(">BQBBQ")
_POSITION: Final = struct.Struct(">QB")
REVISION: Final = slice(_FIXED.size - 8, _FIXED.size)
"""Where a body states its revision."""

ACTION: Final = 9
"""Where it states its action, unless it is of a batch."""

_BATCH_ACTION: Final = 25
"""Where one of a batch states it."""

MALFORMED: Final = "an audit event is not one that this library writes"


class Action(int, enum.Enum):  # an IntEnum would print as a number
    """What the vault was called to do."""

    ISSUE = 1
    DETOKENIZE = 2
    ACTIVATE = 3
    SUSPEND = 4
    RESUME = 5
    DELETE = 6
    UPDATE_CARD = 7
    UPDATE_DOMAIN = 8
    LOOK_UP = 9
    CHECKPOINT = 10
    UPDATE_TOKEN = 11
    UPDATE_ASSURANCE = 12
    WIND_DOWN = 13
    CHECK = 14
    LOCK_OUT = 15
    RELEASE = 16
    ACKNOWLEDGE = 17
    FORGET = 20
    PURGE = 21
    PURGE_EVENTS = 22
    PURGE_TOKENS = 23
    REQUEST_REVEAL = 30
    APPROVE_REVEAL = 31
    REVEAL = 32
    REQUEST_EXPORT = 33
    APPROVE_EXPORT = 34
    EXPORT = 35
    ADD_KEY_VERSION = 41
    MAKE_PRIMARY = 42
    RESEAL = 43
    REFINGERPRINT = 44
    RETIRE_KEY = 45
    DESTROY_KEY = 46
    INTRODUCE_SIGNER = 47
    PUT_PROGRAM = 60
    PUT_REQUESTOR = 61
    DISABLE_REQUESTOR = 62


LOCKING: Final = (Action.LOCK_OUT, Action.RELEASE)
"""What is done to a requestor."""

REQUESTS: Final = (Action.REQUEST_REVEAL, Action.REQUEST_EXPORT)
"""What one person asks for and another one has to approve: counted by person and day."""

DUAL_CONTROL: Final = (
    *REQUESTS,
    Action.APPROVE_REVEAL,
    Action.REVEAL,
    Action.APPROVE_EXPORT,
    Action.EXPORT,
)
"""What happens under dual control: the transaction id is the request's number, the first code its purpose."""


_PURGES: Final = (bytes((Action.PURGE_EVENTS,)), bytes((Action.PURGE_TOKENS,)))


class Outcome(int, enum.Enum):
    """How the action ended.

    DONE: carried out. DENIED: refused by a control or a permission, which the codes name. NOT_FOUND: there is no such
    token. TAMPERED: the record failed authentication.
    """

    DONE = 1
    DENIED = 2
    NOT_FOUND = 3
    TAMPERED = 4


class Event(NamedTuple):
    """One audit event.

    Attributes:
        time_ms: milliseconds of the Unix epoch.
        action: what the vault was called to do.
        outcome: how the action ended.
        requestor: id of the calling requestor, or of the one that is locked out or released; None for the host
            application itself.
        reference: of the token record, 16 bytes; empty where none was found; of a checkpoint, its stream; of a purge
            of events, theirs.
        transaction_id: of the use of a token, as it may be kept; under dual control, the request's number in 32
            letters; or else None.
        codes: violation codes, or the actor who suspends or resumes; under dual control, the purpose.
        revision: of the record that was written with this event; 0 where none was.
        operator: the person behind a management call, as the host names them; None where it names none.
        use: only of action DETOKENIZE: what the event notes of the use; None where there is no such token.
        checkpoint: only of action CHECKPOINT: what it says.
        acknowledgement: only of action ACKNOWLEDGE, likewise.
        purge: only of action PURGE_EVENTS, likewise.
        lock_out: only of action LOCK_OUT: until when.
        failures: what it counts for the guard.
    """

    time_ms: int
    action: Action
    outcome: Outcome
    requestor: str | None = None
    reference: bytes = b""
    transaction_id: str | None = None
    codes: tuple[str, ...] = ()
    revision: int = 0
    operator: str | None = None
    use: UseNote | None = None
    checkpoint: Checkpoint | None = None
    acknowledgement: Acknowledgement | None = None
    purge: PurgeNote | None = None
    lock_out: LockOut | None = None
    failures: tuple[Failure, ...] = ()

    def index_rows(self) -> tuple[IndexRow, ...]:
        """The rows of the index that lead to the event: from its token and uses; to a checkpoint from its stream.

        From the guard's accounts, and under dual control from its request, too.
        """
        if self.reference and self.action in DUAL_CONTROL:
            return self._rows_of_request()
        rows: list[IndexRow] = []
        if self.reference:
            allowed = self.outcome is Outcome.DONE
            use_ids = (NO_USE,) if self.use is None else self.use.found_by(allowed=allowed)
            rows = [IndexRow(self.reference, use_id) for use_id in use_ids]
            if source := source_of(self):
                rows.append(IndexRow(source, self.reference))
        if self.failures:
            rows += failure_rows(self.failures, self.time_ms)
        if self.action in LOCKING and self.requestor is not None:
            rows += lock_rows(self.requestor, self.time_ms)
        return tuple(rows)

    def with_ids(self, kept: Callable[[str], str]) -> Event:
        """The event with its ids as they may be kept."""
        if self.transaction_id is None and self.operator is None:
            return self
        return self._replace(
            transaction_id=self.transaction_id and kept(self.transaction_id),
            operator=self.operator and kept(self.operator),
        )

    def _rows_of_request(self) -> tuple[IndexRow, ...]:
        """By its request, and a request also by its person and day; what was refused by its token alone."""
        number = dual_control.from_letters(self.transaction_id or "")
        if self.outcome is not Outcome.DONE or len(number) != USE_ID_BYTES:
            return (IndexRow(self.reference, NO_USE),)
        rows = (IndexRow(self.reference, number),)
        if self.action not in REQUESTS:
            return rows
        day = dual_control.person_day(self.action, self.operator or "", self.time_ms)
        return (*rows, IndexRow(day, number))

    def body(self) -> bytes:
        """The canonical encoding. Raises ValueError for a length of 128 or more: it is no ASCII."""
        fixed = _FIXED.pack(ENCODING_VERSION, self.time_ms, self.action, self.outcome, self.revision)
        named = (self.requestor or "", self.transaction_id or "", self.operator or "")
        texts = "".join(map(prefixed, named)) + chr(len(self.codes)) + "".join(map(prefixed, self.codes))
        use = b"" if self.use is None else self.use.pack()
        special = self.checkpoint or self.acknowledgement or self.purge
        payload = b"" if special is None else special.payload()
        if self.lock_out is not None:
            payload = self.lock_out.pack()
        return fixed + texts.encode("ascii") + use + payload + packed_failures(self.failures)

    @classmethod
    def parse(cls, row: SealedEvent) -> Event:
        """Read an event row, strictly: what parses encodes back to the same bytes. Raises IntegrityError."""
        return parsed(row, cls._read)

    @classmethod
    def _read(cls, row: SealedEvent) -> Event:
        reader = BodyReader(row.body)
        version, time_ms, action, outcome, revision = _FIXED.unpack(reader.take(_FIXED.size))
        if version != ENCODING_VERSION:
            raise ValueError(MALFORMED)
        event = cls(
            time_ms=time_ms,
            action=Action(action),
            outcome=Outcome(outcome),
            requestor=reader.text() or None,
            reference=row.reference,
            transaction_id=reader.text() or None,
            operator=reader.text() or None,
            codes=tuple([reader.text() for _ in range(reader.byte())]),
            revision=revision,
        )
        if event.action is Action.CHECKPOINT:
            return event._replace(checkpoint=Checkpoint.parse(reader.rest()))
        if event.action is Action.ACKNOWLEDGE:
            return event._replace(acknowledgement=Acknowledgement.parse(reader.rest()))
        if event.action is Action.PURGE_EVENTS:
            return event._replace(purge=PurgeNote.parse(reader.rest()))
        if event.action is Action.LOCK_OUT:
            return event._replace(lock_out=LockOut.parse(reader.rest()))
        if event.action is Action.DETOKENIZE and event.outcome is not Outcome.NOT_FOUND and reader.more:
            event = event._replace(use=UseNote.read(reader))
        if reader.more:
            event = event._replace(failures=read_failures(reader))
        return event  # more bytes than that would not encode back


def is_of_purge(row: SealedEvent) -> bool:
    """Whether a row could be an event of a purge, of either form."""
    first = row.body[:1]
    at = ACTION if first == bytes((ENCODING_VERSION,)) else _BATCH_ACTION
    return row.body[at : at + 1] in _PURGES


def source_of(event: Event) -> bytes:
    """The reference of the token that a token was issued from: its event names it in letters; empty for others."""
    if event.action is not Action.ISSUE or event.outcome is not Outcome.DONE:
        return b""
    source = dual_control.from_letters(event.transaction_id or "")
    return source if len(source) == REFERENCE_BYTES else b""


class _Encoded(Protocol):
    def body(self) -> bytes: ...


E = TypeVar("E", bound=_Encoded)


def parsed(row: SealedEvent, read: Callable[[SealedEvent], E]) -> E:
    """What a reader makes of a row, if it encodes back to the same bytes. Raises IntegrityError."""
    with suppress(struct.error, IndexError, KeyError, ValueError):
        event = read(row)
        if event.body() == row.body:
            return event
    raise IntegrityError(MALFORMED)


class BodyReader:
    """Reads an event's body from its start. Raises ValueError where the body is cut short or has another form."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        end = self._at + count
        if end > len(self._body):
            raise ValueError("cut short")
        taken, self._at = self._body[self._at : end], end
        return taken

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def text(self) -> str:
        """A text after its length."""
        return self.take(self.byte()).decode("ascii")

    @property
    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._body)

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._body) - self._at)


def prefixed(text: str) -> str:
    """A text after its length, both of which are to be encoded in ASCII."""
    return chr(len(text)) + text


def leaf_hash(stream: bytes, number: int, reference: bytes, body: bytes) -> bytes:
    """An event's leaf hash, 32 bytes: its leaf in the Merkle tree of its stream."""
    covered = b"".join((LEAF, stream, _POSITION.pack(number, len(reference)), reference, body))
    return hashlib.sha256(covered).digest()


def is_open(row: SealedEvent) -> bool:
    """Whether the stream of a row goes on after it, as far as the row says: it is no checkpoint that closes it."""
    checkpoint = None
    with suppress(IntegrityError):
        checkpoint = Event.parse(row).checkpoint
    return row != MALFORMED_EVENT and (checkpoint is None or not checkpoint.closes)


def leaf_of(row: SealedEvent) -> bytes:
    """The leaf hash of an event as a store keeps it."""
    return leaf_hash(row.stream, row.number, row.reference, row.body)
