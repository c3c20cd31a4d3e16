"""What a session of PostgreSQL is set to, with and without a pooler in between.

A startup parameter `options` would set it, but PgBouncer and RDS Proxy refuse connections that send one. And behind
a pooler that hands out a server's session for one transaction, a SET would stay with that session, for whoever
comes next. So only a session that belongs to its connection is set; of any other it is asked whether it fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tokenvault.errors import ConfigurationError

OLDEST_SERVER: Final = 12
"""The first version of PostgreSQL that the store works with: it is the first that has `plan_cache_mode`."""

_ISOLATION: Final = "read committed"

_SETTINGS: Final = {
    "default_transaction_isolation": _ISOLATION,
    "jit": "off",  # compiling takes longer than any statement of ours
    # Every statement follows an index, whatever its values and however small the tables were when it was prepared.
    # Planning it again for ten thousand values takes longer than running it.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
}
"""Whatever the server, the database or the role is set to."""

_LONG_VERSIONS: Final = 10
"""Up to here, the first two numbers of a version name a release, as in 9.6."""

_NOT_DURABLE: Final = (
    "synchronous_commit is off in PostgreSQL: what a vault acknowledges could be lost with the server's power. Set it"
    " to on for the vault's role: ALTER ROLE ... SET synchronous_commit = on"
)
_ISOLATED: Final = (
    "default_transaction_isolation is not 'read committed' in PostgreSQL, and behind a pooler the store can not set"
    " it. Set it for the vault's role: ALTER ROLE ... SET default_transaction_isolation = 'read committed'"
)


def question(backend_pid: int) -> str:
    """The SELECT whose one row begins with what `check_server` reads, and goes on with what `is_own` does.

    The version is asked for: the one that a pooler tells to its clients can be made up.

    Args:
        backend_pid: of the server's process, as it was told to this client. A pooler tells a number of its own.
    """
    return (
        f"SELECT current_setting('server_version_num', true), pg_backend_pid() = {backend_pid},"
        " current_setting('synchronous_commit'), current_setting('default_transaction_isolation')"
    )


def check_server(version: str | None) -> None:
    """Raise ConfigurationError where the server is too old. One that has no version is taken as it is.

    Args:
        version: as PostgreSQL numbers its own, such as 150006 for 15.6 and 90624 for 9.6.24.
    """
    if version is None or not version.isdecimal() or int(version) // 10_000 >= OLDEST_SERVER:
        return
    major, rest = divmod(int(version), 10_000)
    found = f"{major}.{rest // 100 if major < _LONG_VERSIONS else rest}"
    raise ConfigurationError(
        f"the server is PostgreSQL {found}, and tokenvault needs {OLDEST_SERVER} or later",
        code="STORE_SERVER_TOO_OLD",
    )


def is_own(row: Sequence[Any], options: str) -> bool:
    """Whether a session belongs to its connection, so that what is set and prepared there stays.

    Args:
        row: of `question`, without the version.
        options: that the address gives; a setting named there is the operator's own choice.

    Raises:
        ConfigurationError: it is set to what a vault can not work with.
    """
    own, synchronous_commit, isolation = row
    if synchronous_commit == "off" and not _is_given("synchronous_commit", options):
        raise ConfigurationError(_NOT_DURABLE, code="STORE_NOT_DURABLE")
    if not own and isolation != _ISOLATION:
        raise ConfigurationError(_ISOLATED, code="STORE_ISOLATION")
    return bool(own)


def setting(options: str, statement_seconds: int) -> str:
    """The statements that set a session, but for what the options of the address set."""
    settings = {"statement_timeout": f"{statement_seconds}s", **_SETTINGS}
    return "; ".join(
        f"SET {name} = '{value}'" for name, value in settings.items() if not _is_given(name, options)
    )


def _is_given(name: str, options: str) -> bool:
    """Whether options name a setting: -c name=value, or --name=value with dashes."""
    return f"{name}=" in options.lower().replace("-", "_")
