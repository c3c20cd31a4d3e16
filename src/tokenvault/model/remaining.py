"""What is left of the limits of a token."""

from __future__ import annotations

from datetime import datetime

import attrs

from tokenvault.errors import boundary_init
from tokenvault.model import checks
from tokenvault.model.counters import Usage
from tokenvault.model.limits import Limit
from tokenvault.model.restrictions import Restrictions


@boundary_init
@attrs.frozen
class Remaining:
    """What is left of a limit.

    Attributes:
        limit: the limit.
        used: uses, or minor units of its amount's currency, in the window of now.
        left: likewise.
        resets_at: when the window ends, in UTC; None for a token's life.
    """

    limit: Limit
    used: int
    left: int
    resets_at: datetime | None


def remaining(restrictions: Restrictions, usage: Usage, now_ms: int) -> tuple[Remaining, ...]:
    """What is left of each limit, document by document.

    Args:
        restrictions: the documents that apply.
        usage: of the token.
        now_ms: the time, in milliseconds of the Unix epoch.
    """
    found = []
    for velocity in restrictions.velocity_limits:
        window = velocity.limit.window(now_ms)
        used = min(velocity.most, usage.used(velocity.key_in(usage), window.number))
        resets_at = None if velocity.limit.per is None else checks.utc(window.ends_ms)
        found.append(Remaining(velocity.limit, used, velocity.most - used, resets_at))
    return tuple(found)
