"""What lists of values allow: those of a set, or all but those of a set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeAlias, TypeVar, cast

import attrs

from tokenvault.errors import InvalidInputError, boundary_init
from tokenvault.model import checks

T = TypeVar("T")


def _values(values: Iterable[T]) -> frozenset[T]:
    return cast("frozenset[T]", values)


@boundary_init
@attrs.frozen
class AllBut(Generic[T]):
    """Every value but those of a set. A transaction that says nothing of it is not among them.

    Raises:
        InvalidInputError: not a set of 1 to 10,000 values.
    """

    values: frozenset[T] = attrs.field(converter=_values)

    def __attrs_post_init__(self) -> None:
        values = checks.set_of("AllBut", self.values, _hashable)
        object.__setattr__(self, "values", values)

    def __contains__(self, value: object) -> bool:
        return value is not None and value not in self.values


Listing: TypeAlias = frozenset[T] | AllBut[T]
"""What a list allows."""


def listing_of(name: str, values: object, check: Callable[[object], T]) -> Listing[T]:
    """A set of checked values, or all but such a set. Raises InvalidInputError."""
    if isinstance(values, AllBut):
        return AllBut(checks.set_of(name, values.values, check))
    return checks.set_of(name, values, check)


def in_categories(listing: Listing[str], category: str | None) -> bool:
    """Whether a list of merchant categories and ranges of them, such as "3000-3999", allows a category."""
    if category is None:
        return False
    if isinstance(listing, AllBut):
        return not _within(listing.values, category)
    return _within(listing, category)


def _within(values: frozenset[str], category: str) -> bool:
    return category in values or any(item[:4] <= category <= item[-4:] for item in values if len(item) > 4)


def _hashable(value: object) -> object:
    try:
        hash(value)
    except TypeError:
        raise InvalidInputError("AllBut takes a set of values") from None
    return value
