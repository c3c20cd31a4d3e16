"""Events of a token are found by the index, at a cost and in an order that other tokens do not change."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.strategies import NOW_MS
from tests.vault_workers import card_number
from tests.vaults import MASTERCARD, SHOP, issue, use
from tokenvault.keys import KeyStore
from tokenvault.records.layout import NEW_BODY_BYTES_MAX
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import TokenStore
from tokenvault.stores.sqlite.store import SqliteTokenStore
from tokenvault.stores.write_limits import WriteLimits
from tokenvault.testing.clock import ManualClock
from tokenvault.vault import history as histories
from tokenvault.vault.batch import run as batches


class Counting(Forwarding):
    """Counts the events that are read, by the method that reads them."""

    def __init__(self, store: TokenStore) -> None:
        self.store = store
        self.write_limits = store.write_limits
        self.read = 0

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        answer = getattr(self.store, name)(*args, **kwargs)
        if name == "events_about":
            self.read += len(answer.events)
        return answer

    def counted(self, call: Callable[[], object]) -> int:
        """How many events a call reads by the index."""
        self.read = 0
        call()
        return self.read


def tokens_of(vault: tv.Vault, count: int) -> list[str]:
    pans = [card_number(n) for n in range(count)]
    result = vault.issue_many(pans, requestor=SHOP, program="one-time")
    return [token.decode() for token in result.tokens.tolist()]


@pytest.mark.parametrize("store_kind", ["memory", "sqlite"])
def test_history_reads_as_much_with_1_and_with_1000_foreign_batches(
    local_keys: KeyStore, store_kind: str, tmp_path: Path
) -> None:
    inner = MemoryTokenStore() if store_kind == "memory" else SqliteTokenStore(tmp_path / "vault.db")
    with closing(inner):
        store = Counting(inner)
        tv.provision(local_keys, store)
        with vaults.open_vault(local_keys, store) as vault:
            lone = issue(vault, MASTERCARD)
            vault.detokenize(lone.token, use("lone"))
            others = tokens_of(vault, 3)
            reads = []
            for number in range(1, 1_001):
                vault.detokenize_many(zip(others, repeat(use(number)), strict=False))
                if number in (1, 1_000):
                    reads += [
                        store.counted(lambda: vault.history(name))  # noqa: B023 # it is called here
                        for name in (lone.token, lone.reference)
                    ]
            assert reads == [2] * 4


def test_history_of_a_token_that_a_batch_issued(local_keys: KeyStore) -> None:
    """It begins with the batch that issued it, has each use by a batch or by itself once, and nothing of others."""
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    clock = ManualClock(NOW_MS)
    with vaults.open_vault(local_keys, store, clock) as vault:
        first, second, third = tokens_of(vault, 3)
        clock.advance(1)
        vault.detokenize_many([(first, use(1)), (second, use(1)), (first, use(2))])
        clock.advance(1)
        vault.detokenize(first, use(3))
        clock.advance(1)
        vault.suspend(first, by=tv.Actor.ISSUER)
        seen = [(event.action.name, event.transaction_id, event.revision) for event in vault.history(first)]
        assert seen == [
            ("ISSUE", None, 1),
            ("DETOKENIZE", "tx-1", 0),
            ("DETOKENIZE", "tx-2", 0),
            ("DETOKENIZE", "tx-3", 0),
            ("SUSPEND", None, 2),
        ]
        assert [event.action.name for event in vault.history(second)] == ["ISSUE", "DETOKENIZE"]
        assert [event.action.name for event in vault.history(third)] == ["ISSUE"]


def test_history_of_a_convergent_token_that_a_batch_issues_again(local_keys: KeyStore) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    clock = ManualClock(NOW_MS)
    with vaults.open_vault(local_keys, store, clock) as vault:
        info = issue(vault, program="card-on-file", expiry=None)
        clock.advance(1)
        again = vault.issue_many([vaults.VISA, MASTERCARD], requestor=SHOP, program="card-on-file")
        old, new = (token.decode() for token in again.tokens.tolist())
        assert old == info.token
        assert [event.revision for event in vault.history(old)] == [1, 0]
        assert [event.revision for event in vault.history(new)] == [1]


def test_history_is_by_time_stream_and_number_in_whatever_order_the_rows_arrived(
    local_keys: KeyStore, tmp_path: Path
) -> None:
    """As in a replica that is filled table by table, stream by stream, or backwards."""
    with closing(SqliteTokenStore(tmp_path / "vault.db")) as store:
        tv.provision(local_keys, store)
        clock = ManualClock(NOW_MS)
        with (
            vaults.open_vault(local_keys, store, clock) as one,
            vaults.open_vault(local_keys, store, clock) as other,
        ):
            token = issue(one).token
            for number in range(1, 9):
                clock.advance(number % 2)
                (one if number % 3 else other).detokenize(token, use(number))
            before = one.history(token)
            keys = [(event.time, event.stream, event.number) for event in before]
            assert len(keys) == 9
            assert keys == sorted(keys)
            with closing(sqlite3.connect(tmp_path / "vault.db")) as sql, sql:
                for table in ("events", "event_index"):
                    rows = sql.execute(f"SELECT * FROM {table}").fetchall()
                    sql.execute(f"DELETE FROM {table}")
                    sql.executemany(
                        f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", reversed(rows)
                    )
            assert one.history(token) == before
            assert [
                event for page in range(0, 9, 2) for event in one.history(token, after=page, limit=2)
            ] == before


def test_a_record_that_moved_is_verified_by_its_own_events(local_keys: KeyStore, tmp_path: Path) -> None:
    """What verification reads of a moved record does not grow with batches of other tokens."""
    with closing(SqliteTokenStore(tmp_path / "vault.db")) as inner:
        store = Counting(inner)
        tv.provision(local_keys, store)
        with vaults.open_vault(local_keys, store) as vault:
            lone = issue(vault, MASTERCARD)
            others = tokens_of(vault, 5)
            reads = []
            for number in range(1, 41):
                vault.detokenize_many(zip(others, repeat(use(number)), strict=False))
                if number in (1, 40):
                    with closing(sqlite3.connect(tmp_path / "vault.db")) as sql, sql:
                        change = "UPDATE tokens SET revision = revision + ? WHERE token = ?"
                        sql.execute(change, (1, lone.token))
                        sql.commit()
                        reads.append(store.counted(lambda: tv.verify_audit(store, keys=local_keys)))
                        sql.execute(change, (-1, lone.token))
        assert reads[0] == reads[1]


def test_a_checkpoint_that_the_index_does_not_lead_to_is_named(local_keys: KeyStore, tmp_path: Path) -> None:
    with closing(SqliteTokenStore(tmp_path / "vault.db")) as store:
        tv.provision(local_keys, store)
        with vaults.open_vault(local_keys, store) as vault:
            issue(vault)
        assert tv.verify_audit(store, keys=local_keys).intact
        (stream,) = store.streams()
        with closing(sqlite3.connect(tmp_path / "vault.db")) as sql, sql:
            sql.execute("DELETE FROM event_index WHERE reference = stream AND number = 1")
        (finding,) = tv.verify_audit(store, keys=local_keys).findings
        assert (finding.stream, finding.number) == (stream.hex(), 1)


class SmallWrites(MemoryTokenStore):
    """A database that takes 100 actions, 4 MB and values of 100 kB, as DynamoDB and FoundationDB do."""

    write_limits = WriteLimits(rows=100, bytes=4_000_000, event_bytes=100_000)


class SmallValues(MemoryTokenStore):
    """One that takes many rows, and small ones."""

    write_limits = WriteLimits(bytes=10_000_000, event_bytes=100_000)


@pytest.mark.parametrize("kind", [SmallWrites, SmallValues])
@pytest.mark.parametrize("program", ["one-time", "card-on-file"])
def test_a_vault_stays_within_what_its_store_takes(
    local_keys: KeyStore, kind: type[MemoryTokenStore], program: str
) -> None:
    """Batches of thousands of rows work: the store's guard refuses a larger write, which would fail a chunk."""
    store = kind()
    tv.provision(local_keys, store)
    limited = tv.Domain(limits=(tv.Limit(uses=5),))
    with vaults.open_vault(local_keys, store) as vault:
        pans = [card_number(n) for n in range(3_000)]
        for domain in (None, limited) if program == "one-time" else (None,):
            result = vault.issue_many(pans, requestor=SHOP, program=program, domain=domain)
            assert not result.failed
            tokens = [token.decode() for token in result.tokens.tolist()]
            used = vault.detokenize_many([(token, use(f"{n:060}"[-60:])) for n, token in enumerate(tokens)])
            assert not used.failed
            assert [len(vault.history(token)) for token in (tokens[0], tokens[-1])] == [2, 2]
        assert not vault.issue_many(pans, requestor=SHOP, program=program, domain=domain).failed
    assert tv.verify_audit(store, keys=local_keys).intact


