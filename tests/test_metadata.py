"""Metadata in any script, as much of it as is allowed, goes through the store and comes back."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import SHOP, VISA, issue
from tokenvault.keys import KeyStore, LocalBlockCipher
from tokenvault.model.counters import COUNTERS_MAX, Counter, Usage
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.records import sealing
from tokenvault.records.keyring import KeyRing
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


class Odd(UserDict[str, str]):
    """A mapping of the caller's own, whose `items` are what its one value says."""

    def __init__(self, *items: object) -> None:
        super().__init__(a="b")
        self._items = items

    def items(self) -> Any:
        return self._items


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"a": 5}, "names and values of metadata are printable texts"),
        ({5: "a"}, "names and values of metadata are printable texts"),
        ({"a": b"b"}, "names and values of metadata are printable texts"),
        ({"a": "b\n"}, "names and values of metadata are printable texts"),
        ({"a\x00": "b"}, "names and values of metadata are printable texts"),
        (Odd(5), "metadata is a mapping of texts to texts"),
        (Odd("ab"), "metadata is a mapping of texts to texts"),
        (Odd(("a",)), "metadata is a mapping of texts to texts"),
        (Odd(("a", "b", "c")), "metadata is a mapping of texts to texts"),
        ([("a", "b")], "metadata is a mapping of texts to texts"),
    ],
)
def test_metadata_that_is_no_mapping_of_printable_texts_is_refused(
    local_keys: KeyStore, pairs: Any, message: str
) -> None:
    """By each call that takes it, and nothing is issued or changed."""
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault:
        token = issue(vault, metadata={"a": "b"}).token
        calls: list[Callable[[], object]] = [
            lambda: issue(vault, metadata=pairs),
            lambda: vault.update_token(token, metadata=pairs),
            lambda: raised(
                vault.issue_many([{"pan": VISA, "metadata": pairs}], requestor=SHOP, program="one-time")
            ),
            lambda: raised(vault.update_token_many([(token, {"metadata": pairs})])),
        ]
        for call in calls:
            with pytest.raises(tv.InvalidInputError) as refused:
                call()
            assert (refused.value.code, str(refused.value)) == ("INVALID_INPUT", message)
        assert [info.metadata for info in vault.tokens_of(VISA)] == [{"a": "b"}]


def raised(results: tv.BatchResult[Any]) -> None:
    """The error of a batch's only item, as a single call raises it."""
    (result,) = results
    if isinstance(result, tv.TokenVaultError):
        raise result


def test_each_token_of_a_batch_has_the_metadata_that_its_card_came_with(local_keys: KeyStore) -> None:
    """Also two cards with the same pairs: sealed for each token alone, so that neither fits the other's record."""
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    pairs: list[dict[str, str]] = [{"a": "b"}, {"a": "b"}, {}, {"c": "d", "e": "f"}]
    cards: list[Any] = [{"pan": VISA, "metadata": each} for each in pairs]
    with vaults.open_vault(local_keys, store) as vault:
        issued = list(vault.issue_many(cards, requestor=SHOP, program="one-time"))
        tokens = [info.token for info in issued if isinstance(info, tv.TokenInfo)]
        assert [vault.get(token) for token in tokens] == issued
        assert [vault.get(token).metadata for token in tokens] == pairs
    ring = KeyRing(local_keys)
    sealed = [ring.unseal(row)[0].metadata for token in tokens for row in store.get([token])]
    assert sealed[2] == b""
    assert len({*sealed}) == 4


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
