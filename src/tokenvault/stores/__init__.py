"""Token stores: the port and its adapters.

`open_token_store` and `open_async_token_store` open what an address names. PostgreSQL's adapters are imported when
they are first used, so that the others can be used where no psycopg is installed. An adapter of your own is a
`TokenStoreBase` or an `AsyncTokenStoreBase`; `tokenvault.testing` has the kit by which it proves itself.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from tokenvault.errors import ConfigurationError, InvalidInputError, asked, boundary
from tokenvault.stores.forwarding import ThreadedTokenStore
from tokenvault.stores.guard import AsyncTokenStoreBase, TokenStoreBase
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import AsyncTokenStore, TokenStore
from tokenvault.stores.schema_versions import Report, SchemaStatus, check_since
from tokenvault.stores.sqlite import upgrade as sqlite_upgrade
from tokenvault.stores.sqlite.file import schema_sql as sqlite_schema_sql
from tokenvault.stores.sqlite.store import SqliteTokenStore

if TYPE_CHECKING:
    from tokenvault.stores.postgres.address import PostgresAddress
    from tokenvault.stores.postgres.store import AsyncPostgresTokenStore, PostgresTokenStore

__all__ = [
    "AsyncPostgresTokenStore",
    "AsyncTokenStore",
    "AsyncTokenStoreBase",
    "MemoryTokenStore",
    "PostgresTokenStore",
    "SchemaStatus",
    "SqliteTokenStore",
    "ThreadedTokenStore",
    "TokenStore",
    "TokenStoreBase",
    "grants_sql",
    "open_async_token_store",
    "open_token_store",
    "schema_sql",
    "schema_status",
    "upgrade_schema",
]


@boundary
def open_token_store(url: str) -> TokenStore:
    """Open the token store at an address.

    Args:
        url: "memory:" keeps everything in this process, for tests. "sqlite:///vault.db" is a file under
            the current folder, "sqlite:////var/lib/vault.db" an absolute path; a percent sign, '?' and '#'
            in a path are "%25", "%3F" and "%23". "postgresql://user:password@host:port/database" is a PostgreSQL
            server, with options of libpq after a '?', such as "sslmode=verify-full", and more: "schema=..."
            that the tables lie in, "tokenvault" unless set, "partitions=..." that provisioning divides
            the tokens into, and "connections=...", "wait_seconds=..." and "statement_seconds=..." as
            `PostgresTokenStore` takes them. Only PostgreSQL's address takes options.

    Opening creates nothing: `tokenvault.provision` does that, once.

    Raises:
        InvalidInputError: the address is none of these.
        ConfigurationError: the database's library is missing or too old.
    """
    if type(url) is not str:
        raise InvalidInputError("the address of a token store is a str such as 'sqlite:///vault.db'")
    scheme, colon, rest = url.partition(":")
    opener = _SCHEMES.get(scheme) if colon else None
    if opener is None:
        known = ", ".join(f"{name}:" for name in _SCHEMES)
        raise InvalidInputError(f"the address of a token store begins with one of {known}")
    return opener(rest)


@boundary
def open_async_token_store(url: str) -> AsyncTokenStore:
    """Open the token store at an address, with coroutines.

    PostgreSQL's store runs on one event loop, without threads. The others run in threads of their own.

    Args:
        url: as for `open_token_store`.

    Raises:
        InvalidInputError: the address is not one of a token store.
        ConfigurationError: the database's library is missing or too old.
    """
    if type(url) is not str or not url.startswith("postgresql:"):
        return ThreadedTokenStore(open_token_store(url))
    store: AsyncTokenStore = _postgres_store("AsyncPostgresTokenStore", url)
    return store


@boundary
def schema_sql(url: str, *, since: int | None = None) -> list[str]:
    """The SQL that makes the schema of a token store, for a database's administrator to run. Connects to nothing.

    Args:
        url: as for `open_token_store`; of PostgreSQL's, the options "schema" and "partitions" matter.
        since: a version that a database has: then what `upgrade_schema` runs there, outside a transaction.

    Raises:
        InvalidInputError: the address is not one of a database that has a schema, or the version not one that this
            release upgrades.
        ConfigurationError: the database's library is missing or too old.
    """
    if since is not None:
        check_since(since)
    if _is_sqlite(url):
        return sqlite_schema_sql() if since is None else sqlite_upgrade.upgrade_sql(since)
    place, schema, upgrade = _postgres_modules(url)
    statements: list[str] = (
        schema.schema_sql(place.schema, place.partitions)
        if since is None
        else upgrade.upgrade_sql(place.schema, since)
    )
    return statements


@boundary
def schema_status(url: str) -> SchemaStatus:
    """What a database states of its schema, whatever release made it.

    Args:
        url: as for `open_token_store`, of SQLite or PostgreSQL.

    Raises:
        InvalidInputError: the address is not one of a database that has a schema.
        ConfigurationError: nothing is provisioned there, or something else is.
        TokenStoreError: the database can not be read.
    """
    if _is_sqlite(url):
        return sqlite_upgrade.status_of(_sqlite_path(url.removeprefix("sqlite:")))
    place, _, upgrade = _postgres_modules(url)
    status: SchemaStatus = upgrade.status_of(place)
    return status


@boundary
def upgrade_schema(url: str, *, report: Report | None = None) -> SchemaStatus:
    """Upgrade the schema of a database to the version of this release, while vaults work with it.

    Those of the release before go on, as long as they run, and those of this one begin. Cut short at any point, even
    killed, it goes on when it is called again. On PostgreSQL nobody waits longer than moments; on SQLite those that
    write wait until the step is done.

    Args:
        url: as for `open_token_store`, with a role that owns the schema. Not through a pooler where an index takes
            longer to build than that lets a statement take.
        report: called with the number of statements that are done and that of all, before each and at the end.

    Raises:
        InvalidInputError: the address is not one of a database that has a schema.
        ConfigurationError: nothing is provisioned there, or the schema is newer, or too old to be upgraded.
        TokenStoreError: STORE_UPGRADING where another process does it; or the database failed, or a lock was not to
            be had: call it again.
    """
    if report is not None and not callable(report):
        raise InvalidInputError("report is called with two numbers, or None")
    tell = _tell_nobody if report is None else partial(asked, "report failed: call again", report)
    if _is_sqlite(url):
        return sqlite_upgrade.upgrade(_sqlite_path(url.removeprefix("sqlite:")), tell)
    place, _, upgrade = _postgres_modules(url)
    status: SchemaStatus = upgrade.upgrade(place, tell)
    return status


@boundary
def grants_sql(url: str, *, vault: str, auditor: str | None = None) -> list[str]:
    """The SQL that gives roles of PostgreSQL the least rights that they need. Connects to nothing.

    Args:
        url: as for `open_token_store`; the option "schema" matters.
        vault: the role that runs a vault: it may change records, and add to all else; nothing is changed or deleted.
        auditor: a role that verifies the trail and reads alone; none unless set.

    Raises:
        InvalidInputError: the address is not one of PostgreSQL, or a role's name is of another form.
        ConfigurationError: the database's library is missing or too old.
    """
    if type(url) is not str or not url.startswith("postgresql:"):
        raise InvalidInputError("a database with roles has an address that begins with postgresql:")
    place, schema, _ = _postgres_modules(url)
    statements: list[str] = schema.grants_sql(place.schema, vault, auditor)
    return statements


def _is_sqlite(url: object) -> bool:
    """Whether an address is one of SQLite; of PostgreSQL if not. Raises InvalidInputError for any other."""
    if type(url) is not str or not url.startswith(("sqlite:", "postgresql:")):
        raise InvalidInputError(
            "a database with a schema has an address that begins with sqlite: or postgresql:"
        )
    return url.startswith("sqlite:")


def _postgres_modules(url: str) -> tuple[PostgresAddress, ModuleType, ModuleType]:
    """The place that an address of PostgreSQL names, and the modules of schemas and of their upgrades."""
    try:
        from tokenvault.stores.postgres import address, schema, upgrade  # noqa: PLC0415 # as for a store
    except ImportError:
        raise ConfigurationError(_NO_PSYCOPG, code="STORE_LIBRARY_MISSING") from None
    return address.parse_address(url), schema, upgrade


def _tell_nobody(_done: int, _total: int) -> None:
    """Tell nobody of an upgrade's progress."""


