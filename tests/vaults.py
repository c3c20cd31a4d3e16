"""A vault's configuration for tests, in one place: programs, requestors, cards."""

from __future__ import annotations

from typing import Any

import tokenvault as tv
from tests.faces import open_face
from tests.strategies import NOW_MS
from tokenvault.audit.batch_event import BATCH
from tokenvault.keys import KeyStore
from tokenvault.runtime import Clock
from tokenvault.stores.port import SealedEvent, SealedRecord, TokenStore
from tokenvault.testing.clock import ManualClock

SHOP, ACQUIRER, ISSUER_ONLY, STRANGER = "40012345678", "40087654321", "40000000001", "40099999999"
VISA, MASTERCARD, AMEX = "4111111111111111", "5555555555554444", "378282246310005"

RANDOM = tv.TokenProgram("one-time", format=tv.TokenFormat(bin="999913"))
CONVERGENT = tv.TokenProgram(
    "card-on-file", format=tv.TokenFormat(bin="999912", keep_last4=True), making=tv.Making.CONVERGENT
)
ONLINE = tv.TokenProgram(
    "online",
    format=tv.TokenFormat(bin="999914", luhn=False),
    domain=tv.Domain(channels={tv.Channel.ECOMMERCE}),
)
TINY = tv.TokenProgram(
    "tiny", format=tv.TokenFormat(bin="99991500000", length=13), expected_tokens=5, accept_density=True
)
TINY_CONVERGENT = tv.TokenProgram(
    "tiny-convergent",
    format=tv.TokenFormat(bin="99991600000", length=13),
    making=tv.Making.CONVERGENT,
    expected_tokens=5,
    accept_density=True,
)
PROGRAMS = (RANDOM, CONVERGENT, ONLINE, TINY, TINY_CONVERGENT)
REQUESTORS = (
    tv.TokenRequestor(SHOP, programs={program.name for program in PROGRAMS}),
    tv.TokenRequestor(ACQUIRER, permissions={tv.Permission.DETOKENIZE}),
    tv.TokenRequestor(ISSUER_ONLY, permissions={tv.Permission.ISSUE}, programs={"one-time", "card-on-file"}),
)

REVEAL = tv.RevealPolicy(purposes={"chargeback", "fraud inquiry"}, minutes=15, per_person_and_day=5)


def open_vault(keys: KeyStore, store: TokenStore, clock: Clock | None = None, **parts: Any) -> tv.Vault:
    given = {"programs": PROGRAMS, "requestors": REQUESTORS, "reveal": REVEAL, **parts}
    return open_face(keys, store, clock=clock or ManualClock(NOW_MS), **given)


def issue(vault: tv.Vault, pan: str = VISA, **arguments: Any) -> tv.TokenInfo:
    return vault.issue(pan, **{"expiry": "2029-12", "requestor": SHOP, "program": "one-time", **arguments})


def use(number: int | str = 1, **arguments: Any) -> tv.Transaction:
    return tv.Transaction(**{"id": f"tx-{number}", "requestor": SHOP, **arguments})


def all_records(store: TokenStore) -> list[SealedRecord]:
    found: list[SealedRecord] = []
    while page := store.scan(after=found[-1].token if found else ""):
        found += page
    return found


def all_events(store: TokenStore, stream: bytes) -> list[SealedEvent]:
    found: list[SealedEvent] = []
    while page := store.events(stream=stream, after=found[-1].number if found else 0):
        found += page
    return found


def batch_events(store: TokenStore) -> list[SealedEvent]:
    """The events of batches, stream after stream."""
    streams = [all_events(store, stream) for stream in sorted(store.streams())]
    return [row for rows in streams for row in rows if row.reference == BATCH]
