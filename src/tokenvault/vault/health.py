"""The health of a vault, for a readiness probe: each part is asked, all at once, and no longer than within a bound.

A part that gives no answer is asked again only once it has: a probe that comes every few seconds leaves one call
waiting for a module that hangs, not one for each probe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

import attrs

from tokenvault.audit.event import Event
from tokenvault.errors import (
    IntegrityError,
    TokenVaultError,
    bare,
    boundary_init,
    shown_float,
    without_numbers,
)
from tokenvault.model import checks
from tokenvault.runtime import Attempt
from tokenvault.stores.port import SealedEvent
from tokenvault.vault.core import Core

WITHIN_MS: Final = 2_000
"""How long `health` takes at most, unless it is told otherwise."""

WITHIN_MS_MAX: Final = 60_000

CLOCK_MS_MAX: Final = 60_000
"""How far this vault's clock may be behind the newest checkpoint, whichever machine wrote it."""

STREAMS_READ: Final = 16
"""Streams whose latest checkpoints are looked at, the youngest."""

TEXT_CHARACTERS_MAX: Final = 200

NO_ANSWER: Final = "no answer within the time"

_SIGNED: Final = b"tokenvault health 1\x00"
"""What the signer signs to show that it works: it begins as no checkpoint does."""


@boundary_init
@attrs.frozen
class HealthPart:
    """What a look at one part gave.

    Attributes:
        name: "database", "module", "clock", "signer" or "checkpoint".
        ok: whether it works.
        milliseconds: how long it took, or has taken so far.
        message: what there is to tell: short, and without secrets.
    """

    name: str
    ok: bool
    milliseconds: float = attrs.field(repr=shown_float)
    message: str


@boundary_init
@attrs.frozen
class Health:
    """Whether a vault works.

    Attributes:
        parts: a look at each part.
    """

    parts: tuple[HealthPart, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all parts work."""
        return all(part.ok for part in self.parts)


async def health(core: Core, within_ms: int) -> Health:
    """A look at each part, within so many milliseconds. Raises InvalidInputError, and nothing of what it looks at."""
    checks.whole_number("within_ms", within_ms, 1, WITHIN_MS_MAX)
    flows: dict[str, Callable[[], Coroutine[Any, Any, str]]] = {
        "database": lambda: _database(core),
        "module": lambda: _module(core),
        "clock": lambda: _clock(core),
        "signer": lambda: _signer(core),
        "checkpoint": lambda: _checkpoint(core),
    }
    attempts = await core.runtime.attempt(flows, within_ms / 1_000)
    return Health(tuple(_part(name, attempt) for name, attempt in attempts.items()))


def _part(name: str, attempt: Attempt) -> HealthPart:
    ended_ns = attempt.ended_ns
    milliseconds = round(((ended_ns or time.perf_counter_ns()) - attempt.begun_ns) / 1e6, 3)
    if ended_ns is None:
        return HealthPart(name, ok=False, milliseconds=milliseconds, message=NO_ANSWER)
    if attempt.error is None:
        return HealthPart(name, ok=True, milliseconds=milliseconds, message=attempt.result)
    failure = bare(attempt.error)
    text = str(failure) if isinstance(failure, TokenVaultError) else type(failure).__name__
    message = without_numbers(text)[:TEXT_CHARACTERS_MAX]
    return HealthPart(name, ok=False, milliseconds=milliseconds, message=message)


async def _database(core: Core) -> str:
    await core.store.check_schema()
    if core.key_versions.stale:  # as before any other call
        await core.key_versions.refresh()
    return "answers, with the schema of this release"


async def _module(core: Core) -> str:
    await core.runtime.block(core.keys.probe)
    return "answers, and its keys work"


async def _clock(core: Core) -> str:
    """The vault's own clock: it does not run backwards, and is not behind what any vault wrote here."""
    before_ms = core.clock.now_ms()
    newest = await _newest(core)
    now_ms = core.clock.now_ms()
    if now_ms < before_ms:
        raise IntegrityError(f"the clock went back by {before_ms - now_ms:,} ms while it was looked at")
    ahead_ms = 0 if newest is None else newest.time_ms - now_ms
    if ahead_ms > CLOCK_MS_MAX:
        raise IntegrityError(f"the clock is {ahead_ms // 1_000:,} seconds behind the newest checkpoint")
    return "agrees with the newest checkpoint" if newest is not None else "runs; there is no checkpoint yet"


async def _signer(core: Core) -> str:
    signer = core.keys.audit.signer
    if signer is None:
        return "none: checkpoints are not signed"
    await core.runtime.block(signer.sign, _SIGNED)
    return "signs"


async def _checkpoint(core: Core) -> str:
    newest = await _newest(core)
    if newest is None or newest.checkpoint is None:
        return "none yet"
    signed = "signed" if newest.checkpoint.signature else "not signed"
    seconds = max(0, core.clock.now_ms() - newest.time_ms) // 1_000
    return f"the newest is {seconds:,} seconds old, {signed}"


async def _newest(core: Core) -> Event | None:
    """The newest checkpoint of any vault here, authenticated; None where there is none."""
    rows: list[SealedEvent] = await core.store.latest_checkpoints(STREAMS_READ)
    found: list[Event] = []
    for row in await core.runtime.block(core.keys.audit.genuine, rows):
        with suppress(IntegrityError):
            found.append(Event.parse(row))
    return max((each for each in found if each.checkpoint), key=lambda each: each.time_ms, default=None)
