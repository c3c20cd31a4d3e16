"""Opening a vault: its parts are checked to fit together."""

from __future__ import annotations

from collections.abc import Iterable

from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.journal import Journal
from tokenvault.audit.trail import Trail
from tokenvault.errors import ConfigurationError
from tokenvault.keys.port import KeyStore
from tokenvault.model import checks
from tokenvault.model.clear_ids import ClearIds
from tokenvault.model.dual_control import RevealPolicy
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.records.keyring import KeyRing
from tokenvault.runtime import CheckedClock, Clock, Runtime, SystemClock
from tokenvault.stores.port import AsyncTokenStore
from tokenvault.vault.core import Core
from tokenvault.vault.directory import Directory, StaticDirectory, StoredDirectory
from tokenvault.vault.documents import Documents
from tokenvault.vault.guard import Guard, Guards
from tokenvault.vault.key_versions import KeyVersions
from tokenvault.vault.observer import Deliveries, Observer
from tokenvault.vault.parties import DirectorySource, Parties, age_of
from tokenvault.vault.provision import finds_last4, table_of
from tokenvault.vault.risk import RiskPolicy
from tokenvault.vault.stored_parties import Registry, StoredParties


async def open_core(
    keys: KeyStore,
    store: AsyncTokenStore,
    runtime: Runtime,
    *,
    programs: Iterable[TokenProgram],
    requestors: Iterable[TokenRequestor],
    directory: Directory | StoredDirectory | None,
    clock: Clock | None,
    checkpoints: CheckpointPolicy | None,
    observer: Observer | None,
    guard: Guard | None,
    risk: RiskPolicy | None,
    reveal: RevealPolicy | None,
) -> Core:
    """The core of a vault, once its parts are checked to fit together; arguments and errors as in `Vault`."""
    checks.offers("keys", keys, "cipher", "a key store, as open_key_store opens one")
    chosen = _directory(directory, programs, requestors)
    if checkpoints is not None:
        checks.instance("checkpoints", checkpoints, CheckpointPolicy)
    if reveal is not None:
        checks.instance("reveal", reveal, RevealPolicy)
    if clock is not None:
        checks.offers("clock", clock, "now_ms", "an object with a method now_ms, or unset")
    if observer is not None:
        checks.offers("observer", observer, "observe", "an object with a method observe, or unset")
    if guard is not None:
        checks.instance("guard", guard, Guard)
    if risk is not None:
        checks.instance("risk", risk, RiskPolicy).fits(runtime)
    await store.check_schema()
    versions = await open_keys(keys, store, runtime)
    audit = versions.ring.audit
    documents = Documents(store)
    stored = StoredParties(store, runtime, audit, documents)
    parties = _parties(chosen, stored, runtime)
    ids = ClearIds(versions.id_digest, lambda: parties.known.numbers)
    trail = Trail(store, runtime, Journal(audit, checkpoints), ids)
    ticking = SystemClock() if clock is None else CheckedClock(clock)
    deliveries = None if observer is None else Deliveries(observer)
    registry = None
    if isinstance(chosen, StoredDirectory):
        registry = Registry(stored, parties, trail, documents, ticking)
    await parties.refresh()
    return Core(
        store=store,
        runtime=runtime,
        clock=ticking,
        key_versions=versions,
        trail=trail,
        documents=documents,
        parties=parties,
        registry=registry,
        finds_last4=await finds_last4(store),
        guards=Guards(guard or Guard(), store, runtime, ticking, versions.ring, trail, deliveries),
        deliveries=deliveries,
        risk=risk,
        reveal=reveal,
    )


async def open_keys(keys: KeyStore, store: AsyncTokenStore, runtime: Runtime) -> KeyVersions:
    """The keys of a vault over a database, checked to be those that it was made under; errors as in `Vault`."""
    stored = await table_of(keys, store, runtime)
    ring = await runtime.call(KeyRing, keys, stored.table)
    return KeyVersions(keys, store, runtime, stored, ring)


def _parties(directory: Directory | StoredDirectory, stored: StoredParties, runtime: Runtime) -> Parties:
    if isinstance(directory, StoredDirectory):
        return Parties(stored, directory.max_age_seconds)
    return Parties(DirectorySource(directory, runtime), age_of(directory))


def _directory(
    directory: Directory | StoredDirectory | None,
    programs: Iterable[TokenProgram],
    requestors: Iterable[TokenRequestor],
) -> Directory | StoredDirectory:
    """The directory of a vault: the one given, or one of its programs and requestors."""
    if directory is None:
        return StaticDirectory(programs, requestors)
    if programs != () or requestors != ():
        raise ConfigurationError(
            "a vault has a directory, or programs and requestors: not both", code="DIRECTORY_AND_PARTIES"
        )
    if not isinstance(directory, StoredDirectory):
        checks.offers("directory", directory, "requestor", "a Directory")
        checks.offers("directory", directory, "program", "a Directory")
    return directory
