"""A batch killed at any moment leaves whole chunks, each with its event; issued again it is completed."""

from __future__ import annotations

import multiprocessing
import random
import time
from contextlib import closing
from pathlib import Path

import pytest

import tokenvault as tv
from tests import vault_workers, vaults
from tests.postgres_server import PostgresServer
from tests.vault_workers import card_number
from tests.vaults import SHOP, all_records, batch_events, issue
from tokenvault.audit.batch_event import items, parse

CARDS = 40_000
CHUNK_ITEMS = 100
CHUNKS_MAX = 12
SECONDS_MAX = 60.0


@pytest.fixture
def keys_uri(tmp_path: Path) -> str:
    (tmp_path / "passphrase").write_text("correct horse battery staple")
    return f"file:{tmp_path}/keys.json?passphrase-source=file:{tmp_path}/passphrase"


def kill_batches(keys_uri: str, url: str, rounds: int, program: str = "card-on-file") -> None:
    source = random.Random(7)
    with closing(tv.open_key_store(keys_uri)) as keys, closing(tv.open_token_store(url)) as store:
        tv.provision(keys, store)
        written = 0
        for _ in range(rounds):
            writer = multiprocessing.get_context("spawn").Process(
                target=vault_workers.issue_batches, args=(keys_uri, url, CHUNK_ITEMS, CARDS, program)
            )
            writer.start()
            try:
                wanted = written + source.randint(1, CHUNKS_MAX)
                deadline = time.monotonic() + SECONDS_MAX
                while len(batch_events(store)) < wanted:
                    assert writer.is_alive(), "the writer ended by itself"
                    assert time.monotonic() < deadline, "the writer does not write"
                time.sleep(source.uniform(0, 0.01))  # anywhere within the next chunks
            finally:
                writer.kill()
                writer.join(SECONDS_MAX)
                writer.close()
            events = [parse(row) for row in batch_events(store)]
            written = len(events)
            listed = [item.reference for event in events for item in items(event) if item.revision]
            records = all_records(store)
            assert sorted(listed) == sorted(record.reference for record in records)
            assert len(records) % CHUNK_ITEMS == 0
        if program != "card-on-file":
            assert tv.verify_audit(store, keys=keys).intact
            return
        before = {record.token for record in records}
        with vaults.open_vault(keys, store) as vault:
            count = len(before) + 1_000
            found = vault.issue_many(map(card_number, range(count)), requestor=SHOP, program="card-on-file")
            assert not found.failed
            tokens = [token.decode() for token in found.tokens.tolist()]
            assert set(tokens[: len(before)]) == before
            assert len({record.token for record in all_records(store)}) == len(set(tokens)) == count
            for number in random.Random(1).sample(range(count), 20):
                assert (
                    issue(vault, card_number(number), expiry=None, program="card-on-file").token
                    == tokens[number]
                )


def test_a_killed_batch_leaves_whole_chunks_in_sqlite(keys_uri: str, tmp_path: Path) -> None:
    kill_batches(keys_uri, f"sqlite:///{tmp_path}/vault.db", rounds=2)


def test_a_killed_batch_leaves_whole_chunks_in_postgres(
    keys_uri: str, postgres_server: PostgresServer
) -> None:
    kill_batches(keys_uri, postgres_server.new_url(), rounds=2)


def test_a_killed_batch_of_random_tokens_leaves_whole_chunks_in_postgres(
    keys_uri: str, postgres_server: PostgresServer
) -> None:
    kill_batches(keys_uri, postgres_server.new_url(), rounds=1, program="one-time")


@pytest.mark.nightly
def test_a_batch_killed_often_leaves_whole_chunks(
    keys_uri: str, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    kill_batches(keys_uri, f"sqlite:///{tmp_path}/vault.db", rounds=25)
    kill_batches(keys_uri, postgres_server.new_url(), rounds=25)
    kill_batches(keys_uri, postgres_server.new_url(), rounds=25, program="one-time")