class LeastWrites(MemoryTokenStore):
    """As little as a store may take in one write."""

    write_limits = WriteLimits(rows=16, bytes=2**17, event_bytes=2**14)


@pytest.mark.parametrize("values", [10, 400, 900, 3_000, 10_000])
@pytest.mark.parametrize("kind", [LeastWrites, SmallWrites, MemoryTokenStore])
def test_a_domain_of_any_size_goes_with_a_token(
    local_keys: KeyStore, kind: type[MemoryTokenStore], values: int
) -> None:
    """A document that would not fit into the write of its token goes before it."""
    store = kind()
    tv.provision(local_keys, store)
    domain = tv.Domain(merchants={f"{n:064}" for n in range(values)})
    with vaults.open_vault(local_keys, store) as vault:
        token = issue(vault, domain=domain, metadata={f"{n:064}": "v" * 64 for n in range(16)}).token
        assert vault.domain(token) == domain


def test_chunks_are_cut_by_rows_and_by_bytes() -> None:
    whole = WriteLimits()
    assert whole.items(batches.ROWS_OF_A_USE, batches.CHUNK_USES) > batches.CHUNK_USES * 0.9
    new = whole.items(batches.ROWS_OF_AN_ISSUE, batches.CHUNK_ITEMS, body_bytes_each=NEW_BODY_BYTES_MAX)
    assert new > batches.CHUNK_ITEMS * 0.9
    assert WriteLimits(rows=100).items(batches.ROWS_OF_A_USE, 8_000) == 30
    assert WriteLimits(bytes=4_000_000).items(batches.ROWS_OF_A_USE, 8_000) < 4_000_000 // 4_096
    assert WriteLimits(event_bytes=100_000).items(batches.ROWS_OF_AN_ISSUE, 8_000) == 92_000 // 130
    assert WriteLimits(rows=16, bytes=2**17, event_bytes=2**14).items(batches.ROWS_OF_A_USE, 8_000) >= 1


