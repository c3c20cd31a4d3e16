"""Maintenance beside running vaults: keys that rotate, records that follow them, an inventory, and retention.

`tokenvault.maintenance.awaited` has the same functions as coroutines, over a store with coroutines.
"""

from tokenvault.maintenance.blocking import (
    add_key_version,
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
from tokenvault.maintenance.renewal import Progress
from tokenvault.maintenance.retention import Purged
from tokenvault.maintenance.rotation import Usage

__all__ = [
    "Progress",
    "Purged",
    "Usage",
    "add_key_version",
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
