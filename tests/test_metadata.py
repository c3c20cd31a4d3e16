"""Metadata in any script, as much of it as is allowed, goes through the store and comes back."""

from __future__ import annotations

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import SHOP, VISA, issue
from tokenvault.keys import KeyStore, LocalBlockCipher
from tokenvault.model.counters import COUNTERS_MAX, Counter, Usage
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.records import sealing
from tokenvault.records.layout import NEW_BODY_BYTES_MAX
from tokenvault.records.record import TokenRecord
from tokenvault.stores import MemoryTokenStore
from tokenvault.stores.write_limits import BODY_BYTES_MAX

PAIRS = 16
CHARACTERS = {"ASCII": "v", "escaped": '"', "two bytes": "ü", "three bytes": "店", "four bytes": "😀"}


def longest(character: str) -> dict[str, str]:
    return {f"{number:02}".ljust(64, character): character * 64 for number in range(PAIRS)}


@pytest.mark.parametrize("kind", CHARACTERS)
def test_the_most_metadata_comes_back(local_keys: KeyStore, kind: str) -> None:
    """Of a token that is issued singly, in a batch, and changed."""
    pairs = longest(CHARACTERS[kind])
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault:
        token = issue(vault, metadata=pairs).token
        assert vault.get(token).metadata == pairs
        other = issue(vault, metadata={"a": "b"}).token
        assert vault.update_token(other, metadata=pairs).metadata == pairs
        assert vault.get(other).metadata == pairs


@pytest.mark.parametrize("pairs", [{"a" * 65: "b"}, {"a": "b" * 65}, {str(n): "b" for n in range(17)}])
def test_more_metadata_is_refused(local_keys: KeyStore, pairs: dict[str, str]) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    with (
        vaults.open_vault(local_keys, store) as vault,
        pytest.raises(tv.InvalidInputError) as refused,
    ):
        vault.issue(VISA, requestor=SHOP, program="one-time", metadata=pairs)
    assert refused.value.code == "METADATA_TOO_LONG"


def test_the_longest_bodies_are_within_their_bounds() -> None:
    """With the most metadata, in characters of four bytes, each optional part, and the most counters."""
    cipher = LocalBlockCipher(bytes(32))
    pairs = {chr(0x1F600 + number) * 64: "😀" * 64 for number in range(PAIRS)}
    new = TokenRecord(
        token="9999120000001111", reference=bytes(16), pan_fingerprint=bytes(16), requestor="40012345678",
        program="p", revision=1, domain=bytes(32), status=TokenStatus.WINDING_DOWN, created_ms=1, updated_ms=2,
        assurance="10", assurance_ms=1, par="V" * 29, purge_after_ms=1, batch=b"b" * 16, source=b"s" * 16,
        request=b"r" * 16, metadata=sealing.seal_metadata(pairs, bytes(16), cipher, 1), usage=Usage((), 7, 9, 16, 8),
    )  # fmt: skip
    counters = tuple(Counter(n.to_bytes(16), 2, 3, 1, 1, 5) for n in range(COUNTERS_MAX))
    used = new._replace(usage=new.usage._replace(counters=counters))
    assert len(new.body()) <= NEW_BODY_BYTES_MAX < len(used.body()) <= BODY_BYTES_MAX
    assert sealing.unseal_metadata(new.metadata, bytes(16), cipher) == pairs
