"""A vault inside the host's own transaction: the order and its token are there both, or neither."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import tokenvault as tv
from tests import vaults
from tests.strategies import NOW_MS
from tests.vaults import ACQUIRER, MASTERCARD, SHOP, VISA, all_events, all_records, issue, use
from tokenvault import maintenance
from tokenvault.audit.event import Action, Event
from tokenvault.keys import KeyPurpose, KeyStore
from tokenvault.maintenance import upkeep
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock

TWICE = tv.Domain(limits=(tv.Limit(uses=2),), merchants={"M-1"})


@pytest.fixture
def store(local_keys: KeyStore, postgres_url: str) -> Iterator[TokenStore]:
    with closing(tv.open_token_store(postgres_url)) as opened:
        tv.provision(local_keys, opened)
        yield opened


@pytest.fixture
def vault(local_keys: KeyStore, store: TokenStore) -> Iterator[tv.Vault]:
    with tv.Vault(
        local_keys, store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS, clock=ManualClock(NOW_MS)
    ) as opened:
        yield opened


def plain(url: str) -> str:
    """The address without what only the store knows."""
    base, _, query = url.partition("?")
    kept = [
        each for each in query.split("&") if each and each.partition("=")[0] not in ("schema", "connections")
    ]
    return f"{base}?{'&'.join(kept)}" if kept else base


@pytest.fixture
def host(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with closing(psycopg.connect(plain(postgres_url))) as connection:
        connection.execute("DROP TABLE IF EXISTS orders")
        connection.execute("CREATE TABLE orders (token text)")
        connection.commit()
        yield connection


def orders(url: str) -> list[str]:
    with closing(psycopg.connect(plain(url))) as connection:
        return [token for (token,) in connection.execute("SELECT token FROM orders ORDER BY token")]


def place(connection: psycopg.Connection[Any], token: str) -> None:
    connection.execute("INSERT INTO orders VALUES (%s)", (token,))


def events(store: TokenStore) -> list[Event]:
    return [Event.parse(row) for stream in sorted(store.streams()) for row in all_events(store, stream)]


def assert_intact(store: TokenStore, keys: KeyStore) -> None:
    report = tv.verify_audit(store, keys=keys)
    assert report.findings == ()


def test_the_order_and_its_token_are_written_both_or_neither(
    vault: tv.Vault, store: TokenStore, local_keys: KeyStore, host: psycopg.Connection[Any], postgres_url: str
) -> None:
    with host.transaction(), vault.within(host) as inside:
        kept = issue(inside, domain=TWICE)
        place(host, kept.token)
        assert inside.get(kept.token).token == kept.token
        with pytest.raises(tv.TokenNotFoundError):
            vault.get(kept.token)  # not before the host commits
    with suppress(ZeroDivisionError), host.transaction(), vault.within(host) as inside:
        lost = issue(inside, MASTERCARD, domain=TWICE)
        place(host, lost.token)
        raise ZeroDivisionError
    assert orders(postgres_url) == [row.token for row in all_records(store)] == [kept.token]
    assert vault.detokenize(kept.token, use(merchant="M-1")).pan.reveal() == VISA
    again = issue(
        vault, MASTERCARD, domain=TWICE
    )  # its domain, which the rollback took back, is written anew
    assert vault.detokenize(again.token, use(merchant="M-1")).pan.reveal() == MASTERCARD
    vault.close()
    assert_intact(store, local_keys)


def test_uses_and_management_inside_count_once_committed_and_never_otherwise(
    vault: tv.Vault, store: TokenStore, local_keys: KeyStore, host: psycopg.Connection[Any]
) -> None:
    token = issue(vault, domain=TWICE).token
    with host.transaction(force_rollback=True), vault.within(host) as inside:
        assert inside.detokenize(token, use(1, merchant="M-1")).pan.reveal() == VISA
        assert inside.remaining(token)[0].left == 1
        inside.update_token(token, customer="c-1", requestor=SHOP)
        inside.suspend(token, by=tv.Actor.ISSUER)
    assert vault.remaining(token)[0].left == 2
    assert vault.get(token).customer is None
    with host.transaction(), vault.within(host) as inside:
        inside.detokenize(token, use(2, merchant="M-1"))
        inside.detokenize(token, use(2, merchant="M-1"))  # a retry
        inside.update_token(token, customer="c-2", requestor=SHOP)
    assert vault.remaining(token)[0].left == 1
    assert vault.get(token).customer == "c-2"
    assert vault.detokenize(token, use(2, merchant="M-1")).pan.reveal() == VISA
    assert vault.remaining(token)[0].left == 1
    vault.detokenize(token, use(1, merchant="M-1"))  # which was taken back
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(token, use(3, merchant="M-1"))
    vault.close()
    assert_intact(store, local_keys)


def test_a_card_number_that_was_handed_out_and_what_was_refused_leave_their_events_whatever_becomes_of_it(
    vault: tv.Vault, store: TokenStore, local_keys: KeyStore, host: psycopg.Connection[Any]
) -> None:
    token = issue(vault, domain=TWICE).token
    with host.transaction(force_rollback=True), vault.within(host) as inside:
        inside.detokenize(token, use("out", merchant="M-1"))
        with pytest.raises(tv.DomainRestrictionError):
            inside.detokenize(token, use("refused", merchant="M-2"))
        with pytest.raises(tv.TokenNotFoundError):
            inside.detokenize("9999130000000003", use("guessed"))
        inside.tokens_of(VISA, requestor=SHOP)
        fresh = issue(inside, MASTERCARD).token
        inside.detokenize(fresh, use("fresh"))
    found = [(event.action, event.outcome.name, event.transaction_id, event.codes) for event in events(store)]
    assert (Action.DETOKENIZE, "DONE", "tx-out", ("WITHIN",)) in found
    assert (Action.DETOKENIZE, "DONE", "tx-fresh", ("WITHIN",)) in found
    assert (Action.DETOKENIZE, "DENIED", "tx-refused", ("MERCHANT_NOT_ALLOWED",)) in found
    assert (Action.DETOKENIZE, "NOT_FOUND", "tx-guessed", ()) in found
    assert Action.LOOK_UP in [each.action for each in vault.history(token)]
    assert [each.action for each in vault.history(token)].count(Action.DETOKENIZE) == 2
    vault.close()
    assert_intact(store, local_keys)


def test_a_savepoint_takes_back_what_came_after_it_and_the_trail_stays_whole(
    vault: tv.Vault, store: TokenStore, local_keys: KeyStore, host: psycopg.Connection[Any]
) -> None:
    tokens = []
    with host.transaction(), vault.within(host) as inside:
        with suppress(ZeroDivisionError), host.transaction():
            issue(inside, domain=TWICE)  # the first event of the stream
            raise ZeroDivisionError
        tokens.append(issue(inside, domain=TWICE).token)
        with suppress(ZeroDivisionError), host.transaction():
            for _ in range(3):
                issue(inside)
            with host.transaction():
                issue(inside)
            raise ZeroDivisionError
        tokens.append(issue(inside).token)
        with host.transaction():
            tokens.append(issue(inside).token)
        with suppress(ZeroDivisionError), host.transaction():
            issue(inside)
            raise ZeroDivisionError
    assert sorted(tokens) == sorted(row.token for row in all_records(store))
    assert vault.detokenize(tokens[0], use(merchant="M-1")).pan.reveal() == VISA
    vault.close()
    assert_intact(store, local_keys)
    numbers = [[row.number for row in all_events(store, stream)] for stream in store.streams()]
    assert all(each == list(range(1, len(each) + 1)) for each in numbers)


def test_a_process_that_dies_before_the_commit_leaves_nothing(
    vault: tv.Vault, store: TokenStore, local_keys: KeyStore, host: psycopg.Connection[Any], postgres_url: str
) -> None:
    inside = vault.within(host)
    issue(inside)
    place(host, "never")
    host.close()  # as the kernel does for a process that was killed
    assert all_records(store) == []
    assert orders(postgres_url) == []
    with pytest.raises(tv.TokenStoreError):
        inside.close()
    vault.close()
    assert_intact(store, local_keys)


def test_one_convergent_token_comes_of_many_transactions_at_once(
    vault: tv.Vault, store: TokenStore, local_keys: KeyStore, host: psycopg.Connection[Any], postgres_url: str
) -> None:
    tokens: list[str] = []

    def work(number: int) -> None:
        with closing(psycopg.connect(plain(postgres_url))) as connection:
            for attempt in range(5):
                rolled_back = (number + attempt) % 3 == 0
                with connection.transaction(force_rollback=rolled_back), vault.within(connection) as inside:
                    token = issue(inside, program="card-on-file", idempotency_key=None).token
                if not rolled_back:
                    tokens.append(token)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 20
    assert len(set(tokens)) == 1
    assert len(all_records(store)) == 1
    vault.close()
    assert_intact(store, local_keys)


# What is refused.


def test_connections_that_do_not_fit_are_refused_with_the_reason(
    vault: tv.Vault,
    local_keys: KeyStore,
    host: psycopg.Connection[Any],
    postgres_url: str,
    postgres_server: Any,
) -> None:
    def refused(
        connection: object, code: str, kind: type[tv.TokenVaultError] = tv.ConfigurationError
    ) -> None:
        with pytest.raises(kind) as caught:
            vault.within(connection)
        assert caught.value.code == code

    for wrong in (None, 5, "postgresql://", object(), vault):
        refused(wrong, "INVALID_INPUT", tv.InvalidInputError)
    with closing(psycopg.connect(plain(postgres_url), autocommit=True)) as connection:
        refused(connection, "NO_TRANSACTION")
        with connection.transaction():
            vault.within(connection).close()
            connection.execute("SET LOCAL synchronous_commit = off")
            refused(connection, "STORE_NOT_DURABLE")
        with connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            refused(connection, "NO_TRANSACTION")
    with postgres_server.raw() as superuser:
        superuser.execute("DROP DATABASE IF EXISTS elsewhere")
        superuser.execute("CREATE DATABASE elsewhere")
    elsewhere = re.sub(r"@/[^?]+", "@/elsewhere", postgres_url)
    with (
        closing(tv.open_token_store(elsewhere)) as other,
        closing(psycopg.connect(plain(elsewhere))) as connection,
    ):
        refused(connection, "STORE_SCHEMA", tv.TokenStoreError)
        connection.rollback()
        tv.provision(local_keys, other)
        refused(connection, "NO_TRANSACTION")
    with closing(tv.open_token_store("memory:")) as memory:
        tv.provision(local_keys, memory)
        with tv.Vault(local_keys, memory) as without, pytest.raises(tv.ConfigurationError):
            without.within(host)


def test_no_argument_of_within_comes_out_in_its_error(vault: tv.Vault) -> None:
    within: Any = vault.within
    for given in ((VISA,), (), (VISA, VISA)):
        with pytest.raises(tv.InvalidInputError) as caught:
            within(*given)
        assert VISA not in repr(caught.value)
        assert caught.value.__context__ is None
        trace = caught.tb
        while trace.tb_next is not None:
            trace = trace.tb_next
            assert VISA not in map(str, trace.tb_frame.f_locals.values())


def test_what_a_transaction_can_not_take_back_is_not_done_inside(
    vault: tv.Vault, host: psycopg.Connection[Any]
) -> None:
    token = issue(vault).token
    with host.transaction(), vault.within(host) as inside:
        for failed in (inside.detokenize_many([(token, use())]), inside.delete_many([token])):
            assert [(type(each), each.code) for each in failed.errors.values()] == [
                (tv.ConfigurationError, "NOT_IN_TRANSACTION")
            ]
        with pytest.raises(tv.ConfigurationError):
            inside.request_reveal(token, operator="ann", purpose="chargeback")
        batch = inside.issue_many(
            [{"pan": MASTERCARD, "expiry": "2030-01"}], requestor=SHOP, program="one-time"
        )
        assert len(batch) == 1
    with pytest.raises(tv.ConfigurationError):
        issue(inside)  # it is closed
    assert vault.get(token).status is tv.TokenStatus.ACTIVE


def test_after_the_commit_nothing_more_is_done_inside(
    vault: tv.Vault, store: TokenStore, local_keys: KeyStore, host: psycopg.Connection[Any]
) -> None:
    inside = vault.within(host)
    token = issue(inside).token
    host.commit()
    with pytest.raises(tv.TokenStoreError) as over:
        issue(inside)
    assert over.value.code == "TRANSACTION_OVER"
    with pytest.raises(tv.TokenStoreError):
        inside.close()
    assert [row.token for row in all_records(store)] == [token]
    host.execute("SELECT 1")
    with pytest.raises(psycopg.Error):
        host.execute("SELECT * FROM nowhere")
    with pytest.raises(tv.TokenStoreError):
        vault.within(host)
    host.rollback()
    vault.close()
    assert_intact(store, local_keys)


def test_a_connection_is_left_as_it_was(vault: tv.Vault, host: psycopg.Connection[Any]) -> None:
    host.row_factory = dict_row
    before = host.execute("SELECT name, setting FROM pg_settings ORDER BY name").fetchall()
    with vault.within(host) as inside:
        inside.detokenize(issue(inside, domain=TWICE).token, use(merchant="M-1"))
    assert host.execute("SELECT name, setting FROM pg_settings ORDER BY name").fetchall() == before
    assert host.execute("SELECT count(*) AS prepared FROM pg_prepared_statements").fetchone() == {
        "prepared": 0
    }
    host.rollback()
    with vault.within(host) as inside:
        issue(inside)
    host.commit()


# SQLAlchemy, and coroutines.


def test_sessions_and_connections_of_sqlalchemy(
    vault: tv.Vault, store: TokenStore, local_keys: KeyStore, host: psycopg.Connection[Any], postgres_url: str
) -> None:
    engine = sqlalchemy.create_engine(plain(postgres_url).replace("postgresql://", "postgresql+psycopg://"))
    ordered = sqlalchemy.text("INSERT INTO orders VALUES (:token)")
    with engine.begin() as connection, vault.within(connection) as inside:
        first = issue(inside).token
        connection.execute(ordered, {"token": first})
    with Session(engine) as session:
        with vault.within(session) as inside:
            second = issue(inside).token
            session.execute(ordered, {"token": second})
        session.commit()
        with vault.within(session) as inside:
            session.execute(ordered, {"token": issue(inside).token})
        session.rollback()
    engine.dispose()
    assert orders(postgres_url) == sorted([first, second]) == sorted(row.token for row in all_records(store))
    vault.close()
    assert_intact(store, local_keys)


def test_a_savepoint_of_a_session_takes_back_what_was_done_in_it_also_before_the_session_did_anything(
    vault: tv.Vault, store: TokenStore, local_keys: KeyStore, host: psycopg.Connection[Any], postgres_url: str
) -> None:
    """A session sends it only once it is asked for its connection."""
    engine = sqlalchemy.create_engine(plain(postgres_url).replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as session, session.begin(), vault.within(session) as inside:
        kept = issue(inside, domain=TWICE).token
        with session.begin_nested() as nested:
            lost = issue(inside).token
            inside.detokenize(kept, use(id="taken back", merchant="M-1"))
            nested.rollback()
        with session.begin_nested():
            also_kept = issue(inside).token
    engine.dispose()
    assert {row.token for row in all_records(store)} == {kept, also_kept} != {lost}
    for number in range(2):
        vault.detokenize(kept, use(id=f"t{number}", merchant="M-1"))
    vault.close()
    assert_intact(store, local_keys)


def test_a_savepoint_of_an_async_session_does_as_well(
    local_keys: KeyStore, host: psycopg.Connection[Any], store: TokenStore, postgres_url: str
) -> None:
    async def work() -> str:
        engine = create_async_engine(plain(postgres_url).replace("postgresql://", "postgresql+psycopg://"))
        async_store = tv.open_async_token_store(postgres_url)
        async with (
            tv.AsyncVault(
                local_keys, async_store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS
            ) as vault,
            AsyncSession(engine) as session,
            session.begin(),
            vault.within(session) as inside,
        ):
            kept = await inside.issue(VISA, requestor=SHOP, program="one-time")
            async with session.begin_nested() as nested:
                await inside.issue(VISA, requestor=SHOP, program="one-time")
                await nested.rollback()
        await engine.dispose()
        await async_store.close()
        return kept.token

    assert [asyncio.run(work())] == [row.token for row in all_records(store)]
    assert_intact(store, local_keys)


def test_the_vault_with_coroutines_works_inside_as_well(
    local_keys: KeyStore, host: psycopg.Connection[Any], store: TokenStore, postgres_url: str
) -> None:
    async def work() -> list[str]:
        tokens = []
        engine = create_async_engine(plain(postgres_url).replace("postgresql://", "postgresql+psycopg://"))
        async_store = tv.open_async_token_store(postgres_url)
        ordered = sqlalchemy.text("INSERT INTO orders VALUES (:token)")
        async with tv.AsyncVault(
            local_keys, async_store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS
        ) as vault:
            for rolled_back in (False, True):
                async with (
                    await psycopg.AsyncConnection.connect(plain(postgres_url)) as connection,
                    connection.transaction(force_rollback=rolled_back),
                    vault.within(connection) as inside,
                ):
                    info = await inside.issue(VISA, requestor=SHOP, program="one-time", domain=TWICE)
                    await inside.detokenize(info.token, use(merchant="M-1"))
                    await connection.execute("INSERT INTO orders VALUES (%s)", (info.token,))
                if not rolled_back:
                    tokens.append(info.token)
            async with engine.begin() as of_pool, vault.within(of_pool) as inside:
                info = await inside.issue(VISA, requestor=SHOP, program="one-time")
                await of_pool.execute(ordered, {"token": info.token})
            tokens.append(info.token)
            async with AsyncSession(engine) as session:
                async with vault.within(session) as inside:
                    info = await inside.issue(VISA, requestor=SHOP, program="one-time")
                    await session.execute(ordered, {"token": info.token})
                await session.commit()
            tokens.append(info.token)
            with pytest.raises(tv.InvalidInputError):
                async with vault.within(host):
                    pass
        await engine.dispose()
        await async_store.close()
        return tokens

    tokens = asyncio.run(work())
    assert orders(postgres_url) == sorted(tokens) == sorted(row.token for row in all_records(store))
    assert_intact(store, local_keys)


def test_an_acquirer_inside_has_no_more_rights_than_outside(
    vault: tv.Vault, host: psycopg.Connection[Any]
) -> None:
    with host.transaction(), vault.within(host) as inside, pytest.raises(tv.PermissionDeniedError):
        issue(inside, requestor=ACQUIRER)


# What the transaction must not undo, and whom it keeps waiting.


@pytest.mark.parametrize("purpose", [KeyPurpose.SEAL, KeyPurpose.FINGERPRINT], ids=lambda each: each.value)
def test_a_rotation_waits_for_a_transaction_that_has_written(
    own_keys: KeyStore, postgres_url: str, host: psycopg.Connection[Any], purpose: KeyPurpose
) -> None:
    done = threading.Event()

    def rotate() -> None:
        with closing(tv.open_token_store(postgres_url)) as rotating:
            maintenance.add_key_version(own_keys, rotating, purpose)
            maintenance.make_primary(own_keys, rotating, purpose, 2)
            maintenance.refingerprint(own_keys, rotating)
            maintenance.reseal(own_keys, rotating)
            maintenance.retire(own_keys, rotating, purpose, 1)
            maintenance.destroy(own_keys, rotating, purpose, 1)
        done.set()

    with closing(tv.open_token_store(postgres_url)) as store:
        tv.provision(own_keys, store, key_delay=timedelta(milliseconds=100))
        with tv.Vault(
            own_keys, store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS, clock=ManualClock(NOW_MS)
        ) as vault:
            with host.transaction(), vault.within(host) as inside:
                token = issue(inside, program="card-on-file").token
                thread = threading.Thread(target=rotate)
                thread.start()
                assert not done.wait(1.5)
            thread.join(60)
            assert done.is_set()
            assert vault.get(token).token == token
            assert issue(vault, program="card-on-file").token == token
        assert_intact(store, own_keys)


def test_a_rotation_refuses_after_a_bounded_wait(
    local_keys: KeyStore, store: TokenStore, vault: tv.Vault, host: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(upkeep, "TRANSACTIONS_SECONDS_MAX", 0.2)
    with host.transaction(), vault.within(host) as inside:
        issue(inside)
        with pytest.raises(tv.LifecycleError) as refused:
            maintenance.reseal(local_keys, store)
        assert refused.value.code == "TRANSACTION_OPEN"
    maintenance.reseal(local_keys, store)


def test_refusals_inside_suspend_a_token_whatever_becomes_of_the_transaction(
    local_keys: KeyStore, store: TokenStore, host: psycopg.Connection[Any]
) -> None:
    program = tv.TokenProgram("strict", format=tv.TokenFormat(bin="999917"), suspend_after_refusals=3)
    shop = tv.TokenRequestor(SHOP, programs={"strict"})
    with tv.Vault(
        local_keys, store, programs=[program], requestors=[shop], clock=ManualClock(NOW_MS)
    ) as vault:
        tokens = [issue(vault, program="strict", domain=TWICE).token for _ in range(2)]
        for number in range(3):
            with (
                suppress(tv.DomainRestrictionError),
                host.transaction(),
                vault.within(host) as inside,
            ):
                inside.detokenize(tokens[0], use(f"bad-{number}", merchant="M-2"))
        assert vault.get(tokens[0]).status is tv.TokenStatus.SUSPENDED
        with host.transaction(force_rollback=True), vault.within(host) as inside:
            inside.detokenize(tokens[1], use("good", merchant="M-1"))  # its row is locked from here on
            for number in range(4):
                with suppress(tv.DomainRestrictionError, tv.LifecycleError):
                    inside.detokenize(tokens[1], use(f"worse-{number}", merchant="M-2"))
    assert_intact(store, local_keys)


def test_whether_a_card_is_known_is_never_told_without_an_event(
    vault: tv.Vault, store: TokenStore, host: psycopg.Connection[Any]
) -> None:
    issue(vault, VISA)
    before = len(events(store))
    with host.transaction(force_rollback=True), vault.within(host) as inside:
        assert inside.update_card(VISA, expiry="2031-01")
    told = events(store)[before:]
    assert [(each.action, each.codes) for each in told if each.action is not Action.CHECKPOINT] == [
        (Action.UPDATE_CARD, ("WITHIN",))
    ]
    before = len(events(store))
    with host.transaction(force_rollback=True), vault.within(host) as inside:
        issue(inside, MASTERCARD, program="card-on-file")
    assert Action.ISSUE in [each.action for each in events(store)[before:]]


def test_a_pipeline_is_refused_and_one_caller_at_a_time_works_inside(
    vault: tv.Vault, store: TokenStore, local_keys: KeyStore, host: psycopg.Connection[Any]
) -> None:
    host.execute("SELECT 1")
    with host.pipeline(), pytest.raises(tv.ConfigurationError, match="pipeline"):
        vault.within(host)
    host.rollback()
    codes: list[str] = []
    with host.transaction(), vault.within(host) as inside:

        def work() -> None:
            for _ in range(20):
                try:
                    issue(inside)
                except tv.TokenStoreError as error:
                    codes.append(error.code)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with host.pipeline(), pytest.raises(tv.TokenStoreError):
            issue(inside)
    assert set(codes) <= {"TRANSACTION_BUSY"}
    vault.close()
    assert_intact(store, local_keys)
