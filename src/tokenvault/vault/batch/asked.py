"""What a batch of uses asks for, item by item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from tokenvault.errors import InvalidInputError
from tokenvault.model.transaction import Transaction
from tokenvault.vault import arguments
from tokenvault.vault.batch.results import ChunkResults

Name: TypeAlias = str | bytes
"""A token, or a reference of 16 bytes."""

Use: TypeAlias = tuple[Name, Transaction]
"""A requested use: a token and its transaction."""


def uses_of(items: Sequence[Any], results: ChunkResults[Any]) -> dict[int, Use]:
    """The uses by their row; an item that is no use fails."""
    found = {}
    for row, item in enumerate(items):
        try:
            found[row] = _use(item)
        except InvalidInputError as error:
            results.fail(row, error)
    return found


def _use(item: object) -> Use:
    if (type(item) is not tuple and type(item) is not list) or len(item) != 2:
        raise InvalidInputError("each use is a pair of token and transaction")
    name = arguments.token_or_reference(item[0])
    if type(item[0]) is not str:  # it could compare unlike its digits
        raise InvalidInputError("a token is a str of 13 to 19 ASCII digits")
    return name, arguments.transaction(item[1])
