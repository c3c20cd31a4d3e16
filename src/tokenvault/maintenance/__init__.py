"""Maintenance beside running vaults: keys that rotate, records that follow them, an inventory, and retention.

`tokenvault.maintenance.awaited` has the same functions as coroutines, over a store with coroutines.
"""

from tokenvault.maintenance.archiving import Archived
from tokenvault.maintenance.blocking import (
    add_key_version,
    archive_events,
    destroy,
    forget,
    introduce_signer,
    inventory,
    make_primary,
    purge,
    refingerprint,
    reseal,
    retire,
)
from tokenvault.maintenance.policy import Retention
from tokenvault.maintenance.renewal import Progress
from tokenvault.maintenance.retention import Purged
from tokenvault.maintenance.rotation import Usage

__all__ = [
    "Archived",
    "Progress",
    "Purged",
    "Retention",
    "Usage",
    "add_key_version",
    "archive_events",
    "destroy",
    "forget",
    "introduce_signer",
    "inventory",
    "make_primary",
    "purge",
    "refingerprint",
    "reseal",
    "retire",
]
