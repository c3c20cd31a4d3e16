"""What every task of maintenance works with: the ports, the keys in force, and an audit trail of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import attrs

from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.journal import Journal
from tokenvault.audit.trail import Trail
from tokenvault.errors import ConflictError, LifecycleError
from tokenvault.keys.port import KeyName, KeyStore
from tokenvault.model.clear_ids import ClearIds
from tokenvault.records.key_table import KeyTable
from tokenvault.runtime import Clock, Runtime, SystemClock
from tokenvault.stores.port import AsyncTokenStore
from tokenvault.vault.key_versions import KeyVersions, objection_name, write_table
from tokenvault.vault.open import open_keys

T = TypeVar("T")

WRITES_MAX: Final = 100
"""How often a change of the key table starts over because others changed it first."""

WAITS_MAX: Final = 100
"""How often a wait for all vaults starts over because the key table changed meanwhile."""


TRANSACTIONS_SECONDS_MAX: Final = 60.0
"""How long is waited for transactions of hosts that have written."""

_POLL_SECONDS: Final = 0.05


@attrs.frozen
class Upkeep:
    """The ports of a task, the keys in force, and the trail that its events go to."""

    keys: KeyStore
    store: AsyncTokenStore
    runtime: Runtime
    clock: Clock
    versions: KeyVersions
    trail: Trail

    async def note(self, action: Action, name: KeyName, *facts: str) -> None:
        """Write an event about a key version, with what was found."""
        codes = name.purpose.name, f"VERSION {name.version}", *facts
        await self.trail.note(
            Event(time_ms=self.clock.now_ms(), action=action, outcome=Outcome.DONE, codes=codes)
        )

    async def change(self, alter: Callable[[KeyTable], KeyTable]) -> None:
        """Write the key table that `alter` makes of the one in force, however often others come first.

        Raises LifecycleError as `alter` does, and ConflictError.
        """
        for _ in range(WRITES_MAX):
            await self.versions.refresh()
            stored = self.versions.stored
            changed = alter(stored.table)
            written = await write_table(self.keys, self.store, self.runtime, stored, changed)
            await self.versions.refresh()
            if written.table.entries == changed.entries:
                return
        raise ConflictError("others keep changing the key table; nothing was done: retry later")

    async def objection(self) -> bytes | None:
        """A key of the table in force that some vault has not found in its key store."""
        return await self.store.get_meta(objection_name(self.versions.stored))

    async def until_noticed(self) -> None:
        """Wait until every vault that does anything goes by the key table that is in force now."""
        for _ in range(WAITS_MAX):
            await self.versions.refresh()
            before = self.versions.stored
            await self.runtime.sleep(before.table.delay_ms / 1_000)
            await self.versions.refresh()
            if self.versions.stored == before:
                return await self._until_written()
        raise ConflictError("others keep changing the key table: retry later")

    async def _until_written(self) -> None:
        """Wait until every transaction is over that may have written under the keys before. Raises LifecycleError."""
        if not hasattr(self.store, "writers"):
            return
        waited_for: set[str] = await self.store.writers()
        until = time.monotonic() + TRANSACTIONS_SECONDS_MAX
        while waited_for:
            if time.monotonic() > until:
                raise LifecycleError(
                    "a transaction of a host that has written is still open: end it, and call again",
                    code="TRANSACTION_OPEN",
                )
            await self.runtime.sleep(_POLL_SECONDS)
            waited_for &= await self.store.writers()

    async def until_seen(self) -> None:
        """Wait as `until_noticed`, for vaults that have all keys of the table.

        Raises:
            LifecycleError: a vault lacks a key of it.
        """
        await self.until_noticed()
        if await self.objection() is not None:
            raise LifecycleError(
                "a running vault has looked at the key table and its key store lacks a key of it: bring the"
                " key there, and call add_key_version again, or use force",
                code="KEY_MISSING_ELSEWHERE",
            )


async def upkeep(
    keys: KeyStore,
    store: AsyncTokenStore,
    runtime: Runtime,
    clock: Clock | None,
    task: Callable[[Upkeep], Coroutine[Any, Any, T]],
    checkpoints: CheckpointPolicy | None = None,
) -> T:
    """Do a task on a database, and close the trail that it wrote."""
    await store.check_schema()
    versions = await open_keys(keys, store, runtime)
    trail = Trail(store, runtime, Journal(versions.ring.audit, checkpoints), ClearIds(versions.id_digest))
    at = Upkeep(keys, store, runtime, SystemClock() if clock is None else clock, versions, trail)
    done = await task(at)
    await trail.close(at.clock.now_ms())
    return done
