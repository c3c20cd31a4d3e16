"""The life of a key version: readable, primary, retired, destroyed. Each step is safe beside running vaults.

Every step can be taken again after it was cut short: what is done already is not done twice. A version to be made is
named for that: a key in the key store that nobody named could be anyone's, so it is left alone and another one made.
The event of a step is written before the key table that carries it out, so that nothing changes without one.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import attrs

from tokenvault.audit.event import AUTHENTICATED_BYTES, Action, leaf_of
from tokenvault.crypto.cmac import TAG_BYTES, Cmac
from tokenvault.errors import IntegrityError, InvalidInputError, KeyStoreError, LifecycleError
from tokenvault.keys.port import Custody, KeyName, KeyPurpose
from tokenvault.maintenance.upkeep import Upkeep
from tokenvault.records import sealing
from tokenvault.records.key_table import KeyState, KeyTable
from tokenvault.stores.port import PAGE_MAX, STREAM_BYTES, SealedEvent, SealedRecord
from tokenvault.vault.key_versions import entry_of

EVENT_PAGE: Final = 1_000

ROTATED: Final = (KeyPurpose.SEAL, KeyPurpose.FINGERPRINT, KeyPurpose.AUDIT)
"""The purposes whose primary version the vault chooses."""


@attrs.frozen
class Usage:
    """How many rows of a database need a key version: records, or for an AUDIT key events.

    Attributes:
        looked_at: rows that were read.
        needed_by: those that nothing else can read, find or authenticate.
        unreadable: records that are not genuine, so that nobody knows.
    """

    looked_at: int
    needed_by: int
    unreadable: int = 0


async def add_key_version(purpose: KeyPurpose, custody: Custody, version: int | None, at: Upkeep) -> KeyName:
    """Make a key version that vaults read by; or take one that the key store has already."""
    versions = await at.runtime.block(at.keys.versions, purpose)
    if version is not None and version in versions:
        name = KeyName(purpose, version)
    else:
        name = await at.runtime.block(partial(at.keys.create, purpose, custody, version=version))
    known = at.versions.table.entry(name)
    if known is not None:
        if known.state in (KeyState.RETIRED, KeyState.DESTROYED):
            raise LifecycleError(
                f"{name} is {known.state.name.lower()}: make a new version", code="KEY_STATE_NOT_FITTING"
            )
        if await at.objection() is not None:
            await at.change(KeyTable.restated)
        return name
    now_ms = at.clock.now_ms()
    entry = await at.runtime.block(entry_of, at.keys, name, KeyState.READABLE, now_ms)
    # A key that was made here has the custody that was asked for, also where all keys work in the process.
    where = entry.custody if name.version in versions else custody
    await at.note(Action.ADD_KEY_VERSION, name, f"CUSTODY {where.name}", f"CHECK {entry.check.hex()}")
    await at.change(lambda table: table.with_readable(name, where, entry.check, now_ms))
    return name


async def make_primary(name: KeyName, force: bool, at: Upkeep) -> None:
    """Make a readable version the one that vaults write under, once all of them can read it."""
    if name.purpose not in ROTATED:
        raise InvalidInputError("the version of an FPE key is chosen where a vaultless tokenizer is opened")
    entry = at.versions.table.entry(name)
    if entry is not None and entry.state is KeyState.PRIMARY:
        return
    at.versions.table.with_primary(name)  # or raises what is wrong, before anything is waited for
    if not force:
        await at.until_seen()
    await at.note(Action.MAKE_PRIMARY, name, *(("FORCED",) if force else ()))
    await at.change(lambda table: table.with_primary(name))


async def retire(name: KeyName, at: Upkeep) -> Usage:
    """Retire a version once a scan has proved that no record needs it."""
    entry = at.versions.table.entry(name)
    if entry is not None and entry.state in (KeyState.RETIRED, KeyState.DESTROYED):
        return Usage(0, 0)
    if name.purpose not in ROTATED:
        raise InvalidInputError(
            "nothing here knows which values elsewhere need an FPE key: it is not retired"
        )
    at.versions.table.with_retired(name)
    await at.until_seen()  # from then on nobody writes under it
    usage = Usage(0, 0) if name.purpose is KeyPurpose.AUDIT else await usage_of(name, at)
    _refuse_needed(name, usage)
    await at.note(Action.RETIRE_KEY, name, f"ROWS READ {usage.looked_at}", f"ROWS UNDER IT {usage.needed_by}")
    await at.change(partial(_retired, at, name))
    return usage


def _retired(at: Upkeep, name: KeyName, table: KeyTable) -> KeyTable:
    if name.purpose is not KeyPurpose.FINGERPRINT:
        return table.with_retired(name)
    return table.with_retired(name, at.versions.ring.carried(name.version))


async def destroy(name: KeyName, at: Upkeep) -> Usage:
    """Destroy the key of a retired version in the key store, once another scan has found nothing that needs it."""
    entry = at.versions.table.entry(name)
    there = name.version in await at.runtime.block(at.keys.versions, name.purpose)
    if entry is None or entry.state not in (KeyState.RETIRED, KeyState.DESTROYED):
        found = "not in the key table" if entry is None else entry.state.name.lower()
        raise LifecycleError(
            f"{name} is {found}: only a retired version is destroyed", code="KEY_STATE_NOT_FITTING"
        )
    usage = Usage(0, 0)
    if there:
        await at.until_seen()
        usage = await usage_of(name, at)
        _refuse_needed(name, usage)
        await at.note(
            Action.DESTROY_KEY, name, f"ROWS READ {usage.looked_at}", f"ROWS UNDER IT {usage.needed_by}"
        )
        await at.runtime.block(_destroy, at, name)
    if entry.state is KeyState.RETIRED:
        await at.change(lambda table: table.with_destroyed(name))
    return usage


def _destroy(at: Upkeep, name: KeyName) -> None:
    try:
        at.keys.destroy(name)
    except KeyStoreError:
        if name.version in at.keys.versions(name.purpose):  # else another process came first
            raise


def _refuse_needed(name: KeyName, usage: Usage) -> None:
    if usage.needed_by:
        what = {
            KeyPurpose.SEAL: "reseal moves them to the primary version",
            KeyPurpose.FINGERPRINT: "refingerprint moves them to the primary version",
            KeyPurpose.AUDIT: "it is needed to authenticate these events for as long as they are kept",
        }[name.purpose]
        raise LifecycleError(
            f"{usage.needed_by} of {usage.looked_at} rows need {name}: {what}", code="KEY_IN_USE"
        )
    if usage.unreadable:
        raise LifecycleError(
            f"{usage.unreadable} of {usage.looked_at} records are not what a vault wrote, so nobody knows which key"
            " they need: verify the trail, and restore or remove them",
            code="KEY_IN_USE",
        )


async def usage_of(name: KeyName, at: Upkeep) -> Usage:
    """Read all rows that a version may be needed by, in pages."""
    if name.purpose is KeyPurpose.AUDIT:
        return await _events_under(name, at)
    looked_at = needed_by = unreadable = 0
    after = ""
    while page := await at.store.scan(after=after, limit=PAGE_MAX):
        after = page[-1].token
        needs, doubtful = await at.runtime.block(_needs, at, name, page)
        looked_at, needed_by, unreadable = looked_at + len(page), needed_by + needs, unreadable + doubtful
    return Usage(looked_at, needed_by, unreadable)


def _needs(at: Upkeep, name: KeyName, rows: list[SealedRecord]) -> tuple[int, int]:
    if name.purpose is KeyPurpose.SEAL:
        return sum(name.version in sealing.key_versions(row) for row in rows), 0
    return at.versions.ring.found_by(rows, name.version)


async def _events_under(name: KeyName, at: Upkeep) -> Usage:
    mac = Cmac(await at.runtime.block(at.keys.cipher, name))
    looked_at = under = 0
    for stream in await at.store.streams():
        if len(stream) != STREAM_BYTES:
            continue
        after = 0
        while page := await _event_page(at, stream, after):
            after = page[-1].number
            looked_at += len(page)
            under += await at.runtime.block(_authenticated, mac, page)
    return Usage(looked_at, under)


async def _event_page(at: Upkeep, stream: bytes, after: int) -> list[SealedEvent]:
    try:
        return await at.store.events(stream=stream, after=after, limit=EVENT_PAGE)
    except IntegrityError:
        pass
    raise LifecycleError("a row of the audit trail is malformed: verify the trail first")


def _authenticated(mac: Cmac, rows: list[SealedEvent]) -> int:
    tags = mac.tags(b"".join([leaf_of(row)[:AUTHENTICATED_BYTES] for row in rows]))
    starts = range(0, len(tags), TAG_BYTES)
    return sum(tags[start : start + TAG_BYTES] == row.mac for row, start in zip(rows, starts, strict=True))
