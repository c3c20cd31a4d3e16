"""Enumerations of the public face: what their look-up refuses shows no value."""

from __future__ import annotations

import enum
from typing import Any, NoReturn

from tokenvault.errors import ArgumentsError, InvalidInputError, boundary


class _BoundedEnum(enum.EnumMeta):
    """Looking up a value is a public call of each enumeration."""

    @boundary
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # the class of a class
        if len(args) != 1 or kwargs:
            raise ArgumentsError(f"{cls.__name__} takes one value")
        return super().__call__(*args)


class Words(enum.Enum, metaclass=_BoundedEnum):
    """An enumeration of words. A value that it does not have is refused with the words that it has."""

    __hash__ = (
        object.__hash__
    )  # each is looked up in tables all the time, and Enum's own is written in Python

    @classmethod
    def _missing_(cls, _value: object) -> NoReturn:
        raise InvalidInputError(f"a {cls.__name__} is one of: {', '.join(repr(each.value) for each in cls)}")
