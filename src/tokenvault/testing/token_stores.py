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

For the values of a failed assertion, call `pytest.register_assert_rewrite("tokenvault.testing")`
in a conftest.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import cast

import pytest

from tokenvault.errors import IntegrityError, InvalidInputError, TokenStoreError
from tokenvault.stores.port import DOCUMENT_BYTES_MAX, META_VALUE_BYTES_MAX, PAGE_MAX, TokenStore, digest_of
from tokenvault.testing.token_store_events import EventContract
from tokenvault.testing.token_store_harness import Capability, StoreHarness, a_record, an_event, replaced
from tokenvault.testing.token_store_machine import TokenStoreMachine
from tokenvault.testing.token_store_reads import ReadingContract
from tokenvault.testing.token_store_writes import WritingContract

__all__ = [
    "Capability",
    "StoreHarness",
    "TokenStoreContract",
    "TokenStoreMachine",
    "a_record",
    "an_event",
]


class TokenStoreContract(WritingContract, ReadingContract, EventContract):
    """One test for each promise of `TokenStore`. A subclass overrides the fixture `harness`."""

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
            lambda: store.find(record.pan_fingerprint, limit=0),
            lambda: store.find(record.pan_fingerprint, limit=too_many),
            lambda: store.find(record.pan_fingerprint, after="x"),
            lambda: store.find(record.pan_fingerprint, requestor="1"),
            lambda: store.find(record.pan_fingerprint, program=""),
            lambda: store.by_reference(b""),
            lambda: store.insert([a_record(n) for n in range(too_many)], []),
            lambda: store.insert([], [an_event(n + 1) for n in range(too_many)]),
            lambda: store.insert([record, record], []),
            lambda: store.insert([record._replace(revision=2)], []),
            lambda: store.insert([record._replace(body=bytes(4097))], []),
            lambda: store.append([event._replace(body=bytes(2**20 + 1))]),
            lambda: store.find([record.pan_fingerprint, b"short"]),
            lambda: store.find([record.pan_fingerprint] * too_many),
            lambda: store.insert([record._replace(seal=b"")], [event]),
            lambda: store.insert([record._replace(program="p\u00e4")], [event]),
            lambda: store.insert([record], [event._replace(number=0)]),
            lambda: store.insert([record], [event._replace(number=2**63)]),
            lambda: store.insert([record], [event], too_long),
            lambda: store.insert([record], [event], cast(bytes, "{}")),
            lambda: store.insert([], [], cast(bytes, bytearray(b"{}"))),
            lambda: store.replace([record], []),
            lambda: store.replace([record._replace(revision=2**63)], []),
            lambda: store.append([event._replace(mac=b"")]),
            store.events,
            lambda: store.events(stream=event.stream, reference=record.reference),
            lambda: store.events(stream=event.stream, after=-2),
            lambda: store.events(stream=event.stream, limit=0),
            lambda: store.latest_checkpoints(0),
            lambda: store.latest_checkpoints(too_many),
            lambda: store.put_domain(digest_of(too_long), too_long),
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
            lambda: store.find(a_record(1).pan_fingerprint),
            lambda: store.by_reference(a_record(1).reference),
            lambda: store.insert([a_record(1)], []),
            lambda: store.replace([replaced(a_record(1))], []),
            lambda: store.append([an_event(1)]),
            lambda: store.events(stream=bytes(16)),
            store.streams,
            lambda: store.latest_checkpoints(1),
            lambda: store.put_domain(digest_of(b""), b""),
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
        store.put_domain(digest_of(b"{}"), b"{}")
        store.close()
        with closing(harness.open()) as again:
            again.check_schema()
            assert again.get([a_record(1).token]) == [replaced(a_record(1))]
            assert again.events(stream=an_event(1).stream) == [an_event(1)]
            assert again.get_meta("a") == b"value"
            assert again.get_domain(digest_of(b"{}")) == b"{}"

    def test_rows_of_another_shape(self, store: TokenStore, harness: StoreHarness) -> None:
        """An edited row is handed over where it has a record's shape, else it is IntegrityError."""
        harness.raw_write(a_record(1, body=b"edited", revision=7))
        assert store.get([a_record(1).token]) == [a_record(1, body=b"edited", revision=7)]
        token = a_record(2).token
        harness.raw_write(a_record(2, seal=b"short"))
        reads: list[Callable[[], object]] = [
            lambda: store.get([token]),
            lambda: store.find(a_record(2).pan_fingerprint),
            lambda: store.by_reference(a_record(2).reference),
            store.scan,
        ]
        for read in reads:
            with pytest.raises(IntegrityError):
                read()
        assert store.get([a_record(1).token]) != []
