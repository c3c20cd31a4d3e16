"""Versions of a database's schema: which one this release works with, and what is said of a database of another.

A database states two numbers: up to which version its steps were taken, and the oldest release whose vaults work with
that. A step that adds leaves the second as it is, so vaults of the release before go on, and new ones begin; a later
step takes away what only those needed, and raises it. So no database is upgraded and its vaults stopped at once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeAlias

import attrs

from tokenvault.errors import ConfigurationError, InvalidInputError

SCHEMA_VERSION: Final = 4
"""That this release makes, and needs."""

OLDEST_SERVED: Final = 3
"""The oldest version whose releases work with it."""

OLDEST_UPGRADED: Final = 3
"""The oldest version that this release upgrades."""

Report: TypeAlias = Callable[[int, int], object]
"""Told how many statements of an upgrade are done, and how many there are."""


@attrs.frozen
class SchemaStatus:
    """What a database states of its schema.

    Attributes:
        version: up to which its steps were taken.
        oldest: the oldest version whose releases work with it.
        upgraded: when the last of them was; None of a version that does not say.
        needed: the version of this release.
    """

    version: int
    oldest: int
    upgraded: datetime | None = None
    needed: int = attrs.field(factory=lambda: SCHEMA_VERSION)

    @property
    def current(self) -> bool:
        """Whether this release works with it."""
        return self.oldest <= self.needed <= self.version


def check(status: SchemaStatus, place: str, remedy: str) -> None:
    """Raise ConfigurationError where this release does not work with a database.

    Args:
        status: what it states.
        place: what it is.
        remedy: what to do about one that is too old to be upgraded.
    """
    if not status.current:
        raise _objection(status, place, remedy)


def check_upgrade(status: SchemaStatus, place: str, remedy: str) -> None:
    """As `check`, but a database that this release can upgrade is fine."""
    if status.version < OLDEST_UPGRADED or status.oldest > SCHEMA_VERSION:
        raise _objection(status, place, remedy)


def check_since(since: int) -> None:
    """Raise InvalidInputError for a version that this release does not upgrade."""
    if type(since) is not int or not OLDEST_UPGRADED <= since < SCHEMA_VERSION:
        raise InvalidInputError(
            f"this release of tokenvault upgrades a schema from version {OLDEST_UPGRADED} on, to {SCHEMA_VERSION}"
        )


def _objection(status: SchemaStatus, place: str, remedy: str) -> ConfigurationError:
    """What is wrong with a database of another version, and what to do."""
    found = f"the {place} has schema version {status.version}"
    if status.oldest > SCHEMA_VERSION:
        return ConfigurationError(
            f"{found}, for releases of tokenvault that know version {status.oldest}; this one knows {SCHEMA_VERSION}:"
            " install the release that wrote it, or a later one",
            code="STORE_NEWER",
        )
    advice = (
        f"upgrades none before {OLDEST_UPGRADED}: {remedy}"
        if status.version < OLDEST_UPGRADED
        else f"needs version {SCHEMA_VERSION}: run tokenvault schema upgrade, beside running vaults"
    )
    return ConfigurationError(
        f"{found}, of an older release of tokenvault; this one {advice}", code="STORE_OLDER"
    )
