"""Opening a vault: its parts are checked to fit together."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TypeVar

from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.journal import Journal
from tokenvault.audit.trail import Trail
from tokenvault.errors import ConfigurationError, InvalidInputError
from tokenvault.keys.port import KeyStore
from tokenvault.model import checks
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.records.keyring import KeyRing
from tokenvault.runtime import Clock, Runtime, SystemClock
from tokenvault.stores.port import AsyncTokenStore
from tokenvault.vault.core import Core
from tokenvault.vault.documents import Documents
from tokenvault.vault.provision import check_keys

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
) -> Core:
    """The core of a vault, once its parts are checked to fit together; arguments as in `Vault`.

    Raises:
        ConfigurationError, InvalidInputError, KeyStoreError, TokenStoreError.
    """
    by_name = {program.name: program for program in _listed("programs", programs, TokenProgram)}
    by_id = {requestor.id: requestor for requestor in _listed("requestors", requestors, TokenRequestor)}
    for requestor in by_id.values():
        if not requestor.programs <= by_name.keys():
            raise ConfigurationError(
                "a requestor may issue tokens of a program that this vault does not have"
            )
    if checkpoints is not None:
        checks.instance("checkpoints", checkpoints, CheckpointPolicy)
    await store.check_schema()
    ring = await runtime.call(KeyRing, keys)
    await check_keys(keys, store, runtime)
    return Core(
        store=store,
        runtime=runtime,
        clock=SystemClock() if clock is None else clock,
        keys=ring,
        trail=Trail(store, runtime, Journal(ring, checkpoints)),
        documents=Documents(store, by_name, by_id),
        programs=by_name,
        requestors=by_id,
    )


def _listed(name: str, values: Iterable[T], kind: type[T]) -> list[T]:
    """The values of an argument that takes programs or requestors: each of its kind, no two with one name."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidInputError(f"{name} is a list of {kind.__name__}")
    listed = [checks.instance(f"each of {name}", value, kind) for value in islice(values, CONFIGURED_MAX + 1)]
    if len(listed) > CONFIGURED_MAX:
        raise ConfigurationError(f"a vault has at most {CONFIGURED_MAX} {name}")
    names = {getattr(value, "name", None) or getattr(value, "id", None) for value in listed}
    if len(names) != len(listed):
        raise ConfigurationError(f"two {name} have the same name")
    return listed