def _open_memory(rest: str) -> TokenStore:
    if rest:
        raise InvalidInputError("a token store in memory has the address 'memory:' and nothing after it")
    return MemoryTokenStore()


def _open_sqlite(rest: str) -> TokenStore:
    return SqliteTokenStore(_sqlite_path(rest))


def _sqlite_path(rest: str) -> str:
    """The path of a SQLite file in its address, after "sqlite:". Raises InvalidInputError."""
    path = rest.removeprefix("///")
    if path == rest or not path:
        raise InvalidInputError(
            "a SQLite file has the address 'sqlite:///relative.db' or 'sqlite:////absolute.db'"
        )
    if path == ":memory:":
        raise InvalidInputError("a token store in memory has the address 'memory:'")
    if "?" in path or "#" in path:
        raise InvalidInputError(
            "a SQLite address takes no options; '?' and '#' in a path are '%3F' and '%23'"
        )
    try:
        path = urllib.parse.unquote(path, errors="strict")
    except ValueError:  # raised again outside: a decoding error holds the text
        path = "\0"
    if "\0" in path:
        raise InvalidInputError("the path in a SQLite address is percent-encoded UTF-8")
    return path


def _open_postgres(rest: str) -> TokenStore:
    store: TokenStore = _postgres_store("PostgresTokenStore", f"postgresql:{rest}")
    return store


def _postgres_store(name: str, url: str) -> Any:
    try:
        store = __getattr__(name)
    except ImportError:
        store = None
    if store is None:
        raise ConfigurationError(_NO_PSYCOPG, code="STORE_LIBRARY_MISSING")
    return store(url)


def __getattr__(name: str) -> Any:
    if name in ("PostgresTokenStore", "AsyncPostgresTokenStore"):
        from tokenvault.stores.postgres import store  # noqa: PLC0415 # see above

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_NO_PSYCOPG: Final = (
    "a token store in PostgreSQL needs psycopg 3.3 or newer: pip install 'payment-tokenvault[postgres]'"
)
_SCHEMES: Final[dict[str, Callable[[str], TokenStore]]] = {
    "memory": _open_memory,
    "sqlite": _open_sqlite,
    "postgresql": _open_postgres,
}
"""How to open each kind of address, by what stands before its first colon."""
