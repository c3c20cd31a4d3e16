"""What a convergent token is derived from, and what is counted of a card whose tokens were deleted or moved."""

from __future__ import annotations

from typing import Final

from tokenvault.audit.event import Action
from tokenvault.errors import LifecycleError
from tokenvault.model.counters import COUNTERS_MAX, Usage
from tokenvault.model.programs import TokenProgram
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.orders import Order

CANDIDATES_MAX: Final = 64
"""Convergent candidates tried before the space counts as exhausted."""


def scope_of(requestor: str, program: TokenProgram, customer: str, source: bytes) -> tuple[str, str, str]:
    """What a convergent token is derived from beside its card.

    Those from a token converge by themselves: who gives one does not learn whether the other has the card.
    """
    whom = customer if program.per_customer else ""
    return requestor, program.name, f"{whom}\x1f{source.hex()}" if source else whom


async def within_bounds(core: Core, order: Order, usage: Usage, now_ms: int) -> Usage:
    """What a card's tokens have used, without windows that are over where there are too many counters.

    Raises LifecycleError, once that is noted, where there are too many others: none may be forgotten.
    """
    if len(usage.counters) <= COUNTERS_MAX:
        return usage
    lasting = tuple(counter for counter in usage.counters if counter.ends_ms > now_ms)
    if len(lasting) > COUNTERS_MAX:
        error = LifecycleError("the tokens that this card had count for too many limits together")
        await core.deny(Action.ISSUE, order.terms.requestor, error.code)
        raise error
    return usage._replace(counters=lasting)


async def may_have_moved(
    core: Core, order: Order, program: TokenProgram, there: Unsealed, token: str
) -> bool:
    """Whether a token in the way may be one that the card of an order had here: given another card, or deleted.

    Not one that its own card converges on: it has it by chance. Of a deleted one nobody can tell.
    """
    record, card = there
    if (record.requestor, record.program) != (order.terms.requestor, program.name):
        return False
    if card is None:
        return True
    fingerprint = await core.runtime.call(core.keys.pan_fingerprint, card.pan)
    scope = scope_of(record.requestor, program, record.customer, record.source)
    choices = program.format.choices(len(card.pan))
    for number in range(CANDIDATES_MAX):
        drawn = await core.runtime.call(core.keys.convergent_choice, fingerprint, *scope, number)
        if program.format.make(drawn % choices, len(card.pan), card.pan.last4) == token:
            return False
    return True
