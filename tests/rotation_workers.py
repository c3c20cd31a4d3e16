"""What other processes do while keys rotate: module-level, so that spawn can import it."""

from __future__ import annotations

import itertools
import os
import random
import secrets
from contextlib import closing
from multiprocessing.connection import Connection

import tokenvault as tv
from tests import vaults
from tests.vault_workers import card_number
from tokenvault import maintenance
from tokenvault.keys import KeyPurpose

LIMITED = tv.Domain(limits=(tv.Limit(uses=10**6),))
"""So that every use writes its record."""


def issue_and_use(uri: str, url: str, told: Connection) -> None:
    """Issue tokens, each card by every process, use them, and tell of each once it is returned, in one write.

    A card has one token of each program: one converges, and the other is issued under one idempotency key. Its first
    use has one id in all processes, so that all but one of these are retries.
    """
    with (
        closing(tv.open_key_store(uri)) as keys,
        closing(tv.open_token_store(url)) as store,
        vaults.open_vault(keys, store) as vault,
    ):
        source = random.Random()
        for number in itertools.count():
            # Every other one is a new card: of every process the same, at about the same time.
            card = number // 2 if number % 2 else source.randint(0, number // 2)
            program = ("card-on-file", "one-time")[number % 5 == 4]
            pan = card_number(card)
            key = f"card {card}" if program == "one-time" else None
            token = vaults.issue(vault, pan, program=program, domain=LIMITED, idempotency_key=key).token
            for number_of_use in (f"first {card}", secrets.token_hex(8)):
                assert vault.detokenize(token, vaults.use(number_of_use)).pan.reveal() == pan
            os.write(told.fileno(), f"{card} {program} {token}\n".encode())


def rotate(uri: str, url: str, purpose: KeyPurpose, custody: tv.Custody, version: int) -> None:
    """Rotate a key to the end. Killed anywhere, it is taken up by being called again."""
    with closing(tv.open_key_store(uri)) as keys, closing(tv.open_token_store(url)) as store:
        maintenance.add_key_version(keys, store, purpose, custody, version=version)
        maintenance.make_primary(keys, store, purpose, version)
        maintenance.reseal(keys, store, page=20)
        maintenance.refingerprint(keys, store, page=20)
        for former in range(1, version):
            maintenance.retire(keys, store, purpose, former)
            if purpose is not KeyPurpose.AUDIT:
                maintenance.destroy(keys, store, purpose, former)
