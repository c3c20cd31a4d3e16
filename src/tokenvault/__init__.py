"""Payment tokens bound to a domain: a token vault as a library.

Everything a caller needs stands here; `tokenvault.ff1`, `tokenvault.keys` and `tokenvault.testing` hold the
rest that is public. Nothing happens at import.
"""

from tokenvault.async_vault import AsyncVault, provision_async
from tokenvault.audit.event import AuditEvent
from tokenvault.audit.report import AuditFinding, AuditReport, FindingKind
from tokenvault.audit.verification import audit_public_key, export_audit, verify_audit
from tokenvault.checkpoint import CheckpointPolicy
from tokenvault.controls import Channel, CryptogramRule, Limit, Money
from tokenvault.decision import Decision
from tokenvault.domain import Domain
from tokenvault.errors import (
    ConfigurationError,
    ConflictError,
    DomainRestrictionError,
    IntegrityError,
    InvalidInputError,
    KeyStoreError,
    LifecycleError,
    PermissionDeniedError,
    TokenNotFoundError,
    TokenSpaceExhausted,
    TokenStoreError,
    TokenVaultError,
)
from tokenvault.formats import TokenFormat
from tokenvault.keys import Custody, KeyPurpose, open_key_store
from tokenvault.lifecycle import Actor, TokenStatus
from tokenvault.outcomes import IssueOutcomes, Outcomes
from tokenvault.pan import Card, CardExpiry, Pan
from tokenvault.programs import Making, Permission, TokenProgram, TokenRequestor
from tokenvault.stores import open_async_token_store, open_token_store
from tokenvault.token_info import TokenInfo
from tokenvault.transaction import Transaction
from tokenvault.vault import Vault, provision
from tokenvault.vaultless import VaultlessTokenizer
from tokenvault.violation import Violation

__version__ = "0.1.0.dev0"

__all__ = [
    "Actor",
    "AsyncVault",
    "AuditEvent",
    "AuditFinding",
    "AuditReport",
    "Card",
    "CardExpiry",
    "Channel",
    "CheckpointPolicy",
    "ConfigurationError",
    "ConflictError",
    "CryptogramRule",
    "Custody",
    "Decision",
    "Domain",
    "DomainRestrictionError",
    "FindingKind",
    "IntegrityError",
    "InvalidInputError",
    "IssueOutcomes",
    "KeyPurpose",
    "KeyStoreError",
    "LifecycleError",
    "Limit",
    "Making",
    "Money",
    "Outcomes",
    "Pan",
    "Permission",
    "PermissionDeniedError",
    "TokenFormat",
    "TokenInfo",
    "TokenNotFoundError",
    "TokenProgram",
    "TokenRequestor",
    "TokenSpaceExhausted",
    "TokenStatus",
    "TokenStoreError",
    "TokenVaultError",
    "Transaction",
    "Vault",
    "VaultlessTokenizer",
    "Violation",
    "audit_public_key",
    "export_audit",
    "open_async_token_store",
    "open_key_store",
    "open_token_store",
    "provision",
    "provision_async",
    "verify_audit",
]
