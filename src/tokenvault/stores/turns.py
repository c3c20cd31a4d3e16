"""A turn that nobody waits for: who comes while another has it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import give_all, put_result

_BUSY: Final = "another thread or task works in this transaction: one at a time does"


@contextmanager
def one_at_a_time(turn: list[None]) -> Iterator[None]:
    """Have the turn, which is in the list while nobody has it. Raises TokenStoreError where somebody has."""
    taken: list[None] = []
    try:
        with suppress(IndexError):
            put_result(taken, turn.pop)
        if not taken:
            raise TokenStoreError(_BUSY, code="TRANSACTION_BUSY")
        yield
    finally:
        with suppress(IndexError):
            give_all(taken, turn.append)
