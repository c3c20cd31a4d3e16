"""Time zones: those of the tzdata package, whatever the host has, so that all hosts agree on where a day begins."""

from __future__ import annotations

import functools
from datetime import UTC, date, datetime
from importlib import resources
from typing import Final
from zoneinfo import ZoneInfo

from tokenvault.errors import InvalidInputError
from tokenvault.model.plain_text import plain_text

_TZDATA: Final = resources.files("tzdata")
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@functools.cache
def zone_names() -> frozenset[str]:
    """The names of all time zones."""
    return frozenset(_TZDATA.joinpath("zones").read_text(encoding="ascii").split())


def zone_of(name: object) -> ZoneInfo:
    """The time zone of a name such as "Asia/Shanghai". Raises InvalidInputError."""
    text = plain_text(name)
    if not isinstance(text, str) or text not in zone_names():
        raise InvalidInputError(
            'a zone is the name of a time zone, such as "UTC" or "Europe/Paris"', code="ZONE_UNKNOWN"
        )
    return _zone(text)


@functools.cache  # as many as there are zones, some 600
def _zone(name: str) -> ZoneInfo:
    with _TZDATA.joinpath("zoneinfo", *name.split("/")).open("rb") as data:
        return ZoneInfo.from_file(data, key=name)


def day_of(zone: str, now_ms: int) -> int:
    """The date of an instant in a time zone, in days of the epoch."""
    return datetime.fromtimestamp(now_ms // 1_000, zone_of(zone)).toordinal() - _EPOCH_ORDINAL


def day_begin_ms(zone: str, day: int) -> int:
    """The first instant of a day of the epoch in a time zone, in milliseconds of the Unix epoch.

    That is local midnight; where it comes twice, the first of the two; where it is skipped, the first instant after.
    """
    # Midnight by the clock as it was before it: where that hour is skipped, the clock is set forward just then.
    midnight = datetime.fromordinal(day + _EPOCH_ORDINAL).replace(tzinfo=zone_of(zone))
    since = midnight.astimezone(UTC) - _EPOCH
    return 1_000 * (since.days * 86_400 + since.seconds)
