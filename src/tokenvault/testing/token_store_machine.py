"""A Hypothesis state machine that compares a token store with a plain model, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tokenvault.errors import TokenStoreError
from tokenvault.stores.index_rows import NO_USE, IndexRow, cursor_of
from tokenvault.stores.port import SealedEvent, SealedRecord, TokenStore, digest_of
from tokenvault.testing.token_store_harness import as_read

# Few values, so that steps meet: the same tokens, PAN fingerprints, events again and again.
_TOKENS = ("0" * 13, "0" * 14, "1" * 13, "1" * 19, "12" * 8, "9" * 16)
_PAN_FINGERPRINTS = (b"a" * 16, b"b" * 16)
_REQUESTORS = ("1" * 11, "2" * 11)
_PROGRAMS = ("p", "q")
_REFERENCES = (b"r" * 16, b"s" * 16)
_STREAMS = (b"t" * 16, b"u" * 16)
_USES = (NO_USE, b"v" * 16)

_pan_fingerprints = st.sampled_from(_PAN_FINGERPRINTS)
_records = st.builds(
    SealedRecord,
    token=st.sampled_from(_TOKENS),
    reference=st.sampled_from(_REFERENCES),
    pan_fingerprint=_pan_fingerprints,
    requestor=st.sampled_from(_REQUESTORS),
    program=st.sampled_from(_PROGRAMS),
    revision=st.just(1),
    key_version=st.integers(1, 3),
    body=st.binary(max_size=8),
    seal=st.binary(min_size=45, max_size=45),
)
_batches = st.lists(_records, max_size=3, unique_by=lambda record: record.token)
_names = st.builds(
    IndexRow,
    reference=st.sampled_from((*_REFERENCES, *_STREAMS)),
    use_id=st.sampled_from(_USES),
)
_events = st.lists(
    st.builds(
        SealedEvent,
        stream=st.sampled_from(_STREAMS),
        number=st.integers(1, 6),
        reference=st.sampled_from((b"", *_REFERENCES, *_STREAMS)),
        body=st.binary(max_size=8),
        mac=st.binary(min_size=16, max_size=16),
        index_rows=st.lists(_names, max_size=2, unique=True).map(tuple),
    ),
    max_size=2,
)
_offsets = st.lists(st.sampled_from((1, 1, 1, 1, 0, 2)), min_size=3, max_size=3)  # most revisions fit
_documents = st.binary(max_size=2)  # few, so that some are there already
_after = st.sampled_from(("", "1", *_TOKENS))
_limits = st.integers(1, 4)
_cursors = st.just(b"") | st.builds(
    cursor_of, st.sampled_from(_USES), st.sampled_from(_STREAMS), st.integers(0, 6)
)


class TokenStoreMachine(RuleBasedStateMachine):
    """Does to a store what a vault may do, in any order, and expects what dicts would answer.

    A subclass gives `open_store`, over a fresh and empty database each time, and may override `reopen`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store = self.open_store()
        self.store.provision()
        self.rows: dict[str, SealedRecord] = {}
        self.log: dict[tuple[bytes, int], SealedEvent] = {}
        self.index: set[tuple[bytes, bytes, bytes, int]] = set()
        self.documents: dict[bytes, bytes] = {}
        self.values: dict[str, bytes] = {}

    def _sorted(self, holds: Callable[[SealedRecord], bool]) -> list[SealedRecord]:
        return sorted(filter(holds, self.rows.values()))

    def _stream(self, stream: bytes) -> list[SealedEvent]:
        return sorted(event for event in self.log.values() if event.stream == stream)

    def open_store(self) -> TokenStore:
        """A store over a fresh database; it need not be provisioned."""
        raise TypeError("a subclass overrides open_store")

    def reopen(self, store: TokenStore) -> TokenStore:
        """Close the store and open its database again; a store that is not durable returns itself."""
        return store

    def teardown(self) -> None:
        self.store.close()

    @rule(records=_batches, events=_events, document=st.none() | _documents)
    def insert(self, records: list[SealedRecord], events: list[SealedEvent], document: bytes | None) -> None:
        existing = [record.token for record in records if record.token in self.rows]
        if self._expect(existing, events, lambda: self.store.insert(records, events, document)):
            self.rows.update((record.token, record) for record in records)
            if document is not None:
                self.documents[digest_of(document)] = document

    @rule(records=_batches, events=_events, offsets=_offsets)
    def replace(self, records: list[SealedRecord], events: list[SealedEvent], offsets: list[int]) -> None:
        stored = [self.rows[record.token].revision if record.token in self.rows else 1 for record in records]
        records = [
            record._replace(revision=max(2, revision + offset))
            for record, revision, offset in zip(records, stored, offsets, strict=False)
        ]
        moved = [
            record.token
            for record in records
            if record.token not in self.rows or self.rows[record.token].revision != record.revision - 1
        ]
        if self._expect(moved, events, lambda: self.store.replace(records, events)):
            self.rows.update((record.token, record) for record in records)

    @rule(events=_events)
    def append(self, events: list[SealedEvent]) -> None:
        self._expect([], events, lambda: self.store.append(events))

    @rule(document=_documents)
    def put_domain(self, document: bytes) -> None:
        digest = digest_of(document)
        self.store.put_domain(digest, document)
        self.documents[digest] = document

    @rule(name=st.sampled_from(("a", "A", "b")), value=st.binary(max_size=8))
    def put_meta(self, name: str, value: bytes) -> None:
        assert self.store.put_meta(name, value) == self.values.setdefault(name, value)

    @rule()
    def open_again(self) -> None:
        self.store = self.reopen(self.store)

    @rule(tokens=st.lists(st.sampled_from(_TOKENS), max_size=8))
    def get(self, tokens: list[str]) -> None:
        assert sorted(self.store.get(tokens)) == self._sorted(lambda row: row.token in tokens)

    @rule(
        asked=_pan_fingerprints | st.lists(_pan_fingerprints, max_size=20),
        requestor=st.sampled_from((None, *_REQUESTORS)),
        program=st.sampled_from((None, *_PROGRAMS)),
        after=_after,
        limit=_limits,
    )
    def find(
        self, asked: bytes | list[bytes], requestor: str | None, program: str | None, after: str, limit: int
    ) -> None:
        expected = self._sorted(
            lambda row: (
                row.token > after
                and row.pan_fingerprint in ([asked] if isinstance(asked, bytes) else asked)
                and requestor in (None, row.requestor)
                and program in (None, row.program)
            )
        )
        got = self.store.find(asked, requestor=requestor, program=program, after=after, limit=limit)
        assert got == expected[:limit]

    @rule(reference=st.sampled_from(_REFERENCES))
    def by_reference(self, reference: bytes) -> None:
        got = self.store.by_reference(reference)
        bearers = [row for row in self.rows.values() if row.reference == reference]
        assert got in bearers if bearers else got is None

    @rule(after=_after, limit=_limits, key_version=st.sampled_from((None, 1, 2, 3)))
    def scan(self, after: str, limit: int, key_version: int | None) -> None:
        expected = self._sorted(lambda row: row.token > after and key_version in (None, row.key_version))
        assert self.store.scan(after=after, limit=limit, key_version=key_version) == expected[:limit]

    @rule(stream=st.sampled_from(_STREAMS), after=st.integers(0, 6), limit=_limits)
    def events_of_stream(self, stream: bytes, after: int, limit: int) -> None:
        expected = [event for event in self._stream(stream) if event.number > after]
        assert self.store.events(stream=stream, after=after, limit=limit) == expected[:limit]

    @rule(reference=st.sampled_from((*_REFERENCES, *_STREAMS)), after=_cursors, limit=_limits)
    def events_about(self, reference: bytes, after: bytes, limit: int) -> None:
        rows = sorted(row for row in self.index if row[0] == reference and cursor_of(*row[1:]) > after)
        expected = [self.log[row[2:]] for row in rows[:limit]]
        following = cursor_of(*rows[limit - 1][1:]) if len(rows) >= limit else b""
        got = self.store.events_about(reference, after=after, limit=limit)
        assert got.events == expected
        assert got.next in (following, b"" if len(rows) == limit else following)

    @invariant()
    def everything_is_the_same(self) -> None:
        assert self.store.scan() == self._sorted(lambda _: True)
        streams = sorted({stream for stream, _ in self.log})
        assert sorted(self.store.streams()) == streams
        for stream in _STREAMS:
            assert self.store.events(stream=stream) == self._stream(stream)
        for limit in (1, 2):
            checkpoints = [
                [self.log[row[2:]] for row in sorted(self.index) if row[:3] == (stream, NO_USE, stream)][-1:]
                or self._stream(stream)[:1]
                for stream in streams[-limit:]
            ]
            assert sorted(self.store.latest_checkpoints(limit)) == sorted(itertools.chain(*checkpoints))
        for digest, document in self.documents.items():
            assert self.store.get_domain(digest) == document
        for name in ("a", "A", "b"):
            assert self.store.get_meta(name) == self.values.get(name)

    def _expect(
        self, refused: list[str], events: list[SealedEvent], write: Callable[[], list[str] | None]
    ) -> bool:
        """Whether the model is to write too; its events are written here."""
        keys = [(event.stream, event.number) for event in events]
        if not refused and (len(set(keys)) != len(keys) or any(key in self.log for key in keys)):
            try:
                write()
            except TokenStoreError:
                return False
            raise AssertionError("an event that exists was accepted")
        assert sorted(write() or []) == sorted(refused)
        if refused:
            return False
        self.log.update(zip(keys, as_read(*events), strict=True))
        self.index.update(
            (*name, event.stream, event.number) for event in events for name in event.index_rows
        )
        return True
