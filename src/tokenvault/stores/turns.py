"""A turn that nobody waits for: who comes while another has it is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import put_result

T = TypeVar("T")

_BUSY: Final = "another thread or task works in this transaction: one at a time does"


async def in_turn(turn: list[None], work: Callable[[], Awaitable[T]]) -> T:
    """Do a piece of work in the turn, which is in the list while nobody has it. Its result.

    No context manager: an exception between its `__enter__` and the block would keep the turn for as long as it is
    handled itself.

    Raises:
        TokenStoreError: somebody has the turn.
    """
    taken: list[None] = []
    try:
        with suppress(IndexError):
            put_result(taken, turn.pop)
        if not taken:
            raise TokenStoreError(_BUSY, code="TRANSACTION_BUSY")
        return await work()
    finally:
        turn.extend(taken)
