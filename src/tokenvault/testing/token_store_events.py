"""Conformance of token stores: audit events, domain documents and named values."""

from __future__ import annotations

import pytest

from tokenvault.errors import TokenStoreError, TokenVaultError
from tokenvault.stores.port import DOCUMENT_BYTES_MAX, META_VALUE_BYTES_MAX, PAGE_MAX, TokenStore, digest_of
from tokenvault.testing.token_store_fixtures import TokenStoreFixtures
from tokenvault.testing.token_store_harness import StoreHarness, an_event, race


class EventContract(TokenStoreFixtures):
    """Events keep their place; documents and named values are set once."""

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
            an_event(2)._replace(body=b"\xff" * 2**20, number=2**63 - 1),
        ]
        store.append(events)
        assert store.events(stream=events[0].stream) == events

    def test_streams(self, store: TokenStore) -> None:
        """Each stream once."""
        assert store.streams() == []
        store.append([an_event(n, stream=stream) for stream in (5, 1, 2**128 - 1) for n in (1, 2)])
        assert sorted(store.streams()) == sorted(an_event(1, stream=s).stream for s in (5, 1, 2**128 - 1))

    def test_latest_checkpoints(self, store: TokenStore) -> None:
        """Of the streams with the greatest names, each one's checkpoint written last, or its first event."""
        assert store.latest_checkpoints(10) == []
        names = {n: an_event(1, stream=n).stream for n in (3, 5, 7, 2**127)}
        for n, name in names.items():
            store.append([an_event(2, stream=n), an_event(1, stream=n, reference=b"r" * 16)])
            if n != 5:
                store.append([an_event(3, stream=n, reference=name)])
                store.append([an_event(9, stream=n, reference=name), an_event(10, stream=n)])
        expected = [an_event(9, stream=n, reference=names[n]) for n in (2**127, 7, 5, 3)]
        expected[2] = an_event(1, stream=5, reference=b"r" * 16)
        for limit, count in ((1, 1), (2, 2), (3, 3), (4, 4), (PAGE_MAX, 4)):
            found = sorted(store.latest_checkpoints(limit), key=lambda event: event.stream, reverse=True)
            assert found == expected[:count]

    # Documents and named values.

    def test_domains(self, store: TokenStore) -> None:
        """A document is kept under its SHA-256, once; another document under that digest is refused."""
        documents = [b"", b"{}", bytes(DOCUMENT_BYTES_MAX)]
        for document in documents * 2:
            store.put_domain(digest_of(document), document)
        for document in documents:
            assert store.get_domain(digest_of(document)) == document
        assert store.get_domain(b"?" * 32) is None
        with pytest.raises(TokenVaultError):
            store.put_domain(digest_of(b"{}"), b"[]")
        assert store.get_domain(digest_of(b"{}")) == b"{}"

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
