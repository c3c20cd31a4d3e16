"""The cryptographic inventory of a database as a CycloneDX 1.6 bill of materials (CBOM; PCI DSS 4.0.1, 12.3.3).

Written by hand: it has six kinds of fields, and a library for them would be needed at run time.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Final

from tokenvault.audit.checkpoint import key_id_of
from tokenvault.keys.port import KEY_BYTES, KeyPurpose
from tokenvault.maintenance.rotation import usage_of
from tokenvault.maintenance.upkeep import Upkeep
from tokenvault.records.key_table import KeyEntry, KeyState

_VENDOR: Final = "tokenvault"
_ALGORITHMS: Final = {
    KeyPurpose.SEAL: ("AES-256-CCM", "ae", "ccm", ("encrypt", "decrypt"), "NIST SP 800-38C"),
    KeyPurpose.FINGERPRINT: ("AES-256-CMAC", "mac", None, ("tag",), "NIST SP 800-38B"),
    KeyPurpose.FPE: ("FF1-AES-256", "block-cipher", "other", ("encrypt", "decrypt"), "NIST SP 800-38G"),
    KeyPurpose.AUDIT: ("AES-256-CMAC-audit", "mac", None, ("tag", "verify"), "NIST SP 800-38B"),
}
_SIGNATURE: Final = ("ECDSA-P256-SHA256", "signature", None, ("sign", "verify"), "FIPS 186-5")
_STATES: Final = {
    KeyState.READABLE: "active",
    KeyState.PRIMARY: "active",
    KeyState.RETIRED: "deactivated",
    KeyState.DESTROYED: "destroyed",
}
"""As NIST SP 800-57 part 1 names them, which CycloneDX follows."""


async def inventory(rows: bool, at: Upkeep) -> dict[str, Any]:
    """The bill of materials as JSON objects; with `rows`, the rows under each key version are counted."""
    table = at.versions.table
    entries: list[tuple[KeyEntry, int | None]] = []
    for entry in table.entries:
        counted = rows and entry.name.purpose is not KeyPurpose.FPE and entry.state is not KeyState.DESTROYED
        there = counted and entry.name.version in await at.runtime.block(at.keys.versions, entry.name.purpose)
        entries.append((entry, (await usage_of(entry.name, at)).needed_by if there else None))
    signer = at.versions.ring.audit.signer
    public_key = None if signer is None else await at.runtime.block(lambda: signer.public_key)
    algorithms = [
        _algorithm(*each) for each in (*_ALGORITHMS.values(), *([_SIGNATURE] if public_key else []))
    ]
    components = [*algorithms, *(_key(entry, count) for entry, count in entries)]
    if public_key is not None:
        components.append(_signing_key(public_key))
    now = datetime.fromtimestamp(at.clock.now_ms() / 1_000, UTC)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": _time(now),
            "component": {"type": "application", "bom-ref": _VENDOR, "name": _VENDOR},
        },
        "components": components,
    }


def _algorithm(
    name: str, primitive: str, mode: str | None, functions: tuple[str, ...], standard: str
) -> dict[str, Any]:
    properties = {
        "primitive": primitive,
        "parameterSetIdentifier": "P-256" if primitive == "signature" else "256",
        **({} if mode is None else {"mode": mode}),
        "cryptoFunctions": list(functions),
        "classicalSecurityLevel": 128 if primitive == "signature" else 256,
        "nistQuantumSecurityLevel": 0 if primitive == "signature" else 5,
    }
    return {
        "type": "cryptographic-asset",
        "bom-ref": f"algorithm/{name}",
        "name": name,
        "cryptoProperties": {"assetType": "algorithm", "algorithmProperties": properties},
        "properties": [_property("standard", standard)],
    }


def _key(entry: KeyEntry, rows: int | None) -> dict[str, Any]:
    """A key version. Its value is nowhere; its check value identifies it."""
    purpose = entry.name.purpose
    facts = {
        "purpose": purpose.value,
        "version": str(entry.name.version),
        "state": entry.state.name.lower(),
        "custody": entry.custody.value,
        "check-value": entry.check.hex(),
        **({} if rows is None else {"rows": str(rows)}),
    }
    return {
        "type": "cryptographic-asset",
        "bom-ref": f"key/{purpose.value}/{entry.name.version}",
        "name": f"{purpose.value} key, version {entry.name.version}",
        "version": str(entry.name.version),
        "cryptoProperties": {
            "assetType": "related-crypto-material",
            "relatedCryptoMaterialProperties": {
                "type": "secret-key",
                "id": f"{purpose.value}/{entry.name.version}",
                "state": _STATES[entry.state],
                "algorithmRef": f"algorithm/{_ALGORITHMS[purpose][0]}",
                "creationDate": _time(datetime.fromtimestamp(entry.created_ms / 1_000, UTC)),
                "size": 8 * KEY_BYTES,
            },
        },
        "properties": [_property(name, value) for name, value in facts.items()],
    }


def _signing_key(public_key: bytes) -> dict[str, Any]:
    return {
        "type": "cryptographic-asset",
        "bom-ref": "key/signing",
        "name": "key that signs checkpoints",
        "cryptoProperties": {
            "assetType": "related-crypto-material",
            "relatedCryptoMaterialProperties": {
                "type": "public-key",
                "id": key_id_of(public_key).hex(),
                "state": "active",
                "algorithmRef": f"algorithm/{_SIGNATURE[0]}",
                "size": 256,
            },
        },
        "properties": [_property("sha256", hashlib.sha256(public_key).hexdigest())],
    }


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"{_VENDOR}:{name}", "value": value}


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
