"""What the address of a PostgreSQL store sets of its pool and its waits, and roles that work with least rights."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest

import tokenvault as tv
from tests import vaults
from tests.faces import open_on_a_loop
from tests.postgres_server import PostgresServer, new_name
from tests.vaults import issue, use
from tokenvault.keys import KeyStore
from tokenvault.stores import PostgresTokenStore, grants_sql, open_token_store
from tokenvault.stores.port import TokenStore
from tokenvault.stores.postgres.address import PostgresAddress, parse_address
from tokenvault.testing import a_record, an_event

openers = pytest.mark.parametrize("open_store", [open_token_store, open_on_a_loop], ids=["threads", "loop"])
BOUNDS = {
    "partitions": (0, 1_024),
    "connections": (1, 1_000),
    "wait_seconds": (0, 3_600),
    "statement_seconds": (1, 3_600),
}


@pytest.mark.parametrize(("name", "bounds"), BOUNDS.items())
def test_each_number_is_taken_to_its_borders_and_no_further(name: str, bounds: tuple[int, int]) -> None:
    least, most = bounds
    for number in (least, most):
        assert getattr(parse_address(f"postgresql:///d?{name}={number}"), name) == number
        assert getattr(parse_address("postgresql:///d", None, **{name: number}), name) == number
    for wrong in (str(least - 1), str(most + 1), "", "x", "1.0", "+1", "١"):  # noqa: RUF001 # an Arabic digit
        with pytest.raises(tv.InvalidInputError, match=name):
            open_token_store(f"postgresql:///d?{name}={wrong}")
    wrong_arguments: list[Any] = [least - 1, most + 1, 1.0, True, "5"]
    for argument in wrong_arguments:
        with pytest.raises(tv.InvalidInputError, match=name):
            PostgresTokenStore("postgresql:///d", **{name: argument})


def test_arguments_override_the_address_and_libpq_does_not_see_our_options() -> None:
    address = parse_address(
        "postgresql:///d?connections=3&sslmode=require&wait_seconds=2&statement_seconds=7", connections=5
    )
    assert (address.connections, address.wait_seconds, address.statement_seconds) == (5, 2, 7)
    assert address.answer_seconds == 12
    assert address.parameters["sslmode"] == "require"
    assert not set(BOUNDS) & set(address.parameters)
    assert parse_address("postgresql:///d").connections == PostgresAddress({}, "s").connections == 16


def with_options(url: str, **options: int) -> str:
    joined = "&".join(f"{name}={number}" for name, number in options.items())
    return f"{url}{'&' if '?' in url else '?'}{joined}"


@openers
def test_a_store_opens_no_more_connections_than_its_address_says(
    postgres_url: str, open_store: Callable[[str], TokenStore]
) -> None:
    with closing(open_store(with_options(postgres_url, connections=2))) as store:
        store.provision()
        threads = [threading.Thread(target=store.scan) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        native: Any = getattr(store, "store", store)
        (pool,) = native._pools.values()
        assert 1 <= pool.open_count <= 2
        assert len(pool._slots) == 2


def test_a_caller_waits_for_a_connection_as_long_as_the_address_says(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    url = with_options(postgres_url, connections=1, wait_seconds=1)
    with closing(open_token_store(url)) as store, postgres_server.raw() as holder:
        store.provision()
        schema = parse_address(url).schema
        with holder.transaction():
            holder.execute(f"LOCK TABLE {schema}.tokens".encode())
            blocked = threading.Thread(target=store.insert, args=([a_record(1)], [an_event(1)]))
            blocked.start()
            time.sleep(0.2)
            began = time.monotonic()
            with pytest.raises(tv.TokenStoreError, match="no database connection came free") as refused:
                store.scan()
            assert 0.9 <= time.monotonic() - began < 5
            assert refused.value.code == "STORE_POOL_EXHAUSTED"
        blocked.join()


@openers
def test_the_server_ends_a_statement_when_the_address_says(
    postgres_server: PostgresServer, postgres_url: str, open_store: Callable[[str], TokenStore]
) -> None:
    url = with_options(postgres_url, statement_seconds=1)
    with closing(open_store(url)) as store, postgres_server.raw() as holder:
        store.provision()
        with holder.transaction():
            holder.execute(f"LOCK TABLE {parse_address(url).schema}.tokens".encode())
            began = time.monotonic()
            with pytest.raises(tv.TokenStoreError, match="57014") as refused:
                store.insert([a_record(1)], [an_event(1)])
            assert 0.9 <= time.monotonic() - began < 5
            assert refused.value.code == "STORE_TIMEOUT"


# Roles.


@pytest.fixture
def roles(postgres_server: PostgresServer, keys: KeyStore) -> dict[str, str]:
    """Addresses of a vault's role and an auditor's, with the rights that `grants_sql` gives, and their schema."""
    schema, vault, auditor = new_name(), new_name(), new_name()
    owner = postgres_server.url(schema=schema)
    with closing(open_token_store(owner)) as store:
        tv.provision(keys, store)
    with postgres_server.raw() as superuser:
        for role in (vault, auditor):
            superuser.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'x'".encode())
        for statement in grants_sql(owner, vault=vault, auditor=auditor):
            superuser.execute(statement.encode())
    return {
        "vault": postgres_server.url(user=vault, password="x", schema=schema),  # of a throw-away server
        "auditor": postgres_server.url(user=auditor, password="x", schema=schema),  # as above
        "schema": schema,
        "auditor's name": auditor,
    }


def test_a_vault_works_with_the_least_grants_and_an_auditor_verifies_with_select_alone(
    roles: dict[str, str], keys: KeyStore
) -> None:
    with closing(open_token_store(roles["vault"])) as store, vaults.open_vault(keys, store) as vault:
        token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=2),))).token
        vault.detokenize(token, use())
        vault.detokenize_many([(token, use(2))])
        vault.issue_many([vaults.VISA] * 3, requestor=vaults.SHOP, program="one-time")
        vault.update_card(vaults.VISA, expiry="2039-12")
        vault.delete(token)
        assert vault.history(token)
    with closing(open_token_store(roles["auditor"])) as trail:
        assert tv.verify_audit(trail, keys=keys).intact
        assert list(tv.export_audit(trail, keys=keys))
        for write in (
            lambda: trail.append([an_event(1)]),
            lambda: trail.insert([a_record(1)], []),
            lambda: trail.put_meta("name", b"value"),
        ):
            with pytest.raises(tv.TokenStoreError, match="grant") as refused:
                write()
            assert refused.value.code == "STORE_PERMISSION"


@pytest.mark.parametrize("table", ["events", "event_index", "domains", "meta", "tokens", "schema_version"])
@pytest.mark.parametrize("role", ["vault", "auditor"])
def test_neither_role_can_delete_a_row_or_change_an_event(
    roles: dict[str, str], role: str, table: str
) -> None:
    place = f"{roles['schema']}.{table}"
    column = {"tokens": "body", "meta": "value", "domains": "document", "schema_version": "version"}.get(
        table, "number"
    )
    statements = [f"DELETE FROM {place}", f"TRUNCATE {place}", f"DROP TABLE {place}"]
    if not (role == "vault" and table == "tokens"):
        statements.append(f"UPDATE {place} SET {column} = {column}")
    url = re.sub(r"[?&](schema|partitions)=[^&]*", "", roles[role])
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_a_read_only_auditor_names_what_its_session_may_be(
    postgres_server: PostgresServer, roles: dict[str, str], keys: KeyStore
) -> None:
    name = roles["auditor's name"]
    with postgres_server.raw() as superuser:
        superuser.execute(f'ALTER ROLE "{name}" SET default_transaction_read_only = on'.encode())
    with closing(open_token_store(f"{roles['auditor']}&target_session_attrs=any")) as trail:
        assert tv.verify_audit(trail, keys=keys).intact


@pytest.mark.parametrize("role", ['a"; DROP TABLE x; --', "", "x" * 64, "a b", None, 5])
def test_names_of_roles_that_are_none_are_refused(role: Any) -> None:
    with pytest.raises(tv.InvalidInputError, match="role"):
        grants_sql("postgresql:///d", vault=role)


def test_other_databases_have_no_roles() -> None:
    with pytest.raises(tv.InvalidInputError, match="postgresql:"):
        grants_sql("sqlite:///vault.db", vault="v")