@pytest.mark.parametrize(
    "limits", [{"rows": 15}, {"rows": 40_001}, {"bytes": 1}, {"event_bytes": 2**20 + 1}, {"rows": 1e3}]
)
def test_limits_outside_their_range_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(tv.InvalidInputError):
        WriteLimits(**limits)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("change", ["suspend", "delete", "update_domain"])
def test_a_change_that_returned_holds_for_a_use_that_was_decided_before(
    local_keys: KeyStore, change: str, many: bool
) -> None:
    """The use's event is on its way when the change is made: the use is decided again."""
    inner = MemoryTokenStore()
    tv.provision(local_keys, inner)
    with vaults.open_vault(local_keys, inner) as vault:
        token = issue(vault).token
        changes: list[Callable[[], object]] = [
            {
                "suspend": lambda: vault.suspend(token, by=tv.Actor.ISSUER),
                "delete": lambda: vault.delete(token),
                "update_domain": lambda: vault.update_domain(token, tv.Domain(merchants={"M-1"})),
            }[change]
        ]

        class Late(Forwarding):
            def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
                if name == "append" and changes:
                    changes.pop()()
                return getattr(inner, name)(*args, **kwargs)

        with vaults.open_vault(local_keys, Late()) as other:
            if many:
                assert list(other.detokenize_many([(token, use())]).errors) == [0]
            else:
                with pytest.raises(tv.DomainRestrictionError):
                    other.detokenize(token, use())
        outcomes = [event.outcome.name for event in vault.history(token) if event.action.name == "DETOKENIZE"]
        assert outcomes == ["DENIED"]


def test_a_history_ends_after_so_many_pages_with_an_error_and_is_never_told_in_part(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "PAGE", 2)
    monkeypatch.setattr(histories, "PAGES_MAX", 2)
    with closing(MemoryTokenStore()) as store:
        tv.provision(local_keys, store)
        with vaults.open_vault(local_keys, store) as vault:
            token = issue(vault).token
            for number in range(2):
                vault.update_token(token, customer=f"c-{number}")
            assert len(vault.history(token)) == 3
            for number in range(2):
                vault.update_token(token, customer=f"d-{number}")
            for name in (token, vault.get(token).reference):
                with pytest.raises(tv.IntegrityError, match="too many audit events") as refused:
                    vault.history(name, limit=1)
                assert refused.value.code == "TOO_MANY_EVENTS"
