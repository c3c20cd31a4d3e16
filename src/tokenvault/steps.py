"""Steps that nothing comes between: no exception of a signal's handler, and no other thread.

A handler that raises (a time limit of a task queue, `signal.alarm`), and an exception that a thread sets in another,
strike where the interpreter looks for them: at the start of a Python function, at a jump back, and behind each call.
So a function written in C that calls no Python function is one step: the exception comes before it or after it. The
steps here hand something over from one place to another, so that it is in one of the two at any instant: whoever
finds the place, finds what is in it, also if the caller is gone.

What follows for code that has to give something back: the place is made before the `try`, filled by one step within
it, and emptied by one step that is the first call of the `finally`, not by a Python function of its own.
docs/decisions/13-interrupts.md tells how this was found out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import repeat, starmap
from typing import Protocol, TypeVar

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class Closable(Protocol):
    """What can be closed, more than once."""

    def close(self) -> None:
        """Close it."""


C = TypeVar("C", bound=Closable)


def put_result(place: list[T], function: Callable[..., T], *arguments: object) -> None:
    """Call a function written in C, and put what it returns at the end of a list. Raises what it raises."""
    place.extend(starmap(function, (arguments,)))


def give_all(source: list[T], give: Callable[[T], object]) -> None:
    """Call a function written in C with each item of a list, which is empty then. Raises IndexError as `move_all`."""
    deque(map(give, map(list.pop, repeat(source, len(source)))), maxlen=0)


def move_all(source: dict[K, V], target: dict[K, V]) -> None:
    """Move all items of a dict to another. Raises KeyError where another thread took some: none is left then."""
    target.update(map(dict.popitem, repeat(source, len(source))))


def move(key: K, source: dict[K, V], target: dict[K, V]) -> None:
    """Move one item of a dict to another. Raises KeyError where it is not there."""
    target.update(zip((key,), map(source.pop, (key,)), strict=True))


def close_all(place: list[C]) -> None:
    """Close what is in a list; each stays there until it is closed."""
    while place:
        last = place[-1]
        last.close()
        with suppress(ValueError):  # another thread closed it too
            place.remove(last)
