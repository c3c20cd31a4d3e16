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

ANSWER_MARGIN_SECONDS: Final = 5
"""How much longer a call waits for an answer than the server takes to give up, in case the server hangs."""

CONNECTIONS: Final = 16
CONNECTIONS_MAX: Final = 1_000
WAIT_SECONDS: Final = 10
STATEMENT_SECONDS: Final = 20
SECONDS_MAX: Final = 3_600
"""Of both."""

_KEEPALIVE_SECONDS: Final = 10
_KEEPALIVES_MAX: Final = 3

_MALFORMED: Final = (
    "a PostgreSQL address is 'postgresql://user:password@host:port/database', with options of libpq and 'schema', "
    "'partitions', 'connections', 'wait_seconds' and 'statement_seconds' after a '?'; percent-encode what has a "
    "meaning in URLs"
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

_BOUNDS: Final = {
    "partitions": (0, PARTITIONS_MAX),
    "connections": (1, CONNECTIONS_MAX),
    "wait_seconds": (0, SECONDS_MAX),
    "statement_seconds": (1, SECONDS_MAX),
}
"""The numbers of an address, with the least and the most that each may be."""

_is_count: Final = re.compile("[0-9]{1,4}").fullmatch
_is_schema: Final = re.compile("[a-z_][a-z0-9_]{0,62}").fullmatch


@attrs.frozen
class PostgresAddress:
    """The place of a token store.

    Attributes:
        parameters: those of libpq, including the password.
        schema: that the tables lie in; its name needs no quotes.
        partitions: of the table of tokens, where it is made; 0 is a plain table.
        connections: the most that are open, for each store and process.
        wait_seconds: how long a caller waits for one of them to come free.
        statement_seconds: how long the server works on one statement, waiting for locks included, before it gives
            up. Behind a pooler the server is not told: the call gives up a little later.
    """

    parameters: dict[str, str] = attrs.field(repr=False)
    schema: str
    partitions: int = 0
    connections: int = CONNECTIONS
    wait_seconds: int = WAIT_SECONDS
    statement_seconds: int = STATEMENT_SECONDS

    @property
    def answer_seconds(self) -> float:
        """How long a call waits for an answer."""
        return self.statement_seconds + ANSWER_MARGIN_SECONDS

    @property
    def options(self) -> str:
        """Settings for the server that the address gives, as libpq sends them; a pooler may refuse them."""
        return self.parameters.get("options", "")

    def __attrs_post_init__(self) -> None:
        if type(self.schema) is not str or not _is_schema(self.schema) or self.schema.startswith("pg_"):
            raise InvalidInputError(
                "a schema's name is 1 to 63 of a-z, 0-9 and '_', not beginning with a digit or 'pg_'"
            )
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise InvalidInputError(f"{name} is a whole number from {least} to {most}")


def parse_address(url: str, schema: str | None = None, **numbers: int | None) -> PostgresAddress:
    """Parse an address; `schema`, and what is given of `partitions` and the other numbers, override its own.

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
    counts = {name: int(own[name]) if _is_count(own[name]) else -1 for name in _BOUNDS if name in own}
    counts |= {name: number for name, number in numbers.items() if number is not None}
    return PostgresAddress(
        {**_DEFAULTS, **given, "client_encoding": "UTF8"},
        own.get("schema", SCHEMA_NAME) if schema is None else schema,
        **counts,
    )


def _without_own_options(url: str) -> tuple[str, dict[str, str]]:
    base, mark, query = url.partition("?")
    own: dict[str, str] = {}
    others: list[str] = []
    for option in query.split("&") if mark else ():
        name, _, value = option.partition("=")
        if name in ("schema", *_BOUNDS) and name not in own:
            own[name] = urllib.parse.unquote(value)
        else:
            others.append(option)
    return base + ("?" + "&".join(others) if others else ""), own
