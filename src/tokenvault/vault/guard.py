"""The guard: a requestor that guesses tokens is locked out, for longer each time, until the host releases it.

What counts is what failed: tokens that are not there, each once, and uses that were refused, each transaction once
for each content that came under its id. So an honest retry counts nothing. The audit trail is the ledger of it: the
event of a failure says what it counts, and an index leads to the events of a requestor's account, the newest ones
first. Who asks for what is not there pays for that: the event is written, and then the account is read. As the event
is there before the account is read, all processes together answer no more tokens that are not there than the guard
allows.

A use that is allowed costs nothing but a look at what this process knows, and so does one that is refused. It learns
of lock-outs, and of refusals, by others with the next miss, or else after `Guard.refresh`, by one read.

State here is a dict or a tuple that one assignment replaces: nothing waits, and an interrupt leaves each whole. What
is lost of it is found again in the trail. A failure is remembered as counted only once its event is written and what
follows from it is done: if its call was given up on the way, it is counted when it comes again. It may stand in two
events then, and counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import attrs

from tokenvault.audit.batch_event import BatchEvent, parse
from tokenvault.audit.event import LOCKING, Action, Event, Outcome
from tokenvault.audit.guard_note import LEVEL_MAX, Account, Failure, FailureKind, LockOut, packed_size
from tokenvault.audit.trail import Trail
from tokenvault.errors import InvalidInputError, RequestorLockedOutError, boundary_init
from tokenvault.model import checks
from tokenvault.records.keyring import KeyRing
from tokenvault.runtime import Clock, Runtime
from tokenvault.stores.port import AsyncTokenStore
from tokenvault.vault.observer import Deliveries, LockedOut

MISSES_DEFAULT: Final = 50
REFUSALS_DEFAULT: Final = 10_000
COUNT_MAX: Final = 100_000
SPAN_SECONDS_MAX: Final = 366 * 86_400
GROWTH: Final = 4
"""By how much a lock-out is longer than the one before, up to `Guard.lock_out_max`."""

CLOCKS_APART_MS: Final = 5_000
"""How far the clocks of the processes that share a count may differ, and a write may take, so that none is missed."""

PAGE: Final = 64
"""Events of an account that are read at once: one of a batch may be 1 MiB."""

PAGES_MAX: Final = 16
"""Pages that one failure reads: a process that has just begun counts the newest events only."""

COUNTED_KEPT: Final = 4_096
"""Failures that a process remembers to have counted, so that a retry costs nothing more."""

_ACCOUNTS: Final = {FailureKind.MISS: Account.MISSES, FailureKind.REFUSAL: Account.REFUSALS}


@boundary_init
@attrs.frozen(kw_only=True)
class Guard:
    """When a requestor is locked out, and for how long.

    Attributes:
        misses: so many different tokens that do not exist, within `per`; None: these do not count.
        refusals: so many different uses that were refused, within `per`; None: these do not count.
        per: within what time.
        lock_out: how long the first lock-out is. The next one is four times as long, unless `lock_out_max` has gone
            by since.
        lock_out_max: how long one is at most.
        refresh: how soon at the latest a process learns of a lock-out, or a release, by another one; whole seconds.

    Raises:
        InvalidInputError: a value is of another form.
    """

    misses: int | None = MISSES_DEFAULT
    refusals: int | None = REFUSALS_DEFAULT
    per: timedelta = timedelta(hours=1)
    lock_out: timedelta = timedelta(minutes=5)
    lock_out_max: timedelta = timedelta(days=1)
    refresh: timedelta = timedelta(seconds=10)

    def __attrs_post_init__(self) -> None:
        for name, count in (("misses", self.misses), ("refusals", self.refusals)):
            if count is not None:
                checks.whole_number(name, count, 1, COUNT_MAX)
        for name in ("per", "lock_out", "lock_out_max", "refresh"):
            checks.whole_seconds(name, getattr(self, name), SPAN_SECONDS_MAX)
        if self.lock_out > self.lock_out_max:
            raise InvalidInputError("lock_out is at most lock_out_max")

    def most(self, kind: FailureKind) -> int | None:
        """How many failures of a kind lock out."""
        return self.misses if kind is FailureKind.MISS else self.refusals


class _Lock(NamedTuple):
    """The last lock-out or release: failures up to then are not counted any more."""

    since_ms: int = 0
    until_ms: int = 0
    level: int = -1


_RELEASED: Final = LockOut(0, -1)


@attrs.define(eq=False)
class _Known:
    """What this process knows of a requestor.

    Attributes:
        lock: the last lock-out or release.
        refreshed_ms: when that was last read.
        settled_ms: when its refusals were.
        seen: of each kind, by what failed, when it did first within `per`.
        read_to_ms: of each kind, up to what time the account was read.
        full: whether so many failures are seen that a lock-out may be due.
    """

    lock: _Lock = attrs.field(factory=_Lock)
    refreshed_ms: int | None = None
    settled_ms: int | None = None
    seen: dict[FailureKind, dict[bytes, int]] = attrs.field(factory=lambda: {kind: {} for kind in _ACCOUNTS})
    read_to_ms: dict[FailureKind, int] = attrs.field(factory=dict)
    full: bool = False


class Tally:
    """The failures of one call: they go into its event, and are settled once that is written."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self._failed: dict[tuple[str, FailureKind], set[bytes]] = {}
        self._failures: dict[Failure, None] = {}

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What the event of the call counts."""
        return tuple(self._failures)

    @property
    def size(self) -> int:
        """What that takes in the event, in bytes."""
        return packed_size(len(self._failures))

    def miss(self, requestor: str, what: bytes) -> RequestorLockedOutError | None:
        """Count what is not there. Returns the answer instead, where the requestor gets no other any more."""
        return self._add(requestor, FailureKind.MISS, what)

    def refusal(self, requestor: str, what: bytes, token: bytes | None = None) -> None:
        """Count a use that was refused; with the reference of a token, also for that one."""
        self._add(requestor, FailureKind.REFUSAL, what)
        if token is not None:
            failure = Failure(FailureKind.REFUSAL, Account.TOKEN.of(token), what)
            if not self._guards.has_counted(failure):
                self._failures[failure] = None

    def _add(self, requestor: str, kind: FailureKind, what: bytes) -> RequestorLockedOutError | None:
        before = self._failed.setdefault((requestor, kind), set())
        if what in before:
            return None
        failure = Failure(kind, _ACCOUNTS[kind].of(requestor.encode("ascii")), what)
        answer, new = self._guards.count(requestor, failure)
        if new:
            before.add(what)
            self._failures[failure] = None
        return answer

    async def settle(self) -> RequestorLockedOutError | None:
        """Count with those of other processes, and lock out who has failed too often.

        Returns the answer instead of what is not there, where others used up what the guard allows.
        """
        answer = None
        for (requestor, kind), new in self._failed.items():
            if new:
                over = await self._guards.settle(requestor, kind)
                answer = over if kind is FailureKind.MISS else answer
        self._guards.remember(self._failures)
        return answer


class Guards:
    """The guard of one vault, and what this process knows of each requestor that it has seen."""

    def __init__(
        self,
        guard: Guard,
        store: AsyncTokenStore,
        runtime: Runtime,
        clock: Clock,
        keys: KeyRing,
        trail: Trail,
        deliveries: Deliveries | None,
    ) -> None:
        self._guard: Final = guard
        self._store: Final = store
        self._runtime: Final = runtime
        self._clock: Final = clock
        self._keys: Final = keys
        self._trail: Final = trail
        self._deliveries: Final = deliveries
        self._known: Final[dict[str, _Known]] = {}
        self._counted: dict[Failure, None] = {}

    # What this process knows.

    def locked_out(self, requestor: str) -> RequestorLockedOutError | None:
        """The answer to a requestor that is locked out, as far as is known here."""
        known, now_ms = self._of(requestor), self._clock.now_ms()
        if now_ms < known.lock.until_ms:
            return _locked_out(known.lock.until_ms)
        if known.full and any(self._over(known, kind, now_ms) for kind in _ACCOUNTS):
            return _locked_out(self._next(known.lock, now_ms).until_ms)
        return None

    def count(self, requestor: str, failure: Failure) -> tuple[RequestorLockedOutError | None, bool]:
        """Count a failure. Returns the answer to who is locked out, and whether an event has to count it."""
        kind, _, what = failure
        most, now_ms = self._guard.most(kind), self._clock.now_ms()
        if most is None:
            return None, False
        known = self._of(requestor)
        seen = known.seen[kind]
        if seen.get(what, 0) > self._begin(now_ms):
            return None, not self.has_counted(failure)
        if (answer := self.locked_out(requestor)) is not None:
            return answer, False
        if len(seen) > 2 * most:
            begin = self._begin(now_ms)
            known.seen[kind] = seen = {key: time for key, time in list(seen.items()) if time > begin}
        seen[what] = now_ms
        if self._over(known, kind, now_ms):
            known.full = True
        return None, True

    def has_counted(self, failure: Failure) -> bool:
        """Whether an event of this process is known to count a failure, and nothing is left to be done."""
        return failure in self._counted

    def remember(self, failures: Iterable[Failure]) -> None:
        """Remember failures as counted."""
        for failure in failures:
            if len(self._counted) >= COUNTED_KEPT:
                self._counted = {}
            self._counted[failure] = None

    def _of(self, requestor: str) -> _Known:
        return self._known.get(requestor) or self._known.setdefault(requestor, _Known())

    def _begin(self, now_ms: int) -> int:
        return now_ms - _milliseconds(self._guard.per)

    def _live(self, known: _Known, kind: FailureKind, now_ms: int) -> int:
        begin = max(self._begin(now_ms), known.lock.since_ms)
        return sum(time > begin for time in list(known.seen[kind].values()))

    def _over(self, known: _Known, kind: FailureKind, now_ms: int) -> bool:
        most = self._guard.most(kind)
        return most is not None and len(known.seen[kind]) >= most <= self._live(known, kind, now_ms)

    def _next(self, lock: _Lock, now_ms: int) -> _Lock:
        """The lock-out that comes after another."""
        longest = _milliseconds(self._guard.lock_out_max)
        level = lock.level + 1 if now_ms < lock.until_ms + longest else 0
        spans = [_milliseconds(self._guard.lock_out)]
        while spans[-1] < longest and len(spans) <= level:
            spans.append(GROWTH * spans[-1])
        return _Lock(now_ms, now_ms + min(spans[-1], longest), min(level, LEVEL_MAX))

    def _stale(self, read_ms: int | None, now_ms: int) -> bool:
        return read_ms is None or not 0 <= now_ms - read_ms < _milliseconds(self._guard.refresh)

    # What the trail knows.

    async def refresh(self, requestor: str) -> None:
        """Look at what others did to a requestor, unless this was done a moment ago."""
        known, now_ms = self._of(requestor), self._clock.now_ms()
        if known.full:
            for kind in _ACCOUNTS:
                await self.settle(requestor, kind)
            known.full = False
        if self._stale(known.refreshed_ms, now_ms):
            await self._refresh(requestor, known, now_ms)

    async def _refresh(self, requestor: str, known: _Known, now_ms: int) -> None:
        account = Account.LOCK_OUTS.of(requestor.encode("ascii"))
        await self._take(account, lambda event: not self._note_lock(requestor, known, event), limit=1)
        known.refreshed_ms = now_ms

    async def settle(self, requestor: str, kind: FailureKind) -> RequestorLockedOutError | None:
        """Read a requestor's account, and lock it out if that is due.

        Returns the answer where more are counted than the guard allows: what came last among them gets no other.
        """
        most, known, now_ms = self._guard.most(kind), self._of(requestor), self._clock.now_ms()
        if most is None:
            return None
        if (
            kind is FailureKind.MISS
            or self._stale(known.settled_ms, now_ms)
            or self._over(known, kind, now_ms)
        ):
            await self._read(requestor, known, kind, now_ms)
            if kind is FailureKind.REFUSAL:
                known.settled_ms = now_ms
        if now_ms < known.lock.until_ms:
            return _locked_out(known.lock.until_ms)
        count = self._live(known, kind, now_ms)
        if count < most:
            return None
        await self._lock_out(requestor, known, kind, now_ms)
        return _locked_out(known.lock.until_ms) if count > most else None

    async def _lock_out(self, requestor: str, known: _Known, kind: FailureKind, now_ms: int) -> None:
        now_ms = max(now_ms, known.lock.since_ms + 1)  # so that the latest is known by its time
        before, lock = known.lock, self._next(known.lock, now_ms)
        event = Event(
            time_ms=now_ms,
            action=Action.LOCK_OUT,
            outcome=Outcome.DONE,
            requestor=requestor,
            codes=(_ACCOUNTS[kind].name,),
            lock_out=LockOut(lock.until_ms, lock.level),
        )
        try:
            known.lock, known.full = lock, False  # before it waits: of many calls at once, one writes it
            await self._trail.note(event)
        except BaseException:
            if known.lock is lock:  # it holds here all the same, and the next call writes it
                known.full, known.lock = True, before
            raise
        if self._deliveries is not None:
            self._deliveries.put(LockedOut(requestor=requestor, until_ms=lock.until_ms, cause=kind.name))

    async def release(self, requestor: str, operator: str | None) -> None:
        """Let a requestor in again; what it has failed before counts no more."""
        known = self._of(requestor)
        await self._refresh(requestor, known, self._clock.now_ms())
        now_ms = max(self._clock.now_ms(), known.lock.since_ms + 1)
        event = Event(
            time_ms=now_ms,
            action=Action.RELEASE,
            outcome=Outcome.DONE,
            requestor=requestor,
            operator=operator,
        )
        await self._trail.note(event)
        known.lock, known.full = _Lock(now_ms), False

    async def _read(self, requestor: str, known: _Known, kind: FailureKind, now_ms: int) -> None:
        """Read what is new in a requestor's account."""
        account = _ACCOUNTS[kind].of(requestor.encode("ascii"))
        begin, read_to_ms = self._begin(now_ms), known.read_to_ms.get(kind, 0)
        end = max(begin, read_to_ms - CLOCKS_APART_MS)
        newest = read_to_ms

        def take(event: Event | BatchEvent) -> bool:
            nonlocal newest
            newest = max(newest, event.time_ms)
            if event.time_ms <= end:
                return False
            seen = known.seen[kind]  # `count` may have replaced it since the last page
            for failure in event.failures:
                if failure.account == account and not begin < seen.get(failure.digest, 0) <= event.time_ms:
                    seen[failure.digest] = event.time_ms
            self._note_lock(requestor, known, event)
            return True

        await self._take(account, take)
        known.read_to_ms[kind] = min(newest, now_ms)

    def _note_lock(self, requestor: str, known: _Known, event: Event | BatchEvent) -> bool:
        """Note a lock-out or release that is the latest one so far. Returns whether it is one of this requestor."""
        if not isinstance(event, Event) or event.requestor != requestor or event.action not in LOCKING:
            return False
        if event.time_ms > known.lock.since_ms:
            until_ms, level = event.lock_out or _RELEASED
            known.lock, known.full = _Lock(event.time_ms, until_ms, level), False
        return True

    async def refusals(self, token: bytes) -> int:
        """How many different uses of a token were refused, within `per` and since it was suspended for that."""
        account = Account.TOKEN.of(token)
        begin = self._begin(self._clock.now_ms())
        found: dict[bytes, int] = {}

        def take(event: Event | BatchEvent) -> bool:
            nonlocal begin
            own = [failure for failure in event.failures if failure.account == account]
            if any(each.kind is FailureKind.SUSPENSION for each in own):
                begin = max(begin, event.time_ms)
            found.update((each.digest, event.time_ms) for each in own)
            return event.time_ms > begin

        await self._take(account, take)
        return sum(time_ms > begin for time_ms in found.values())

    async def _take(
        self,
        account: bytes,
        take: Callable[[Event | BatchEvent], bool],
        limit: int = PAGE,
    ) -> None:
        """Take the genuine events of an account, the newest ones first, while they are wanted."""
        cursor = b""
        for _ in range(PAGES_MAX):
            page = await self._store.events_about(account, after=cursor, limit=limit)
            genuine = await self._runtime.call(self._keys.audit.genuine, page.events) if page.events else ()
            if not all(map(take, map(parse, genuine))) or not page.next:
                return
            cursor = page.next


def _milliseconds(span: timedelta) -> int:
    return 1_000 * checks.seconds(span)


def _locked_out(until_ms: int) -> RequestorLockedOutError:
    until = datetime.fromtimestamp(until_ms / 1_000, UTC).isoformat(timespec="seconds")
    return RequestorLockedOutError(
        f"this requestor is locked out until {until}: it asked for too many tokens that do not exist, or too many of"
        " its uses were refused; the host lets it in earlier by release()"
    )
