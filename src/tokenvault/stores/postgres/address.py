"""The address of a token store in PostgreSQL, and how a connection to it is set up."""

from __future__ import annotations

import re
import urllib.parse
from typing import Final

import attrs
import psycopg
from psycopg.conninfo import conninfo_to_dict

from tokenvault.errors import InvalidInputError

SCHEMA_NAME: Final = "tokenvault"
PARTITIONS_MAX: Final = 1_024

CONNECT_SECONDS_MAX: Final = 5
"""How long a server may take to accept a connection."""

STATEMENT_SECONDS_MAX: Final = 20
"""How long the server works on one statement, waiting for locks included, before it gives up."""

ANSWER_SECONDS_MAX: Final = 25
"""How long a call waits for an answer: longer than the server takes to give up, in case the server hangs."""

_KEEPALIVE_SECONDS: Final = 10
_KEEPALIVES_MAX: Final = 3

_MALFORMED: Final = (
    "a PostgreSQL address is 'postgresql://user:password@host:port/database', with options of libpq and 'schema' and "
    "'partitions' after a '?'; percent-encode what has a meaning in URLs"
)
_DEFAULTS: Final = {
    "application_name": "tokenvault",
    "connect_timeout": str(CONNECT_SECONDS_MAX),
    # Of several hosts, connect to the one that takes writes.
    "target_session_attrs": "read-write",
    # A server that vanishes without a word, such as a machine that loses its power.
    "keepalives_idle": str(_KEEPALIVE_SECONDS),
    "keepalives_interval": str(_KEEPALIVE_SECONDS),
    "keepalives_count": str(_KEEPALIVES_MAX),
    "tcp_user_timeout": str(_KEEPALIVE_SECONDS * _KEEPALIVES_MAX * 1_000),
}

_is_count: Final = re.compile("[0-9]{1,4}").fullmatch
_is_schema: Final = re.compile("[a-z_][a-z0-9_]{0,62}").fullmatch


@attrs.frozen
class PostgresAddress:
    """The place of a token store.

    Attributes:
        parameters: those of libpq, including the password.
        schema: that the tables lie in; its name needs no quotes.
        partitions: of the table of tokens, where it is made; 0 is a plain table.
    """

    parameters: dict[str, str] = attrs.field(repr=False)
    schema: str
    partitions: int

    @property
    def options(self) -> str:
        """Settings for the server that the address gives, as libpq sends them; a pooler may refuse them."""
        return self.parameters.get("options", "")

    def __attrs_post_init__(self) -> None:
        if type(self.schema) is not str or not _is_schema(self.schema) or self.schema.startswith("pg_"):
            raise InvalidInputError(
                "a schema's name is 1 to 63 of a-z, 0-9 and '_', not beginning with a digit or 'pg_'"
            )
        if type(self.partitions) is not int or not 0 <= self.partitions <= PARTITIONS_MAX:
            raise InvalidInputError(f"partitions is a whole number from 0 to {PARTITIONS_MAX}")


def parse_address(url: str, schema: str | None = None, partitions: int | None = None) -> PostgresAddress:
    """Parse an address; the arguments `schema` and `partitions` override its own.

    Raises:
        InvalidInputError: it is not of the form that the message says.
    """
    if type(url) is not str or not url.startswith("postgresql://") or "\0" in url:
        raise InvalidInputError(_MALFORMED)
    url, own = _without_own_options(url)
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except (psycopg.Error, ValueError):  # raised again outside: the error holds the text
        given = {}
    if not given and url != "postgresql://":
        raise InvalidInputError(_MALFORMED)
    count = own.get("partitions", "0")
    partitions_of_url = int(count) if _is_count(count) else -1
    return PostgresAddress(
        {**_DEFAULTS, **given, "client_encoding": "UTF8"},
        own.get("schema", SCHEMA_NAME) if schema is None else schema,
        partitions_of_url if partitions is None else partitions,
    )


def _without_own_options(url: str) -> tuple[str, dict[str, str]]:
    base, mark, query = url.partition("?")
    own: dict[str, str] = {}
    others: list[str] = []
    for option in query.split("&") if mark else ():
        name, _, value = option.partition("=")
        if name in ("schema", "partitions") and name not in own:
            own[name] = urllib.parse.unquote(value)
        else:
            others.append(option)
    return base + ("?" + "&".join(others) if others else ""), own
