"""For how long is kept what need not be kept for ever."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

import attrs

from tokenvault.errors import InvalidInputError, boundary_init
from tokenvault.model import checks

DAYS_MIN: Final = 90
"""PCI DSS 4.0.1, 10.5.1, wants three months of the trail at hand; and what holds for the moment is younger by far."""

DAYS_MAX: Final = 36_500
DAY_SECONDS: Final = 86_400


def _names(values: Iterable[str]) -> frozenset[str]:
    given = checks.listed("random_programs", values, checks.SET_SIZE_MAX)
    if len(given) > checks.SET_SIZE_MAX:
        raise InvalidInputError(f"random_programs are at most {checks.SET_SIZE_MAX} names")
    return frozenset([checks.text("random_programs", each) for each in given])


@boundary_init
@attrs.frozen(kw_only=True)
class Retention:
    """For how long a purge leaves tombstones, uses and events; each from 90 days on, and None for ever.

    Attributes:
        tombstones: after the deletion of the token. One whose limits still count for its card stays: see
            `random_programs`.
        uses: after the last event of a use: from then on it is no retry, and has nothing to refund.
        events: all other events, for PCI DSS 10.5.1 at least 12 months, of which the last three at hand.
        random_programs: names of programs whose tokens are drawn at random. Nothing is counted on after the deletion
            of such a token, so that its tombstone need not stay.
        archive: whether uses and events have to go to an archive first.

    Raises:
        InvalidInputError: an attribute has another form, or is out of its range.
    """

    tombstones: timedelta | None = None
    uses: timedelta | None = None
    events: timedelta | None = None
    random_programs: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    archive: bool = True

    def __attrs_post_init__(self) -> None:
        for name in ("tombstones", "uses", "events"):
            value = getattr(self, name)
            if value is not None and checks.whole_seconds(name, value, DAYS_MAX * DAY_SECONDS) < timedelta(
                days=DAYS_MIN
            ):
                raise InvalidInputError(f"{name} is {DAYS_MIN} days or more")
        checks.true_or_false("archive", self.archive)
