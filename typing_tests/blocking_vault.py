"""`Vault`: what each method takes and gives."""

from collections.abc import Generator, Iterator
from itertools import repeat
from typing import assert_type

import numpy as np
import numpy.typing as npt

import tokenvault as tv
from tokenvault.keys import KeyStore
from tokenvault.stores import TokenStore


def opened(keys: KeyStore, store: TokenStore, program: tv.TokenProgram, shop: tv.TokenRequestor) -> None:
    assert_type(tv.provision(keys, store), None)
    assert_type(tv.provision(keys, store, custody=tv.Custody.IN_MODULE), None)
    vault = tv.Vault(keys, store, programs=[program], requestors=(shop,), checkpoints=tv.CheckpointPolicy())
    assert_type(vault, tv.Vault)
    with vault as entered:
        assert_type(entered, tv.Vault)
    assert_type(vault.close(), None)
    tv.Vault(keys, store, [program])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tv.Vault(keys, "sqlite:///vault.db")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def issued(vault: tv.Vault, domain: tv.Domain, pan: tv.Pan, expiry: tv.CardExpiry) -> None:
    assert_type(vault.issue("4111111111111111", requestor="40012345678", program="shop"), tv.TokenInfo)
    assert_type(
        vault.issue(
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
    vault.issue("4111111111111111", "40012345678", "shop")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    vault.issue("4111111111111111", program="shop")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def used(vault: tv.Vault, use: tv.Transaction) -> None:
    assert_type(vault.check("9999120000001111", use), tv.Decision)
    assert_type(vault.detokenize("9999120000001111", use), tv.Card)
    vault.detokenize("9999120000001111")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def in_batches(
    vault: tv.Vault, pans: Iterator[str], pan: tv.Pan, use: tv.Transaction, domain: tv.Domain
) -> None:
    issued = vault.issue_many(pans, requestor="40012345678", program="shop")
    assert_type(issued, tv.IssueBatchResult[tv.TokenInfo])
    assert_type(issued.tokens, npt.NDArray[np.bytes_])
    vault.issue_many(
        [pan, (pan, "2039-12"), ("4111111111111111", None)],
        requestor="40012345678",
        program="shop",
        domain=domain,
        token_expiry=None,
        assurance="02",
        active=False,
    )
    uses = zip(["9999120000001111"], repeat(use), strict=False)
    checked = vault.check_many(uses)
    assert_type(checked, tv.BatchResult[tv.Decision])
    cards = vault.detokenize_many([("9999120000001111", use)])
    assert_type(cards, tv.BatchResult[tv.Card])
    assert_type(len(cards), int)
    assert_type(cards[0], tv.Card | tv.TokenVaultError)
    assert_type(cards[:2], list[tv.Card | tv.TokenVaultError])
    assert_type(list(cards), list[tv.Card | tv.TokenVaultError])
    assert_type(cards.errors, dict[int, tv.TokenVaultError])
    assert_type(cards.failed, bool)
    assert_type([each.pan for each in cards if isinstance(each, tv.Card)], list[tv.Pan])


def managed(vault: tv.Vault, domain: tv.Domain, pan: tv.Pan) -> None:
    token = "9999120000001111"
    assert_type(vault.activate(token), tv.TokenInfo)
    assert_type(vault.suspend(token, by=tv.Actor.ISSUER), tv.TokenInfo)
    assert_type(vault.resume(token, by=tv.Actor.REQUESTOR, requestor="40012345678"), tv.TokenInfo)
    assert_type(vault.delete(token, requestor="40012345678"), tv.TokenInfo)
    assert_type(vault.update_domain(token, domain), tv.TokenInfo)
    assert_type(vault.update_domain(token, None, requestor="40012345678"), tv.TokenInfo)
    assert_type(vault.update_card(pan, new_pan="5555555555554444", expiry="2039-12"), list[tv.TokenInfo])
    vault.suspend(token)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    vault.suspend(token, by="issuer")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def looked_up(vault: tv.Vault, pan: tv.Pan) -> None:
    assert_type(vault.get("9999120000001111"), tv.TokenInfo)
    assert_type(vault.tokens_of(pan), list[tv.TokenInfo])
    assert_type(vault.tokens_of("4111111111111111", requestor="40012345678"), list[tv.TokenInfo])
    assert_type(vault.history("9999120000001111", after=100, limit=100), list[tv.AuditEvent])


def audited(keys: KeyStore, store: TokenStore) -> None:
    report = tv.verify_audit(store, keys=keys)
    assert_type(report, tv.AuditReport)
    assert_type(report.findings, tuple[tv.AuditFinding, ...])
    assert_type(report.intact, bool)
    assert_type(report.anchor(), str)
    assert_type(tv.audit_public_key(keys), str | None)
    assert_type(tv.export_audit(store, keys=keys), Generator[tv.AuditLine, None, None])
