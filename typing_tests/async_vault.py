"""`AsyncVault`: the methods of `Vault`, awaited."""

from collections.abc import Iterator
from typing import assert_type

import tokenvault as tv
from tokenvault.keys import KeyStore
from tokenvault.stores import AsyncTokenStoreBase


async def opened(keys: KeyStore, store: AsyncTokenStoreBase, program: tv.TokenProgram) -> None:
    assert_type(await tv.provision_async(keys, store), None)
    await tv.provision_async(keys, store, custody=tv.Custody.IN_MODULE)
    vault = tv.AsyncVault(
        keys,
        store,
        programs=[program],
        requestors=(),
        checkpoints=tv.CheckpointPolicy(),
    )
    assert_type(vault, tv.AsyncVault)
    async with vault as entered:
        assert_type(entered, tv.AsyncVault)
    assert_type(await vault.close(), None)
    tv.AsyncVault(keys, tv.open_token_store("memory:"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with vault:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


async def issued(vault: tv.AsyncVault, domain: tv.Domain, pan: tv.Pan, expiry: tv.CardExpiry) -> None:
    assert_type(await vault.issue("4111111111111111", requestor="40012345678", program="shop"), tv.TokenInfo)
    assert_type(
        await vault.issue(
            pan,
            expiry=expiry,
            requestor="40012345678",
            program="shop",
            domain=domain,
            token_expiry="2031-12",
            assurance="02",
            par="V0010013022298169667504231315",
            active=False,
        ),
        tv.TokenInfo,
    )
    await vault.issue("4111111111111111", program="shop")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def used(vault: tv.AsyncVault, use: tv.Transaction) -> None:
    assert_type(await vault.check("9999120000001111", use), tv.Decision)
    assert_type(await vault.detokenize("9999120000001111", use), tv.Card)
    await vault.detokenize("9999120000001111")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def in_batches(
    vault: tv.AsyncVault, pans: Iterator[str], use: tv.Transaction, domain: tv.Domain
) -> None:
    issued = await vault.issue_many(
        pans,
        requestor="40012345678",
        program="shop",
        domain=domain,
        token_expiry="2031-12",
        assurance="02",
        active=False,
    )
    assert_type(issued, tv.IssueBatchResult[tv.TokenInfo])
    assert_type(await vault.check_many([("9999120000001111", use)]), tv.BatchResult[tv.Decision])
    assert_type(await vault.detokenize_many([("9999120000001111", use)]), tv.BatchResult[tv.Card])


async def managed(vault: tv.AsyncVault, domain: tv.Domain, pan: tv.Pan) -> None:
    token = "9999120000001111"
    assert_type(await vault.activate(token), tv.TokenInfo)
    assert_type(await vault.suspend(token, by=tv.Actor.ISSUER), tv.TokenInfo)
    assert_type(await vault.resume(token, by=tv.Actor.REQUESTOR, requestor="40012345678"), tv.TokenInfo)
    assert_type(await vault.delete(token, requestor="40012345678"), tv.TokenInfo)
    assert_type(await vault.update_domain(token, domain, requestor="40012345678"), tv.TokenInfo)
    assert_type(await vault.update_domain(token, None), tv.TokenInfo)
    assert_type(
        await vault.update_card(pan, new_pan="5555555555554444", expiry="2039-12"), list[tv.TokenInfo]
    )
    await vault.suspend(token)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def looked_up(vault: tv.AsyncVault, pan: tv.Pan) -> None:
    assert_type(await vault.get("9999120000001111"), tv.TokenInfo)
    assert_type(await vault.tokens_of(pan, requestor="40012345678"), list[tv.TokenInfo])
    assert_type(await vault.history("9999120000001111", after=100, limit=100), list[tv.AuditEvent])
