"""Payment tokens bound to a domain: a token vault as a library.

Everything a caller needs stands here; `tokenvault.ff1`, `tokenvault.keys`, `tokenvault.rules` and
`tokenvault.testing` hold the rest that is public. Nothing happens at import.
"""

import pkgutil as _pkgutil

from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.export import AuditEvent
from tokenvault.audit.feed import AuditLine, export_audit
from tokenvault.audit.verify.report import AuditFinding, AuditReport, FindingKind, Grade
from tokenvault.audit.verify.trusted_keys import audit_public_key
from tokenvault.audit.verify.verify import verify_audit
from tokenvault.crypto import ff1
from tokenvault.errors import (
    ConfigurationError,
    ConflictError,
    DomainRestrictionError,
    IntegrityError,
    InvalidInputError,
    KeyStoreError,
    LifecycleError,
    PermissionDeniedError,
    RequestorLockedOutError,
    TokenNotFoundError,
    TokenSpaceExhaustedError,
    TokenStoreError,
    TokenVaultError,
    Violation,
)
from tokenvault.keys import Custody, KeyPurpose, KeyStore, open_key_store
from tokenvault.model.authentication import Authentication, Factor
from tokenvault.model.controls import CryptogramRule
from tokenvault.model.decision import Decision
from tokenvault.model.domain import Domain
from tokenvault.model.dual_control import RevealPolicy, RevealRequest
from tokenvault.model.iso import add_codes
from tokenvault.model.kinds import Kind
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.limits import Limit
from tokenvault.model.listing import AllBut
from tokenvault.model.money import Money
from tokenvault.model.pan import Card, CardExpiry, Pan, PanRule
from tokenvault.model.periods import Period
from tokenvault.model.programs import Making, Permission, TokenProgram, TokenRequestor
from tokenvault.model.remaining import Remaining
from tokenvault.model.token_format import TokenFormat
from tokenvault.model.transaction import Channel, Transaction
from tokenvault.records.token_info import TokenInfo
from tokenvault.runtime import Clock
from tokenvault.stores import AsyncTokenStore, TokenStore, open_async_token_store, open_token_store
from tokenvault.vault.awaited import AsyncVault, provision_async
from tokenvault.vault.batch.cards import CardToIssue
from tokenvault.vault.batch.change import CardChange, TokenChange
from tokenvault.vault.batch.imports import TokenToImport
from tokenvault.vault.batch.results import BatchResult, IssueBatchResult
from tokenvault.vault.blocking import Vault, provision
from tokenvault.vault.capacity import Capacity
from tokenvault.vault.directory import Directory, StaticDirectory, StoredDirectory
from tokenvault.vault.export import ExportReport, open_export
from tokenvault.vault.guard import Guard
from tokenvault.vault.health import Health, HealthPart
from tokenvault.vault.importing import ImportedRow, import_cards
from tokenvault.vault.risk import RiskAnswer, RiskControl, RiskDecision, RiskPolicy, RiskRequest
from tokenvault.vaultless.tokenizer import VaultlessTokenizer

__version__ = "0.1.0.dev0"

__all__ = [
    "Actor",
    "AllBut",
    "AsyncTokenStore",
    "AsyncVault",
    "AuditEvent",
    "AuditFinding",
    "AuditLine",
    "AuditReport",
    "Authentication",
    "BatchResult",
    "Capacity",
    "Card",
    "CardChange",
    "CardExpiry",
    "CardToIssue",
    "Channel",
    "CheckpointPolicy",
    "Clock",
    "ConfigurationError",
    "ConflictError",
    "CryptogramRule",
    "Custody",
    "Decision",
    "Directory",
    "Domain",
    "DomainRestrictionError",
    "ExportReport",
    "Factor",
    "FindingKind",
    "Grade",
    "Guard",
    "Health",
    "HealthPart",
    "ImportedRow",
    "IntegrityError",
    "InvalidInputError",
    "IssueBatchResult",
    "KeyPurpose",
    "KeyStore",
    "KeyStoreError",
    "Kind",
    "LifecycleError",
    "Limit",
    "Making",
    "Money",
    "Pan",
    "PanRule",
    "Period",
    "Permission",
    "PermissionDeniedError",
    "Remaining",
    "RequestorLockedOutError",
    "RevealPolicy",
    "RevealRequest",
    "RiskAnswer",
    "RiskControl",
    "RiskDecision",
    "RiskPolicy",
    "RiskRequest",
    "StaticDirectory",
    "StoredDirectory",
    "TokenChange",
    "TokenFormat",
    "TokenInfo",
    "TokenNotFoundError",
    "TokenProgram",
    "TokenRequestor",
    "TokenSpaceExhaustedError",
    "TokenStatus",
    "TokenStore",
    "TokenStoreError",
    "TokenToImport",
    "TokenVaultError",
    "Transaction",
    "Vault",
    "VaultlessTokenizer",
    "Violation",
    "add_codes",
    "audit_public_key",
    "export_audit",
    "ff1",
    "import_cards",
    "open_async_token_store",
    "open_export",
    "open_key_store",
    "open_token_store",
    "provision",
    "provision_async",
    "verify_audit",
]


def __dir__() -> list[str]:
    """The public names and the subpackages, for who looks around in a shell or an editor."""
    return sorted({*__all__, *(found.name for found in _pkgutil.iter_modules(__path__) if found.ispkg)})
