"""Texts of callers."""

from __future__ import annotations

from typing import TypeVar, cast

T = TypeVar("T")


def plain_text(value: T) -> T:
    """The text of an instance of a subclass of str, which may have methods of its own; anything else as it is.

    Such as numpy.str_, or an enumeration's member.
    """
    return cast(T, str.__str__(value)) if isinstance(value, str) else value


def plain_field(value: str) -> str:
    """As `plain_text`, with a type that attrs can take for that of a field."""
    return plain_text(value)


def plain_optional(value: str | None) -> str | None:
    """As `plain_field`, of one that may be unset."""
    return plain_text(value)
