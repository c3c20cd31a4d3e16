"""The rooms that changes are planted in, each with the test files that have to notice."""

from __future__ import annotations

from typing import Final, NamedTuple


class Room(NamedTuple):
    """Where changes are planted, and who has to notice.

    Attributes:
        places: modules and folders of the package.
        tests: files of tests/. Not those that compare the text of modules: they notice everything.
        generated: modules among the places that are written by a tool, from others.
    """

    places: tuple[str, ...]
    tests: tuple[str, ...]
    generated: tuple[str, ...] = ()


_CRYPTO_TESTS: Final = (
    "test_ff1.py",
    "test_ff1_columns.py",
    "test_ccm.py",
    "test_ccm_cmac_columns.py",
    "test_cmac.py",
    "test_kdf.py",
    "test_local_cipher.py",
    "test_crypto_limits.py",
    "test_columns.py",
)
_VAULT_TESTS: Final = (
    "test_vault.py",
    "test_batches.py",
    "test_vault_machine.py",
    "test_provision.py",
    "test_async_vault.py",
    "test_vault_closing.py",
    "test_vault_faults.py",
    "test_vault_outages.py",
    "test_vault_round_trips.py",
    "test_tampering.py",
    "test_leaks.py",
    "test_fuzz.py",
)

ROOMS: Final = {
    "crypto": Room(("crypto",), _CRYPTO_TESTS),
    "columns": Room(("columns",), (*_CRYPTO_TESTS, "test_pan_columns.py", "test_vaultless_columns.py")),
    "audit": Room(
        ("audit",),
        (
            "test_audit.py",
            "test_audit_planted.py",
            "test_audit_planted_streams.py",
            "test_audit_signatures.py",
            "test_audit_trail.py",
            "test_batches.py",
            "test_merkle.py",
            "test_journal.py",
        ),
    ),
    "records": Room(
        ("records",),
        ("test_records.py", "test_sealing_columns.py", "test_found_records.py", *_VAULT_TESTS),
    ),
    "model": Room(
        ("model",),
        (
            "test_pan.py",
            "test_pan_columns.py",
            "test_token_formats.py",
            "test_lifecycle.py",
            "test_domain.py",
            "test_decision.py",
            *_VAULT_TESTS,
        ),
    ),
    "vault": Room(("vault",), _VAULT_TESTS, generated=("vault/blocking.py", "vault/exchange_blocking.py")),
}
