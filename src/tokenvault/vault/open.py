"""Opening a vault: its parts are checked to fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.journal import Journal
from tokenvault.audit.trail import Trail
from tokenvault.errors import ConfigurationError
from tokenvault.keys.port import KeyStore
from tokenvault.model import checks
from tokenvault.model.dual_control import RevealPolicy
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.records.keyring import KeyRing
from tokenvault.runtime import CheckedClock, Clock, Runtime, SystemClock
from tokenvault.stores.port import AsyncTokenStore
from tokenvault.vault.core import Core
from tokenvault.vault.documents import Documents
from tokenvault.vault.observer import Deliveries, Observer
from tokenvault.vault.provision import check_keys, finds_last4

T = TypeVar("T")

CONFIGURED_MAX = 100_000
"""The most programs, and the most requestors, of one vault."""


async def open_core(
    keys: KeyStore,
    store: AsyncTokenStore,
    runtime: Runtime,
    *,
    programs: Iterable[TokenProgram],
    requestors: Iterable[TokenRequestor],
    clock: Clock | None,
    checkpoints: CheckpointPolicy | None,
    observer: Observer | None,
    reveal: RevealPolicy | None,
) -> Core:
    """The core of a vault, once its parts are checked to fit together; arguments and errors as in `Vault`."""
    checks.offers("keys", keys, "cipher", "a key store, as open_key_store opens one")
    by_name = _named("programs", programs, TokenProgram, lambda program: program.name)
    by_id = _named("requestors", requestors, TokenRequestor, lambda requestor: requestor.id)
    for requestor in by_id.values():
        if not requestor.programs <= by_name.keys():
            raise ConfigurationError(
                "a requestor may issue tokens of a program that this vault does not have",
                code="PROGRAM_OR_REQUESTOR_MISSING",
            )
    if checkpoints is not None:
        checks.instance("checkpoints", checkpoints, CheckpointPolicy)
    if reveal is not None:
        checks.instance("reveal", reveal, RevealPolicy)
    if clock is not None:
        checks.offers("clock", clock, "now_ms", "an object with a method now_ms, or unset")
    await store.check_schema()
    ring = await runtime.call(KeyRing, keys)
    await check_keys(keys, store, runtime)
    return Core(
        store=store,
        runtime=runtime,
        clock=SystemClock() if clock is None else CheckedClock(clock),
        keys=ring,
        trail=Trail(store, runtime, Journal(ring.audit, checkpoints)),
        documents=Documents(store, by_name, by_id),
        programs=by_name,
        requestors=by_id,
        finds_last4=await finds_last4(store),
        deliveries=None if observer is None else Deliveries(observer),
        reveal=reveal,
    )


def _named(argument: str, values: Iterable[T], kind: type[T], name_of: Callable[[T], str]) -> dict[str, T]:
    """The programs or requestors of an argument by their names: each of its kind, no two with one name."""
    listed = [
        checks.instance(f"each of {argument}", value, kind)
        for value in checks.listed(argument, values, CONFIGURED_MAX)
    ]
    if len(listed) > CONFIGURED_MAX:
        raise ConfigurationError(
            f"a vault has at most {CONFIGURED_MAX} {argument}", code="TOO_MANY_CONFIGURED"
        )
    named = {name_of(value): value for value in listed}
    if len(named) != len(listed):
        raise ConfigurationError(f"two {argument} have the same name", code="NAME_TAKEN")
    return named
