"""Who reads the trail holds pages of it, never all of it, whatever the vaults wrote into it."""

from __future__ import annotations

import tracemalloc
from collections import deque
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final

import attrs
import numpy as np
import pytest

import tokenvault as tv
from tests import vaults
from tests.strategies import NOW_MS
from tests.vaults import issue
from tokenvault.audit.batch_event import Kind
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import Action, Outcome
from tokenvault.audit.journal import Journal
from tokenvault.audit.macs import AuditKeys
from tokenvault.audit.verify import event_index
from tokenvault.keys import KeyStore, file
from tokenvault.stores import open_token_store, port
from tokenvault.stores.port import PAGE_BYTES, STREAM_BYTES, SealedEvent, TokenStore
from tokenvault.stores.write_limits import EVENT_BODY_BYTES_MAX
from tokenvault.vault import documents

AT_ONCE: Final = 500
BYTES_OF_AN_EVENT: Final = 16
NOISE_BYTES: Final = 2**16
STEADY_BYTES: Final = 2**23
"""What is there whatever the trail: pages of the index and of events by bytes, keys, a vault."""


@attrs.frozen
class Sizes:
    """How many events a smaller trail has, and a larger one; the items of each, and how many bytes a page has."""

    events: tuple[int, int]
    items: int
    page_bytes: int


SMALL: Final = Sizes((50, 300), 40, 2**13)
LARGE: Final = Sizes((5_000, 50_000), 250, PAGE_BYTES)
"""Of both, the smaller trail is some pages already: an item has 16 bytes."""


def add_batches(keys: KeyStore, store: TokenStore, reference: bytes, count: int, items: int) -> None:
    """Write events of batches that name a token once, and for the rest tokens that do not exist."""
    builder = BatchEventBuilder(items, str)
    builder.note_many(np.arange(items), np.zeros(16, np.uint8), 0, Kind(Outcome.DENIED))
    builder.note(0, reference, 0, Kind(Outcome.DENIED))
    event = builder.event(NOW_MS, Action.SUSPEND)
    assert event is not None
    journal, rows = Journal(AuditKeys(keys)), list[SealedEvent]()
    for number in range(count):
        entry = journal.begin(journal.entry(event), NOW_MS, checkpoint=True)
        rows += journal.seal(entry, NOW_MS)
        journal.written(entry)
        if len(rows) >= AT_ONCE or number == count - 1:
            store.append(rows)
            rows.clear()


def peak(call: Callable[[], object]) -> int:
    """The most that a call held at once."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@attrs.frozen
class Trails:
    """Two trails of different sizes, each of one token."""

    keys: KeyStore
    sizes: Sizes
    urls: list[str]
    tokens: list[str]

    def assert_bounded(self, call: Callable[[TokenStore, str], object]) -> None:
        """Call for each trail: the larger one costs a few bytes more for each event that it has more."""
        found = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(port, "PAGE_BYTES", self.sizes.page_bytes)
            patch.setattr(event_index, "INDEX_PAGE", min(event_index.INDEX_PAGE, self.sizes.events[0]))
            patch.setattr(file, "FILE_BYTES_MAX", 2**14)  # what a key file is read into
            for url, token in zip(self.urls, self.tokens, strict=True):
                with closing(open_token_store(url)) as store:
                    found.append(peak(lambda: call(store, token)))  # noqa: B023 # it is called here
        (few, many), (small, large) = self.sizes.events, found
        print(self.sizes, "peaks:", found, "bytes")
        assert large - small <= BYTES_OF_AN_EVENT * (many - few) + NOISE_BYTES
        assert large <= 4 * self.sizes.page_bytes + BYTES_OF_AN_EVENT * many + STEADY_BYTES


def made(keys: KeyStore, folder: Path, sizes: Sizes) -> Trails:
    urls, tokens = [f"sqlite:///{folder}/{count}.db" for count in sizes.events], []
    for url, count in zip(urls, sizes.events, strict=True):
        with closing(open_token_store(url)) as store:
            tv.provision(keys, store)
            with vaults.open_vault(keys, store) as vault:
                info = issue(vault)
            add_batches(keys, store, bytes.fromhex(info.reference), count, sizes.items)
            tokens.append(info.token)
    return Trails(keys, sizes, urls, tokens)


@pytest.fixture(scope="module", params=[SMALL, pytest.param(LARGE, marks=pytest.mark.nightly)], ids=str)
def trails(
    request: pytest.FixtureRequest, local_keys: KeyStore, tmp_path_factory: pytest.TempPathFactory
) -> Trails:
    sizes: Sizes = request.param
    return made(local_keys, tmp_path_factory.mktemp("trails"), sizes)


def test_verification_holds_pages_and_a_few_bytes_of_each_event(trails: Trails) -> None:
    def verify(store: TokenStore, _: str) -> None:
        assert tv.verify_audit(store, keys=trails.keys).intact

    trails.assert_bounded(verify)


def test_an_export_holds_pages(trails: Trails) -> None:
    def export(store: TokenStore, _: str) -> None:
        lines = tv.export_audit(store, keys=trails.keys)
        deque(islice(lines, 1_000_000), maxlen=1)

    trails.assert_bounded(export)


def test_a_history_holds_pages_and_what_it_returns(trails: Trails) -> None:
    def history(store: TokenStore, token: str) -> None:
        with vaults.open_vault(trails.keys, store) as vault:
            assert len(vault.history(token, limit=10)) == 10

    trails.assert_bounded(history)


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
def test_a_page_of_events_ends_where_its_bodies_reach_the_bound(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    stream, fill = bytes(STREAM_BYTES), PAGE_BYTES // EVENT_BODY_BYTES_MAX
    sizes = [*[EVENT_BODY_BYTES_MAX] * (2 * fill), *[0] * 40, EVENT_BODY_BYTES_MAX]
    events = [
        SealedEvent(stream, number, b"", bytes(size), bytes(16)) for number, size in enumerate(sizes, 1)
    ]
    url = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/vault.db"}.get(kind)
    with closing(open_token_store(url or request.getfixturevalue("postgres_url"))) as store:
        store.provision()
        for start in range(0, len(events), fill):
            store.append(events[start : start + fill])
        pages: list[list[SealedEvent]] = []
        while page := store.events(stream, after=pages[-1][-1].number if pages else 0, limit=2_000):
            pages.append(page)
        assert [event for page in pages for event in page] == events
        assert [len(page) for page in pages] == [fill, fill, 41]
        assert store.events(stream, after=1, limit=fill - 1) == events[1:fill]


def test_what_applies_to_tokens_is_kept_of_so_many_kinds_and_decided_alike_after(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "DOMAINS_CACHED_MAX", 2)
    with closing(open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with vaults.open_vault(local_keys, store) as vault:
            tokens = [issue(vault, program=program.name).token for program in vaults.PROGRAMS]
            kept = []
            for _ in range(2):
                for token in tokens:
                    assert vault.check(token, vaults.use(channel=tv.Channel.ECOMMERCE)).allowed
                    kept.append(len(vault._open().documents._restrictions))
            assert kept == [1, 2, 1, 2, 1, 2, 1, 2, 1, 2]
