"""Errors: one base for all, and what each tells."""

from typing import assert_type

import tokenvault as tv


def caught(vault: tv.Vault, use: tv.Transaction) -> None:
    try:
        vault.detokenize("9999120000001111", use)
    except tv.DomainRestrictionError as refused:
        assert_type(refused.violations, tuple[tv.Violation, ...])
        assert_type(refused.response_code, str)
    except (tv.TokenNotFoundError, tv.PermissionDeniedError, tv.InvalidInputError) as refused:
        assert_type(refused.response_code, str)
    except tv.TokenVaultError as failed:
        assert_type(failed.response_code, str)


def one_base() -> None:
    every: list[type[tv.TokenVaultError]] = [
        tv.ConfigurationError,
        tv.ConflictError,
        tv.DomainRestrictionError,
        tv.IntegrityError,
        tv.InvalidInputError,
        tv.KeyStoreError,
        tv.LifecycleError,
        tv.PermissionDeniedError,
        tv.TokenNotFoundError,
        tv.TokenSpaceExhausted,
        tv.TokenStoreError,
    ]
    assert_type(every[0].response_code, str)
    as_builtin_errors(tv.InvalidInputError("the message"))


def as_builtin_errors(_invalid: ValueError) -> None:
    """An argument that is not accepted is a ValueError too."""
