"""What each call of the vault costs on PostgreSQL, counted in the messages that libpq sends: BEGIN and COMMIT too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

import tokenvault as tv
from tests import vaults
from tests.test_postgres_faults import messages
from tests.vault_workers import card_number
from tests.vaults import SHOP, VISA, issue, use
from tokenvault.keys import KeyStore
from tokenvault.stores.postgres.store import PostgresTokenStore

LIMITED = tv.Domain(limits=(tv.Limit(uses=1_000, per=timedelta(days=1)),))
PREPARED_AFTER = 1  # uses of a statement; the first one costs one round trip more


@pytest.fixture
def store(local_keys: KeyStore, postgres_url: str) -> Iterator[PostgresTokenStore]:
    with closing(PostgresTokenStore(postgres_url)) as opened:
        tv.provision(local_keys, opened)
        yield opened


@pytest.fixture
def count(store: PostgresTokenStore, tmp_path: Path) -> Callable[[Callable[[], object]], int]:
    """How often a call waits for the server."""

    def counted(call: Callable[[], object]) -> int:
        (pooled,) = store._pool_here()._open
        lines = messages(pooled.connection, tmp_path / "trace", call)
        assert len(store._pool_here()._open) == 1, "everything went over the connection that was watched"
        sent = [line[2] for line in lines if line[0] == "F"]
        heard = [line[2] for line in lines if line[0] == "B"]
        assert sent.count("Sync") + sent.count("Query") == heard.count("ReadyForQuery")
        return heard.count("ReadyForQuery")

    return counted


Count = Callable[[Callable[[], object]], int]


def domains() -> Iterator[tv.Domain]:
    """One after the other that no vault has seen."""
    return (tv.Domain(merchants={f"M-{number}"}) for number in range(10**6))


@pytest.fixture
def calls(local_keys: KeyStore, store: PostgresTokenStore) -> dict[str, tuple[Callable[[], object], int]]:
    """Calls of the vault, each one new where it has to be, and the round trips that they may take."""
    vault = vaults.open_vault(local_keys, store)
    numbers = iter(range(10**6))
    unseen = domains()
    free = issue(vault).token
    limited = issue(vault, domain=LIMITED).token
    spent = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=1),))).token
    vault.detokenize(spent, use("spent"))
    issue(vault, program="card-on-file")
    vault.detokenize(limited, use("known"))

    def converge(pan: str) -> tv.TokenInfo:
        return issue(vault, pan, program="card-on-file")

    def refused() -> None:
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(spent, use(next(numbers)))

    def unknown() -> None:
        with pytest.raises(tv.TokenNotFoundError):
            vault.detokenize(f"{9999990000000000 + next(numbers)}", use())

    def suspend_and_resume() -> None:
        vault.suspend(free, by=tv.Actor.ISSUER)
        vault.resume(free, by=tv.Actor.ISSUER)

    return {
        "issue": (lambda: issue(vault), 1),
        "issue with a document that was used": (lambda: issue(vault, domain=LIMITED), 1),
        "issue with a document of its own": (lambda: issue(vault, domain=next(unseen)), 1),
        "issue, convergent": (lambda: converge(card_number(next(numbers))), 2),
        "issue, convergent, with a document of its own": (
            lambda: issue(vault, card_number(next(numbers)), program="card-on-file", domain=next(unseen)), 2
        ),
        "issue again, convergent": (lambda: converge(VISA), 2),
        "detokenize": (lambda: vault.detokenize(free, use(next(numbers))), 2),
        "detokenize, counted": (lambda: vault.detokenize(limited, use(next(numbers))), 2),
        "detokenize, a retry": (lambda: vault.detokenize(spent, use("spent")), 2),
        "detokenize, refused": (refused, 2),
        "detokenize, unknown": (unknown, 3),
        "check": (lambda: vault.check(limited, use(next(numbers))), 1),
        "get": (lambda: vault.get(free), 1),
        "suspend and resume": (suspend_and_resume, 6),  # each reads, and a status changes by a statement of its own
    }  # fmt: skip


def test_each_call_takes_as_many_round_trips_as_stated(
    calls: dict[str, tuple[Callable[[], object], int]], count: Count
) -> None:
    found = {}
    for name, (call, _) in calls.items():
        for _ in range(PREPARED_AFTER):
            call()
        found[name] = {count(call) for _ in range(5)}
    assert found == {name: {expected} for name, (_, expected) in calls.items()}


def test_a_statement_is_prepared_for_one_round_trip_more_once(
    calls: dict[str, tuple[Callable[[], object], int]], count: Count
) -> None:
    """From the first call on, none takes more than one above what it takes for good, or one a statement."""
    for name, (call, expected) in calls.items():
        costs = [count(call) for _ in range(2 * PREPARED_AFTER)]
        assert min(costs) == expected, name
        assert sum(costs) <= expected * len(costs) + expected, name


def test_a_vault_reads_a_document_once(local_keys: KeyStore, store: PostgresTokenStore, count: Count) -> None:
    """A vault that meets a token's domain for the first time reads it; from then on it knows it.

    The first use of a requestor costs one more, by which it learns whether the guard locked it out.

    Its first event costs one round trip more, by which its stream learns of the others; here these are closed, so
    that it looks for the end of none.
    """
    with vaults.open_vault(local_keys, store) as first:
        token = issue(first, domain=LIMITED).token
    for _ in range(PREPARED_AFTER):
        warm = vaults.open_vault(local_keys, store)
        for number in range(2):  # the first event goes with a checkpoint, by another statement
            warm.detokenize(token, use(f"warm-{number}"))
        issue(warm, domain=LIMITED)
        warm.close()
    vault = vaults.open_vault(local_keys, store)
    assert count(lambda: vault.detokenize(token, use("first"))) == 5
    assert count(lambda: vault.detokenize(token, use("second"))) == 2
    assert count(lambda: issue(vault, domain=LIMITED, requestor=SHOP)) == 1
