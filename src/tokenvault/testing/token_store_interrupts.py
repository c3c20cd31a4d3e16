"""Conformance of token stores: what is left of a write that an interrupt struck."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final

import pytest

from tokenvault.stores.port import SealedEvent, SealedRecord, TokenStore
from tokenvault.testing.token_store_harness import a_record, an_event, as_read, assert_counted, replaced
from tokenvault.testing.token_store_many import ManyContract

INTERRUPTS_MAX: Final = 25  # of each kind of write
_LOCKING: Final = ("__enter__", "__exit__", "__aenter__", "__aexit__", "acquire", "_acquire_restore")

_HALF: Final = (
    "an interrupt left {} half done: the store writes it in more than one transaction, or commits what was done by "
    "then instead of undoing it; a write undoes itself on BaseException, before anything else uses its connection"
)


class InterruptsContract(ManyContract):
    """Nobody is left with a part of a write that an exception out of a signal handler ended."""

    # What an interrupt drops is warned of, and where it strikes a destructor nobody hears of it.
    @pytest.mark.filterwarnings(
        "ignore:coroutine .* was never awaited:RuntimeWarning",
        "ignore::ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
    )
    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("kind", ["insert", "replace", "append", "prune"])
    def test_an_interrupted_write(self, store: TokenStore, kind: str, count: int) -> None:
        """An exception out of a signal handler, wherever a write is by then, leaves all of it or nothing.

        Each interrupt is followed by a write through the same store, which has to succeed, and to leave the
        interrupted one as it is.
        """
        numbers = itertools.count(1)

        writes: dict[str, _Write] = {
            "insert": store.insert,
            "replace": store.replace,
            "append": lambda _, events: store.append(events),
            "prune": lambda records, events: store.prune(events, [(each.token, 1) for each in records]),
        }
        write = writes[kind]

        def prepare() -> tuple[list[SealedRecord], list[SealedEvent]]:
            first = count * next(numbers)
            records = [a_record(first + n) for n in range(count)]
            events = [an_event(first + n, reference=record.reference) for n, record in enumerate(records)]
            if kind in ("replace", "prune"):
                assert store.insert(records, events if kind == "prune" else []) == []
            if kind == "replace":
                records = [replaced(record)._replace(status=7) for record in records]
            return [] if kind == "append" else records, events

        written = []
        for place in spread(_interrupted_at(None, write, *prepare())):
            records, events = prepare()
            _interrupted_at(place, write, records, events)
            assert not write(*prepare()), "a write after an interrupted one is refused"
            written.append((records, events))
        for records, events in written:
            assert _is_whole(store, records, events), _HALF.format(f"{kind} of {count}")
        assert_counted(store)
        gc.collect()  # here, where the warnings are expected


_Write = Callable[[list[SealedRecord], list[SealedEvent]], object]


class _Interrupt(BaseException):
    """What a signal handler raises, such as KeyboardInterrupt."""


def _interrupted_at(
    place: int | None, write: _Write, records: list[SealedRecord], events: list[SealedEvent]
) -> int:
    """Write, and interrupt it at the nth place where a signal handler may run, or nowhere; gives how many there were.

    Python runs signal handlers in the main thread, where a function begins and where one in C has returned: what they
    raise comes out of the code that was under way, as this exception does. Left out is the moment between a lock and
    the block that gives it back, in which no code can be safe.
    """
    places = itertools.count()

    def profile(frame: FrameType, kind: str, called: object) -> None:
        name = frame.f_code.co_name if kind == "call" else getattr(called, "__name__", "")
        locking = name in _LOCKING or frame.f_globals.get("__name__") == "threading"
        if kind in ("call", "c_return") and not locking and next(places) == place:
            sys.setprofile(before)
            raise _Interrupt

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        write(records, events)
    except _Interrupt:
        pass
    finally:
        sys.setprofile(before)
    return next(places)


def spread(count: int, most: int = INTERRUPTS_MAX) -> list[int]:
    """Numbers below a count, from the first to the last and evenly apart; at most so many."""
    points = min(count, most)
    return [n * (count - 1) // max(1, points - 1) for n in range(points)]


def _is_whole(store: TokenStore, records: list[SealedRecord], events: list[SealedEvent]) -> bool:
    """Whether all of a write stands, or nothing.

    Looked at twice: the server of a database may still be at work for a connection that was interrupted.
    """

    def look() -> int:
        found = [record for record in store.get([record.token for record in records]) if record in records]
        noted = [store.events(event.stream, after=event.number - 1, limit=1) for event in events]
        led_to = [store.events_about(event.reference).events for event in events]
        return (
            len(found)
            + sum(as_read(event) == there for event, there in zip(events, noted, strict=True))
            + sum(as_read(event) == there for event, there in zip(events, led_to, strict=True))
        )

    return any(look() in (0, len(records) + 2 * len(events)) for _ in range(2))
