"""The rooms that changes are planted in, each with the test files that have to notice."""

from __future__ import annotations

from typing import Final, NamedTuple


class Room(NamedTuple):
    """Where changes are planted, and who has to notice.

    Attributes:
        places: modules and folders of the package.
        tests: files of tests/. Not those that compare the text of modules: they notice everything.
        generated: modules among the places that are written by a tool, from others.
        left_out: parts of the names of tests that are not run: other stores, where one is as good as all.
    """

    places: tuple[str, ...]
    tests: tuple[str, ...]
    generated: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


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
    "test_shamir.py",
)
_VAULT_TESTS: Final = (
    "test_acknowledge.py",
    "test_answers.py",
    "test_archive.py",
    "test_async_vault.py",
    "test_audit.py",
    "test_audit_feed.py",
    "test_audit_index.py",
    "test_audit_macs.py",
    "test_audit_notes.py",
    "test_audit_open_tails.py",
    "test_audit_payloads.py",
    "test_audit_planted.py",
    "test_audit_planted_streams.py",
    "test_audit_signatures.py",
    "test_audit_trail.py",
    "test_batch_changes.py",
    "test_batch_event.py",
    "test_batch_ledger.py",
    "test_batch_races.py",
    "test_batches.py",
    "test_borders.py",
    "test_capacity.py",
    "test_clear_ids.py",
    "test_clock.py",
    "test_convergent_limits.py",
    "test_decision.py",
    "test_directory.py",
    "test_disclosure.py",
    "test_domain.py",
    "test_dual_control.py",
    "test_event_index.py",
    "test_event_lines.py",
    "test_evidence.py",
    "test_export_cards.py",
    "test_feed_position.py",
    "test_formats_document.py",
    "test_guard.py",
    "test_guesses.py",
    "test_health.py",
    "test_host_failures.py",
    "test_idempotency.py",
    "test_import_tokens.py",
    "test_importing.py",
    "test_interrupted_paths.py",
    "test_issue_from.py",
    "test_journal.py",
    "test_key_ceremony.py",
    "test_kinds.py",
    "test_leaks.py",
    "test_ledger_machine.py",
    "test_lifecycle.py",
    "test_maintenance.py",
    "test_merkle.py",
    "test_messages.py",
    "test_metadata.py",
    "test_observers.py",
    "test_ocsf.py",
    "test_padded_fields.py",
    "test_pan.py",
    "test_pan_columns.py",
    "test_payments.py",
    "test_periods.py",
    "test_provision.py",
    "test_public_arguments.py",
    "test_purge.py",
    "test_purge_note.py",
    "test_purge_verification.py",
    "test_random_tampering.py",
    "test_records.py",
    "test_retention.py",
    "test_reveal.py",
    "test_risk.py",
    "test_rotation.py",
    "test_rules.py",
    "test_search.py",
    "test_since_authentication.py",
    "test_small_differences.py",
    "test_strict_parsing.py",
    "test_tampering.py",
    "test_token_formats.py",
    "test_vault.py",
    "test_vault_closing.py",
    "test_vault_faults.py",
    "test_vault_follow_ups.py",
    "test_vault_machine.py",
    "test_vault_outages.py",
    "test_verification_edges.py",
    "test_within.py",
)
"""The model, the trail and the vault are used by one another: what one shows, the tests of all notice."""

_RECORDS_TESTS: Final = (
    "test_records.py",
    "test_record_fields.py",
    "test_keyring.py",
    "test_sealing_columns.py",
    "test_found_records.py",
    "test_unsound_rows.py",
    "test_metadata.py",
    "test_key_table.py",
    "test_formats_document.py",
    "test_event_index.py",
    "test_provision.py",
    "test_import_tokens.py",
    "test_rotation_of_indexes.py",
    "test_tampering.py",
    "test_vault.py",
)
_OTHER_STORES: Final = ("postgres", "async-sqlite")
_ONE_STORE: Final = (*_OTHER_STORES, "[sqlite", "-sqlite", "[module")
"""Leaves a store in memory, and keys of the process."""


ROOMS: Final = {
    "crypto": Room(("crypto",), _CRYPTO_TESTS),
    "columns": Room(("columns",), (*_CRYPTO_TESTS, "test_pan_columns.py", "test_vaultless_columns.py")),
    "audit": Room(("audit",), _VAULT_TESTS, left_out=_ONE_STORE),
    "records": Room(("records",), _RECORDS_TESTS, left_out=_OTHER_STORES),
    "model": Room(("model",), _VAULT_TESTS, left_out=_ONE_STORE),
    "vault": Room(
        ("vault",),
        _VAULT_TESTS,
        generated=("vault/blocking.py", "vault/exchange_blocking.py"),
        left_out=_ONE_STORE,
    ),
}
