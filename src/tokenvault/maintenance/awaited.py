"""Maintenance of a database and its keys beside running vaults, for asyncio.

`blocking` is generated from this module by `python -m scripts.blocking_vault`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from contextlib import closing
from functools import partial
from typing import Any, Final

from tokenvault.audit.archive import archive_path
from tokenvault.audit.batch_event import ITEMS_MAX
from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.event import Action
from tokenvault.errors import InvalidInputError, async_boundary
from tokenvault.keys.port import VERSION_MAX, Custody, KeyName, KeyPurpose, KeyStore
from tokenvault.maintenance import archiving, bill_of_materials, renewal, retention, rotation, signers
from tokenvault.maintenance.archiving import Archived
from tokenvault.maintenance.policy import Retention
from tokenvault.maintenance.renewal import PAGE, Progress, Report
from tokenvault.maintenance.retention import Purged
from tokenvault.maintenance.rotation import Usage
from tokenvault.maintenance.upkeep import Upkeep, upkeep
from tokenvault.model import checks
from tokenvault.runtime import Clock, LoopRuntime
from tokenvault.stores.port import AsyncTokenStore
from tokenvault.vault import arguments
from tokenvault.vault.face import store_with_coroutines

REST_PERCENT_MAX: Final = 10_000


@async_boundary
async def add_key_version(
    keys: KeyStore,
    store: AsyncTokenStore,
    purpose: KeyPurpose,
    custody: Custody = Custody.IN_PROCESS,
    *,
    version: int | None = None,
    clock: Clock | None = None,
) -> KeyName:
    """Make a key version readable: the first phase of a rotation. Vaults read by it and do not write under it yet.

    Every running vault notices it within the delay that `provision` was given (5 seconds unless told otherwise). A
    vault whose key store lacks the key objects, and `make_primary` then refuses: bring the key there, as a module's
    own replication does, and call this again.

    Args:
        keys: the key store.
        store: the database.
        purpose: what the key is for.
        custody: of a version that is made; a change of custody is a rotation.
        version: unset, the next version is made; after a call that was cut short, perhaps another one. Set, that one
            is taken as it is in the key store (an imported key), or made if it is the next: so the call can be
            repeated.
        clock: the source of the time; unset, the machine's.

    Raises:
        ConfigurationError: the database was made under other keys.
        InvalidInputError: an argument is of another kind, or the table has a newer version.
        LifecycleError: the version is retired.
        KeyStoreError, TokenStoreError: the key store or the database can not be reached.
    """
    checks.instance("purpose", purpose, KeyPurpose)
    checks.instance("custody", custody, Custody)
    if version is not None:
        checks.whole_number("version", version, 1, VERSION_MAX)
    task = partial(rotation.add_key_version, purpose, custody, version)
    with closing(LoopRuntime()) as runtime:
        return await upkeep(keys, store_with_coroutines(store), runtime, clock, task)


@async_boundary
async def make_primary(
    keys: KeyStore,
    store: AsyncTokenStore,
    purpose: KeyPurpose,
    version: int,
    *,
    force: bool = False,
    clock: Clock | None = None,
) -> None:
    """Make a readable version the one that vaults write under: the second phase of a rotation.

    It waits for the delay, in which every running vault has to notice the version; one that died is not waited for.
    With `force` it does not wait: a vault that has not noticed the version refuses records under it until it has, and
    with a FINGERPRINT key may give a card a second convergent token.

    Raises:
        LifecycleError: the version is not readable, or older than the primary one, or a running vault lacks the key.
        ConfigurationError, InvalidInputError, KeyStoreError, TokenStoreError: as `add_key_version`.
    """
    name = KeyName(purpose, version)
    with closing(LoopRuntime()) as runtime:
        task = partial(rotation.make_primary, name, checks.instance("force", force, bool))
        await upkeep(keys, store_with_coroutines(store), runtime, clock, task)


@async_boundary
async def reseal(
    keys: KeyStore,
    store: AsyncTokenStore,
    *,
    page: int = PAGE,
    rest_percent: int = 0,
    progress: Report | None = None,
    clock: Clock | None = None,
) -> Progress:
    """Seal every record that is under an older SEAL key anew under the primary one.

    It first waits for the delay, until every running vault writes under that one, so that nothing is written behind
    it. Vaults go on meanwhile, and several processes may do this at once. Killed at any point, it has done what it
    has done: call it again. Each page leaves one event.

    Args:
        keys: the key store.
        store: the database.
        page: records written in one step, from 1 to 8,000.
        rest_percent: a pause after each page, in percent of the time that the page took, from 0 to 10,000: leaves
            the database to the vaults.
        progress: called with a Progress after each page; records are then counted first.
        clock: the source of the time; unset, the machine's.

    Returns:
        What was done. Records that are not genuine are left as they are, and counted as `unreadable`.

    Raises:
        ConfigurationError, InvalidInputError, KeyStoreError, TokenStoreError: as `add_key_version`.
        ConflictError: others kept changing the same records.
    """
    task = _renewal(Action.RESEAL, page, rest_percent, progress)
    with closing(LoopRuntime()) as runtime:
        return await upkeep(keys, store_with_coroutines(store), runtime, clock, task)


@async_boundary
async def refingerprint(
    keys: KeyStore,
    store: AsyncTokenStore,
    *,
    page: int = PAGE,
    rest_percent: int = 0,
    progress: Report | None = None,
    clock: Clock | None = None,
) -> Progress:
    """Give every record the PAN fingerprint under the primary FINGERPRINT key; and seal those anew, as `reseal`.

    Takes, returns and raises what `reseal` does. It has to unseal every record to find those that it is to change.
    """
    task = _renewal(Action.REFINGERPRINT, page, rest_percent, progress)
    with closing(LoopRuntime()) as runtime:
        return await upkeep(keys, store_with_coroutines(store), runtime, clock, task)


def _renewal(
    action: Action, page: int, rest_percent: int, progress: Report | None
) -> Callable[[Upkeep], Coroutine[Any, Any, Progress]]:
    checks.whole_number("page", page, 1, ITEMS_MAX)
    checks.whole_number("rest_percent", rest_percent, 0, REST_PERCENT_MAX)
    return partial(renewal.renew, action, page, rest_percent / 100, progress)


@async_boundary
async def retire(
    keys: KeyStore, store: AsyncTokenStore, purpose: KeyPurpose, version: int, *, clock: Clock | None = None
) -> Usage:
    """Retire a key version once a scan of all records has proved that none needs it.

    It first waits until every running vault writes under the primary version. The proof is an event of the trail,
    which the next signed checkpoint covers. A retired version is not looked up by any more; its key is there until
    `destroy`.

    A retired AUDIT version makes no more MACs; events under it still need it.

    Returns:
        What was looked at.

    Raises:
        LifecycleError: records need the version, or are not genuine; or it is primary.
        ConfigurationError, InvalidInputError, KeyStoreError, TokenStoreError: as `add_key_version`.
    """
    name = KeyName(purpose, version)
    with closing(LoopRuntime()) as runtime:
        return await upkeep(
            keys, store_with_coroutines(store), runtime, clock, partial(rotation.retire, name)
        )


@async_boundary
async def destroy(
    keys: KeyStore, store: AsyncTokenStore, purpose: KeyPurpose, version: int, *, clock: Clock | None = None
) -> Usage:
    """Destroy the key of a retired version in the key store, for ever, once a second scan has found it not needed.

    An AUDIT version is needed for as long as the trail holds an event under it.

    Raises:
        LifecycleError: the version is not retired, or rows need it.
        ConfigurationError, InvalidInputError, KeyStoreError, TokenStoreError: as `add_key_version`.
    """
    name = KeyName(purpose, version)
    with closing(LoopRuntime()) as runtime:
        return await upkeep(
            keys, store_with_coroutines(store), runtime, clock, partial(rotation.destroy, name)
        )


@async_boundary
async def forget(
    keys: KeyStore,
    store: AsyncTokenStore,
    customer: str,
    *,
    operator: str | None = None,
    page: int = PAGE,
    clock: Clock | None = None,
) -> Purged:
    """Delete every token of a customer, whatever its status: no token of theirs has a card in any table then.

    A token that was issued from one of theirs is of the customer that `issue_from` named, or of none.

    Vaults go on meanwhile; a token that one issues for the customer while this runs is deleted too. Killed at any
    point, it has done what it has done: call it again. Each page leaves one event. What stays of a token is what
    stays of each deleted one: its value and reference, its uses, the customer's id, and what its limits counted.

    Args:
        keys: the key store.
        store: the database.
        customer: the host's id of the customer, as `issue` was given it.
        operator: the person behind the call, 1 to 64 printable ASCII characters: it stands in the events.
        page: records written in one step, from 1 to 8,000.
        clock: the source of the time; unset, the machine's.

    Returns:
        What was done. Records that are not genuine are left as they are, and counted as `unreadable`.

    Raises:
        ConfigurationError, InvalidInputError, KeyStoreError, TokenStoreError: as `add_key_version`.
        ConflictError: others kept changing the same records.
    """
    wanted = checks.text("customer", customer)
    person = arguments.optional_text("operator", operator)
    checks.whole_number("page", page, 1, ITEMS_MAX)
    task = partial(retention.forget, wanted, person, page)
    with closing(LoopRuntime()) as runtime:
        return await upkeep(keys, store_with_coroutines(store), runtime, clock, task)


@async_boundary
async def purge(
    keys: KeyStore,
    store: AsyncTokenStore,
    policy: Retention | None = None,
    *,
    archive: str | os.PathLike[str] | None = None,
    operator: str | None = None,
    page: int = PAGE,
    clock: Clock | None = None,
) -> Purged:
    """Delete every token whose winding down is over, and then what a policy says: tombstones, uses, events.

    Beside running vaults, resumed and repeated as `forget`; one at a time. The trail verifies before, during and
    after: an event names what goes before it goes. docs/howto/retention.md says what stays.

    Args:
        keys: the key store.
        store: the database, opened as its owner: the service's role deletes nothing.
        policy: for how long the rest is kept; unset, for ever.
        archive: path of the file that uses and events go to before: a new one, or one of `archive_events` or of a
            purge before.
        operator: the person behind the call, 1 to 64 printable ASCII characters: it stands in the events.
        page: records or events of one step, from 1 to 8,000.
        clock: the source of the time; unset, the machine's.

    Returns:
        What was done, as of `forget`, and of the policy.

    Raises:
        InvalidInputError: the policy wants an archive and none is given, or it can not be used.
        IntegrityError: the archive holds what no vault wrote.
        ConfigurationError, InvalidInputError, KeyStoreError, TokenStoreError: as `add_key_version`.
        ConflictError: others kept changing the same records.
    """
    person = arguments.optional_text("operator", operator)
    checks.whole_number("page", page, 1, ITEMS_MAX)
    kept = Retention() if policy is None else checks.instance("policy", policy, Retention)
    path = None if archive is None else archive_path("archive", archive)
    if path is None and kept.archive and (kept.uses is not None or kept.events is not None):
        raise InvalidInputError(
            "the policy wants an archive of what goes: give its path, or archive=False in the policy",
            code="ARCHIVE_MISSING",
        )
    task = partial(retention.purge, kept, path, person, page)
    with closing(LoopRuntime()) as runtime:
        every = CheckpointPolicy(events=1)  # what an event names may go once a checkpoint commits to it
        return await upkeep(keys, store_with_coroutines(store), runtime, clock, task, every)


@async_boundary
async def archive_events(
    keys: KeyStore, store: AsyncTokenStore, to: str | os.PathLike[str], *, clock: Clock | None = None
) -> Archived:
    """Add all audit events that an archive does not hold: JSON Lines, with all that verification needs.

    Vaults go on meanwhile. Each page is on the disk before the next is read; killed at any point, it has done what it
    has done: call it again. `verify_audit(archive=...)` reads it.

    Args:
        keys: the key store: what the file holds already is checked, and only genuine events are added.
        store: the database.
        to: path of the file: a new one, which its owner alone can read, or one that is gone on with.
        clock: the source of the time; unset, the machine's.

    Raises:
        InvalidInputError: the file can not be used, or another process writes it.
        IntegrityError: it holds what no vault wrote.
        ConfigurationError, KeyStoreError, TokenStoreError: as `add_key_version`.
    """
    task = partial(archiving.archive_events, archive_path("to", to))
    with closing(LoopRuntime()) as runtime:
        return await upkeep(keys, store_with_coroutines(store), runtime, clock, task)


@async_boundary
async def introduce_signer(
    keys: KeyStore, store: AsyncTokenStore, public_key: str, *, clock: Clock | None = None
) -> None:
    """Sign the public key of another key store's signer with the key that signs now.

    From then on who verifies with the public key of this key store trusts that one too: do it before another module
    takes over, while this one is still there. It can be repeated.

    Args:
        keys: the key store that signs now.
        store: the database.
        public_key: of the signer that is to follow, as `audit_public_key` gives it, PEM.
        clock: the source of the time; unset, the machine's.

    Raises:
        InvalidInputError: the text is not one public key of P-256.
        LifecycleError: this key store signs nothing.
        ConfigurationError, KeyStoreError, TokenStoreError: as `add_key_version`.
    """
    task = partial(signers.introduce_signer, public_key)
    with closing(LoopRuntime()) as runtime:
        return await upkeep(keys, store_with_coroutines(store), runtime, clock, task)


@async_boundary
async def inventory(
    keys: KeyStore, store: AsyncTokenStore, *, rows: bool = True, clock: Clock | None = None
) -> dict[str, Any]:
    """The cryptographic inventory as a CycloneDX 1.6 document, for `json.dumps` (PCI DSS 4.0.1, 12.3.3).

    Keys by purpose, with algorithm, version, custody, check value, when they came into the key table, and the rows
    under each; never a key. A retired version stands in it, and a destroyed one too.

    Args:
        keys: the key store.
        store: the database.
        rows: whether rows are counted, which reads all of them.
        clock: the source of the time; unset, the machine's.

    Raises:
        ConfigurationError, KeyStoreError, TokenStoreError: as `add_key_version`.
    """
    with closing(LoopRuntime()) as runtime:
        task = partial(bill_of_materials.inventory, rows)
        return await upkeep(keys, store_with_coroutines(store), runtime, clock, task)
