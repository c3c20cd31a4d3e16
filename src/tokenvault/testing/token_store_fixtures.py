"""What every part of the conformance kit of token stores starts from: the fixtures `harness` and `store`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from tokenvault.stores.port import TokenStore
from tokenvault.testing.token_store_harness import Capability, StoreHarness


class TokenStoreFixtures:
    """One database for each test."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)

    @pytest.fixture
    def harness(self) -> StoreHarness:
        raise TypeError("override this fixture: it returns a StoreHarness over a fresh database")

    @pytest.fixture
    def store(self, harness: StoreHarness) -> Iterator[TokenStore]:
        store = harness.open()
        store.provision()
        yield store
        store.close()
        harness.close()

    def require(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            pytest.skip(f"the adapter does not claim to be {capability.value}")
