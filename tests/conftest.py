"""Fixtures that many tests use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import softhsm

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def softhsm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The token folder of this test run."""
    folder = tmp_path_factory.mktemp("softhsm")
    softhsm.set_up(folder)
    return folder


@pytest.fixture
def softhsm_uri(softhsm_folder: Path) -> str:
    """The URI of a fresh, empty SoftHSM token with a PIN file."""
    return softhsm.new_token(softhsm_folder)


@pytest.fixture(scope="session")
def shared_softhsm_uri(softhsm_folder: Path) -> str:
    """The URI of one SoftHSM token for all tests that do not mind the keys of others in it."""
    return softhsm.new_token(softhsm_folder)
