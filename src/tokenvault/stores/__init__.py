"""Token stores: the port and its adapters."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from typing import Final

from tokenvault.boundary import boundary
from tokenvault.errors import InvalidInputError
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import TokenStore
from tokenvault.stores.sqlite import SqliteTokenStore

__all__ = ["MemoryTokenStore", "SqliteTokenStore", "TokenStore", "open_token_store"]


@boundary
def open_token_store(url: str) -> TokenStore:
    """Open the token store at an address.

    Args:
        url: "memory:" keeps everything in this process, for tests. "sqlite:///vault.db" is a file under
            the current folder, "sqlite:////var/lib/vault.db" an absolute path; a percent sign, '?' and '#'
            in a path are "%25", "%3F" and "%23". No address takes options.

    Opening creates nothing: `tokenvault.provision` does that, once.

    Raises:
        InvalidInputError: the address is none of these.
        ConfigurationError: the database's library is too old.
    """
    if type(url) is not str:
        raise InvalidInputError("the address of a token store is a str such as 'sqlite:///vault.db'")
    scheme, colon, rest = url.partition(":")
    opener = _SCHEMES.get(scheme) if colon else None
    if opener is None:
        known = ", ".join(f"{name}:" for name in _SCHEMES)
        raise InvalidInputError(f"the address of a token store begins with one of {known}")
    return opener(rest)


def _open_memory(rest: str) -> TokenStore:
    if rest:
        raise InvalidInputError("a token store in memory has the address 'memory:' and nothing after it")
    return MemoryTokenStore()


def _open_sqlite(rest: str) -> TokenStore:
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
    return SqliteTokenStore(path)


_SCHEMES: Final[dict[str, Callable[[str], TokenStore]]] = {
    "memory": _open_memory,
    "sqlite": _open_sqlite,
}
"""How to open each kind of address, by what stands before its first colon."""
