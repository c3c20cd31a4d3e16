"""The conformance kit of token stores: run it over an adapter to know that a vault may rely on it.

    class MyHarness(StoreHarness):
        ...                                     # how to open the store, and how to go around it

    class TestMyStore(TokenStoreContract):
        capabilities = frozenset({Capability.DURABLE, Capability.PROCESSES})

        @pytest.fixture
        def harness(self, tmp_path):
            return MyHarness(tmp_path)          # a fresh, empty database for every test

    class MyMachine(TokenStoreMachine):
        def open_store(self): ...               # likewise

    TestMyMachine = MyMachine.TestCase

For the values of a failed assertion, call `pytest.register_assert_rewrite("tokenvault.testing.token_stores")`
in a conftest.py.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import ClassVar, Final

import pytest

from tokenvault.errors import IntegrityError, InvalidInputError, TokenStoreError, TokenVaultError
from tokenvault.stores.port import (
    DOCUMENT_BYTES_MAX,
    META_VALUE_BYTES_MAX,
    PAGE_MAX,
    SealedRecord,
    TokenStore,
)
from tokenvault.testing.token_store_harness import (
    THREADS,
    Capability,
    StoreHarness,
    a_record,
    an_event,
    race,
    replaced,
    run_processes,
)
from tokenvault.testing.token_store_machine import TokenStoreMachine

__all__ = [
    "Capability",
    "StoreHarness",
    "TokenStoreContract",
    "TokenStoreMachine",
    "a_record",
    "an_event",
]

PROCESSES: Final = 4
_REPLACEMENTS: Final = 25  # by each process


def _by_token(records: Sequence[SealedRecord]) -> list[SealedRecord]:
    return sorted(records, key=lambda record: record.token)


class TokenStoreContract:
    """One test for each promise of `TokenStore`. A subclass overrides the fixture `harness`."""

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

    # Schema.

    def test_provision_is_idempotent(self, store: TokenStore) -> None:
        """Provisioning again keeps what is there."""
        store.insert([a_record(1)], [])
        store.provision()
        store.check_schema()
        assert store.get([a_record(1).token]) == [a_record(1)]

    def test_provision_by_threads(self, harness: StoreHarness) -> None:
        """Eight threads provision one empty database at once, and all see it provisioned."""
        with closing(harness.open()) as store, ThreadPoolExecutor(THREADS) as pool:
            barrier = threading.Barrier(THREADS)

            def provision() -> None:
                barrier.wait()
                store.provision()
                store.check_schema()

            for done in [pool.submit(provision) for _ in range(THREADS)]:
                done.result()
        harness.close()

    def test_provision_by_processes(self, harness: StoreHarness) -> None:
        """Eight processes provision one empty database at once, and all can write to it."""
        self.require(Capability.PROCESSES)
        run_processes(_provision_and_insert, harness.opener(), THREADS)
        assert harness.raw_counts() == (THREADS, THREADS)
        harness.close()

    # Insert.

    def test_insert_then_get(self, store: TokenStore, harness: StoreHarness) -> None:
        """What was inserted is read back as it was, and lies in the database as it was."""
        records = [a_record(n) for n in range(5)]
        assert store.insert(records, []) == []
        assert _by_token(store.get([record.token for record in records])) == records
        assert [harness.raw_read(record.token) for record in records] == records

    def test_insert_keeps_extreme_values(self, store: TokenStore, harness: StoreHarness) -> None:
        """Every value that SealedRecord allows comes back the same: limits, zero bytes, odd text."""
        extreme = [
            a_record(
                1, token="0" * 13, requestor="0" * 11, program="\x00 '\"\n\x7f%", body=b"", seal=bytes(45)
            ),
            a_record(2, token="9" * 19, program="p" * 64, body=b"\xff" * 4096, key_version=2**31 - 1),
            a_record(3, token="0" * 19, reference=bytes(16), account=b"\xff" * 16),
        ]
        assert store.insert(extreme, []) == []
        for record in extreme:
            assert store.get([record.token]) == [record]
        harness.raw_write(a_record(4, revision=2**63 - 2))
        last = a_record(4, revision=2**63 - 1)
        assert store.replace([last], []) == []
        assert store.get([last.token]) == [last]

    def test_insert_is_all_or_nothing(self, store: TokenStore, harness: StoreHarness) -> None:
        """Where one token of a batch exists, none is written, no event either, and it is named."""
        store.insert([a_record(3), a_record(5)], [an_event(1)])
        batch = [a_record(n, body=b"second") for n in range(8)]
        assert sorted(store.insert(batch, [an_event(2)])) == [a_record(3).token, a_record(5).token]
        assert harness.raw_counts() == (2, 1)
        assert harness.raw_read(a_record(3).token) == a_record(3)

    def test_insert_of_one_existing(self, store: TokenStore, harness: StoreHarness) -> None:
        """Inserting a token that exists changes nothing, even with the very same record."""
        store.insert([a_record(1)], [])
        assert store.insert([a_record(1)], [an_event(1)]) == [a_record(1).token]
        assert store.insert([a_record(1, body=b"other")], [an_event(1)]) == [a_record(1).token]
        assert harness.raw_counts() == (1, 0)
        assert harness.raw_read(a_record(1).token) == a_record(1)

    def test_insert_with_a_duplicate_event(self, store: TokenStore, harness: StoreHarness) -> None:
        """An event that exists fails the whole insert with TokenStoreError."""
        store.append([an_event(1)])
        with pytest.raises(TokenStoreError):
            store.insert([a_record(1), a_record(2)], [an_event(2), an_event(1)])
        assert harness.raw_counts() == (0, 1)
        assert store.insert([a_record(1)], [an_event(2)]) == []

    def test_insert_by_threads(self, store: TokenStore, harness: StoreHarness) -> None:
        """Of eight threads that insert one token at once, exactly one does."""
        results = race(lambda n: store.insert([a_record(1, body=bytes([n]))], [an_event(1, stream=n)]))
        assert sorted(map(len, results)) == [0] + [1] * (THREADS - 1)
        assert harness.raw_counts() == (1, 1)
        assert store.get([a_record(1).token])[0].body == bytes([results.index([])])

    # Replace.

    def test_replace(self, store: TokenStore, harness: StoreHarness) -> None:
        """A record one revision above the stored one takes its place, with its events."""
        store.insert([a_record(1), a_record(2)], [])
        assert store.replace([replaced(a_record(1))], [an_event(1)]) == []
        assert store.get([a_record(1).token]) == [replaced(a_record(1))]
        assert harness.raw_read(a_record(2).token) == a_record(2)
        assert harness.raw_counts() == (2, 1)

    def test_replace_of_every_field(self, store: TokenStore) -> None:
        """A replacement may differ in any field, and look-ups follow it."""
        old = a_record(1)
        new = a_record(2, revision=2, requestor="1" * 11, program="q", key_version=2)._replace(
            token=old.token
        )
        store.insert([old, a_record(3)], [])
        assert store.replace([new, replaced(a_record(3))], []) == []
        assert store.get([old.token]) == [new]
        assert store.find(old.account) == []
        assert store.by_reference(old.reference) is None
        assert store.find(new.account, requestor="1" * 11, program="q") == [new]
        assert store.by_reference(new.reference) == new
        assert store.scan(key_version=2) == [new]

    @pytest.mark.parametrize("revision", [2, 3, 5, 2**63 - 1])
    def test_replace_compares_revisions(
        self, store: TokenStore, harness: StoreHarness, revision: int
    ) -> None:
        """Exactly one more than the stored revision replaces; anything else changes nothing."""
        stored = replaced(replaced(a_record(1)))
        harness.raw_write(stored)
        token = stored.token
        assert store.replace([stored._replace(revision=revision, body=b"new")], [an_event(1)]) == [token]
        assert harness.raw_read(token) == stored
        assert harness.raw_counts() == (1, 0)

    def test_replace_is_all_or_nothing(self, store: TokenStore, harness: StoreHarness) -> None:
        """Where records have moved or are missing, they are named and nothing is written."""
        records = [a_record(n) for n in range(4)]
        store.insert(records, [])
        store.replace([replaced(records[1])], [])
        missing = a_record(9, revision=2)
        batch = [*map(replaced, records), missing]
        assert sorted(store.replace(batch, [an_event(1)])) == [records[1].token, missing.token]
        assert harness.raw_counts() == (4, 0)
        assert [harness.raw_read(r.token) for r in records] == [
            records[0],
            replaced(records[1]),
            *records[2:],
        ]

    def test_replace_of_an_unknown_token(self, store: TokenStore, harness: StoreHarness) -> None:
        """A record that does not exist counts as moved, and is not created."""
        assert store.replace([a_record(1, revision=2)], [an_event(1)]) == [a_record(1).token]
        assert harness.raw_counts() == (0, 0)

    def test_replace_with_a_duplicate_event(self, store: TokenStore, harness: StoreHarness) -> None:
        """An event that exists fails the whole replacement with TokenStoreError."""
        store.insert([a_record(1)], [an_event(1)])
        with pytest.raises(TokenStoreError):
            store.replace([replaced(a_record(1))], [an_event(1)])
        assert harness.raw_read(a_record(1).token) == a_record(1)

    def test_replace_by_threads(self, store: TokenStore) -> None:
        """Eight threads replace one record over and over: each revision is won by exactly one."""
        store.insert([a_record(1)], [])
        rounds = 5

        def replace(n: int) -> list[int]:
            won: list[int] = []
            while len(won) < rounds:
                (record,) = store.get([a_record(1).token])
                if not store.replace([replaced(record)], [an_event(len(won) + 1, stream=n)]):
                    won.append(record.revision + 1)
            return won

        won = sorted(itertools.chain.from_iterable(race(replace)))
        assert won == list(range(2, 2 + THREADS * rounds))
        assert store.get([a_record(1).token])[0].revision == won[-1]

    def test_replace_by_processes(self, harness: StoreHarness, store: TokenStore) -> None:
        """Processes replace one record over and over: the final revision is the number of replacements."""
        self.require(Capability.PROCESSES)
        store.insert([a_record(1)], [])
        run_processes(_replace_repeatedly, harness.opener(), PROCESSES)
        assert store.get([a_record(1).token])[0].revision == 1 + PROCESSES * _REPLACEMENTS
        assert harness.raw_counts() == (1, PROCESSES * _REPLACEMENTS)

    # Get, find, scan.

    def test_get_leaves_out_what_is_unknown(self, store: TokenStore) -> None:
        """Unknown tokens are left out; a token asked for twice comes once; nothing asked, nothing read."""
        store.insert([a_record(1), a_record(2)], [])
        tokens = [a_record(n).token for n in (1, 7, 2, 1)]
        assert _by_token(store.get(tokens)) == [a_record(1), a_record(2)]
        assert store.get([a_record(7).token]) == []
        assert store.get([]) == []

    def test_get_of_a_full_batch(self, store: TokenStore) -> None:
        """PAGE_MAX records are written by one call, read by one call and replaced by one call."""
        records = [a_record(n) for n in range(PAGE_MAX)]
        assert store.insert(records, [an_event(n + 1) for n in range(PAGE_MAX)]) == []
        assert _by_token(store.get([record.token for record in records])) == records
        assert store.replace([replaced(record) for record in records], []) == []
        assert store.scan() == [replaced(record) for record in records]

    def test_tokens_are_whole_strings(self, store: TokenStore) -> None:
        """Tokens that differ in length only, or in leading zeros, are different tokens."""
        tokens = ["0" * 13, "0" * 14, "0" * 19, "1" + "0" * 12]
        records = [a_record(n, token=token) for n, token in enumerate(tokens)]
        store.insert(records, [])
        for record in records:
            assert store.get([record.token]) == [record]
        assert store.scan() == records

    def test_find(self, store: TokenStore) -> None:
        """All records of an account and no others, by token as a string, also in pages."""
        account = b"a" * 16
        tokens = ["9" * 13, "1" * 19, "10" * 8, "5" * 16, "50" * 7]
        records = [a_record(n, token=token, account=account) for n, token in enumerate(tokens)]
        store.insert([*records, a_record(77)], [])
        assert store.find(account) == _by_token(records)
        paged: list[SealedRecord] = []
        while page := store.find(account, after=paged[-1].token if paged else "", limit=2):
            assert len(page) <= 2
            paged += page
        assert paged == _by_token(records)
        assert store.find(b"b" * 16) == []

    def test_find_filters(self, store: TokenStore) -> None:
        """By requestor, by program, by both; the limit counts what passes the filters."""
        account = b"a" * 16
        requestors, programs = ("1" * 11, "2" * 11), ("one", "two")
        records = [
            a_record(n, account=account, requestor=requestors[n % 2], program=programs[n // 2 % 2])
            for n in range(12)
        ]
        store.insert(records, [])
        for requestor in (*requestors, "3" * 11, None):
            for program in (*programs, "three", None):
                expected = [
                    r for r in records if requestor in (None, r.requestor) and program in (None, r.program)
                ]
                assert store.find(account, requestor=requestor, program=program) == expected
                page = store.find(
                    account, requestor=requestor, program=program, after=records[4].token, limit=1
                )
                assert page == [r for r in expected if r.token > records[4].token][:1]

    def test_by_reference(self, store: TokenStore) -> None:
        """The record of a reference; None where there is none."""
        store.insert([a_record(1), a_record(2)], [])
        assert store.by_reference(a_record(2).reference) == a_record(2)
        assert store.by_reference(bytes(16)) is None

    def test_scan(self, store: TokenStore) -> None:
        """Every record by token, in pages; with a key version, only its records and full pages of them."""
        records = [a_record(n, key_version=1 + n % 3) for n in range(20)]
        store.insert(list(reversed(records)), [])
        assert store.scan() == records
        assert store.scan(after=records[-1].token) == []
        assert store.scan(after="9") == records
        for key_version in (None, 1, 2, 3, 4):
            expected = [r for r in records if key_version in (None, r.key_version)]
            paged: list[SealedRecord] = []
            while page := store.scan(
                after=paged[-1].token if paged else "", limit=3, key_version=key_version
            ):
                paged += page
                assert len(page) == 3 or paged == expected
            assert paged == expected

    # Events.

    def test_append_and_read_by_stream(self, store: TokenStore) -> None:
        """Events of a stream by number, after a number, in pages; other streams apart."""
        events = [an_event(n) for n in range(1, 8)]
        others = [an_event(n, stream=2) for n in range(1, 4)]
        store.append([events[6], events[0], *others])
        store.append(events[1:6])
        assert store.events(stream=events[0].stream) == events
        assert store.events(stream=others[0].stream) == others
        assert store.events(stream=events[0].stream, after=2, limit=3) == events[2:5]
        assert store.events(stream=events[0].stream, after=7) == []
        assert store.events(stream=b"?" * 16) == []

    def test_events_about_a_reference(self, store: TokenStore) -> None:
        """Events of a reference from all streams in the order of writing, in pages by count."""
        reference = b"r" * 16
        about = [an_event(n, stream=9 - n, reference=reference) for n in (3, 1, 2, 5, 4)]
        for event in about:
            store.append([event, an_event(event.number, stream=100)])
        assert store.events(reference=reference) == about
        assert store.events(reference=reference, after=1, limit=2) == about[1:3]
        assert store.events(reference=reference, after=5) == []
        assert store.events(reference=b"?" * 16) == []

    def test_append_is_all_or_nothing(self, store: TokenStore, harness: StoreHarness) -> None:
        """One event that exists fails the whole call with TokenStoreError and stays as it was."""
        store.append([an_event(2)])
        changed = an_event(2)._replace(body=b"changed")
        for batch in ([changed], [an_event(1), changed], [changed, an_event(3)], [an_event(4), an_event(4)]):
            with pytest.raises(TokenStoreError):
                store.append(batch)
        assert harness.raw_counts() == (0, 1)
        assert store.events(stream=changed.stream) == [an_event(2)]

    def test_extreme_events(self, store: TokenStore) -> None:
        """The largest number, and empty and full bodies, come back the same."""
        events = [
            an_event(1)._replace(body=b""),
            an_event(2)._replace(body=b"\xff" * 4096, number=2**63 - 1),
        ]
        store.append(events)
        assert store.events(stream=events[0].stream) == events

    def test_streams(self, store: TokenStore) -> None:
        """Each stream once."""
        assert store.streams() == []
        store.append([an_event(n, stream=stream) for stream in (5, 1, 2**128 - 1) for n in (1, 2)])
        assert sorted(store.streams()) == sorted(an_event(1, stream=s).stream for s in (5, 1, 2**128 - 1))

    # Documents and named values.

    def test_domains(self, store: TokenStore) -> None:
        """A document is kept under its SHA-256, once; another document under that digest is refused."""
        documents = [b"", b"{}", bytes(DOCUMENT_BYTES_MAX)]
        for document in documents * 2:
            store.put_domain(hashlib.sha256(document).digest(), document)
        for document in documents:
            assert store.get_domain(hashlib.sha256(document).digest()) == document
        assert store.get_domain(b"?" * 32) is None
        with pytest.raises(TokenVaultError):
            store.put_domain(hashlib.sha256(b"{}").digest(), b"[]")
        assert store.get_domain(hashlib.sha256(b"{}").digest()) == b"{}"

    def test_meta_first_wins(self, store: TokenStore) -> None:
        """A named value is set once; who comes later learns what stands."""
        assert store.get_meta("a") is None
        assert store.put_meta("a", b"first") == b"first"
        assert store.put_meta("a", b"second") == b"first"
        assert store.get_meta("a") == b"first"
        assert store.put_meta("A", b"") == b""
        assert store.put_meta("A", b"late") == b""
        assert store.put_meta("~ " * 32, bytes(META_VALUE_BYTES_MAX)) == bytes(META_VALUE_BYTES_MAX)

    def test_meta_by_threads(self, store: TokenStore) -> None:
        """Threads that set one name at once all learn the same value."""
        values = race(lambda n: store.put_meta("a", bytes([n])))
        assert len(set(values)) == 1
        assert store.get_meta("a") == values[0]

    # Limits, close, durability.

    def test_limits(self, store: TokenStore, harness: StoreHarness) -> None:
        """What is beyond the port's limits is InvalidInputError, and nothing is done."""
        record, event = a_record(1), an_event(1)
        too_many = PAGE_MAX + 1
        too_long = bytes(DOCUMENT_BYTES_MAX + 1)
        calls: list[Callable[[], object]] = [
            lambda: store.get([record.token] * too_many),
            lambda: store.get(record.token),
            lambda: store.get(["4" * 12]),
            lambda: store.get(["4" * 20]),
            lambda: store.get(["\u0664" * 16]),
            lambda: store.find(b"short"),
            lambda: store.find(record.account, limit=0),
            lambda: store.find(record.account, limit=too_many),
            lambda: store.find(record.account, after="x"),
            lambda: store.find(record.account, requestor="1"),
            lambda: store.find(record.account, program=""),
            lambda: store.by_reference(b""),
            lambda: store.insert([a_record(n) for n in range(too_many)], []),
            lambda: store.insert([], [an_event(n + 1) for n in range(too_many)]),
            lambda: store.insert([record, record], []),
            lambda: store.insert([record._replace(revision=2)], []),
            lambda: store.insert([record._replace(body=bytes(4097))], []),
            lambda: store.insert([record._replace(seal=b"")], [event]),
            lambda: store.insert([record._replace(program="p\u00e4")], [event]),
            lambda: store.insert([record], [event._replace(number=0)]),
            lambda: store.insert([record], [event._replace(number=2**63)]),
            lambda: store.replace([record], []),
            lambda: store.replace([record._replace(revision=2**63)], []),
            lambda: store.append([event._replace(mac=b"")]),
            store.events,
            lambda: store.events(stream=event.stream, reference=record.reference),
            lambda: store.events(stream=event.stream, after=-1),
            lambda: store.events(stream=event.stream, limit=0),
            lambda: store.put_domain(hashlib.sha256(too_long).digest(), too_long),
            lambda: store.get_domain(b""),
            lambda: store.scan(limit=too_many),
            lambda: store.scan(key_version=0),
            lambda: store.get_meta(""),
            lambda: store.put_meta("n" * 65, b""),
            lambda: store.put_meta("n", bytes(META_VALUE_BYTES_MAX + 1)),
        ]
        for number, call in enumerate(calls):
            with pytest.raises(InvalidInputError):
                _ = (number, call())
        assert harness.raw_counts() == (0, 0)

    def test_empty_arguments(self, store: TokenStore, harness: StoreHarness) -> None:
        """Nothing to write is nothing done; events alone are written, and any sequence will do."""
        assert store.insert([], []) == []
        assert store.replace((), ()) == []
        store.append([])
        assert harness.raw_counts() == (0, 0)
        assert store.insert([], (an_event(1),)) == []
        assert store.replace([], [an_event(2)]) == []
        assert harness.raw_counts() == (0, 2)

    def test_close(self, harness: StoreHarness) -> None:
        """Closing is idempotent, and whatever comes later is TokenStoreError."""
        store = harness.open()
        store.provision()
        store.close()
        store.close()
        calls: list[Callable[[], object]] = [
            store.provision,
            store.check_schema,
            lambda: store.get([a_record(1).token]),
            lambda: store.find(a_record(1).account),
            lambda: store.by_reference(a_record(1).reference),
            lambda: store.insert([a_record(1)], []),
            lambda: store.replace([replaced(a_record(1))], []),
            lambda: store.append([an_event(1)]),
            lambda: store.events(stream=bytes(16)),
            store.streams,
            lambda: store.put_domain(hashlib.sha256(b"").digest(), b""),
            lambda: store.get_domain(bytes(32)),
            store.scan,
            lambda: store.get_meta("a"),
            lambda: store.put_meta("a", b""),
        ]
        for call in calls:
            with pytest.raises(TokenStoreError):
                call()
        harness.close()

    def test_reopening_sees_everything(self, harness: StoreHarness, store: TokenStore) -> None:
        """A store opened again on the database has all that was acknowledged."""
        self.require(Capability.DURABLE)
        store.insert([a_record(1)], [an_event(1)])
        store.replace([replaced(a_record(1))], [])
        store.put_meta("a", b"value")
        store.put_domain(hashlib.sha256(b"{}").digest(), b"{}")
        store.close()
        with closing(harness.open()) as again:
            again.check_schema()
            assert again.get([a_record(1).token]) == [replaced(a_record(1))]
            assert again.events(stream=an_event(1).stream) == [an_event(1)]
            assert again.get_meta("a") == b"value"
            assert again.get_domain(hashlib.sha256(b"{}").digest()) == b"{}"

    def test_rows_of_another_shape(self, store: TokenStore, harness: StoreHarness) -> None:
        """An edited row is handed over where it has a record's shape, else it is IntegrityError."""
        harness.raw_write(a_record(1, body=b"edited", revision=7))
        assert store.get([a_record(1).token]) == [a_record(1, body=b"edited", revision=7)]
        token = a_record(2).token
        harness.raw_write(a_record(2, seal=b"short"))
        reads: list[Callable[[], object]] = [
            lambda: store.get([token]),
            lambda: store.find(a_record(2).account),
            lambda: store.by_reference(a_record(2).reference),
            store.scan,
        ]
        for read in reads:
            with pytest.raises(IntegrityError):
                read()
        assert store.get([a_record(1).token]) != []


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
