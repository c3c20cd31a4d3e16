"""The vault for asyncio: the methods of `Vault`, awaited, over the same flows."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.export import HISTORY_MAX, AuditEvent
from tokenvault.errors import (
    ConfigurationError,
    InvalidInputError,
    TokenVaultError,
    async_boundary,
    async_call_boundary,
)
from tokenvault.keys.port import Custody, KeyStore
from tokenvault.model import checks
from tokenvault.model.decision import Decision
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor, Change
from tokenvault.model.pan import Card, CardExpiry, Pan
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import TokenInfo
from tokenvault.runtime import CLOSED, Clock, LoopRuntime
from tokenvault.stores.port import AsyncTokenStore
from tokenvault.vault import arguments as requests
from tokenvault.vault import closing
from tokenvault.vault import provision as opening
from tokenvault.vault.batch import run as batches
from tokenvault.vault.batch.results import BatchResult, IssueBatchResult
from tokenvault.vault.core import Core
from tokenvault.vault.open import open_core

P = ParamSpec("P")
T = TypeVar("T")


@async_boundary
async def provision_async(
    keys: KeyStore, store: AsyncTokenStore, *, custody: Custody = Custody.IN_PROCESS
) -> None:
    """As `provision`, awaited, with a store of `open_async_token_store`."""
    checks.instance("custody", custody, Custody)
    runtime = LoopRuntime()
    try:
        await opening.provision(keys, _awaited(store), runtime, custody)
    finally:
        runtime.close()


class AsyncVault:
    """A token vault as `Vault`, for asyncio. It is opened by `async with`, once.

    A call that is cancelled leaves nothing half done: a use is counted and recorded, or neither, and the same
    transaction presented again gets its answer. As with any error, `update_card` may have changed some tokens.

    Keys in a module are asked from threads of the vault's own, at most MODULE_THREADS. Keys that work in this
    process answer in some 10 µs, and are asked on the event loop.

    Args:
        keys: the key store.
        store: a token store with coroutines, as `open_async_token_store` opens them.
        programs, requestors, clock, checkpoints: as in `Vault`.

    `async with` raises what the constructor of `Vault` raises.
    """

    def __init__(
        self,
        keys: KeyStore,
        store: AsyncTokenStore,
        *,
        programs: Iterable[TokenProgram] = (),
        requestors: Iterable[TokenRequestor] = (),
        clock: Clock | None = None,
        checkpoints: CheckpointPolicy | None = None,
    ) -> None:
        self._parts = keys, store, programs, requestors, clock, checkpoints
        self._runtime: LoopRuntime | None = None
        self._core: Core | None = None
        self._calls: list[None] = []
        self._pid = os.getpid()

    @async_boundary
    async def __aenter__(self) -> Self:
        if self._runtime is not None:
            raise ConfigurationError("this vault was opened before: make another")
        keys, store, programs, requestors, clock, checkpoints = self._parts
        self._runtime = runtime = LoopRuntime()
        try:
            core = await open_core(keys, _awaited(store), runtime, programs, requestors, clock, checkpoints)
        except BaseException:
            runtime.close()
            raise
        runtime.keys = core.keys
        self._core = core
        return self

    @async_call_boundary
    async def issue(
        self,
        pan: str | Pan,
        *,
        expiry: str | CardExpiry | None = None,
        requestor: str,
        program: str,
        domain: Domain | None = None,
        token_expiry: str | CardExpiry | None = None,
        assurance: str | None = None,
        par: str | None = None,
        active: bool = True,
    ) -> TokenInfo:
        """As `Vault.issue`, awaited."""
        return await requests.issue(
            self._open(), pan, expiry, requestor, program, domain, token_expiry, assurance, par, active
        )

    @async_call_boundary
    async def check(self, token: str, transaction: Transaction) -> Decision:
        """As `Vault.check`, awaited."""
        return await requests.check(self._open(), token, transaction)

    @async_call_boundary
    async def detokenize(self, token: str, transaction: Transaction) -> Card:
        """As `Vault.detokenize`, awaited."""
        return await requests.detokenize(self._open(), token, transaction)

    @async_call_boundary
    async def issue_many(
        self,
        cards: Iterable[str | Pan | tuple[str | Pan, str | CardExpiry | None]],
        *,
        requestor: str,
        program: str,
        domain: Domain | None = None,
        token_expiry: str | CardExpiry | None = None,
        assurance: str | None = None,
        active: bool = True,
    ) -> IssueBatchResult[TokenInfo]:
        """As `Vault.issue_many`, awaited. With keys in this process the loop stands still while a chunk is sealed."""
        return await batches.issue_all(
            self._open(), cards, requestor, program, domain, token_expiry, assurance, active
        )

    @async_call_boundary
    async def detokenize_many(self, uses: Iterable[tuple[str, Transaction]]) -> BatchResult[Card]:
        """As `Vault.detokenize_many`, awaited; see `issue_many`."""
        return await batches.detokenize_all(self._open(), uses)

    @async_call_boundary
    async def check_many(self, uses: Iterable[tuple[str, Transaction]]) -> BatchResult[Decision]:
        """As `Vault.check_many`, awaited; see `issue_many`."""
        return await batches.check_all(self._open(), uses)

    @async_call_boundary
    async def activate(self, token: str) -> TokenInfo:
        """As `Vault.activate`, awaited."""
        return await requests.change_status(self._open(), token, Change.ACTIVATE, None, None)

    @async_call_boundary
    async def suspend(self, token: str, *, by: Actor, requestor: str | None = None) -> TokenInfo:
        """As `Vault.suspend`, awaited."""
        return await requests.change_status(self._open(), token, Change.SUSPEND, by, requestor)

    @async_call_boundary
    async def resume(self, token: str, *, by: Actor, requestor: str | None = None) -> TokenInfo:
        """As `Vault.resume`, awaited."""
        return await requests.change_status(self._open(), token, Change.RESUME, by, requestor)

    @async_call_boundary
    async def delete(self, token: str, *, requestor: str | None = None) -> TokenInfo:
        """As `Vault.delete`, awaited."""
        return await requests.change_status(self._open(), token, Change.DELETE, None, requestor)

    @async_call_boundary
    async def update_domain(
        self, token: str, domain: Domain | None, *, requestor: str | None = None
    ) -> TokenInfo:
        """As `Vault.update_domain`, awaited."""
        return await requests.update_domain(self._open(), token, domain, requestor)

    @async_call_boundary
    async def update_card(
        self,
        pan: str | Pan,
        *,
        new_pan: str | Pan | None = None,
        expiry: str | CardExpiry | None = None,
        requestor: str | None = None,
    ) -> list[TokenInfo]:
        """As `Vault.update_card`, awaited."""
        return await requests.update_card(self._open(), pan, new_pan, expiry, requestor)

    @async_call_boundary
    async def tokens_of(self, pan: str | Pan, *, requestor: str | None = None) -> list[TokenInfo]:
        """As `Vault.tokens_of`, awaited."""
        return await requests.tokens_of(self._open(), pan, requestor)

    @async_call_boundary
    async def get(self, token_or_reference: str) -> TokenInfo:
        """As `Vault.get`, awaited."""
        return await requests.get(self._open(), token_or_reference)

    @async_call_boundary
    async def history(
        self, token_or_reference: str, *, after: int = 0, limit: int = HISTORY_MAX
    ) -> list[AuditEvent]:
        """As `Vault.history`, awaited."""
        return await requests.history(self._open(), token_or_reference, after, limit)

    @async_boundary
    async def close(self) -> None:
        """As `Vault.close`, awaited."""
        core, self._core = self._core, None
        try:
            if core is not None:
                await closing.close(core, self._calls, self._pid)
        finally:
            if self._runtime is not None:
                self._runtime.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(*(() if error is None else (TokenVaultError,))):  # the error on its way tells more
            await self.close()

    def _open(self) -> Core:
        if self._core is None:
            raise ConfigurationError(
                "this vault is not open: open one with 'async with'" if self._runtime is None else CLOSED
            )
        return self._core


def _awaited(store: AsyncTokenStore) -> AsyncTokenStore:
    if not inspect.iscoroutinefunction(getattr(store, "check_schema", None)):
        raise InvalidInputError(
            "an AsyncVault takes a token store with coroutines: open it with open_async_token_store, or put a"
            " blocking one into a ThreadedTokenStore"
        )
    return store
