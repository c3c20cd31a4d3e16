"""Conformance of token stores: the schema, and records that are inserted and replaced."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import ClassVar, Final

import numpy as np
import pytest

from tokenvault.errors import InvalidInputError, TokenStoreError
from tokenvault.stores.new_records import RecordBatch
from tokenvault.stores.port import INTEGER_MAX, PAGE_MAX, SealedEvent, SealedRecord, TokenStore, digest_of
from tokenvault.testing.token_store_harness import (
    THREADS,
    Capability,
    StoreHarness,
    a_record,
    an_event,
    most,
    race,
    replaced,
    run_processes,
)

PROCESSES: Final = 4
PROVISIONERS: Final = 8  # as many processes make the schema at once
_REPLACEMENTS: Final = 25  # by each process
MANY: Final = 300
"""How many records threads write at once: more than an adapter writes one by one."""

_STALE: Final = (
    "a store that read a record does not see what other processes wrote since: it keeps a snapshot or a copy"
)
_WON_TWICE: Final = (
    "threads wrote the same records at once and not exactly one of them did: what is there is looked at before the "
    "transaction that writes, or without holding it"
)


def a_batch(numbers: Iterable[int]) -> RecordBatch:
    """Records of one requestor and program, with tokens of two lengths."""
    tokens = [f"{9 * 10**15 + n}".encode("ascii") + b"0" * (n % 2) for n in numbers]
    references = np.arange(len(tokens) * 16).astype(np.uint8).reshape(-1, 16)
    seals = np.arange(len(tokens) * 45).astype(np.uint8).reshape(-1, 45)
    return RecordBatch(
        tokens=tokens,
        references=references,
        pan_fingerprints=references[::-1].copy(),
        requestor="1" * 11,
        program="p",
        revision=1,
        key_version=7,
        bodies=[b"\0body\xff"] * len(tokens),
        seals=seals,
        customers=[""] * len(tokens),
        last4_keys=np.zeros((len(tokens), 0), np.uint8),
        status=2,
        created_ms=1,
    )


class WritingContract:
    """Writes are atomic, all or nothing, and exact under contention. Each test gets a database of its own."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)

    @pytest.fixture
    def harness(self) -> StoreHarness:
        raise TypeError("override this fixture: it returns a StoreHarness over a fresh database")

    @pytest.fixture
    def store(self, harness: StoreHarness) -> Iterator[TokenStore]:
        store = harness.open()
        store.provision()
        yield store
        store.close()
        harness.close()

    def require(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            pytest.skip(f"the adapter does not claim to be {capability.value}")

    def test_insert_of_a_record_batch(self, store: TokenStore) -> None:
        """Records that come as columns are written as any others, and refused as they are."""
        count = min(50, most(store))
        batch = a_batch(range(count))
        assert store.insert(batch, [an_event(1)]) == []
        assert sorted(store.get([record.token for record in batch])) == sorted(batch)
        both = a_batch(range(count - 5, count + 5))
        assert sorted(store.insert(both, [an_event(2)])) == sorted(record.token for record in both[:5])
        assert store.get([both[7].token]) == []
        assert store.events(stream=an_event(1).stream) == [an_event(1)]
        with pytest.raises(InvalidInputError):
            store.insert(a_batch([70, 70]), [])
        with pytest.raises(InvalidInputError):
            store.insert(a_batch(range(PAGE_MAX + 1)), [])
        there = a_batch([5, 90])
        assert store.insert(there, [an_event(2)]) == [batch[5].token]
        assert store.get([there[1].token]) == []
        assert store.insert(a_batch([80]), []) == store.insert(a_batch([]), [an_event(3)]) == []
        assert store.replace([replaced(record) for record in batch], []) == []

    # Schema.

    def test_provision_is_idempotent(self, store: TokenStore) -> None:
        """Provisioning again keeps what is there."""
        store.insert([a_record(1)], [])
        store.provision()
        store.check_schema()
        assert store.get([a_record(1).token]) == [a_record(1)]

    def test_provision_by_threads(self, harness: StoreHarness) -> None:
        """Eight threads provision one empty database at once, and all see it provisioned."""

        def provision(_: int) -> None:
            store.provision()
            store.check_schema()

        with closing(harness.open()) as store:
            race(provision)
        harness.close()

    def test_provision_by_processes(self, harness: StoreHarness) -> None:
        """Processes provision one empty database at once, and all can write to it."""
        self.require(Capability.PROCESSES)
        run_processes(_provision_and_insert, harness.opener(), PROVISIONERS)
        assert harness.raw_counts() == (PROVISIONERS, PROVISIONERS)
        harness.close()

    # Insert.

    def test_insert_then_get(self, store: TokenStore, harness: StoreHarness) -> None:
        """What was inserted is read back as it was, limits, zero bytes and odd text too, and lies there as it was."""
        usual = [a_record(n) for n in range(5)]
        extreme = [
            a_record(
                5, token="0" * 13, requestor="0" * 11, program="\x00 '\"\n\x7f%", body=b"", seal=bytes(45)
            ),
            a_record(6, token="9" * 19, program="p" * 64, body=b"\xff" * 4096, key_version=2**31 - 1),
            a_record(7, token="0" * 19, reference=bytes(16), pan_fingerprint=b"\xff" * 16),
        ]
        assert store.insert(usual, []) == store.insert(extreme, []) == []
        assert sorted(store.get([record.token for record in usual])) == usual
        assert [harness.raw_read(record.token) for record in usual] == usual
        for record in extreme:
            assert store.get([record.token]) == [record]
        harness.raw_write(a_record(8, revision=INTEGER_MAX - 1))
        last = a_record(8, revision=INTEGER_MAX)
        assert store.replace([last], []) == []
        assert store.get([last.token]) == [last]

    def test_insert_is_all_or_nothing(self, store: TokenStore, harness: StoreHarness) -> None:
        """Tokens that exist are named, even where the record is the very same, and nothing is written.

        An event that exists fails the whole insert with TokenStoreError; where a token exists too, it is named.
        """
        store.insert([a_record(3), a_record(5)], [an_event(1)])
        batch = [a_record(n, body=b"second") for n in range(8)]
        for records, existing in ((batch, (3, 5)), ([batch[3]], (3,)), ([a_record(3)], (3,))):
            refused = store.insert(records, [an_event(2)])
            assert sorted(refused) == [a_record(number).token for number in existing]
            both = store.insert(records, [an_event(2), an_event(1)])
            assert sorted(both) == sorted(refused), "a token that exists goes before an event that exists"
            assert sorted(store.insert(records, [an_event(1)])) == sorted(refused)
        for records in (batch[1:3], batch[:1]):
            with pytest.raises(TokenStoreError):
                store.insert(records, [an_event(2), an_event(1)])
        assert harness.raw_counts() == (2, 1)
        assert harness.raw_read(a_record(3).token) == a_record(3)
        assert store.insert([a_record(1)], [an_event(2)]) == []

    def test_insert_keeps_a_document(self, store: TokenStore, harness: StoreHarness) -> None:
        """A domain document that goes along is there as soon as what it came with, whatever that is."""
        written: list[tuple[Sequence[SealedRecord], list[SealedEvent]]] = [
            ([a_record(1)], [an_event(1)]),
            ([a_record(2)], [an_event(2), an_event(3)]),
            ([a_record(3)], []),
            ([a_record(4), a_record(5)], [an_event(4)]),
            (a_batch(range(min(40, most(store) - 1))), [an_event(5)]),
            ([], [an_event(6)]),
            ([], []),
        ]
        for number, (records, events) in enumerate(written):
            document = b"%d" % number
            assert store.get_domain(digest_of(document)) is None
            assert store.insert(records, events, document) == []
            assert store.get_domain(digest_of(document)) == document
        counts = harness.raw_counts()
        for records, events in written[:5]:
            assert store.insert(records, [an_event(100 + len(events))], b"refused")
            with pytest.raises(TokenStoreError):
                store.insert([a_record(100)], [an_event(1)], b"refused")
        assert harness.raw_counts() == counts
        assert store.insert([a_record(100)], [an_event(101)], b"0") == []  # which is there

    def test_insert_keeps_one_document_for_threads(self, store: TokenStore) -> None:
        """Threads that insert tokens of one new document at once do not wait for each other in a circle.

        Each second one inserts a token more than the one before it: of those two, one does.
        """
        for attempt in range(1, 21):

            def insert(n: int, attempt: int = attempt) -> list[str]:
                first = 2 * THREADS * attempt + n // 2 * 2
                records = [a_record(first), a_record(first + 1)][: 1 + n % 2]
                return store.insert(records, [an_event(attempt, stream=n)], b"%d" % attempt)

            results = race(insert)
            assert [sorted(map(len, results[n : n + 2])) for n in range(0, THREADS, 2)] == [[0, 1]] * (
                THREADS // 2
            )
            assert store.get_domain(digest_of(b"%d" % attempt)) == b"%d" % attempt

    @pytest.mark.parametrize("count", [1, MANY])
    def test_insert_by_threads(self, store: TokenStore, harness: StoreHarness, count: int) -> None:
        """Of eight threads that insert the same tokens at once, one or many, exactly one does."""
        count = min(count, most(store))
        tokens = [a_record(number).token for number in range(count)]

        def insert(n: int) -> list[str]:
            records = [a_record(number, body=bytes([n])) for number in range(count)]
            return store.insert(records if n % 2 else records[::-1], [an_event(1, stream=n)])

        results = race(insert)
        assert sorted(map(len, results)) == [0] + [count] * (THREADS - 1), _WON_TWICE
        assert harness.raw_counts() == (count, 1), _WON_TWICE
        assert {record.body for record in store.get(tokens)} == {bytes([results.index([])])}, _WON_TWICE

    # Replace.

    def test_replace(self, store: TokenStore, harness: StoreHarness) -> None:
        """A record one revision above the stored one takes its place, with its events, whatever differs.

        Look-ups follow it, and other records stay as they were.
        """
        old, other, untouched = (a_record(n) for n in range(3))
        new = a_record(3, token=old.token, revision=2, requestor="1" * 11, program="q", key_version=2)
        newest = old._replace(revision=3, key_version=3)
        store.insert([old, other, untouched], [])
        for before, after, beside in ((old, new, []), (new, newest, [replaced(other)])):
            assert store.replace([after, *beside], [an_event(after.revision)]) == []
            assert store.get([after.token]) == store.scan(key_version=after.key_version) == [after]
            assert store.find(before.pan_fingerprint) == []
            assert store.by_reference(before.reference) is None
            found = store.find(after.pan_fingerprint, requestor=after.requestor, program=after.program)
            assert found == [after]
            assert store.by_reference(after.reference) == after
        assert store.scan() == [newest, replaced(other), untouched]
        assert harness.raw_read(untouched.token) == untouched
        assert harness.raw_counts() == (3, 2)

    def test_replace_is_all_or_nothing(self, store: TokenStore, harness: StoreHarness) -> None:
        """Records that are missing, or not exactly one revision behind, are named, and nothing is written.

        An event that exists fails the whole replacement with TokenStoreError; where a revision has moved
        too, its token is named.
        """
        stored = [a_record(n, revision=3) for n in range(4)]
        for record in stored:
            harness.raw_write(record)
        fitting, missing = list(map(replaced, stored)), a_record(9, revision=2)
        assert store.replace([missing], [an_event(1)]) == [missing.token]
        for revision in (2, 3, 5, INTEGER_MAX):
            moved = stored[1]._replace(revision=revision, body=b"new")
            assert store.replace([moved], [an_event(1)]) == [moved.token]
            refused = store.replace([fitting[0], moved, *fitting[2:], missing], [an_event(1)])
            assert sorted(refused) == [moved.token, missing.token]
        assert harness.raw_counts() == (4, 0)
        store.append([an_event(1)])
        assert store.replace([missing], [an_event(1)]) == [missing.token]
        behind = [*fitting[1:], stored[0]._replace(revision=2)]
        assert store.replace(behind, [an_event(2), an_event(1)]) == [stored[0].token]
        for records in (fitting, fitting[:1]):
            with pytest.raises(TokenStoreError):
                store.replace(records, [an_event(1)])
        assert [harness.raw_read(record.token) for record in stored] == stored
        assert harness.raw_counts() == (4, 1)

    @pytest.mark.parametrize("count", [1, MANY])
    def test_replace_by_threads(self, store: TokenStore, count: int) -> None:
        """Eight threads replace the same records, one or many, over and over: each revision is won by exactly one."""
        first, *others = (a_record(number) for number in range(min(count, most(store))))
        store.insert([first, *others], [])
        rounds = 2 if others else 5

        def replace(n: int) -> list[int]:
            won: list[int] = []
            while len(won) < rounds:
                (record,) = store.get([first.token])
                batch = [each._replace(revision=record.revision + 1) for each in (first, *others)]
                if not store.replace(batch if n % 2 else batch[::-1], [an_event(len(won) + 1, stream=n)]):
                    won.append(record.revision + 1)
            return won

        won = sorted(itertools.chain.from_iterable(race(replace)))
        assert won == list(range(2, 2 + THREADS * rounds)), _WON_TWICE
        assert {record.revision for record in store.get([first.token])} == {won[-1]}

    def test_replace_by_processes(self, harness: StoreHarness, store: TokenStore) -> None:
        """Processes replace one record over and over: the final revision is the number of replacements."""
        self.require(Capability.PROCESSES)
        store.insert([a_record(1)], [])
        assert store.get([a_record(1).token]) == [a_record(1)]
        run_processes(_replace_repeatedly, harness.opener(), PROCESSES)
        (last,) = store.get([a_record(1).token])  # read again, by the same store
        assert last.revision == 1 + PROCESSES * _REPLACEMENTS, _STALE
        assert harness.raw_counts() == (1, PROCESSES * _REPLACEMENTS)


def _provision_and_insert(opener: Callable[[], TokenStore], number: int) -> None:
    with closing(opener()) as store:
        store.provision()
        store.check_schema()
        assert store.insert([a_record(number)], [an_event(1, stream=number)]) == []


def _replace_repeatedly(opener: Callable[[], TokenStore], number: int) -> None:
    with closing(opener()) as store:
        done = 0
        while done < _REPLACEMENTS:
            (record,) = store.get([a_record(1).token])
            if not store.replace([replaced(record)], [an_event(done + 1, stream=number)]):
                done += 1
