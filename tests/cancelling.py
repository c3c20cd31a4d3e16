"""Cancels a coroutine wherever it can be cancelled, one place after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class CancelledAt(Generic[T]):
    """Awaits a call and cancels it where it suspends for the given time, counted from 0.

    With `late`, once what it waits for there has come, and it does not know yet.
    """

    def __init__(self, call: Coroutine[Any, Any, T], at: int, *, late: bool = False) -> None:
        self.call = call
        self.at = at
        self.late = late
        self.reached = False

    def __await__(self) -> Generator[Any, Any, T]:
        inner = self.call.__await__()
        step = inner.send
        value: Any = None
        count = 0
        while True:
            try:
                waited_for = step(value)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if count == self.at and not self.reached:
                self.reached = True
                if self.late:
                    yield waited_for
                elif asyncio.isfuture(waited_for):
                    waited_for._asyncio_future_blocking = False
                    waited_for.cancel()
                try:
                    waited_for = inner.throw(asyncio.CancelledError())
                except StopIteration as stop:
                    result = stop.value
                    return result
            count += 1
            value = yield waited_for
